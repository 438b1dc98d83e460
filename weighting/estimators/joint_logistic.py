"""Logistic regression with a Gaussian belief per coefficient, which learns a batch at once.

Hot path, about 3 us a sample in batches of 256 (`benchmarks/weigh.py`). Legend: N samples, M fields
of all of them, K coefficients.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from weighting.checks import check, check_finite, check_labels, check_weights
from weighting.estimators.logistic import DiagonalLogistic
from weighting.estimators.newton import minimum
from weighting.field_columns import Columns

Array = NDArray[np.float64]
Places = NDArray[np.intp]
Times = NDArray[np.int64]
Point = tuple[Array, Array]
_MAX_STEPS = 25
_MAX_DIRECTIONS = 50
_LEAST_GAIN = 1e-5
_TINY = 1e-300
_NEAR_ENOUGH = 0.1  # what a step leaves of the gradient


class JointLogistic(DiagonalLogistic):
    """The model and the state of `DiagonalLogistic`; `learn_many` learns N samples at once.

    The coefficients move to the common mode of their belief and the samples, so that no weight and
    no number of samples, however large, can make them diverge: the minimum of

        1/2 sum_i (d_i)^2 / v_i + sum_n w_n loss(m_n + sum_i x_ni d_i)

    over the moves d, loss the negative log likelihood of the position-based model, by Newton steps
    with halving, each solved by conjugate gradients (Hestenes & Stiefel 1952) in d / sqrt(v). Then

        1/v_i <- 1/v_i + sum_n x_ni^2 h_n / (1 + h_n (s_n - v_i x_ni^2))

    with h and s as in `DiagonalLogistic`: each sample tells of a coefficient as much as it would
    alone, as far as its other fields are known before the batch. So of one sample of a weight of at
    most 1, as corrections are, both learn the same; with larger ones there may be several modes,
    since what was not examined bends both ways. Coefficients fade before, up to the batch's newest
    event time.
    """

    def rows_many(self, x: Columns) -> Places:
        """Rows (M,) of the fields, for the methods below until anything is learned. Pure."""
        return self._table.rows_many(x.keys)

    def logit_many(self, x: Columns, rows: Places) -> Array:
        """Mean of the logit of r (N,). Pure."""
        mean, _, _ = self._table.columns()
        return self.offset + _summed(x.sample, mean.take(rows) * x.values, len(x.query))

    def known_many(self, x: Columns, rows: Places) -> Array:
        """1 - v (N,) of each item under its query now, 0 of a query without a row. Pure."""
        row, asked = rows.take(x.pair), rows.take(x.query)
        _, variance, times = self._table.columns()
        v = self._faded(variance.take(row), times.take(row), self._at(None))
        unknown = self._table.unknown
        return np.where((asked != unknown) & (row != unknown), 1.0 - v, 0.0)

    def learn_many(
        self,
        x: Columns,
        rows: Places,
        label: Array,
        weight: Array,
        examination: Array,
        time_us: Times,
    ) -> None:
        """Learn N samples at once; order does not count, and one of weight 0 changes nothing.

        Args:
            x: their fields.
            rows: (M,) of the fields, by `rows_many`, with nothing learned since.
            label: (N,) 0 or 1.
            weight: (N,) >= 0.
            examination: (N,) probability in (0, 1] that each was examined.
            time_us: (N,) event times.

        Raises:
            WeightError: an input is NaN or out of range; nothing was learned.
        """
        check_finite("field", x.values)
        check_labels(label)
        check_weights("weight", weight)
        valid = (examination > 0) & (examination <= 1)
        check("examination", examination, valid, "a probability in (0, 1]")
        counted = weight > 0
        if not counted.any():
            return
        now, number = int(time_us[counted].max()), len(label)
        rows, used = self._taken(x, rows, counted, now)
        sample, values = x.sample.take(used), x.values.take(used)
        row, own = self._table.different(rows.take(used))
        mean, variance, times = self._table.columns()
        before, latest = variance.take(row), times.take(row)
        v = self._faded(before, latest, now)
        deviation = np.sqrt(v)
        spread = values * deviation.take(own)
        start = _summed(sample, mean.take(row).take(own) * values, number)
        posterior = _Posterior(
            _Design(sample, own, spread, number, len(row)),
            self.offset + start,
            label,
            weight,
            examination,
        )
        z = posterior.mode()
        h, share = posterior.information(z).take(sample), spread * spread
        s = _summed(sample, share, number).take(sample)
        told = _summed(own, share * h / (1.0 + h * (s - share)), len(row))
        mean[row] += deviation * z
        variance[row] = v / (1.0 + told)
        times[row] = np.maximum(latest, now)
        self.newest_us = now if self.newest_us is None else max(self.newest_us, now)

    def _taken(
        self, x: Columns, rows: Places, counted: NDArray[np.bool_], now_us: int
    ) -> tuple[Places, Places]:
        """Let new fields take rows; return all rows (M,), and places of the fields that learn."""
        unknown = self._table.unknown
        learned, new = counted.take(x.sample), rows == unknown
        fresh = np.flatnonzero(learned & new)
        if len(fresh):
            keys, which = np.unique(x.keys.take(fresh), return_inverse=True)
            in_use = rows[learned & ~new]
            rows = rows.copy()
            rows[fresh] = self._table.take_many(keys, now_us, in_use)[which]
        return rows, np.flatnonzero(learned & (rows != unknown))

    def _faded(self, variance: Array, times: Times, now_us: int) -> Array:
        """Variances (K,) of coefficients of these latest event times, at a time."""
        kept = np.exp2(np.minimum(times - now_us, 0) * self._per_us)
        faded: Array = variance / (variance + (1.0 - variance) * kept)
        return faded


def _summed(which: Places, values: Array, number: int) -> Array:
    """Sums (number,) of the values (M,) of each."""
    sums: Array = np.bincount(which, values, number).astype(np.float64, copy=False)
    return sums


class _Design(NamedTuple):
    """Sparse matrix A (N, K): values at (sample, coefficient)."""

    sample: Places
    own: Places
    values: Array
    num_samples: int
    num_coefficients: int

    def times(self, z: Array) -> Array:
        """A z (N,)."""
        return _summed(self.sample, self.values * z.take(self.own), self.num_samples)

    def transposed(self, r: Array) -> Array:
        """A' r (K,)."""
        return _summed(self.own, self.values * r.take(self.sample), self.num_coefficients)


class _Posterior:
    """Negative log posterior of z = d / sqrt(v) ~ Normal(0, 1), given N samples."""

    def __init__(
        self, design: _Design, start: Array, label: Array, weight: Array, examination: Array
    ) -> None:
        self._design, self._start = design, start
        self._label, self._weight, self._examination = label, weight, examination
        with np.errstate(divide="ignore"):
            self._log_skipped: Array = np.log1p(-examination)  # log(1 - theta), -inf at 1

    def mode(self) -> Array:
        """Return z (K,) at the minimum."""
        start = np.zeros(self._design.num_coefficients), self._start
        z, _ = minimum(self, start, max_steps=_MAX_STEPS, least_gain=_LEAST_GAIN)
        return z

    def step(self, at: Point) -> tuple[Array, float]:
        """Newton step of z, nearly; see `newton.Objective`."""
        gradient, bend = self._derivatives(*at)
        step = self._solved(gradient, bend)
        return step, float((gradient * step).sum())

    def along(self, at: Point, step: Array) -> Callable[[float], Point]:
        """Points along a step; see `newton.Objective`."""
        (z, logit), away = at, self._design.times(step)
        return lambda size: (z - size * step, logit - size * away)

    def information(self, z: Array) -> Array:
        """Fisher information h (N,) of each sample's logit at z."""
        logit, t = self._start + self._design.times(z), self._examination
        p, rest = expit(logit), expit(-logit)  # 1 - p, which a large logit does not cancel
        unread = np.maximum((1 - t) * p + rest, _TINY)  # 1 - t p
        information: Array = self._weight * t * p * rest * rest / unread
        return information

    def value(self, at: Point) -> float:
        """Negative log posterior, up to a constant."""
        z, logit = at
        skipped = (1 - self._label) * np.logaddexp(0.0, logit + self._log_skipped)
        losses = self._weight * (np.logaddexp(0.0, logit) - self._label * logit - skipped)
        return float(losses.sum()) + 0.5 * float((z * z).sum())

    def _derivatives(self, z: Array, logit: Array) -> tuple[Array, Array]:
        """Gradient (K,), and curvature (N,) of each sample's loss, at least 0."""
        p, q = expit(logit), expit(logit + self._log_skipped)
        negative = 1 - self._label
        residual = self._weight * (p - self._label - negative * q)
        bend = self._weight * np.maximum(p * (1 - p) - negative * q * (1 - q), 0.0)
        return self._design.transposed(residual) + z, bend

    def _solved(self, gradient: Array, h: Array) -> Array:
        """Solve (I + A' diag(h) A) step = gradient by conjugate gradients, nearly."""
        step, left = np.zeros_like(gradient), gradient.copy()
        direction, size = left, float((left * left).sum())
        enough = size * _NEAR_ENOUGH**2
        for _ in range(_MAX_DIRECTIONS):
            if size <= enough:
                break
            bent = direction + self._design.transposed(h * self._design.times(direction))
            rate = size / float((direction * bent).sum())
            step, left = step + rate * direction, left - rate * bent
            before, size = size, float((left * left).sum())
            direction = left + (size / before) * direction
        return step
