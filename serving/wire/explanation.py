"""Explanation of a score: what each of its parts added, for requests that ask."""

from __future__ import annotations

import math

from msgspec import UNSET, UnsetType

from learner.artifact import Scores
from serving.wire.protocol import Explanation


def explanation(scores: Scores, index: int) -> Explanation | UnsetType:
    """Return what each part adds to the logit of one document; UNSET if the scorer cannot tell.

    Args:
        scores: of one request.
        index: the document's place in it.
    """
    contributions = {name: float(added[index]) for name, added in scores.contributions.items()}
    if not contributions:
        return UNSET
    return Explanation(
        logit=math.fsum(contributions.values()),
        contributions=contributions,
        expected_value=expected_value(scores, index),
    )


def expected_value(scores: Scores, index: int) -> float | UnsetType:
    """Return what is paid for one document if it is bought; UNSET if the version cannot tell."""
    return UNSET if scores.value is None else float(scores.value[index])
