"""Caps, floors and the normalisation of a batch's weights, and how much they took away.

Legend: N samples of one task in the whole optimiser step, r their stream-law factors, u their ratios.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from weighting.constraints import NotNegative, Positive, check, check_order
from weighting.errors import WeightError

Array = NDArray[np.float64]
Normalise = Literal["raw", "batch", "self"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipConfig:
    """Bounds of a weight w, made of r, the delay correction, and u, the ratio.

    raw: w = r u. batch: w = r u / (sum r u / sum r), so that the class balance in r is kept.
    self: w = r u / mean(r u).
    """

    low: Annotated[NotNegative, Meta(description="Least ratio, before normalisation.")] = 0.1
    high: Annotated[Positive, Meta(description="Largest ratio, before normalisation.")] = 5.0
    cap: Annotated[Positive, Meta(description="Largest final weight.")] = 20.0
    normalise: Annotated[
        Normalise, Meta(description="raw: as is. batch: keep the mean correction. self: mean 1.")
    ] = "batch"

    def __post_init__(self) -> None:
        """Check every field, and that the bounds of the ratio are in order."""
        check(self, "clip")
        check_order(self, "clip", "low", "high", strict=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Clipped:
    """Final weights (N,), and on how many samples each bound acted."""

    weight: Array
    num_low: int
    num_high: int
    num_capped: int


def clip(law: Array, tilt: Array, config: ClipConfig) -> Clipped:
    """Clip the ratios, normalise over all N samples, cap the result.

    Sums run over the samples as given: call it once per optimiser step, with all of the step's samples of a task, never per micro-batch.

    Args:
        law: (N,) r, all factors but the ratio.
        tilt: (N,) u, the ratio with its exponent, unclipped.
        config: bounds and normalisation.

    Raises:
        WeightError: a factor is NaN, infinite or negative (names its index), or all weights are zero.
    """
    for factor, values in (("stream law", law), ("ratio", tilt)):
        bad = ~(np.isfinite(values) & (values >= 0))
        if bad.any():
            index = int(bad.argmax())
            raise WeightError(factor, float(values[index]), "a finite number >= 0", index)
    u = np.clip(tilt, config.low, config.high)
    w: Array = law * u
    total = float(w.sum())
    if len(w) and total <= 0:
        raise WeightError("weight", total, "a batch whose weights do not sum to 0")
    if len(w) and config.normalise == "batch":
        w = w * (float(law.sum()) / total)
    elif len(w) and config.normalise == "self":
        w = w * (len(w) / total)
    return Clipped(
        weight=np.minimum(w, config.cap),
        num_low=int((tilt < config.low).sum()),
        num_high=int((tilt > config.high).sum()),
        num_capped=int((w > config.cap).sum()),
    )
