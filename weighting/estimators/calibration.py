"""Online Platt scaling of the estimator's logit."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from weighting.checks import FINITE, check_example, check_one
from weighting.constraints import Positive, check

Number = TypeVar("Number", float, NDArray[np.float64])
_LARGEST_SHIFT = 10.0
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
        c, (a, ab, b) = self.config, self._precision
        determinant = a * b - ab * ab
        along_slope, along_shift = (b * x - ab) / determinant, (a - ab * x) / determinant
        variance = x * along_slope + along_shift  # of the logit: x' P^-1 x
        p = _mode(self._slope * x + self._shift, variance * w, y)
        push, h = w * (y - p), w * p * (1 - p)
        slope, shift = self._slope + along_slope * push, self._shift + along_shift * push
        self._slope = min(max(slope, c.least_slope), c.largest_slope)
        self._shift = min(max(shift, -_LARGEST_SHIFT), _LARGEST_SHIFT)
        self._precision = a + h * x * x, ab + h * x, b + h


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
