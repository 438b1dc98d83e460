"""Online Platt scaling of the estimator's logit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from weighting.checks import check_finite, check_labels, check_weights, drop_weightless
from weighting.constraints import Positive, check
from weighting.estimators.recursive import RecursiveLogistic

Array = NDArray[np.float64]


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

    It learns on the delay-corrected stream.

    >>> Calibration(CalibrationConfig()).predict(np.array([-2.0])).tolist()
    [-2.0]
    """

    def __init__(self, config: CalibrationConfig) -> None:
        """Start as the identity."""
        self.config = config
        self._time_us: int | None = None
        self._model = RecursiveLogistic(
            mean=(1.0, 0.0),
            precision=(config.slope_deviation**-2, config.shift_deviation**-2),
            low=(config.least_slope, -10.0),
            high=(config.largest_slope, 10.0),
        )

    def get(self) -> tuple[float, float]:
        """A and B."""
        slope, shift = self._model.mean
        return float(slope), float(shift)

    def predict(self, logit: Array) -> Array:
        """Calibrated logits (N,) of logits (N,)."""
        slope, shift = self.get()
        return slope * logit + shift

    def learn(self, time_us: NDArray[np.int64], logit: Array, label: Array, weight: Array) -> None:
        """Learn N samples; order within the call does not count.

        Args:
            time_us: (N,) event times.
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
        newest = int(time_us.max())
        before = newest if self._time_us is None else self._time_us
        now = max(newest, before)
        keep = 2.0 ** (-(now - before) / (1e6 * self.config.half_life_seconds))
        self._time_us = now
        self._model.learn((logit, np.ones_like(logit)), label, weight, keep=keep)

    def snapshot(self) -> dict[str, Any]:
        """State after the last `learn`, as plain numbers."""
        return {"time_us": self._time_us, "model": self._model.snapshot()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restore the state returned by `snapshot`."""
        self._time_us = state["time_us"]
        self._model.restore(state["model"])
