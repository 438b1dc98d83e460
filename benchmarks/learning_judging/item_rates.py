"""Shrunk, position-corrected rates of items over all queries."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from benchmarks.learning_data.dataset import ShownList

Array = NDArray[np.float64]
SHRINKAGE = 10.0


class ItemRates:
    """ln((positives + c m) / (exposure + c)) of an item, with c = 10 and the mean rate m.

    The exposure of an item is the sum of k^-eta over the positions k where it was shown, 1 where
    the position is not known.
    """

    def __init__(self, *, eta: float) -> None:
        """Start with no list."""
        self._eta = eta
        self._positives: defaultdict[str, float] = defaultdict(float)
        self._exposure: defaultdict[str, float] = defaultdict(float)
        self._totals = np.zeros(2)

    def learn(self, shown: ShownList, labels: Sequence[bool | None]) -> None:
        """Count the labels of one list."""
        for item, position, label in zip(shown.items, shown.positions, labels, strict=True):
            exposure = 1.0 if position is None else float(position) ** -self._eta
            self._exposure[item] += exposure
            self._positives[item] += bool(label)
            self._totals += (bool(label), exposure)

    def positives(self, items: Sequence[str]) -> Array:
        """Return the positive labels (n,) of n items so far."""
        return np.array([self._positives.get(item, 0.0) for item in items])

    def log_rates(self, items: Sequence[str]) -> Array:
        """Return ln rates (n,) of n items so far; that of the mean item where none was shown."""
        exposure = np.array([self._exposure.get(item, 0.0) for item in items])
        mean = (self._totals[0] + 1) / (self._totals[1] + SHRINKAGE)
        shrunk = (self.positives(items) + SHRINKAGE * mean) / (exposure + SHRINKAGE)
        found: Array = np.log(shrunk)
        return found
