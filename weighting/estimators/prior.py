"""Label prior p(y): a Beta posterior with counts that fade in event time.

It is shrunk to the undecayed maximum likelihood, which is kept beside it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from msgspec import Meta
from numpy.typing import NDArray
from scipy.special import betaincinv

from weighting.checks import WEIGHT, check_one, check_weights, drop_weightless
from weighting.constraints import Positive, check

Array = NDArray[np.float64]
Times = NDArray[np.int64]
LEAST = 1e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class PriorConfig:
    """Rate at which a share of positives may change."""

    initial: Annotated[Positive, Meta(lt=1, description="Share assumed before any sample.")] = 0.1
    initial_pseudo_count: Annotated[
        Positive, Meta(description="Samples that it is worth, against the long run.")
    ] = 10.0
    half_life_seconds: Annotated[
        Positive, Meta(description="Event time after which a sample counts half.")
    ] = 86_400.0
    pseudo_count: Annotated[
        Positive, Meta(description="Samples that the long run is worth, against the recent past.")
    ] = 200.0

    def __post_init__(self) -> None:
        """Check every field."""
        check(self, "prior")


class Prior:
    """Share of positives among weighted samples.

    alpha <- g alpha + sum a, beta <- g beta + sum b, g = 2^(-dt/h);
    mean = (alpha + k pi0) / (alpha + beta + k),

    with pi0 the undecayed maximum likelihood (itself started at `initial`), so that a quiet stream
    returns to its long run and not to a constant. Time never runs backwards: an older sample
    counts as faded as it is.

    >>> prior = Prior(PriorConfig(initial=0.5))
    >>> prior.get()
    0.5
    >>> prior.update(0, 0.0, 1.0)
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
        """Undecayed share of positives; the assumption before any sample."""
        n = self._all_alpha + self._all_beta
        return self._all_alpha / n if n > 0 else self.config.initial

    def update(self, time_us: int, a: float, b: float) -> None:
        """Add one sample; one of weight 0 changes nothing.

        Args:
            time_us: its event time.
            a: its weight if it is positive, else 0.
            b: its weight if it is negative, else 0.
        """
        if not (0 <= a < math.inf and 0 <= b < math.inf):
            check_one("positive weight", a, 0 <= a < math.inf, WEIGHT)
            check_one("negative weight", b, False, WEIGHT)
        if a + b == 0:
            return
        before = time_us if self._time_us is None else self._time_us
        self._time_us = max(time_us, before)
        if time_us > before:
            kept = self._fade(time_us - before)
            self._alpha, self._beta = kept * self._alpha, kept * self._beta
        fade = self._fade(before - time_us) if time_us < before else 1.0
        self._alpha += fade * a
        self._beta += fade * b
        self._all_alpha += a
        self._all_beta += b

    def update_many(self, time_us: Times, a: Array, b: Array) -> None:
        """Add N samples; the sums are those of `update` one after another, but for rounding.

        Args:
            time_us: (N,) their event times.
            a: (N,) their weights where they are positive, else 0.
            b: (N,) their weights where they are negative, else 0.
        """
        check_weights("positive weight", a)
        check_weights("negative weight", b)
        time_us, a, b = drop_weightless(a + b, time_us, a, b)
        if not len(time_us):
            return
        newest = int(time_us.max())
        before = newest if self._time_us is None else self._time_us
        self._time_us = max(newest, before)
        kept = self._fade(self._time_us - before)
        fade = np.exp2((time_us - self._time_us) / (1e6 * self.config.half_life_seconds))
        self._alpha = kept * self._alpha + float((fade * a).sum())
        self._beta = kept * self._beta + float((fade * b).sum())
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
        """Restore the state returned by `snapshot`."""
        self._time_us = state["time_us"]
        self._alpha, self._beta = state["recent"]
        self._all_alpha, self._all_beta = state["all"]

    def _shape(self) -> tuple[float, float]:
        c = self.config
        known = self._all_alpha + self._all_beta + c.initial_pseudo_count
        pi0 = (self._all_alpha + c.initial_pseudo_count * c.initial) / known
        return self._alpha + c.pseudo_count * pi0, self._beta + c.pseudo_count * (1 - pi0)

    def _fade(self, age_us: int) -> float:
        return math.pow(2.0, -age_us / (1e6 * self.config.half_life_seconds))
