"""Text to token ids, cached per text.

Invariant: ids are a pure function of (tokenizer, text, max_tokens); the cache only saves time.
"""

from __future__ import annotations

import json
import string
import threading
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
from cachetools import FIFOCache
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from learner.encoder import given_files
from learner.errors import ModelMissing
from learner.passes.forward import Ids

#: Bytes of token ids kept, with what Python and the cache add to each.
MAX_CACHED_BYTES = 96 << 20
_OVERHEAD_BYTES = 400
_TRIED = ["a 0", "\N{SNOWMAN}"]  #: texts that any tokenizer has ids for
#: Characters read per token allowed: no ordinary text has tokens as long on average.
_CHARACTERS_PER_TOKEN = 64


def load_tokenizer(path: Path) -> Any:
    """Load the tokenizer saved in a model's folder.

    Raises:
        ModelMissing: the folder holds no tokenizer that can be read.
    """
    with given_files.reading(str(path), "no tokenizer", setting=""):
        tokenizer: Any = AutoTokenizer.from_pretrained(
            str(path), local_files_only=True, trust_remote_code=False
        )
    # transformers makes up an empty tokenizer where there are no files
    if len(tokenizer) <= len(tokenizer.all_special_ids):
        raise ModelMissing(
            f"{path}: no tokenizer: expected tokenizer.json or the vocabulary of the encoder, "
            "found no token in it"
        )
    if not tokenizer.is_fast:
        raise ModelMissing(
            f"{path}: {type(tokenizer).__name__} has no tokenizer.json, which a version needs. "
            "Save it with the tokenizers library, as transformers does by default."
        )
    with given_files.reading(str(path), "tokenizer.json", setting=""):
        tokenizer(_TRIED)
    return tokenizer


def letter_tokenizer() -> Any:
    """Build a word-piece tokenizer over single letters and digits, for random encoders."""
    special = {
        "pad_token": "[PAD]",
        "unk_token": "[UNK]",
        "cls_token": "[CLS]",
        "sep_token": "[SEP]",
        "mask_token": "[MASK]",
    }
    letters = string.ascii_lowercase + string.digits + string.punctuation
    pieces = [*special.values(), *letters, *(f"##{c}" for c in letters)]
    vocabulary = {token: i for i, token in enumerate(pieces)}
    first, last = (("[CLS]", vocabulary["[CLS]"]), ("[SEP]", vocabulary["[SEP]"]))
    raw = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    raw.normalizer = normalizers.BertNormalizer(lowercase=True)
    raw.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    raw.post_processor = processors.BertProcessing(last, first)
    return PreTrainedTokenizerFast(tokenizer_object=raw, **special)  # type: ignore[no-untyped-call]


def of_words(tokenizer: Any) -> Any:
    """Return a tokenizer for texts that are given as lists of words.

    Byte-level and metaspace tokenizers tell a word from its middle by the space before it, which
    they expect in the text: here every word has one.
    """
    described = json.loads(tokenizer.backend_tokenizer.to_str())
    described["truncation"] = described["padding"] = None
    _put_space_before(described.get("pre_tokenizer"))
    special = {key: str(value) for key, value in tokenizer.special_tokens_map.items()}
    raw = Tokenizer.from_str(json.dumps(described))
    return PreTrainedTokenizerFast(tokenizer_object=raw, **special)  # type: ignore[no-untyped-call]


def _put_space_before(pre_tokenizer: Any) -> None:
    if not pre_tokenizer:
        return
    if pre_tokenizer["type"] == "ByteLevel":
        pre_tokenizer["add_prefix_space"] = True
    if pre_tokenizer["type"] == "Metaspace":
        pre_tokenizer["prepend_scheme"] = "always"
    for inner in pre_tokenizer.get("pretokenizers", ()):
        _put_space_before(inner)


class Texts:
    """Token ids per text; those of the newest texts are kept, up to `MAX_CACHED_BYTES`.

    A text is cut to 64 characters per token before it is tokenised: what is behind them would be
    truncated in any ordinary text, and tokenising megabytes takes seconds. Keys are digests, so
    no text is kept but the last query. Threads may use it together.
    """

    def __init__(
        self, tokenizer: Any, *, max_tokens: int, max_bytes: int = MAX_CACHED_BYTES
    ) -> None:
        """Truncate texts to `max_tokens`, special tokens included; keep about `max_bytes`."""
        self.tokenizer = tokenizer
        self.max_tokens = max_tokens
        self._filler = _filler(tokenizer)
        self._max_characters = _CHARACTERS_PER_TOKEN * max_tokens
        self._cache: FIFOCache[bytes, Ids] = FIFOCache(max_bytes, getsizeof=_num_bytes)
        self._halved = ("", "")  # the last query of a pair, and what is left of it
        self._lock = threading.Lock()  # of the cache, and of a tokenizer that is told to truncate

    def ids(self, text: str, pair: str | None = None) -> Ids:
        """Return ids (T,), 1 <= T <= max_tokens, of a text or pair.

        The first text of a pair gets at most half the room.
        """
        text = text[: self._max_characters]
        pair = pair if pair is None else pair[: self._max_characters]
        key = _key(text, pair)
        with self._lock:
            found: Ids | None = self._cache.get(key)
            if found is None:
                found = self._tokenise(text, pair)
                if _num_bytes(found) <= self._cache.maxsize:
                    self._cache[key] = found
        return found

    def _tokenise(self, text: str, pair: str | None) -> Ids:
        if pair is not None:
            text = self._half(text)
        encoded = self.tokenizer(text, pair, truncation="longest_first", max_length=self.max_tokens)
        # Without special tokens an empty text has no token, and a mean over none is no vector
        return np.asarray(encoded["input_ids"] or [self._filler], dtype=np.int64)

    def _half(self, text: str) -> str:
        """Truncate a query to half of the budget, for the item's sake.

        A request's pairs share their query, so the last one is kept.
        """
        if text != self._halved[0]:
            self._halved = (text, self._truncated(text))
        return self._halved[1]

    def _truncated(self, text: str) -> str:
        room = (self.max_tokens - self.tokenizer.num_special_tokens_to_add(pair=True)) // 2
        ids = self.tokenizer.encode(text, add_special_tokens=False)
        return str(self.tokenizer.decode(ids[:room])) if len(ids) > room else text


def _filler(tokenizer: Any) -> int:
    """Return the token that stands for a text without any."""
    names = ("cls_token_id", "bos_token_id", "eos_token_id", "unk_token_id", "pad_token_id")
    known = [getattr(tokenizer, name, None) for name in names]
    return next((int(token) for token in known if token is not None), 0)


def _num_bytes(ids: Ids) -> int:
    return ids.nbytes + _OVERHEAD_BYTES


def _key(text: str, pair: str | None) -> bytes:
    data = text.encode("utf-8", "surrogatepass")
    if pair is None:
        return blake2b(data, digest_size=16).digest()
    both = b"%d %b%b" % (len(data), data, pair.encode("utf-8", "surrogatepass"))
    return blake2b(both, digest_size=16, person=b"pair").digest()
