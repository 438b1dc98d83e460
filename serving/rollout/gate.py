"""Checks of a new version: shapes, finite numbers, and golden requests against the served one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from learner.artifact import Document, Scores, ScoringInput
from serving.errors import Refused

#: Few, small, and odd on purpose: an ordinary search, no query at all, no text at all, other
#: scripts, and a text that must be truncated.
GOLDEN: tuple[ScoringInput, ...] = (
    ScoringInput(
        query="red running shoes",
        documents=(Document(text="trail running shoe, red"), Document(text="ceramic mug, blue")),
    ),
    ScoringInput(query="", documents=(Document(text="garden hose 20 m"), Document(text=""))),
    ScoringInput(query="téléphone 电话", documents=(Document(text="téléphone sans fil " * 100),)),
)


def check_shape(requests: Sequence[ScoringInput], scores: Sequence[Scores]) -> None:
    """Refuse `scores` unless there is one per request, with one number per document.

    Raises:
        Refused: names the first request that differs.
    """
    if len(scores) != len(requests):
        raise Refused("shape", f"{len(scores)} answers to {len(requests)} requests")
    for index, (request, answer) in enumerate(zip(requests, scores, strict=True)):
        expected = (len(request.documents),)
        for name, values in _columns(answer):
            if values.shape != expected:
                found = f"{name} has shape {values.shape}, expected {expected}"
                raise Refused("shape", f"request {index}: {found}")


def check_finite(scores: Sequence[Scores]) -> None:
    """Refuse NaN and infinities.

    Raises:
        Refused: names the first request that has one.
    """
    for index, answer in enumerate(scores):
        for name, values in _columns(answer):
            if not np.isfinite(values).all():
                raise Refused("finite", f"request {index}: {name} has a number that is not finite")


def check_golden(
    scores: Sequence[Scores], served: Sequence[Scores], max_shift_ratio: float
) -> None:
    """Refuse a version whose probabilities on the golden requests moved too far at once.

    Args:
        scores: of the new version, one per golden request.
        served: of the version in use, for the same requests.
        max_shift_ratio: largest change of one probability, 0 to 1.

    Raises:
        Refused: names the request, the task and the change.
    """
    for index, (new, old) in enumerate(zip(scores, served, strict=True)):
        for task in new.prior:
            shift = float(np.abs(new.probability[task] - old.probability[task]).max())
            if shift > max_shift_ratio:
                found = f"p({task}) moved by {shift:.3f}, at most {max_shift_ratio} is allowed"
                raise Refused("golden", f"request {index}: {found} at once")


def _columns(scores: Scores) -> Iterator[tuple[str, NDArray[np.float64]]]:
    """Yield each array by its name: the probability of each task, and the score."""
    yield from scores.probability.items()
    yield "score", scores.score
