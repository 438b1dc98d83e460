"""Online Platt scaling of the estimator's logit."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

import numpy as np
from msgspec import Meta
from numpy.typing import NDArray
from scipy.special import expit

from weighting.checks import (
    FINITE,
    check_example,
    check_finite,
    check_labels,
    check_one,
    check_weights,
    drop_weightless,
)
from weighting.constraints import Positive, check
from weighting.estimators.newton import minimum

Array = NDArray[np.float64]
Times = NDArray[np.int64]
Point = tuple[float, float]
Precision = tuple[float, float, float]
Number = TypeVar("Number", float, Array)
_LARGEST_SHIFT = 10.0
_LEAST_GAIN = 1e-6
_MAX_STEPS = 60  # bisection alone would take about 40, Newton takes three


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrationConfig:
    """Range and speed of calibration: logit p' = A logit p + B."""

    half_life_seconds: Annotated[
        Positive, Meta(description="Event time after which a sample counts half.")
    ] = 86_400.0
    least_slope: Annotated[Positive, Meta(le=1, description="Smallest A.")] = 0.25
    largest_slope: Annotated[float, Meta(ge=1, description="Largest A.")] = 4.0
    slope_deviation: Annotated[
        Positive, Meta(description="Standard deviation of A around 1 before any sample.")
    ] = 0.1
    shift_deviation: Annotated[
        Positive, Meta(description="Standard deviation of B around 0 before any sample.")
    ] = 0.2

    def __post_init__(self) -> None:
        """Check every field."""
        check(self, "calibration")


class Calibration:
    """Recursive Platt scaling (Platt 1999): logit p' = A logit p + B, started at (1, 0).

    A and B have a Gaussian belief of precision P, which fades in event time towards its start,
    P <- g P + (1 - g) P0 (stabilised forgetting: Kulhavy & Zarrop 1993). One sample x = (logit, 1)
    of weight w moves them to the mode of its posterior, along P^-1 x, and adds its curvature there
    (Spiegelhalter & Lauritzen 1990): an implicit step, which no weight can make overshoot. It
    learns on the delay-corrected stream.

    >>> Calibration(CalibrationConfig()).predict(-2.0)
    -2.0
    """

    def __init__(self, config: CalibrationConfig) -> None:
        """Start as the identity."""
        self.config = config
        self._time_us: int | None = None
        self._slope, self._shift = 1.0, 0.0
        self._start = config.slope_deviation**-2, config.shift_deviation**-2
        # P: of A, of A with B, of B
        self._precision = self._start[0], 0.0, self._start[1]

    def get(self) -> tuple[float, float]:
        """A and B."""
        return self._slope, self._shift

    def predict(self, logit: Number) -> Number:
        """Calibrated logit of a logit, or logits (N,) of logits (N,)."""
        return self._slope * logit + self._shift

    def learn_one(self, time_us: int, logit: float, label: float, weight: float) -> None:
        """Learn one sample; one of weight 0 changes nothing.

        Args:
            time_us: its event time; one before the latest lets no time pass.
            logit: its logit as it was predicted.
            label: its label.
            weight: its weight.
        """
        check_one("logit", logit, -math.inf < logit < math.inf, FINITE)
        check_example(label, weight)
        if weight > 0:
            self._fade(time_us)
            self._step(logit, label, weight)

    def learn_many(self, time_us: Times, logit: Array, label: Array, weight: Array) -> None:
        """Learn N samples at once: their common mode; order does not count.

        Args:
            time_us: (N,) event times; the newest fades, one before the latest lets no time pass.
            logit: (N,) logits as they were predicted.
            label: (N,) labels.
            weight: (N,) weights.
        """
        check_finite("logit", logit)
        check_labels(label)
        check_weights("weight", weight)
        time_us, logit, label, weight = drop_weightless(weight, time_us, logit, label, weight)
        if not len(time_us):
            return
        self._fade(int(time_us.max()))
        posterior = _Posterior((self._slope, self._shift), self._precision, logit, label, weight)
        (slope, shift), self._precision = posterior.mode()
        self._slope, self._shift = self._inside(slope, shift)

    def snapshot(self) -> dict[str, Any]:
        """State after the last sample, as plain numbers."""
        mean = [self._slope, self._shift]
        return {"time_us": self._time_us, "mean": mean, "precision": list(self._precision)}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restore the state returned by `snapshot`."""
        self._time_us = state["time_us"]
        self._slope, self._shift = state["mean"]
        a, ab, b = state["precision"]
        self._precision = a, ab, b

    def _fade(self, now: int) -> None:
        before, self._time_us = self._time_us, now if self._time_us is None else self._time_us
        if before is None or now <= before:
            return
        self._time_us = now
        keep = 2.0 ** (-(now - before) / (1e6 * self.config.half_life_seconds))
        (a, ab, b), (a0, b0) = self._precision, self._start
        self._precision = keep * a + (1 - keep) * a0, keep * ab, keep * b + (1 - keep) * b0

    def _step(self, x: float, y: float, w: float) -> None:
        """Move A and B to the mode of one sample's posterior, inside their box."""
        a, ab, b = self._precision
        determinant = a * b - ab * ab
        along_slope, along_shift = (b * x - ab) / determinant, (a - ab * x) / determinant
        variance = x * along_slope + along_shift  # of the logit: x' P^-1 x
        p = _mode(self._slope * x + self._shift, variance * w, y)
        push, h = w * (y - p), w * p * (1 - p)
        slope, shift = self._slope + along_slope * push, self._shift + along_shift * push
        self._slope, self._shift = self._inside(slope, shift)
        self._precision = a + h * x * x, ab + h * x, b + h

    def _inside(self, slope: float, shift: float) -> tuple[float, float]:
        """A and B, inside their box."""
        c = self.config
        shift = min(max(shift, -_LARGEST_SHIFT), _LARGEST_SHIFT)
        return min(max(slope, c.least_slope), c.largest_slope), shift


class _Posterior:
    """Negative log posterior of A and B around `start`, of precision P, given N samples."""

    def __init__(self, start: Point, P: Precision, x: Array, label: Array, weight: Array) -> None:
        self._start, self._P = start, P
        self._x, self._label, self._weight = x, label, weight

    def mode(self) -> tuple[Point, Precision]:
        """A and B at the minimum, and the precision there."""
        at = minimum(self, self._start, max_steps=_MAX_STEPS, least_gain=_LEAST_GAIN)
        return at, self._derivatives(at)[1]

    def step(self, at: Point) -> tuple[Point, float]:
        """Newton step of A and B; see `newton.Objective`."""
        (g_slope, g_shift), (a, ab, b) = self._derivatives(at)
        determinant = a * b - ab * ab
        slope = (b * g_slope - ab * g_shift) / determinant
        shift = (a * g_shift - ab * g_slope) / determinant
        return (slope, shift), g_slope * slope + g_shift * shift

    def along(self, at: Point, step: Point) -> Callable[[float], Point]:
        """Points along a step; see `newton.Objective`."""
        return lambda size: (at[0] - size * step[0], at[1] - size * step[1])

    def value(self, at: Point) -> float:
        """Negative log posterior, up to a constant."""
        logit, (a, ab, b) = at[0] * self._x + at[1], self._P
        slope, shift = at[0] - self._start[0], at[1] - self._start[1]
        loss = float((self._weight * (np.logaddexp(0.0, logit) - self._label * logit)).sum())
        return loss + 0.5 * (a * slope * slope + b * shift * shift) + ab * slope * shift

    def _derivatives(self, at: Point) -> tuple[Point, Precision]:
        p, x, (a, ab, b) = expit(at[0] * self._x + at[1]), self._x, self._P
        slope, shift = at[0] - self._start[0], at[1] - self._start[1]
        residual, h = self._weight * (p - self._label), self._weight * p * (1 - p)
        gradient = (
            a * slope + ab * shift + float((residual * x).sum()),
            ab * slope + b * shift + float(residual.sum()),
        )
        hx = h * x
        return gradient, (a + float((hx * x).sum()), ab + float(hx.sum()), b + float(h.sum()))


def _mode(m: float, reach: float, y: float) -> float:
    """Probability sigma(M) at the root M = m + reach (y - sigma(M)).

    Newton steps, kept inside a bracket.
    """
    low, high = m - reach * (1 - y), m + reach * y
    mode = m
    for _ in range(_MAX_STEPS):
        p = 1.0 / (1.0 + math.exp(-mode)) if mode > -700 else 0.0
        wrong = mode - m - reach * (y - p)
        if -1e-10 < wrong < 1e-10 or high - low < 1e-10:
            break
        if wrong > 0:
            high = mode
        else:
            low = mode
        mode -= wrong / (1.0 + reach * p * (1.0 - p))
        if not low < mode < high:
            mode = 0.5 * (low + high)
    return p
