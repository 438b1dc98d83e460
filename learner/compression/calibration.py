"""Probabilities from cosines, and how well they are calibrated.

Legend: N rows.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import expit

Array = NDArray[np.float64]
_NUM_BINS = 10


def platt(score: Array, label: Array) -> tuple[float, float]:
    """Return slope and intercept of the logit of greatest likelihood (Platt 1999), from N rows.

    Labels have his targets, (n1 + 1) / (n1 + 2) and 1 / (n0 + 2), so that both are finite.
    """
    num_right = float(label.sum())
    num_wrong = len(label) - num_right
    target = np.where(label > 0, (num_right + 1) / (num_right + 2), 1 / (num_wrong + 2))
    centre, width = float(score.mean()), float(score.std()) or 1.0
    z = (score - centre) / width

    def loss(x: Array) -> tuple[float, Array]:
        logit = x[0] * z + x[1]
        wrong = expit(logit) - target
        value = np.logaddexp(0, logit) - target * logit
        return float(value.mean()), np.array([(wrong * z).mean(), wrong.mean()])

    slope, intercept = minimize(loss, np.zeros(2), jac=True, method="BFGS").x
    return float(slope / width), float(intercept - slope * centre / width)


def probability(score: Array, fit: tuple[float, float]) -> Array:
    """Return probabilities (N,) of scores, by what `platt` returned."""
    found: Array = expit(fit[0] * score + fit[1])
    return found


def log_loss(p: Array, label: Array) -> float:
    """Return the mean of -log p(label); p is kept 1e-12 from 0 and 1."""
    p = np.clip(p, 1e-12, 1 - 1e-12)
    return float(-(label * np.log(p) + (1 - label) * np.log1p(-p)).mean())


def calibration_error(p: Array, label: Array) -> float:
    """Return the expected calibration error over ten bins of equally many rows.

    The mean over rows of |mean label - mean p| of the row's bin (Nguyen & O'Connor, EMNLP 2015).

    >>> calibration_error(np.full(4, 0.5), np.array([0.0, 1.0, 1.0, 1.0]))
    0.5
    """
    order = np.argsort(p, kind="stable")
    parts = np.array_split(order, min(_NUM_BINS, len(order)))
    return float(sum(abs((label[own] - p[own]).sum()) for own in parts) / len(p))
