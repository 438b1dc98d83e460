"""Class-balanced weights: w = 1 / E_n(y), with E_n the effective number of a label's samples.

Cui, Jia, Lin, Song and Belongie, "Class-Balanced Loss Based on Effective Number of Samples" (CVPR
2019), equations 2 and 3: E_n = (1 - beta^n) / (1 - beta), with n samples of the label. A stream has
no final n: here n is p(y) times the last 10,000 samples, and beta = .9999. The weights are scaled
so that their mean under the prior is 1. A baseline: it does not look at x.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from weighting.checks import check_probability
from weighting.context import Context

Array = NDArray[np.float64]
BETA = 0.9999
NUM_SAMPLES = 10_000


def class_weights(prior: Array) -> tuple[Array, Array]:
    """Weights (N,) of a positive and of a negative from p(y=1) (N,).

    >>> [w.round(3).tolist() for w in class_weights(np.array([0.5, 0.1]))]
    [[1.0, 4.093], [1.0, 0.656]]
    """
    check_probability("p(y)", prior)
    positive, negative = (1 / _effective_number(p) for p in (prior, 1 - prior))
    mean = prior * positive + (1 - prior) * negative
    return positive / mean, negative / mean


def _effective_number(p: Array) -> Array:
    number: Array = (1 - BETA ** (p * NUM_SAMPLES)) / (1 - BETA)
    return number


@dataclass(frozen=True, slots=True)
class ClassBalanced:
    """Class-balanced weights as a weighting scheme: they shift all logits alike."""

    @property
    def exponent(self) -> float:
        """Logits are as steep as under uniform weights."""
        return 0.0

    def weigh(self, context: Context) -> Array:
        """Weights (N,) of the observed labels."""
        positive, negative = class_weights(context.prior)
        return np.where(context.label > 0, positive, negative)

    def invert(self, logit: Array, prior: float) -> Array:
        """Logits (N,) with the shift undone."""
        (positive,), (negative,) = class_weights(np.array([prior]))
        return logit - math.log(positive / negative)

    def description(self) -> Mapping[str, str | float]:
        """Name and parameters, for a version's manifest."""
        return {"scheme": "class_balanced", "beta": BETA}
