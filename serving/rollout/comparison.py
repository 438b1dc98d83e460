"""Comparison of a new version's scores with the serving version's, on the same requests.

Legend: N documents of all requests together.

What an honest version may change grows with what it has learned since: *news* is the share of its
samples that the serving version has not seen (or the other way round), 0 to 1. At 1 the versions
share nothing, and only the distribution is bounded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from learner.artifact import ENCODER, Scores, ScoringInput, Version
from serving.errors import Refused

Array: TypeAlias = NDArray[np.float64]

_LEAST_PROBABILITY = 1e-6
_LEAST_SPREAD = 5e-3
"""Standard deviation of logits inside a request, below which its order says nothing."""
_NEWS_FACTOR = 4.0
_WORST_FACTOR = 4.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Replayed:
    """A request, and the scores that the serving version gave it."""

    request: ScoringInput
    scores: Scores


@dataclass(frozen=True, slots=True, kw_only=True)
class Tolerance:
    """Difference that is allowed between two versions.

    Attributes:
        min_agreement: correlation of the logits inside requests, -1 to 1, without news.
        max_logit_shift: change of the mean logit of a task, without news.
        news: share of samples that only one of the versions has learned.
    """

    min_agreement: float
    max_logit_shift: float
    news: float

    @property
    def agreement(self) -> float:
        """Least correlation at these news.

        It falls with the square of what both know: a query's first residuals turn the order of
        documents that were nearly alike.
        """
        return self.min_agreement * (1 - self.news) ** 2 if self.news < 1 else -1.0

    @property
    def shift(self) -> float:
        """Largest change of a mean logit at these news."""
        return self.max_logit_shift * (1 + _NEWS_FACTOR * self.news)


def news(new: Version, served: Version) -> float:
    """Return the share of samples that only one of two versions has learned, 0 to 1.

    Versions under different settings share nothing.
    """
    settings = [version.manifest.get("config_sha256") for version in (new, served)]
    most = max(new.num_samples, served.num_samples)
    if settings[0] != settings[1] or not most:
        return 1.0
    return abs(new.num_samples - served.num_samples) / most


def check_agreement(
    kind: str, replayed: Sequence[Replayed], scores: Sequence[Scores], tolerance: Tolerance
) -> None:
    """Refuse another order than the serving version's, of the scores or of the encoder's share.

    The encoder is looked at by itself: one that is broken can be outvoted in the requests at hand.
    One that the new version gives no weight at all can do no harm.

    Args:
        kind: of the requests, for the reason.
        replayed: requests with the scores of the serving version.
        scores: of the new version, one per request.
        tolerance: how much may differ.

    Raises:
        Refused: the correlation of the logits inside the requests, pooled, is too small.
    """
    pairs = list(zip([one.scores for one in replayed], scores, strict=True))
    views = {"scores": [(_logit(old.score), _logit(new.score)) for old, new in pairs]}
    known = all(ENCODER in s.contributions for pair in pairs for s in pair)
    if known and any(new.contributions[ENCODER].any() for _, new in pairs):
        name = f"{ENCODER}'s contributions"
        views[name] = [(o.contributions[ENCODER], n.contributions[ENCODER]) for o, n in pairs]
    for what, view in views.items():
        found = _correlation(view)
        if found < tolerance.agreement:
            raise Refused(
                "agreement",
                f"{kind} requests: correlation {found:.2f} with the {what} of the version in use, "
                f"at least {tolerance.agreement:.2f} is expected",
            )


def _correlation(pairs: Sequence[tuple[Array, Array]]) -> float:
    """Return the correlation inside requests, pooled; 1 where the old values tell nothing apart.

    Where the new values spread further it counts up to twice: what they add may be what was learned
    since, as of a query of which little was known.
    """
    old, new = ([_centred(pair[side]) for pair in pairs] for side in (0, 1))
    told = [i for i, values in enumerate(old) if len(values) > 1 and values.std() > _LEAST_SPREAD]
    if not told:
        return 1.0
    x, y = np.concatenate([old[i] for i in told]), np.concatenate([new[i] for i in told])
    spread = np.sqrt(np.array([x @ x, y @ y]))
    more = float(np.clip(spread[1] / max(spread[0], 1e-12), 1.0, 2.0))
    return more * float(x @ y / max(spread.prod(), 1e-12))


def check_distribution(
    kind: str, replayed: Sequence[Replayed], scores: Sequence[Scores], tolerance: Tolerance
) -> None:
    """Refuse probabilities that moved too far at once; arguments as of `check_agreement`.

    Raises:
        Refused: names the task and the change of its mean logit, or of one document's.
    """
    for task in scores[0].prior if scores else ():
        shift: Array = np.concatenate(
            [
                _logit(new.probability[task]) - _logit(old.scores.probability[task])
                for new, old in zip(scores, replayed, strict=True)
            ]
        )
        for what, found, most in (
            ("the mean logit", abs(float(shift.mean())), tolerance.shift),
            ("a document's logit", float(np.abs(shift).max()), _WORST_FACTOR * tolerance.shift),
        ):
            if found > most:
                reason = f"{what} of p({task}) moved by {found:.2f}, at most {most:.2f} is expected"
                raise Refused("distribution", f"{kind} requests: {reason}")


def _logit(probability: Array) -> Array:
    p = np.clip(probability, _LEAST_PROBABILITY, 1 - _LEAST_PROBABILITY)
    found: Array = np.log(p / (1 - p))
    return found


def _centred(values: Array) -> Array:
    found: Array = values - values.mean()
    return found
