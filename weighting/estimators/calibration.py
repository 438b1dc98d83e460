"""Online Platt scaling of the estimator's logit: do its 0.3 come true 30 % of the time?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from weighting.constraints import Positive, check
from weighting.estimators.recursive import RecursiveLogistic

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrationConfig:
    """Range and speed of calibration: logit p' = A logit p + B."""

    half_life_seconds: Annotated[
        Positive, Meta(description="Event time after which a sample counts half.")
    ] = 86_400.0
    least_slope: Annotated[Positive, Meta(le=1, description="Least A.")] = 0.25
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
    """logit p' = A logit p + B, started at (1, 0), learned on the delay-weighted stream (Platt 1999, made recursive).

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
        """Learn N samples: event times, logits as they were predicted, labels, weights (N,) each. Order within the call does not count."""
        if not len(time_us):
            return
        now = max(
            int(time_us.max()), self._time_us if self._time_us is not None else int(time_us.max())
        )
        age_us = 0 if self._time_us is None else now - self._time_us
        self._time_us = now
        self._model.learn(
            (logit, np.ones_like(logit)),
            label,
            weight,
            keep=2.0 ** (-age_us / (1e6 * self.config.half_life_seconds)),
        )

    def snapshot(self) -> dict[str, Any]:
        """State after the last `learn`, as plain numbers."""
        return {"time_us": self._time_us, "model": self._model.snapshot()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Resume after the `learn` that the snapshot was taken behind."""
        self._time_us = state["time_us"]
        self._model.restore(state["model"])
