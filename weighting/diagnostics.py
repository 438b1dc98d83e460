"""Diagnostics of a batch: effective sample size, agreement of estimator and prior."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def effective_sample_ratio(weight: Array) -> float:
    """Kish's effective sample size (sum w)^2 / sum w^2, divided by N.

    It is 1 for equal weights, and for an empty batch.

    >>> effective_sample_ratio(np.array([1.0, 1.0, 0.0, 0.0]))
    0.5
    """
    squares = float((weight * weight).sum())
    return 1.0 if squares == 0 else float(weight.sum()) ** 2 / (len(weight) * squares)


def normalization_ratio(p_positive: Array, prior: Array) -> tuple[float, float]:
    """Mean of p(label|x) / p(label) over first copies, for label 0 and label 1.

    It is 1 for any data when estimator and prior agree, whatever the labels were. (The mean of the
    weight over observed pairs is not: that is 1 + chi-squared.)

    Args:
        p_positive: (N,) p(y=1|x) of the first copies, N >= 1.
        prior: (N,) p(y=1).
    """
    negative = (1 - p_positive) / (1 - prior)
    return float(negative.mean()), float((p_positive / prior).mean())
