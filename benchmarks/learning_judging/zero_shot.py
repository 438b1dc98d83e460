"""Cosines of an encoder before any training.

Legend: N texts, Q queries, D width.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from learner import arithmetic
from learner.config import LearnerConfig
from learner.encoder.encoder import Encoder
from learner.encoder.load import load_pretrained
from learner.encoder.tokens import Texts

Array = NDArray[np.float64]
_CHUNK = 256


class Embedder:
    """Unit vectors of an encoder, kept per text."""

    def __init__(self, encoder: Encoder, texts: Texts) -> None:
        """Take an encoder; what it gives is kept, so it must not move."""
        self._encoder = encoder
        self._texts = texts
        self._kept: dict[str, NDArray[np.float32]] = {}

    def encode(self, texts: Iterable[str]) -> NDArray[np.float32]:
        """Return the vectors (N, D) of N texts."""
        wanted = list(texts)
        missing = [text for text in dict.fromkeys(wanted) if text not in self._kept]
        missing.sort(key=len)  # texts of one length are encoded together
        for start in range(0, len(missing), _CHUNK):
            chunk = missing[start : start + _CHUNK]
            with torch.inference_mode():
                vectors = self._encoder([self._texts.ids(text) for text in chunk])
            self._kept.update(zip(chunk, vectors.float().cpu().numpy(), strict=True))
        return np.stack([self._kept[text] for text in wanted])

    def cosines(self, query: str, texts: Sequence[str]) -> Array:
        """Return the cosines (N,) of a query with N texts."""
        vectors = self.encode([query, *texts])
        found: Array = (vectors[1:] @ vectors[0]).astype(np.float64)
        return found

    def table(self, queries: Sequence[str], texts: Sequence[str]) -> Array:
        """Return the cosines (Q, N) of queries with N texts."""
        found: Array = (self.encode(queries) @ self.encode(texts).T).astype(np.float64)
        return found


def untrained(config: LearnerConfig) -> Embedder:
    """Load the encoder of the settings as it is before any training."""
    arithmetic.use(config.threads)
    pretrained = load_pretrained(config.model, download=config.download)
    encoder = Encoder(
        pretrained.model.to(config.device), tuning="frozen", pooling=pretrained.pooling
    )
    return Embedder(encoder, Texts(pretrained.tokenizer, max_tokens=config.max_tokens))
