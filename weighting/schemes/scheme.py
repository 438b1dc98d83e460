"""Protocol of a weighting scheme: its weight, its inversion, its description.

A new scheme is a file here, an entry in `registry.py`, and a case of `test_schemes.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from weighting.context import Context

Array = NDArray[np.float64]


class Scheme(Protocol):
    """A weighting scheme, and the inversion of the scores that it trained."""

    @property
    def exponent(self) -> float:
        """Power of p(y|x)/p(y) in the weight.

        Logits trained under the scheme are 1 + exponent times as steep.
        """

    def weigh(self, context: Context) -> Array:
        """Factor (N,) of each sample's weight, before clipping and normalisation. Pure.

        Raises:
            WeightError: a probability is unusable; names it and its index.
        """

    def invert(self, logit: Array, prior: float) -> Array:
        """Logits (N,) of p(y=1|x) from logits (N,) of a model trained under the scheme.

        Args:
            logit: (N,) logits of the trained model.
            prior: p(y=1), in (0, 1).
        """

    def description(self) -> Mapping[str, str | float]:
        """Name and parameters, for a version's manifest."""
