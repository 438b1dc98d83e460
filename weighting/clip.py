"""Bounds and normalisation of a batch's weights, with counts of what the bounds changed.

Legend: N samples of one task in the whole optimiser step, r their correction weights, u the
factors of their weighting scheme.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from weighting.checks import check_weights
from weighting.constraints import NotNegative, Positive, check, check_order
from weighting.errors import WeightError

Array = NDArray[np.float64]
Normalise = Literal["raw", "batch", "self"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipConfig:
    """Bounds of a weight w, made of r, the delay correction, and u, the scheme's factor.

    raw: w = r u. batch: w = r u / (sum r u / sum r), so that the class balance in r is kept.
    self: w = r u / mean(r u).
    """

    low: Annotated[NotNegative, Meta(description="Smallest u, before normalisation.")] = 0.1
    high: Annotated[Positive, Meta(description="Largest u, before normalisation.")] = 5.0
    cap: Annotated[Positive, Meta(description="Largest final weight.")] = 20.0
    normalise: Annotated[
        Normalise, Meta(description="raw: as is. batch: keep the mean correction. self: mean 1.")
    ] = "batch"

    def __post_init__(self) -> None:
        """Check every field, and that the bounds of u are in order."""
        check(self, "clip")
        check_order(self, "clip", "low", "high", strict=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Clipped:
    """Final weights (N,), and the number of samples that each bound changed."""

    weight: Array
    num_low: int
    num_high: int
    num_capped: int


def clip(correction: Array, factor: Array, config: ClipConfig) -> Clipped:
    """Clip the scheme factors, normalise over all N samples, cap the result.

    Sums run over the samples as given: call it once per optimiser step, with all of the step's
    samples of a task, never per micro-batch.

    Args:
        correction: (N,) r, correction weights of the label delay.
        factor: (N,) u, factors of the weighting scheme, unclipped.
        config: bounds and normalisation.

    Raises:
        WeightError: a value is NaN, infinite or negative (names its index), or all are zero.
    """
    check_weights("correction weight", correction)
    check_weights("scheme factor", factor)
    w: Array = correction * np.clip(factor, config.low, config.high)
    if len(w):
        w = w * _normalisation(correction, w, config.normalise)
    return Clipped(
        weight=np.minimum(w, config.cap),
        num_low=int((factor < config.low).sum()),
        num_high=int((factor > config.high).sum()),
        num_capped=int((w > config.cap).sum()),
    )


def _normalisation(r: Array, w: Array, normalise: Normalise) -> float:
    """Return the scale of the weights w (N,) under a normalisation mode."""
    total = float(w.sum())
    if total <= 0:
        raise WeightError("weight", total, "a batch whose weights do not sum to 0")
    target = {"raw": total, "batch": float(r.sum()), "self": float(len(w))}[normalise]
    return target / total
