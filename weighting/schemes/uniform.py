"""Uniform weights: every sample counts 1, the baseline that other schemes are compared with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from weighting.context import Context

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Uniform:
    """The factor 1; a model trained under it says p(y=1|x) itself.

    >>> Uniform().invert(np.array([0.5]), prior=0.1).tolist()
    [0.5]
    """

    @property
    def exponent(self) -> float:
        """The ratio's power: none of it is in the weight."""
        return 0.0

    def weigh(self, context: Context) -> Array:
        """Factor 1 for each sample (N,)."""
        return np.ones_like(context.label)

    def invert(self, logit: Array, prior: float) -> Array:
        """Return the logits as they are."""
        return logit

    def description(self) -> Mapping[str, str | float]:
        """Name, for a version's manifest."""
        return {"scheme": "uniform"}
