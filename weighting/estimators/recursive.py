"""Recursive logistic regression of a few inputs, for stacking.

Legend: N samples, K inputs. Sums are written out, so that no threaded reduction can change a bit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from weighting.checks import check_examination, check_finite, check_labels, check_weights
from weighting.snapshot import numbers

Array = NDArray[np.float64]
_MAX_STEPS = 50
_LEAST_GAIN = 1e-10
_LEAST_STEP = 1e-6
_LARGEST_LEVEL_STEP = 2.0
_TINY = 1e-300


class RecursiveLogistic:
    """Recursive Bayesian logistic regression with forgetting: theta ~ Normal(mean, precision^-1).

    `learn` moves to the mode of exp(-1/2 (theta - mean)' P (theta - mean)) prod p(y|x, theta)^w
    inside the box [low, high] by projected Newton steps with halving, and adds the curvature there
    to P (Laplace; Spiegelhalter & Lauritzen 1990). As the mode is an implicit step, no weight,
    however large, can make it diverge. Before that P fades towards its start,
    P <- g P + (1 - g) P0 (stabilised forgetting, Kulhavy & Zarrop 1993), so that it stays bounded
    from below and the coefficients can go on moving.

    With examination probabilities theta the label is that of the position-based model,
    p(y=1|x) = theta sigma(logit), and the curvature its Fisher information, which unlike the second
    derivative is never negative:

        loss = log(1 + e^z) - y z - (1 - y) log(1 + (1 - theta) e^z)   (+ a constant),
        information = theta sigma (1 - sigma)^2 / (1 - theta sigma).

    With `level_samples` the last coefficient is the level of the logits, and what is known of it
    is kept as counts. In place of its marginal Normal(b0, 1/q) stands the conjugate belief of the
    same mode and curvature,

        sigma(b)^(n p) (1 - sigma(b))^(n (1 - p)),   p = sigma(b0),  n = q / (p (1 - p))

    (West, Harrison & Migon 1985). A Gaussian forgets what a run of one label says against the
    other: where p is near 0 the curvature is too, and the next few positives would throw the level
    as far beyond the share of positives as the run had pressed it below.
    """

    def __init__(
        self,
        mean: Sequence[float],
        precision: Sequence[float],
        low: Sequence[float],
        high: Sequence[float],
        *,
        level_samples: float | None = None,
    ) -> None:
        """Start at `mean` (K,) with diagonal `precision` (K,), confined to [low, high] (K,).

        Args:
            mean: of the coefficients.
            precision: of each.
            low: smallest coefficients.
            high: largest coefficients.
            level_samples: most samples that the belief about the last coefficient, as counts,
                stands for; by default it is a Gaussian like the others.
        """
        self._start = np.diag(np.asarray(precision, dtype=np.float64))
        self._low = np.asarray(low, dtype=np.float64)
        self._high = np.asarray(high, dtype=np.float64)
        self.mean: Array = np.asarray(mean, dtype=np.float64)
        self._precision = self._start.copy()
        self._level_samples = level_samples
        self._start_level = float(self.mean[-1])

    @property
    def information(self) -> float:
        """Precision of the last coefficient, given the others."""
        return float(self._precision[-1, -1])

    def predict(self, columns: Sequence[Array]) -> Array:
        """Logits (N,) from K input columns (N,) each."""
        return _logit(self.mean, columns)

    def learn(
        self,
        columns: Sequence[Array],
        label: Array,
        weight: Array,
        *,
        examination: Array | None = None,
        keep: float = 1.0,
    ) -> None:
        """Learn N samples at once; order within the call does not count.

        Args:
            columns: K columns (N,) of inputs.
            label: (N,) 0 or 1, or between.
            weight: (N,) >= 0.
            examination: (N,) theta in [0, 1]; 1 by default.
            keep: g, the share of earlier information that is kept, in (0, 1].
        """
        for i, column in enumerate(columns):
            check_finite(f"input {i}", column)
        check_labels(label)
        check_weights("weight", weight)
        P = keep * self._precision + (1 - keep) * self._prior()
        theta_n = np.ones_like(label) if examination is None else examination
        check_examination(theta_n)
        level = None
        if self._level_samples is not None:
            level, P = _split_off(P, float(self.mean[-1]), self._level_samples)
        posterior = _Posterior(self.mean, P, columns, label, weight, theta_n, level)
        theta = self.mean.copy()
        value = posterior.objective(theta)
        for _ in range(_MAX_STEPS):
            gradient, H = posterior.derivatives(theta)
            step = self._free_step(theta, gradient, H)
            if float((gradient * step).sum()) < _LEAST_GAIN:  # twice what is left to gain
                break
            if level:  # its curvature is that of where it is; far away there is next to none
                step = step * min(1.0, _LARGEST_LEVEL_STEP / max(abs(float(step[-1])), _TINY))
            proposal, better = self._descend(posterior, theta, step, value)
            if better > value:
                break
            theta, value = proposal, better
        if level:
            ratio = min(1.0, _variance(theta[-1]) / _variance(self.mean[-1]))
            H = H - P + _at_level(P, ratio)
        self.mean = theta
        self._precision = H

    def snapshot(self) -> dict[str, Any]:
        """State after the last `learn`, as plain numbers."""
        return {"mean": self.mean.tolist(), "precision": self._precision.tolist()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restore the state returned by `snapshot`.

        Raises:
            SnapshotError: it has another number of inputs, or what is no number.
        """
        mean = numbers(state["mean"], self.mean.shape, "coefficients")
        self._precision = numbers(state["precision"], self._precision.shape, "precision")
        self.mean = mean

    def _prior(self) -> Array:
        """Return P0, in which the level counts for as many samples as at its start."""
        if self._level_samples is None:
            return self._start
        found: Array = self._start.copy()
        found[-1, -1] *= _variance(float(self.mean[-1])) / _variance(self._start_level)
        return found

    def _free_step(self, theta: Array, gradient: Array, H: Array) -> Array:
        """Newton step of the coefficients that are not pushed against a bound."""
        pushed_down = (theta <= self._low) & (gradient > 0)
        pushed_up = (theta >= self._high) & (gradient < 0)
        free = np.flatnonzero(~(pushed_down | pushed_up))
        step = np.zeros_like(theta)
        step[free] = np.linalg.solve(H[np.ix_(free, free)], gradient[free])
        return step

    def _descend(
        self, posterior: _Posterior, theta: Array, step: Array, value: float
    ) -> tuple[Array, float]:
        """Halve the step until the objective falls; return where it ends, and its objective."""
        size = 1.0
        while True:
            proposal = np.clip(theta - size * step, self._low, self._high)
            better = posterior.objective(proposal)
            if not (better > value and size > _LEAST_STEP):
                return proposal, better
            size /= 2


class _Posterior:
    """Negative log posterior of theta around `start` with precision P, given N samples."""

    def __init__(
        self,
        start: Array,
        P: Array,
        columns: Sequence[Array],
        label: Array,
        weight: Array,
        examination: Array,
        level: _Level | None,
    ) -> None:
        self._start, self._P, self._level = start, P, level
        self._columns, self._label, self._weight = columns, label, weight
        self._examination = examination
        with np.errstate(divide="ignore"):
            self._log_skipped: Array = np.log1p(-examination)  # log(1 - theta), -inf at 1

    def objective(self, theta: Array) -> float:
        logit = _logit(theta, self._columns)
        away = theta - self._start
        skipped = (1 - self._label) * np.logaddexp(0.0, logit + self._log_skipped)
        losses = self._weight * (np.logaddexp(0.0, logit) - self._label * logit - skipped)
        value = float(losses.sum()) + 0.5 * float((away * _times(self._P, away)).sum())
        return value + (self._level.value(float(theta[-1])) if self._level else 0.0)

    def derivatives(self, theta: Array) -> tuple[Array, Array]:
        """Gradient (K,) and Hessian (K, K)."""
        logit = _logit(theta, self._columns)
        p, t = expit(logit), self._examination
        skipped = (1 - self._label) * expit(logit + self._log_skipped)
        residual = self._weight * (p - self._label - skipped)
        slopes = np.array([float((residual * x).sum()) for x in self._columns])
        # (1 - p) / (1 - theta p) is 1 at theta = 1, where both may be 0
        unread = np.where(t < 1, (1 - p) / np.where(t < 1, 1 - t * p, 1.0), 1.0)
        curvature = _curvature(self._columns, self._weight * t * p * (1 - p) * unread)
        gradient, H = slopes + _times(self._P, theta - self._start), self._P + curvature
        if self._level:
            slope, bend = self._level.derivatives(float(theta[-1]))
            gradient[-1] += slope
            H[-1, -1] += bend
        return gradient, H


class _Level(NamedTuple):
    """Negative log belief about a level b: clicks and non-clicks, as counts."""

    positives: float
    negatives: float

    def value(self, b: float) -> float:
        """Return it, up to a constant."""
        up, down = float(np.logaddexp(0.0, -b)), float(np.logaddexp(0.0, b))
        return self.positives * up + self.negatives * down

    def derivatives(self, b: float) -> tuple[float, float]:
        """Slope and curvature."""
        p, rest = float(expit(b)), float(expit(-b))
        slope = self.negatives * p - self.positives * rest
        return slope, (self.positives + self.negatives) * p * rest


def _split_off(P: Array, b: float, most: float) -> tuple[_Level, Array]:
    """Return the marginal belief about the last coefficient, as counts, and what is left of P.

    Args:
        P: (K, K) precision.
        b: mean of the last coefficient.
        most: largest n.
    """
    q = float(P[-1, -1] - (P[-1, :-1] * np.linalg.solve(P[:-1, :-1], P[:-1, -1])).sum())
    n = min(q / max(_variance(b), _TINY), most)
    given = P.copy()
    given[-1, -1] -= n * _variance(b)  # the rest of q, if n is the largest, stays a Gaussian
    return _Level(n * float(expit(b)), n * float(expit(-b))), given


def _at_level(P: Array, ratio: float) -> Array:
    """Return what is left of P (K, K) beside the counts where the level has moved.

    What the last coefficient has in common with the others was learned from curvature, which goes
    with p (1 - p): its ratio is that of now to before. Left as it was it would hold the level to
    where p is near 0 or 1, as if many samples had told it.
    """
    found = P.copy()
    found[-1, :] *= ratio
    found[:, -1] *= ratio
    return found


def _variance(b: float) -> float:
    """Return p (1 - p) of a logit."""
    return float(expit(b) * expit(-b))


def _logit(theta: Array, columns: Sequence[Array]) -> Array:
    logit: Array = theta[0] * columns[0]
    for coefficient, x in zip(theta[1:], columns[1:], strict=True):
        logit = logit + coefficient * x
    return logit


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
