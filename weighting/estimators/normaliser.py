"""Running scale of a task's weights: their mean is kept, whatever the batches.

Legend: N samples, r their correction weights, w = r u their weights before the scale.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from weighting.checks import check_weights
from weighting.clip import Normalise

Array = NDArray[np.float64]


class Normaliser:
    """Scale of each weight from the samples before it: (1 + sum t) / (1 + sum w).

    With t = r the class balance of the corrections is kept, with t = 1 the mean weight is 1. The
    sums fade by half in `half_life_samples`; the ones are a pseudo-sample of weight 1, which does
    not fade. A sample's own weight has no part in its scale: it would bias the weighted loss, as
    self-normalised importance sampling does. Sums are taken one sample after the other, so equal
    streams give equal bits under every division into batches.

    >>> normaliser = Normaliser("running", half_life_samples=1000.0)
    >>> normaliser.update(np.array([1.0, 1.0]), np.array([3.0, 3.0])).tolist()
    [1.0, 0.5]
    """

    def __init__(self, normalise: Normalise, half_life_samples: float) -> None:
        """Start at a scale of 1."""
        self._normalise = normalise
        self._keep = 2.0 ** (-1 / half_life_samples)
        self._target = 0.0
        self._weight = 0.0

    def get(self) -> float:
        """Scale of the next sample's weight. Pure."""
        return 1.0 if self._normalise == "raw" else (1 + self._target) / (1 + self._weight)

    def update(self, correction: Array, weight: Array) -> Array:
        """Return the scales (N,) of samples in stream order, each read before it is counted.

        Args:
            correction: (N,) r; a sample of r = 0 is not counted.
            weight: (N,) w.
        """
        check_weights("correction weight", correction)
        check_weights("weight", weight)
        scales, keep, own_mean = np.empty(len(weight)), self._keep, self._normalise == "self"
        for i, (r, w) in enumerate(zip(correction.tolist(), weight.tolist(), strict=True)):
            scales[i] = self.get()
            if r > 0:
                self._target = keep * self._target + (1.0 if own_mean else r)
                self._weight = keep * self._weight + w
        return scales

    def snapshot(self) -> dict[str, Any]:
        """State after the last `learn`, as plain numbers."""
        return {"target": self._target, "weight": self._weight}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restore the state returned by `snapshot`."""
        self._target, self._weight = state["target"], state["weight"]
