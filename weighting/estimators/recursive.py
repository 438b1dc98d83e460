"""A logistic regression of a few inputs that never stops learning: what calibration and the stacker are made of.

Legend: N samples, K inputs (two or three). Sums are written out, so that no threaded reduction can change a bit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

Array = NDArray[np.float64]
_STEPS = 25
_CLOSE = 1e-10


class RecursiveLogistic:
    """Recursive Bayesian logistic regression: theta ~ Normal(mean, precision^-1), full covariance, with forgetting.

    `learn` moves to the mode of exp(-1/2 (theta - mean)' P (theta - mean)) prod p(y|x, theta)^w inside the box [low, high] by projected
    Newton steps with halving, and adds the curvature there to P (Laplace; Spiegelhalter & Lauritzen 1990). As the mode is an implicit
    step, no weight, however large, can make it diverge. Before that P fades towards its start, P <- g P + (1 - g) P0 (stabilised
    forgetting, Kulhavy & Zarrop 1993), so that it stays bounded from below and the coefficients can go on moving.
    """

    def __init__(
        self,
        mean: Sequence[float],
        precision: Sequence[float],
        low: Sequence[float],
        high: Sequence[float],
    ) -> None:
        """Start at `mean` (K,) with diagonal `precision` (K,), confined to [low, high] (K,)."""
        self._start = np.diag(np.asarray(precision, dtype=np.float64))
        self._low = np.asarray(low, dtype=np.float64)
        self._high = np.asarray(high, dtype=np.float64)
        self.mean: Array = np.asarray(mean, dtype=np.float64)
        self._precision = self._start.copy()

    def predict(self, columns: Sequence[Array]) -> Array:
        """Logits (N,) from K input columns (N,) each."""
        return self._logit(self.mean, columns)

    def learn(
        self, columns: Sequence[Array], label: Array, weight: Array, *, keep: float = 1.0
    ) -> None:
        """Learn N samples at once; order within the call does not count.

        Args:
            columns: K columns (N,) of inputs.
            label: (N,) 0 or 1, or between.
            weight: (N,) >= 0.
            keep: g, the share of earlier information that is kept, in (0, 1].
        """
        P = keep * self._precision + (1 - keep) * self._start
        start = self.mean
        theta = start.copy()
        value = self._objective(theta, start, P, columns, label, weight)
        for _ in range(_STEPS):
            p = expit(self._logit(theta, columns))
            residual = weight * (p - label)
            gradient = np.array([float((residual * x).sum()) for x in columns]) + _times(
                P, theta - start
            )
            H = P + _curvature(columns, weight * p * (1 - p))
            pushed = ((theta <= self._low) & (gradient > 0)) | (
                (theta >= self._high) & (gradient < 0)
            )
            free = np.flatnonzero(~pushed)
            step = np.zeros_like(theta)
            step[free] = np.linalg.solve(H[np.ix_(free, free)], gradient[free])
            if float((gradient * step).sum()) < _CLOSE:  # twice what is left to gain
                break
            size = 1.0
            proposal = np.clip(theta - step, self._low, self._high)
            while (
                better := self._objective(proposal, start, P, columns, label, weight)
            ) > value and size > 1e-6:
                size /= 2
                proposal = np.clip(theta - size * step, self._low, self._high)
            if better > value:
                break
            theta, value = proposal, better
        self.mean = theta
        self._precision = H

    def snapshot(self) -> dict[str, Any]:
        """State after the last `learn`, as plain numbers."""
        return {"mean": self.mean.tolist(), "precision": self._precision.tolist()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Resume after the `learn` that the snapshot was taken behind."""
        self.mean = np.array(state["mean"], dtype=np.float64)
        self._precision = np.array(state["precision"], dtype=np.float64)

    @staticmethod
    def _logit(theta: Array, columns: Sequence[Array]) -> Array:
        logit: Array = theta[0] * columns[0]
        for coefficient, x in zip(theta[1:], columns[1:], strict=True):
            logit = logit + coefficient * x
        return logit

    def _objective(
        self,
        theta: Array,
        start: Array,
        P: Array,
        columns: Sequence[Array],
        label: Array,
        weight: Array,
    ) -> float:
        logit = self._logit(theta, columns)
        away = theta - start
        return float((weight * (np.logaddexp(0.0, logit) - label * logit)).sum()) + 0.5 * float(
            (away * _times(P, away)).sum()
        )


def _times(P: Array, v: Array) -> Array:
    """P v, for a K x K matrix."""
    product: Array = (P * v).sum(axis=1)
    return product


def _curvature(columns: Sequence[Array], h: Array) -> Array:
    """X' diag(h) X as a K x K matrix."""
    K = len(columns)
    H = np.empty((K, K))
    for i in range(K):
        hx = h * columns[i]
        for j in range(i, K):
            H[i, j] = H[j, i] = float((hx * columns[j]).sum())
    return H
