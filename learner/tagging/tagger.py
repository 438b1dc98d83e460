"""The tagger: an encoder with a linear head per token, and the words that its tokens stand for.

Legend: n texts, W words of a text that have a token, T tokens of a text, K tags.

A word is tagged at its first token. Its other tokens, and special tokens, have no tag.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from learner import arithmetic
from learner import version_layout as layout
from learner.config import LearnerConfig
from learner.encoder.encoder import set_dropout
from learner.encoder.fit import check_fit
from learner.encoder.load import load_pretrained
from learner.encoder.token_head import head_of, logits_of, token_classifier
from learner.encoder.tokens import of_words
from learner.errors import TuningUnsupported
from learner.passes.forward import Ids, texts_of
from learner.passes.packing import passes_for
from learner.passes.pooling import POOLINGS
from learner.passes.products import use_fastest
from learner.store import blobs
from learner.tagging.entities import OUTSIDE
from learner.tuning import adapters, registry


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Tokens:
    """A text as the encoder reads it.

    Attributes:
        ids: (T,).
        places: (W,) first token of each word that has one.
        words: (W,) numbers of these words.
        num_words: of the text, with those that have none.
        num_cut: words beyond `learner.max_tokens`; others without a token are of characters that
            the tokenizer drops.
    """

    ids: Ids
    places: Ids
    words: Ids
    num_words: int
    num_cut: int


class Tagger:
    """An encoder and its head; resumes from the parameters that `moving` returned."""

    def __init__(self, config: LearnerConfig, tags: Sequence[str], *, tuning: str) -> None:
        """Load the encoder of the settings, and put a head of zeros on it.

        Args:
            config: of it model, length, device, threads, precision and dropout are taken.
            tags: K names.
            tuning: full, frozen or top:N.

        Raises:
            DeviceMissing, ModelMissing, ModelUnsupported, TuningUnsupported, ThreadsRefused: as of
                `Trainer`; and the encoder has no token classifier.
        """
        arithmetic.check_environment(config.threads)
        arithmetic.use(config.threads)
        if adapters.recipe(tuning):
            raise TuningUnsupported(
                f"tuning: got {tuning!r}, a folder of tags has no adapter; expected full, frozen "
                "or top:N"
            )
        check_fit(replace(config, tuning=tuning, interaction="bi_encoder"))
        pretrained = load_pretrained(config.model, download=config.download)
        self.tags = tuple(tags)
        self._config = config
        self._tokenizer = of_words(pretrained.tokenizer)
        self.model = token_classifier(config.model, pretrained, self.tags).to(config.device)
        base = self.model.base_model
        self._passes = passes_for(base)
        moving = registry.named(tuning, base, POOLINGS["mean"], self._passes)
        use_fastest(self.model)
        self.model.requires_grad_(False)
        self.encoder_parameters: list[nn.Parameter] = moving.trainable_parameters()
        self.head_parameters: list[nn.Parameter] = list(self._head.parameters())
        for parameter in (*self.encoder_parameters, *self.head_parameters):
            parameter.requires_grad_(True)
        set_dropout(self.model, config.dropout)

    @property
    def _head(self) -> nn.Linear:
        found = head_of(self.model)
        assert found is not None
        return found

    def tokens(self, words: Sequence[str]) -> Tokens:
        """Return the tokens of a text that is given as its words."""
        encoded = self._tokenizer(
            list(words),
            is_split_into_words=True,
            truncation=True,
            max_length=self._config.max_tokens,
        )
        word_of = [-1 if word is None else word for word in encoded.word_ids()]
        found, places = np.unique(np.asarray(word_of, dtype=np.int64), return_index=True)
        has_word = found >= 0
        found, places = found[has_word], places[has_word]
        last = int(found[-1]) if len(found) else -1
        full = len(encoded["input_ids"]) >= self._config.max_tokens
        return Tokens(
            ids=np.asarray(encoded["input_ids"], dtype=np.int64),
            places=places.astype(np.int64),
            words=found,
            num_words=len(words),
            num_cut=len(words) - last - 1 if full else 0,
        )

    def logits(self, texts: Sequence[Tokens]) -> Iterator[tuple[list[int], Tensor]]:
        """Yield, pass by pass, the places of its texts and the logits of their words.

        The logits (sum W, K) are of all words of the texts of the pass, one text after the other.
        """
        for part in self._passes.divide([len(text.ids) for text in texts]):
            rows = [torch.from_numpy(texts[place].ids) for place in part]
            blocks = self._passes.run(self.model.base_model, rows)
            firsts = [
                states.index_select(0, torch.from_numpy(texts[place].places).to(states.device))
                for place, states in zip(part, texts_of(blocks), strict=True)
            ]
            yield part, logits_of(self.model, torch.cat(firsts))

    @torch.no_grad()
    def predict(self, texts: Sequence[Tokens]) -> list[list[str]]:
        """Return the most probable tag of each word; O where no token stands for it."""
        self.model.eval()
        found = [[OUTSIDE] * text.num_words for text in texts]
        for part, logits in self.logits(texts):
            best: NDArray[np.int64] = logits.argmax(-1).cpu().numpy()
            ends = np.cumsum([len(texts[place].words) for place in part])
            for place, own in zip(part, np.split(best, ends[:-1]), strict=True):
                for word, tag in zip(texts[place].words, own, strict=True):
                    found[place][int(word)] = self.tags[int(tag)]
        return found

    def moving(self) -> dict[str, Tensor]:
        """Return copies of the parameters that training moves, on the host, by name."""
        return {
            name: parameter.detach().cpu().clone()
            for name, parameter in self.model.named_parameters()
            if parameter.requires_grad
        }

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore the parameters that `moving` returned."""
        self.model.load_state_dict(dict(tensors), strict=False)

    def files(self) -> dict[str, bytes]:
        """Return the files of a token-classification folder, as transformers reads it."""
        self._tokenizer.backend_tokenizer.no_truncation()  # as it was before `tokens`
        files = layout.hugging_face_files(self.model, self._tokenizer)
        tokenizer: dict[str, Any] = msgspec.json.decode(files["tokenizer_config.json"])
        tokenizer["model_max_length"] = self._config.max_tokens
        tokenizer["model_input_names"] = ["input_ids", "attention_mask"]
        tensors = {
            name: tensor.detach().cpu().contiguous().clone()
            for name, tensor in self.model.state_dict().items()
        }
        return {
            **files,
            "tokenizer_config.json": msgspec.json.encode(tokenizer, order="sorted"),
            layout.MODEL: blobs.tensors_to_bytes(tensors, metadata={"format": "pt"}),
        }
