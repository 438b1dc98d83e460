"""Bounds of a sample's weight, and counts of what they changed.

Legend: N samples of one task, r their correction weights, u the factors of their weighting scheme.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from weighting.checks import check_weights
from weighting.constraints import NotNegative, Positive, check, check_order

Array = NDArray[np.float64]
Normalise = Literal["raw", "running", "self"]
BOUNDS = ("low", "high", "cap")


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipConfig:
    """Bounds of a weight w, made of r, the delay correction, and u, the scheme's factor.

    raw: w = r u. running: w = r u (sum r / sum r u), so that the class balance in r is kept.
    self: w = r u / mean(r u). The sums run over the task's earlier samples and fade, so a weight
    does not depend on the batch that its sample fell into.
    """

    low: Annotated[NotNegative, Meta(description="Smallest u, before normalisation.")] = 0.1
    high: Annotated[Positive, Meta(description="Largest u, before normalisation.")] = 5.0
    cap: Annotated[Positive, Meta(description="Largest final weight.")] = 20.0
    normalise: Annotated[
        Normalise,
        Meta(
            description="raw: as is. running: keep the mean correction. self: mean 1; "
            "over earlier samples."
        ),
    ] = "running"
    half_life_samples: Annotated[
        Positive,
        Meta(description="Samples after which one counts half in the normalisation."),
    ] = 20_000.0

    def __post_init__(self) -> None:
        """Check every field, and that the bounds of u are in order."""
        check(self, "clip")
        check_order(self, "clip", "low", "high", strict=True)


def bounded(factor: Array, config: ClipConfig) -> Array:
    """Return the scheme's factors u (N,) within their bounds.

    Raises:
        WeightError: a factor is NaN, infinite or negative; names its index.
    """
    check_weights("scheme factor", factor)
    return np.clip(factor, config.low, config.high)


def num_clipped(factor: Array, weight: Array, config: ClipConfig) -> dict[str, int]:
    """Return the number of samples that each of the bounds changes.

    Args:
        factor: (N,) u, unbounded.
        weight: (N,) normalised weights, not yet capped.
        config: the bounds.
    """
    changed = factor < config.low, factor > config.high, weight > config.cap
    return {bound: int(found.sum()) for bound, found in zip(BOUNDS, changed, strict=True)}
