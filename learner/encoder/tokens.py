"""Text to token ids, cached per text; the tokenizer found beside its encoder, or a small one built.

Invariant: ids are a pure function of (tokenizer, text, max_tokens); the cache only saves time.
"""

from __future__ import annotations

import string
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from learner.errors import ModelMissing

Ids = NDArray[np.int64]
_MAX_CACHED = 200_000


def load_tokenizer(path: Path) -> Any:
    """The tokenizer saved in a model's folder.

    Raises:
        ModelMissing: the folder holds no tokenizer that can be read.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(path), local_files_only=True)
    except (OSError, ValueError) as error:
        raise ModelMissing(f"{path}: no tokenizer: {error}") from error
    if len(tokenizer) <= len(
        tokenizer.all_special_ids
    ):  # transformers makes up an empty one where there are no files
        raise ModelMissing(
            f"{path}: no tokenizer: expected tokenizer.json or the vocabulary of the encoder, found no token in it"
        )
    return tokenizer


def letter_tokenizer() -> Any:
    """A word-piece tokenizer over single letters and digits: small, without training data, for encoders built on the spot."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    letters = string.ascii_lowercase + string.digits + string.punctuation
    vocabulary = {
        token: i for i, token in enumerate([*special, *letters, *(f"##{c}" for c in letters)])
    }
    raw = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    raw.normalizer = normalizers.BertNormalizer(lowercase=True)
    raw.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    raw.post_processor = processors.BertProcessing(
        ("[SEP]", vocabulary["[SEP]"]), ("[CLS]", vocabulary["[CLS]"])
    )
    names = {
        "pad_token": "[PAD]",
        "unk_token": "[UNK]",
        "cls_token": "[CLS]",
        "sep_token": "[SEP]",
        "mask_token": "[MASK]",
    }
    return PreTrainedTokenizerFast(tokenizer_object=raw, **names)  # type: ignore[no-untyped-call]


class Texts:
    """Token ids per text, computed once per text."""

    def __init__(self, tokenizer: Any, *, max_tokens: int) -> None:
        """Cut what is longer than `max_tokens`, special tokens included."""
        self.tokenizer = tokenizer
        self.max_tokens = max_tokens
        self._cache: OrderedDict[tuple[str, str | None], Ids] = OrderedDict()

    def ids(self, text: str, pair: str | None = None) -> Ids:
        """Ids (T,) of a text, or of a pair of which the first gets at most half the room, with special tokens; T <= max_tokens."""
        key = (text, pair)
        found = self._cache.get(key)
        if found is None:
            found = self._tokenise(text, pair)
            self._cache[key] = found
            if len(self._cache) > _MAX_CACHED:
                self._cache.popitem(last=False)
        return found

    def _tokenise(self, text: str, pair: str | None) -> Ids:
        if (
            pair is not None
        ):  # a query as long as the whole budget leaves no room for the second: cut the query to half of it
            half = (self.max_tokens - self.tokenizer.num_special_tokens_to_add(pair=True)) // 2
            words = self.tokenizer.encode(text, add_special_tokens=False)
            if len(words) > half:
                text = self.tokenizer.decode(words[:half])
        encoded = self.tokenizer(text, pair, truncation="longest_first", max_length=self.max_tokens)
        return np.asarray(encoded["input_ids"], dtype=np.int64)
