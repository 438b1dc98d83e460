"""Examination probability of each position in a shown list (position bias)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from weighting.checks import check_finite, check_labels, check_weights, drop_weightless
from weighting.constraints import NotNegative, Positive, check

Array = NDArray[np.float64]
LARGEST_POSITION = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class PropensityConfig:
    """Assumptions about positions before any sample, and how long they are kept."""

    decline: Annotated[
        NotNegative, Meta(le=5, description="eta of the assumed k^-eta; 0: all examined alike.")
    ] = 1.0
    pseudo_count: Annotated[
        Positive, Meta(description="Expected clicks that the assumption is worth, per position.")
    ] = 5.0
    half_life_seconds: Annotated[
        Positive, Meta(description="Event time after which a sample counts half.")
    ] = 30 * 86_400.0

    def __post_init__(self) -> None:
        """Check every field."""
        check(self, "propensity")


class Propensity:
    """theta_k of P(click | x, k) = theta_k r(x), with theta_1 = 1.

    The position-based model of Richardson et al. (2007) and Joachims et al. (2017):

        theta_k = (clicks at k + c k^-eta) / (sum of r(x) at k + c), at most 1,

    clicks at the position over the clicks that its items would have got at the first one, with the
    pseudo-count c. Counts fade in event time by 2^(-dt/h); time never runs backwards: an older
    sample counts as faded as it is. All positions from 50 on share one. An unknown position counts
    as examined.

    >>> Propensity(PropensityConfig()).get([1, 2, None]).tolist()
    [1.0, 0.5, 1.0]
    """

    def __init__(self, config: PropensityConfig) -> None:
        """Start at the assumption."""
        self.config = config
        self._time_us: int | None = None
        self._clicks = np.zeros(LARGEST_POSITION + 1)
        self._expected = np.zeros(LARGEST_POSITION + 1)
        self._assumed: Array = np.maximum(np.arange(LARGEST_POSITION + 1), 1.0) ** -config.decline

    def get(self, positions: Sequence[int | None]) -> Array:
        """Examination probabilities (N,) of 1-based positions, in (0, 1]."""
        c = self.config.pseudo_count
        theta = np.minimum((self._clicks + c * self._assumed) / (self._expected + c), 1.0)
        theta[:2] = 1.0
        found: Array = theta[_places(positions)]
        return found

    def update(
        self,
        time_us: NDArray[np.int64],
        positions: Sequence[int | None],
        label: Array,
        weight: Array,
        expected: Array,
    ) -> None:
        """Count N samples; their order does not count.

        Args:
            time_us: (N,) event times.
            positions: N positions, 1-based, None where unknown.
            label: (N,) labels.
            weight: (N,) weights; a sample of weight 0 is not counted at all.
            expected: (N,) r(x), as predicted before the samples were learned.
        """
        check_labels(label)
        check_weights("weight", weight)
        check_finite("expected clicks", expected)
        places = _places(positions)
        time_us, places, label, weight, expected = drop_weightless(
            weight, time_us, places, label, weight, expected
        )
        if not len(time_us):
            return
        n = len(self._clicks)
        newest = int(time_us.max())
        before = newest if self._time_us is None else self._time_us
        now = max(newest, before)
        kept = float(self._fade(np.array([now - before]))[0])
        counted = weight * self._fade(now - time_us)
        self._time_us = now
        self._clicks = kept * self._clicks + np.bincount(places, counted * label, n)
        self._expected = kept * self._expected + np.bincount(places, counted * expected, n)

    def snapshot(self) -> dict[str, Any]:
        """State after the last update, as plain numbers."""
        return {
            "time_us": self._time_us,
            "clicks": self._clicks.tolist(),
            "expected": self._expected.tolist(),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restore the state returned by `snapshot`."""
        self._time_us = state["time_us"]
        self._clicks = np.array(state["clicks"], dtype=np.float64)
        self._expected = np.array(state["expected"], dtype=np.float64)

    def _fade(self, age_us: NDArray[np.int64]) -> Array:
        return np.exp2(-age_us / (1e6 * self.config.half_life_seconds))


def _places(positions: Sequence[int | None]) -> NDArray[np.intp]:
    """Index of each position; 0 for an unknown one."""
    places = [0 if k is None else min(max(k, 1), LARGEST_POSITION) for k in positions]
    return np.array(places, dtype=np.intp)
