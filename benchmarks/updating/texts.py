"""Texts of different lengths, as token ids, with labels and weights."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

MEAN_TOKENS, MOST_TOKENS, LEAST_TOKENS = 40, 128, 3
_SIGMA = 0.6
_FIRST_WORD, _PAST_LAST_WORD = 1_000, 30_000


class Text(NamedTuple):
    """One sample.

    Attributes:
        ids: (t,) token ids.
        label: 0 or 1.
        weight: of its loss, about 1.
    """

    ids: NDArray[np.int64]
    label: int
    weight: float


def texts(number: int, *, seed: int) -> list[Text]:
    """Draw texts: log-normal lengths of mean 40, at most 128; log-normal weights of mean 1."""
    draw = np.random.default_rng(seed)
    lengths = draw.lognormal(np.log(MEAN_TOKENS) - _SIGMA**2 / 2, _SIGMA, number).round()
    weights = draw.lognormal(-0.125, 0.5, number)
    return [
        Text(
            ids=draw.integers(_FIRST_WORD, _PAST_LAST_WORD, int(length)),
            label=int(draw.random() < 0.3),
            weight=float(weight),
        )
        for length, weight in zip(lengths.clip(LEAST_TOKENS, MOST_TOKENS), weights, strict=True)
    ]
