"""The chance that a place in the shown list is looked at, learned from the clicks there and what was expected of the items there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from weighting.constraints import NotNegative, Positive, check

Array = NDArray[np.float64]
_LARGEST_POSITION = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class PropensityConfig:
    """Assumptions about positions before any sample, and how long they are kept."""

    decline: Annotated[
        NotNegative, Meta(le=5, description="eta of the assumed k^-eta; 0: all examined alike.")
    ] = 1.0
    mass: Annotated[
        Positive, Meta(description="Expected clicks that the assumption is worth, per position.")
    ] = 5.0
    memory: Annotated[float, Meta(ge=1, description="Samples that a position remembers.")] = (
        20_000.0
    )

    def __post_init__(self) -> None:
        """Check every field."""
        check(self, "propensity")


class Propensity:
    """theta_k of P(click | x, k) = theta_k r(x), with theta_1 = 1 (position-based model: Richardson et al. 2007, Joachims et al. 2017).

    theta_k = (clicks at k + mass k^-eta) / (sum of r(x) at k + mass), at most 1: what was clicked there over what would have been clicked
    first. All places from 50 on share one. An unknown place counts as looked at.

    >>> Propensity(PropensityConfig()).get([1, 2, None]).tolist()
    [1.0, 0.5, 1.0]
    """

    def __init__(self, config: PropensityConfig) -> None:
        """Start at the assumption."""
        self.config = config
        self._clicks = np.zeros(_LARGEST_POSITION + 1)
        self._expected = np.zeros(_LARGEST_POSITION + 1)
        self._assumed: Array = np.maximum(np.arange(_LARGEST_POSITION + 1), 1.0) ** -config.decline

    def get(self, positions: Sequence[int | None]) -> Array:
        """Chances (N,) of 1-based places, in (0, 1]."""
        c = self.config
        theta = np.minimum((self._clicks + c.mass * self._assumed) / (self._expected + c.mass), 1.0)
        theta[:2] = 1.0
        found: Array = theta[_places(positions)]
        return found

    def update(
        self, positions: Sequence[int | None], label: Array, weight: Array, expected: Array
    ) -> None:
        """Count N samples: places, labels, weights, and r(x) as predicted before they were learned. Their order does not count."""
        places = _places(positions)
        n = len(self._clicks)
        kept = (1 - 1 / self.config.memory) ** np.bincount(places, minlength=n)
        self._clicks = kept * self._clicks + np.bincount(places, weight * label, n)
        self._expected = kept * self._expected + np.bincount(places, weight * expected, n)

    def snapshot(self) -> dict[str, Any]:
        """State after the last update, as plain numbers."""
        return {"clicks": self._clicks.tolist(), "expected": self._expected.tolist()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Resume after the update that the snapshot was taken behind."""
        self._clicks = np.array(state["clicks"], dtype=np.float64)
        self._expected = np.array(state["expected"], dtype=np.float64)


def _places(positions: Sequence[int | None]) -> NDArray[np.intp]:
    """Index of each place; 0 for an unknown one."""
    return np.array(
        [0 if k is None else min(max(k, 1), _LARGEST_POSITION) for k in positions], dtype=np.intp
    )
