"""Is it fit to serve: shapes, finiteness, and golden requests against the version that serves."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from learner.artifact import Document, Scores, ScoringInput
from serving.errors import Refused

#: Few, small, and odd on purpose: an ordinary search, no query at all, no text at all, other scripts, and a text that must be cut.
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
        for name in ("click", "purchase", "score"):
            shape = getattr(answer, name).shape
            if shape != (len(request.documents),):
                raise Refused(
                    "shape",
                    f"request {index}: {name} has shape {shape}, expected ({len(request.documents)},)",
                )


def check_finite(scores: Sequence[Scores]) -> None:
    """Refuse NaN and infinities.

    Raises:
        Refused: names the first request that has one.
    """
    for index, answer in enumerate(scores):
        for name in ("click", "purchase", "score"):
            if not np.isfinite(getattr(answer, name)).all():
                raise Refused("finite", f"request {index}: {name} has a number that is not finite")


def check_golden(
    scores: Sequence[Scores], serving: Sequence[Scores], max_shift_ratio: float
) -> None:
    """Refuse a version whose probabilities on the golden requests are far from those of the version that serves.

    Args:
        scores: of the new version, one per golden request.
        serving: of the version that serves, for the same requests.
        max_shift_ratio: largest change of one probability, 0 to 1.

    Raises:
        Refused: names the request, the task and the change.
    """
    for index, (new, old) in enumerate(zip(scores, serving, strict=True)):
        for name in ("click", "purchase"):
            shift = float(np.abs(getattr(new, name) - getattr(old, name)).max())
            if shift > max_shift_ratio:
                raise Refused(
                    "golden",
                    f"request {index}: p({name}) moved by {shift:.3f}, at most {max_shift_ratio} is allowed at once",
                )
