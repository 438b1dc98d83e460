"""Online conditional logit: how much each input counts when one item of a list is chosen.

Legend: N samples in lists, K inputs. Sums are einsums and not matrix products, so that no threaded
reduction can change a bit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from weighting.checks import check_finite, check_weights
from weighting.snapshot import numbers

Array = NDArray[np.float64]
Places = NDArray[np.intp]
_MAX_STEPS = 25
_LEAST_GAIN = 1e-10
_LEAST_STEP = 1e-6


class ConditionalLogit:
    """Recursive Bayesian conditional logit with forgetting: alpha ~ Normal(mean, precision^-1).

    Item j of a list is chosen with p_j = softmax_j(o_j + sum_s alpha_s f_js) (McFadden 1974), o its
    offset. Where items are examined with probabilities theta, o = log theta is exact for a choice
    among what was examined. The log likelihood of choices c_j >= 0 is concave in alpha; with
    W = sum_j c_j its gradient and information are

        sum_j (c_j - W p_j) f_js    and    W sum_j p_j (f_j - mean_p f) (f_j - mean_p f)'.

    `learn` moves to the mode of likelihood x belief by Newton steps with halving, and adds the
    information there to the precision, which fades towards its start before that, as in
    `weighting.estimators.recursive`. With all choices at once and no forgetting this is maximum
    likelihood under the prior; the standard errors are the roots of precision^-1's diagonal.
    """

    def __init__(self, mean: Sequence[float], precision: Sequence[float]) -> None:
        """Start at `mean` (K,) with diagonal `precision` (K,)."""
        self._start_mean = np.asarray(mean, dtype=np.float64)
        self._start = np.diag(np.asarray(precision, dtype=np.float64))
        self.mean: Array = self._start_mean.copy()
        self._precision = self._start.copy()

    def standard_errors(self) -> Array:
        """Standard deviations (K,) of alpha."""
        errors: Array = np.sqrt(np.diag(np.linalg.inv(self._precision)))
        return errors

    def probabilities(self, inputs: Array, offset: Array, lists: Places) -> Array:
        """p_j (N,): each list's sum to 1. Pure.

        Args:
            inputs: (K, N) f.
            offset: (N,) o.
            lists: (N,) number of each sample's list.
        """
        _, own = np.unique(lists, return_inverse=True)
        return np.exp(_log_softmax(offset + _utility(self.mean, inputs), own))

    def learn(
        self,
        inputs: Array,
        choice: Array,
        offset: Array,
        lists: Places,
        *,
        keep: float = 1.0,
    ) -> bool:
        """Learn the choices in lists; order within the call does not count.

        Args:
            inputs: (K, N) f.
            choice: (N,) c >= 0: weight with which each was chosen, 0 for the others. Lists of one
                item, or without a choice, teach nothing.
            offset: (N,) o.
            lists: (N,) number of each sample's list.
            keep: share of earlier information that is kept, in (0, 1].

        Returns:
            Whether there was a choice; else nothing has changed.
        """
        check_weights("choice", choice)
        check_finite("offset", offset)
        if not np.isfinite(inputs).all():
            for i, column in enumerate(inputs):
                check_finite(f"input {i}", column)
        _, own, number = np.unique(lists, return_inverse=True, return_counts=True)
        used = ((np.bincount(own, choice) > 0) & (number > 1))[own] if len(own) else own > 0
        if not used.any():
            return False
        P = keep * self._precision + (1 - keep) * self._start
        _, own = np.unique(own[used], return_inverse=True)
        posterior = _Posterior(self.mean, P, inputs[:, used], choice[used], offset[used], own)
        alpha, value = self.mean, posterior.objective(self.mean)
        for _ in range(_MAX_STEPS):
            gradient, H = posterior.derivatives(alpha)
            step = np.linalg.solve(H, gradient).astype(np.float64)
            if float((gradient * step).sum()) < _LEAST_GAIN:  # twice what is left to gain
                break
            proposal, better = _descend(posterior, alpha, step, value)
            if better > value:
                break
            alpha, value = proposal, better
        self.mean, self._precision = alpha, H
        return True

    def forget(self, places: Sequence[int]) -> None:
        """Let some inputs be new ones, of which nothing is known."""
        mean, precision = self._start_mean.copy(), self._start.copy()
        others = np.delete(np.arange(len(mean)), places)
        block = np.ix_(others, others)
        mean[others] = self.mean[others]
        # What is known of the others without these: the inverse of their covariance
        precision[block] = np.linalg.inv(np.linalg.inv(self._precision)[block])
        self.mean, self._precision = mean, precision

    def snapshot(self) -> dict[str, Any]:
        """State after the last `learn`, as plain numbers."""
        return {"mean": self.mean.tolist(), "precision": self._precision.tolist()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restore the state returned by `snapshot`.

        Raises:
            SnapshotError: it has another number of inputs, or what is no number.
        """
        mean = numbers(state["mean"], self._start_mean.shape, "coefficients")
        self._precision = numbers(state["precision"], self._start.shape, "precision")
        self.mean = mean


class _Posterior:
    """Negative log posterior of alpha around `start` with precision P, given N samples."""

    def __init__(
        self,
        start: Array,
        P: Array,
        inputs: Array,
        choice: Array,
        offset: Array,
        own: Places,
    ) -> None:
        self._start, self._P, self._inputs = start, P, inputs
        self._choice, self._offset, self._own = choice, offset, own
        self._chosen = np.bincount(own, choice)[own]  # W, at each sample

    def objective(self, alpha: Array) -> float:
        away = alpha - self._start
        log_p = _log_softmax(self._offset + _utility(alpha, self._inputs), self._own)
        return 0.5 * float((away * _times(self._P, away)).sum()) - float(
            (self._choice * log_p).sum()
        )

    def derivatives(self, alpha: Array) -> tuple[Array, Array]:
        """Gradient (K,) and Hessian (K, K)."""
        own, f = self._own, self._inputs
        p = np.exp(_log_softmax(self._offset + _utility(alpha, self._inputs), own))
        pull = self._chosen * p
        slopes = np.einsum("kn,n->k", f, pull - self._choice)
        K, number = len(f), int(own.max()) + 1
        places = (np.arange(K)[:, None] * number + own).reshape(-1)
        mean = np.bincount(places, (p * f).reshape(-1), K * number).reshape(K, number)
        away = f - mean[:, own]
        curvature = np.einsum("in,jn->ij", away * pull, away)
        return slopes + _times(self._P, alpha - self._start), self._P + curvature


def _descend(posterior: _Posterior, alpha: Array, step: Array, value: float) -> tuple[Array, float]:
    """Halve the step until the objective falls; return where it ends, and its objective."""
    size = 1.0
    while True:
        proposal = alpha - size * step
        better = posterior.objective(proposal)
        if not (better > value and size > _LEAST_STEP):
            return proposal, better
        size /= 2


def _utility(alpha: Array, inputs: Array) -> Array:
    utility: Array = np.einsum("k,kn->n", alpha, inputs)
    return utility


def _times(P: Array, v: Array) -> Array:
    product: Array = (P * v).sum(axis=1)
    return product


def _log_softmax(utility: Array, own: Places) -> Array:
    """Log of p (N,) of utilities (N,) within each list."""
    largest = np.full(int(own.max(initial=-1)) + 1, -np.inf)
    np.maximum.at(largest, own, utility)
    centred = utility - largest[own]
    log_p: Array = centred - np.log(np.bincount(own, np.exp(centred)))[own]
    return log_p
