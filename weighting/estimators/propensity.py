"""Examination probability of each position in a shown list (position bias)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from weighting.checks import (
    FINITE,
    check_example,
    check_finite,
    check_labels,
    check_one,
    check_weights,
    drop_weightless,
)
from weighting.constraints import NotNegative, Positive, check

Array = NDArray[np.float64]
Places = NDArray[np.intp]
Times = NDArray[np.int64]
LARGEST_POSITION = 50


def places(positions: Sequence[int | None]) -> Places:
    """Return where each of N positions is counted: from 1 to 50, 0 of an unknown one."""
    known = [0 if k is None else min(max(k, 1), LARGEST_POSITION) for k in positions]
    return np.array(known, dtype=np.intp)


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
    as examined, and teaches nothing.

    >>> propensity = Propensity(PropensityConfig())
    >>> propensity.get(1), propensity.get(2), propensity.get(None)
    (1.0, 0.5, 1.0)
    """

    def __init__(self, config: PropensityConfig) -> None:
        """Start at the assumption."""
        self.config = config
        self._time_us: int | None = None
        self._clicks = [0.0] * (LARGEST_POSITION + 1)  # at each position; none at 0
        self._expected = [0.0] * (LARGEST_POSITION + 1)
        places = range(LARGEST_POSITION + 1)
        self._assumed: list[float] = [max(k, 1) ** -config.decline for k in places]

    def get(self, position: int | None) -> float:
        """Examination probability of a 1-based position, in (0, 1]."""
        if position is None or position <= 1:
            return 1.0
        k, c = min(position, LARGEST_POSITION), self.config.pseudo_count
        theta = (self._clicks[k] + c * self._assumed[k]) / (self._expected[k] + c)
        return min(theta, 1.0)

    def update(
        self, time_us: int, position: int | None, label: float, weight: float, expected: float
    ) -> None:
        """Count one sample; one of weight 0 is not counted at all.

        Args:
            time_us: its event time.
            position: its 1-based position, None where unknown.
            label: its label.
            weight: its weight.
            expected: r(x), as predicted before the sample was learned.
        """
        check_example(label, weight)
        check_one("expected clicks", expected, -math.inf < expected < math.inf, FINITE)
        if weight == 0 or position is None:
            return
        before = time_us if self._time_us is None else self._time_us
        self._time_us = max(time_us, before)
        if time_us > before:
            kept = self._fade(time_us - before)
            self._clicks = [kept * clicks for clicks in self._clicks]
            self._expected = [kept * clicks for clicks in self._expected]
        counted = weight * self._fade(before - time_us) if time_us < before else weight
        k = min(max(position, 1), LARGEST_POSITION)
        self._clicks[k] += counted * label
        self._expected[k] += counted * expected

    def get_many(self, place: Places) -> Array:
        """Examination probability (N,) of places (N,), as `places` gives them."""
        c = self.config.pseudo_count
        clicks, expected = np.array(self._clicks), np.array(self._expected)
        theta = np.minimum((clicks + c * np.array(self._assumed)) / (expected + c), 1.0)
        theta[:2] = 1.0
        found: Array = theta[place]
        return found

    def update_many(
        self, time_us: Times, place: Places, label: Array, weight: Array, expected: Array
    ) -> None:
        """Count N samples; the counts are those of `update` one by one, but for rounding.

        Args:
            time_us: (N,) their event times.
            place: (N,) their places, as `places` gives them.
            label: (N,) their labels.
            weight: (N,) their weights.
            expected: (N,) r(x), as predicted before any of them was learned.
        """
        check_labels(label)
        check_weights("weight", weight)
        check_finite("expected clicks", expected)
        own = np.where(place > 0, weight, 0.0)
        time_us, place, label, own, expected = drop_weightless(
            own, time_us, place, label, own, expected
        )
        if not len(time_us):
            return
        newest = int(time_us.max())
        before = newest if self._time_us is None else self._time_us
        self._time_us = max(newest, before)
        kept = self._fade(self._time_us - before)
        counted = own * np.exp2((time_us - self._time_us) / (1e6 * self.config.half_life_seconds))
        number = LARGEST_POSITION + 1
        clicks = kept * np.array(self._clicks) + np.bincount(place, counted * label, number)
        every = kept * np.array(self._expected) + np.bincount(place, counted * expected, number)
        self._clicks, self._expected = clicks.tolist(), every.tolist()

    def snapshot(self) -> dict[str, Any]:
        """State after the last update, as plain numbers."""
        return {
            "time_us": self._time_us,
            "clicks": list(self._clicks),
            "expected": list(self._expected),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restore the state returned by `snapshot`."""
        self._time_us = state["time_us"]
        self._clicks, self._expected = list(state["clicks"]), list(state["expected"])

    def _fade(self, age_us: int) -> float:
        return math.pow(2.0, -age_us / (1e6 * self.config.half_life_seconds))
