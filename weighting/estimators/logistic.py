"""Logistic regression with a Gaussian belief per coefficient that fades in event time.

It ends the river pipeline. Hot path, at most 10 us to learn a sample of ten fields
(`benchmarks/weigh.py`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from river import base

from weighting.errors import SnapshotError, WeightError
from weighting.estimators.coefficient_table import CoefficientTable

_MAX_STEPS = 60  # bisection alone would take about 40, Newton takes three
_INFINITE = math.inf
_MONTH_SECONDS = 30 * 86_400.0


class DiagonalLogistic(base.Classifier):
    """A river classifier over hashed keys; each coefficient starts at Normal(0, 1).

    Model: P(y=1 | x, t) = t r, r = sigma(offset + m'x), where t in (0, 1] is the probability that
    the sample was examined at all. One sample of weight w moves the logit M to the mode of its
    belief, M = m'x + s w g(M) with s = sum v_i x_i^2, and then

        g(M) = 1 - r  if y = 1,  else  -t r (1 - r) / (1 - t r)    (slope of log likelihood at M)
        h    = w t r (1 - r)^2 / (1 - t r)    (Fisher information at M; w r (1 - r) for t = 1)
        m_i <- m_i + v_i x_i w g
        v_i <- v_i (1 - v_i x_i^2 h / (1 + h s))

    (assumed density filtering with a diagonal covariance: Spiegelhalter & Lauritzen 1990; for
    clicks Graepel et al. 2010, Chapelle & Li 2011). Steps shrink like 1/n, as counting does, where
    AdaGrad's shrink like 1/sqrt(n); as the step is implicit, no weight overshoots; fields share the
    credit by what is still unknown about them.

    What samples added to the precision of a coefficient halves every half-life h of event time, at
    a read as well as before a sample is learned (stabilised forgetting: Kulhavy & Zarrop 1993; the
    mean stays, so that this is a random walk whose variance ends at the prior's):

        1/v - 1  <-  (1/v - 1) 2^(-dt/h),    dt >= 0 since the coefficient's latest sample.

    So a coefficient follows a change after as much time, however many samples came before it. With
    no time in between, learning is the plain Bayesian update.

    >>> model = DiagonalLogistic(hash_bits=4)
    >>> model.learn_one({3: 1.0}, True)
    >>> model.predict_proba_one({3: 1.0})[True] > 0.5
    True
    """

    def __init__(
        self,
        hash_bits: int,
        num_own: int = 0,
        *,
        offset: float = 0.0,
        half_life_seconds: float = _MONTH_SECONDS,
    ) -> None:
        """Start with nothing known.

        Args:
            hash_bits: log2 of the number of rows for keys below 2^32.
            num_own: number of keys from 2^32 on.
            offset: the logit of a sample before any learning.
            half_life_seconds: h.
        """
        self.hash_bits = hash_bits
        self.num_own = num_own
        self.offset = offset
        self.half_life_seconds = half_life_seconds
        self._per_us = 1.0 / (1e6 * half_life_seconds)
        self._table = CoefficientTable(hash_bits, num_own)
        self.newest_us: int | None = None

    def logit_one(self, x: Mapping[int, float]) -> float:
        """Mean of the logit of r, which time does not change. Pure."""
        mean, m = self._table.mean, self.offset
        for row, value in zip(self._table.rows(x), x.values(), strict=True):
            m += mean[row] * value
        return m

    def belief_one(self, x: Mapping[int, float], time_us: int | None = None) -> tuple[float, float]:
        """Mean and variance of the logit of r at an event time; by default, the latest. Pure."""
        m, s, _ = self._belief(self._table.rows(x), x.values(), self._at(time_us))
        return m, s

    def known(self, *keys: int) -> float:
        """1 - v of the last of coefficients now: 0 when never learned, towards 1 with many samples.

        0 as well when any of the others has no row. Pure.
        """
        rows = self._table.rows(keys)
        if self._table.unknown in rows:
            return 0.0
        _, v, _ = self._belief(rows[-1:], (1.0,), self._at(None))
        return 1.0 - v

    def _at(self, time_us: int | None) -> int:
        return (self.newest_us or 0) if time_us is None else time_us

    def _belief(
        self, rows: Sequence[int], values: Iterable[float], time_us: int
    ) -> tuple[float, float, list[float]]:
        """Mean and variance of a logit, and the variances v_i, at an event time.

        At a time before a coefficient's latest, its variance is as it was then.
        """
        table, per_us = self._table, self._per_us
        mean, variance, times = table.mean, table.variance, table.time_us
        m, s, faded = self.offset, 0.0, []
        for row, value in zip(rows, values, strict=True):
            v = variance[row]
            if v < 1.0:
                elapsed = time_us - times[row]
                if elapsed > 0:
                    v /= v + (1.0 - v) * 2.0 ** (-elapsed * per_us)
            m += mean[row] * value
            s += v * value * value
            faded.append(v)
        return m, s, faded

    def predict_proba_one(
        self, x: dict[Any, Any], examination: float = 1.0, **kwargs: Any
    ) -> dict[base.typing.ClfTarget, float]:
        """Probability of each label. Pure."""
        p = examination * sigmoid(self.logit_one(x))
        return {False: 1.0 - p, True: p}

    def learn_one(
        self,
        x: dict[Any, Any],
        y: base.typing.ClfTarget,
        w: float = 1.0,
        examination: float = 1.0,
        time_us: int | None = None,
    ) -> None:
        """Learn one sample; one of weight 0 changes nothing.

        Args:
            x: key -> value.
            y: label.
            w: weight >= 0.
            examination: probability in (0, 1] that the sample was examined.
            time_us: event time; one before a coefficient's latest lets no time pass. By default
                the latest of all.

        Raises:
            WeightError: an input is NaN or out of range.
        """
        now, table = self._at(time_us), self._table
        rows = table.rows(x)
        m, s, faded = self._belief(rows, x.values(), now)
        sw, t = s * w, examination
        if not (w >= 0.0 and 0.0 < t <= 1.0 and sw < _INFINITE and y == y):
            raise refusal(s, y, w, t)
        if w == 0.0:
            return
        r, g = _mode(m, sw, bool(y), t)
        unread = 1.0 - t * r
        h = w * t * r * (1.0 - r) ** 2 / unread if unread else 0.0
        k, push = h / (1.0 + h * s), w * g
        mean, variance, times, unknown = table.mean, table.variance, table.time_us, table.unknown
        if unknown in rows:
            for place, key in enumerate(x):
                if rows[place] == unknown:
                    rows[place] = table.take(key, now, rows)
        for row, v, value in zip(rows, faded, x.values(), strict=True):
            vx = v * value
            mean[row] += vx * push
            variance[row] = v - vx * vx * k
            if now > times[row]:
                times[row] = now
        if self.newest_us is None or now > self.newest_us:
            self.newest_us = now

    def snapshot(self) -> dict[str, Any]:
        """State after the last sample, as plain numbers and bytes; see `CoefficientTable`."""
        return {
            "offset": self.offset,
            "newest_us": self.newest_us,
            "table": self._table.snapshot(),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restore the state returned by `snapshot`.

        Raises:
            SnapshotError: it has another table size or start, or its columns do not match.
        """
        if state["offset"] != self.offset:
            raise SnapshotError("offset", state["offset"], self.offset)
        self._table.restore(state["table"])
        self.newest_us = state["newest_us"]


def _mode(m: float, sw: float, y: bool, t: float) -> tuple[float, float]:
    """Probability r and slope g at the mode M = m + sw g(M).

    Newton steps, kept inside a bracket; one that is not half as long as the one before halves the
    bracket instead (Press et al., Numerical Recipes, section 9.4). A sample that may not have been
    examined bends both ways, so that Newton's steps alone may go to and fro.
    """
    low, high = (m, m + sw) if y else (m - sw, m)
    mode, taken = m, math.inf
    for _ in range(_MAX_STEPS):
        r = sigmoid(mode)
        if y:
            g, bend = 1.0 - r, r * (1.0 - r)
        else:
            unread = 1.0 - t * r
            g = -t * r * (1.0 - r) / unread
            bend = -g * (1.0 - 2.0 * r + t * r * r) / unread
        wrong = mode - m - sw * g
        if -1e-9 < wrong < 1e-9 or high - low < 1e-9:
            break
        if wrong > 0:
            high = mode
        else:
            low = mode
        following = mode - (wrong / (1.0 + sw * bend) if bend > 0 else wrong)
        if not low < following < high or abs(following - mode) > 0.5 * taken:
            following = 0.5 * (low + high)
        taken, mode = abs(following - mode), following
    return r, g


def sigmoid(m: float) -> float:
    """Logistic function of one number, strictly inside (0, 1).

    Unlike `scipy.special.expit`, which reaches 1, after which the slope would divide by zero.
    """
    if m >= 0:
        return 1.0 / (1.0 + math.exp(-m)) if m < 36 else 1.0 - 2e-16
    return math.exp(m) / (1.0 + math.exp(m)) if m > -700 else 1e-304


def refusal(s: float, y: base.typing.ClfTarget, w: float, t: float) -> WeightError:
    """Name the input that cannot be learned."""
    if not 0.0 <= w < math.inf:
        return WeightError("weight", w, "a finite number >= 0", 0)
    if not 0.0 < t <= 1.0:
        return WeightError("examination", t, "a probability in (0, 1]", 0)
    if not s < math.inf:
        return WeightError("field", s, "finite values", 0)
    return WeightError("label", y, "0 or 1", 0)
