"""p(y), now: a Beta posterior whose counts fade in event time, shrunk to the undecayed maximum likelihood beside it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from msgspec import Meta
from numpy.typing import NDArray
from scipy.special import betaincinv

from weighting.constraints import Positive, check

Array = NDArray[np.float64]
LEAST = 1e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class PriorConfig:
    """Rate at which a share of positives may change."""

    initial: Annotated[Positive, Meta(lt=1, description="Share assumed before any sample.")] = 0.1
    initial_mass: Annotated[
        Positive, Meta(description="Samples that it is worth, against the long run.")
    ] = 10.0
    half_life_seconds: Annotated[
        Positive, Meta(description="Event time after which a sample counts half.")
    ] = 86_400.0
    mass: Annotated[
        Positive, Meta(description="Samples that the long run is worth, against the recent past.")
    ] = 200.0

    def __post_init__(self) -> None:
        """Check every field."""
        check(self, "prior")


class Prior:
    """Share of positives among weighted samples.

    alpha <- g alpha + sum a, beta <- g beta + sum b, g = 2^(-dt/h); mean = (alpha + k pi0) / (alpha + beta + k), with pi0 the undecayed
    maximum likelihood (itself started at `initial`), so that a quiet stream returns to its long run and not to a constant.
    Time never runs backwards: an older sample counts as faded as it is.

    >>> prior = Prior(PriorConfig(initial=0.5))
    >>> prior.get()
    0.5
    >>> prior.update(np.array([0, 0]), np.array([0.0, 0.0]), np.array([1.0, 1.0]))
    >>> prior.get() < 0.5
    True
    """

    def __init__(self, config: PriorConfig) -> None:
        """Start with the assumption and no counts."""
        self.config = config
        self._time_us: int | None = None
        self._alpha = 0.0
        self._beta = 0.0
        self._all_alpha = 0.0
        self._all_beta = 0.0

    def get(self) -> float:
        """Mean of p(y=1), in [1e-6, 1 - 1e-6]."""
        alpha, beta = self._shape()
        return min(max(alpha / (alpha + beta), LEAST), 1 - LEAST)

    def interval(self) -> tuple[float, float]:
        """Equal-tailed 95 % interval of the Beta posterior."""
        alpha, beta = self._shape()
        return float(betaincinv(alpha, beta, 0.025)), float(betaincinv(alpha, beta, 0.975))

    def maximum_likelihood(self) -> float:
        """Undecayed share of positives over everything seen; the assumption before that."""
        n = self._all_alpha + self._all_beta
        return self._all_alpha / n if n > 0 else self.config.initial

    def update(self, time_us: NDArray[np.int64], a: Array, b: Array) -> None:
        """Add N samples: event times (N,), positive mass (N,) and negative mass (N,). Order within the call does not count."""
        if not len(time_us):
            return
        now = max(
            int(time_us.max()), self._time_us if self._time_us is not None else int(time_us.max())
        )
        fade = self._fade(now - time_us)
        if self._time_us is not None:
            kept = float(self._fade(np.array([now - self._time_us]))[0])
            self._alpha *= kept
            self._beta *= kept
        self._time_us = now
        self._alpha += float((fade * a).sum())
        self._beta += float((fade * b).sum())
        self._all_alpha += float(a.sum())
        self._all_beta += float(b.sum())

    def snapshot(self) -> dict[str, Any]:
        """State after the last update, as plain numbers."""
        return {
            "time_us": self._time_us,
            "recent": [self._alpha, self._beta],
            "all": [self._all_alpha, self._all_beta],
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Resume after the update that the snapshot was taken behind."""
        self._time_us = state["time_us"]
        self._alpha, self._beta = state["recent"]
        self._all_alpha, self._all_beta = state["all"]

    def _shape(self) -> tuple[float, float]:
        c = self.config
        pi0 = (self._all_alpha + c.initial_mass * c.initial) / (
            self._all_alpha + self._all_beta + c.initial_mass
        )
        return self._alpha + c.mass * pi0, self._beta + c.mass * (1 - pi0)

    def _fade(self, age_us: NDArray[np.int64]) -> Array:
        return np.exp2(-age_us / (1e6 * self.config.half_life_seconds))
