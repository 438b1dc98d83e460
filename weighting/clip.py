"""Caps, floors and the normalisation of a batch's weights, and how much they took away.

Legend: N samples of one task in the whole optimiser step, r their stream-law factors, u their ratios.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from weighting.errors import WeightError

Array = NDArray[np.float64]
Normalise = Literal["raw", "batch", "self"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipConfig:
    """Bounds of a weight.

    Attributes:
        low: least ratio, applied before normalisation.
        high: largest ratio, applied before normalisation.
        cap: largest final weight.
        normalise: raw: w = r u. batch: w = r u / (sum r u / sum r), so that the class balance in r is kept. self: w = r u / mean(r u).
    """

    low: float = 0.1
    high: float = 5.0
    cap: float = 20.0
    normalise: Normalise = "batch"

    def __post_init__(self) -> None:
        """Refuse bounds that no weight can meet.

        Raises:
            ValueError: names key, value and expectation.
        """
        if not 0 <= self.low < self.high < float("inf"):
            raise ValueError(f"clip: got [{self.low!r}, {self.high!r}], expected 0 <= low < high")
        if not 0 < self.cap < float("inf"):
            raise ValueError(f"clip.cap: got {self.cap!r}, expected a number > 0")
        if self.normalise not in ("raw", "batch", "self"):
            raise ValueError(f"clip.normalise: got {self.normalise!r}, expected raw, batch or self")


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
