"""Focal weights: w = (1 - f_t)^g, with f_t what the trained model would say of the observed label.

Lin, Goyal, Girshick, He and Dollar, "Focal Loss for Dense Object Detection" (ICCV 2017). The
weight as a constant of the gradient: a model whose own f stands in it ends where
p (1-f)^g (1-f) = (1-p) f^g f, so at logit f = logit p / (1 + g). Here f is that end point, from
the online estimator's p: the weights of a model that has converged, without the loop through the
trained model. A baseline: it flattens all logits, which the inversion undoes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logit

from weighting.checks import check_probability
from weighting.context import Context

Array = NDArray[np.float64]
GAMMA = 2.0
"""g of the paper's experiments."""


@dataclass(frozen=True, slots=True)
class Focal:
    """Focal weights as a weighting scheme.

    Attributes:
        gamma: g > -1; 0 switches the weight off.
    """

    gamma: float = GAMMA

    @property
    def exponent(self) -> float:
        """Logits are 1 / (1 + g) times as steep."""
        return -self.gamma / (1 + self.gamma)

    def weigh(self, context: Context) -> Array:
        """Weights (N,) of the observed labels."""
        check_probability("p(y|x)", context.p_y_given_x)
        f: Array = expit(logit(context.p_y_given_x) / (1 + self.gamma))
        return (1 - f) ** self.gamma

    def invert(self, logit: Array, prior: float) -> Array:
        """Logits (N,) as steep as those of p(y=1|x)."""
        return logit * (1 + self.gamma)

    def description(self) -> Mapping[str, str | float]:
        """Name and parameters, for a version's manifest."""
        return {"scheme": "focal", "gamma": self.gamma}
