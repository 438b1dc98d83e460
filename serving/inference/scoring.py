"""Scores for a model's name: the one call behind every route that scores, with its limits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

from msgspec import Meta

from learner.artifact import ScoringInput
from serving.errors import Empty, TooLarge
from serving.inference.batcher import Answer, Batcher
from serving.inference.slot import Slot
from weighting.constraints import Count, check


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Largest request."""

    max_documents: Annotated[Count, Meta(description="Documents of a request.")] = 512
    max_body_bytes: Annotated[Count, Meta(description="Size of its body.")] = 2_000_000

    def __post_init__(self) -> None:
        """Check every field."""
        check(self, "limits")


class Scoring:
    """Resolve the model, score, and mark its first answer."""

    def __init__(
        self, slot: Slot, batcher: Batcher, limits: Limits, *, wall_clock: Callable[[], float]
    ) -> None:
        """Take the collaborators; `wall_clock` is in seconds since the Unix epoch."""
        self._slot, self._batcher = slot, batcher
        self._limits, self._wall_clock = limits, wall_clock

    async def score(self, name: str, requests: tuple[ScoringInput, ...], *, field: str) -> Answer:
        """Return scores for `requests`, all from the one model that `name` means now.

        Args:
            name: alias or version.
            requests: to score.
            field: of the HTTP body that held the documents, for errors.

        Raises:
            Empty: no document.
            TooLarge: more documents than the limit.
            NotReady, NotFound: from `Slot.resolve`.
            Overloaded, DeadlinePassed, BackendFailed: from `Batcher.score`.
        """
        num_documents = sum(len(request.documents) for request in requests)
        if not num_documents:
            raise Empty(field)
        if num_documents > self._limits.max_documents:
            raise TooLarge(field, num_documents, self._limits.max_documents)
        model = self._slot.resolve(name)
        answer = await self._batcher.score(model, requests)
        if model.first_answer_seconds is None:
            model.first_answer_seconds = self._wall_clock()
        return answer
