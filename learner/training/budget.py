"""Privacy budget: epsilon of a bounded number of Gaussian mechanisms per list, by opacus."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import Annotated

import msgspec
from msgspec import Meta

from learner.errors import PrivacyUnsupported
from learner.extras import needed_by
from weighting.constraints import Count, NotNegative, Positive, check


@dataclass(frozen=True, slots=True, kw_only=True)
class PrivacyConfig:
    """Noise on the gradients of lists: DP-SGD, off unless there is noise."""

    noise_multiplier: Annotated[
        NotNegative,
        Meta(
            lt=1e6,
            description="Standard deviation of the noise on a step's summed gradients of lists, in "
            "units of max_norm; 0: no clipping of lists, no noise, no guarantee.",
        ),
    ] = 0.0
    max_norm: Annotated[
        Positive,
        Meta(description="Norm to which the summed, weighted gradient of each list is clipped."),
    ] = 1.0
    delta: Annotated[
        Positive,
        Meta(lt=1, description="Probability with which epsilon may fail; far below 1 / lists."),
    ] = 1e-6
    max_contributions: Annotated[
        Count,
        Meta(
            description="Steps that a list may add to, over the learner's life; its samples of "
            "later ones are scored and counted, and their gradient is dropped."
        ),
    ] = 2

    def __post_init__(self) -> None:
        """Check every field."""
        check(self, "learner.privacy")

    @property
    def enabled(self) -> bool:
        """Whether gradients are clipped per list and noise is added."""
        return self.noise_multiplier > 0


class Budget(msgspec.Struct, kw_only=True, frozen=True):
    """Guarantee of each list, and what it rests on.

    Attributes:
        epsilon: bound, but with probability `delta`.
        delta: that probability.
        unit: what two neighbouring streams differ in: the gradient of one list is zero in one.
        noise_multiplier: smallest that was in force.
        max_norm: in force now; does not change epsilon.
        max_contributions: largest that was in force.
        since_step: steps taken before the noise was on, of which nothing is guaranteed.
        num_dropped: contributions beyond the bound.
    """

    epsilon: float
    delta: float
    unit: str = "list"
    noise_multiplier: float
    max_norm: float
    max_contributions: int
    since_step: int
    num_dropped: int


def epsilon(noise_multiplier: float, num_steps: int, delta: float) -> float:
    """Return epsilon at `delta` of Gaussian mechanisms that all act on the same list.

    Each has Renyi divergence a / (2 noise_multiplier^2) of order a, and these add up (Mironov, CSF
    2017, propositions 1 and 7, corollary 3); that is the moments accountant (Abadi et al., CCS
    2016) without its gain from sampling, as a stream is not sampled. Steps that a list adds nothing
    to cost it nothing: they see it only through parameters already paid for (parallel composition;
    McSherry, SIGMOD 2009).

    Args:
        noise_multiplier: standard deviation of the noise over the largest norm of a list.
        num_steps: that a list adds to.
        delta: in (0, 1).

    Raises:
        PrivacyUnsupported: opacus is not installed.
    """
    setting = f"learner.privacy.noise_multiplier: {noise_multiplier:g}"
    with needed_by(setting, PrivacyUnsupported):
        from opacus.accountants import RDPAccountant
    accountant = RDPAccountant()
    accountant.history = [(noise_multiplier, 1.0, num_steps)]
    orders = [
        *(1 + 10.0**-k for k in range(2, 7)),
        *RDPAccountant.DEFAULT_ALPHAS,
        *(float(2**k) for k in range(6, 24)),
    ]
    with warnings.catch_warnings():
        # An outermost order may be the best: the bound holds, and a still tighter one exists
        warnings.simplefilter("ignore")
        found = float(accountant.get_epsilon(delta, alphas=orders))
    return found if not math.isnan(found) else math.inf
