"""Self-paced weights: w = max(1 - loss / limit, least): what is easy counts most.

Kumar, Packer and Koller, "Self-Paced Learning for Latent Variable Models" (NIPS 2010), with the
linear soft weight of Jiang, Meng, Mitamura and Hauptmann, "Easy Samples First" (ACM Multimedia
2014). The loss is -log p(y|x) of the online estimator. The papers raise the limit over the epochs;
a stream has one pass, so it stays at 5, and a least weight keeps labels that are never expected
from being lost for good. A baseline: it drowns rare positives.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_expit

from weighting.checks import check_probability
from weighting.context import Context

Array = NDArray[np.float64]
LIMIT = 5.0
LEAST = 0.05
_LARGEST_LOGIT = 50.0
_HALVINGS = 60


def weight(log_p: Array) -> Array:
    """Weights (N,) from log p(y|x) (N,).

    >>> weight(np.log([1.0, 0.1, 1e-9])).round(3).tolist()
    [1.0, 0.539, 0.05]
    """
    w: Array = np.maximum(1 + log_p / LIMIT, LEAST)
    return w


@dataclass(frozen=True, slots=True)
class SelfPaced:
    """Self-paced weights as a weighting scheme."""

    @property
    def exponent(self) -> float:
        """Logits are between 1 and 2 times as steep; taken as they are."""
        return 0.0

    def weigh(self, context: Context) -> Array:
        """Weights (N,) of the observed labels."""
        check_probability("p(y|x)", context.p_y_given_x)
        return weight(np.log(context.p_y_given_x))

    def invert(self, logit: Array, prior: float) -> Array:
        """Solve z + log u1(z) - log u0(z) = logit for z (N,), by halving: the left side grows."""
        low = np.full_like(logit, -_LARGEST_LOGIT)
        high = np.full_like(logit, _LARGEST_LOGIT)
        for _ in range(_HALVINGS):
            z = (low + high) / 2
            found = z + np.log(weight(log_expit(z)) / weight(log_expit(-z)))
            low, high = np.where(found < logit, z, low), np.where(found < logit, high, z)
        solved: Array = (low + high) / 2
        return solved

    def description(self) -> Mapping[str, str | float]:
        """Name and parameters, for a version's manifest."""
        return {"scheme": "self_paced", "limit": LIMIT}
