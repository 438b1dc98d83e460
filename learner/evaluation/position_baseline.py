"""Rate of positives by position alone: the baseline of the prequential evaluation.

Legend: N samples.

What a model knows about queries and items is what it predicts better than this. Rates are predicted
before they are learned, as everything is, shrunk to the rate of all positions, and fade.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from weighting.checks import check_labels, check_weights, drop_weightless

Array = NDArray[np.float64]
_LARGEST_POSITION = 50
"""All positions from this one on share one rate; 0 is an unknown position."""
_PSEUDO_COUNT = 20.0
"""Samples that the rate of all positions is worth at each of them."""
_HALF_LIFE = 20_000.0
"""Samples after which a sample counts half."""


class PositionBaseline:
    """p(y=1 | position), shrunk and fading."""

    def __init__(self) -> None:
        """Start without samples, at 1/2."""
        self._positives = np.zeros(_LARGEST_POSITION + 1)
        self._weights = np.zeros(_LARGEST_POSITION + 1)

    def predict(self, position: NDArray[np.intp]) -> Array:
        """Return probabilities (N,), in (0, 1), of 1-based positions, 0 if unknown. Pure."""
        rate = (self._positives.sum() + 1) / (self._weights.sum() + 2)
        shrunk = (self._positives + _PSEUDO_COUNT * rate) / (self._weights + _PSEUDO_COUNT)
        found: Array = shrunk[_place(position)]
        return found

    def learn(self, position: NDArray[np.intp], label: Array, weight: Array) -> None:
        """Count N samples by labels and weights (N,); one of weight 0 is not counted at all.

        Raises:
            WeightError: a label or weight is NaN, infinite or out of range.
        """
        check_labels(label)
        check_weights("weight", weight)
        position, label, weight = drop_weightless(weight, position, label, weight)
        kept, place = 0.5 ** (len(label) / _HALF_LIFE), _place(position)
        size = len(self._weights)
        self._positives = kept * self._positives + np.bincount(place, weight * label, size)
        self._weights = kept * self._weights + np.bincount(place, weight, size)

    def snapshot(self) -> list[list[float]]:
        """Return the state, as plain numbers."""
        return [self._positives.tolist(), self._weights.tolist()]

    def restore(self, state: list[list[float]]) -> None:
        """Restore the state returned by `snapshot`."""
        self._positives, self._weights = (np.array(column) for column in state)


def _place(position: NDArray[np.intp]) -> NDArray[np.intp]:
    return np.minimum(position, _LARGEST_POSITION)
