"""Scores for a model's name: the one call behind every route that scores; limits of a request."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

from msgspec import Meta

from learner.artifact import ScoringInput
from serving.errors import Empty, TooLarge
from serving.inference.batcher import Batcher
from serving.inference.delivery import Answer
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

    @property
    def max_values(self) -> int:
        """Most JSON values in a body: forty per document, and some beside."""
        return 1000 + 40 * self.max_documents

    def check_count(self, num_documents: int, field: str) -> None:
        """Check the number of documents under `field`; ask before anything is built of them.

        Raises:
            Empty: no document.
            TooLarge: more than `max_documents`.
        """
        if not num_documents:
            raise Empty(field)
        if num_documents > self.max_documents:
            raise TooLarge(field, num_documents, self.max_documents)


class Scoring:
    """Resolve the model, score, and mark its first answer."""

    def __init__(self, slot: Slot, batcher: Batcher, *, wall_clock: Callable[[], float]) -> None:
        """Take the collaborators; `wall_clock` is in seconds since the Unix epoch."""
        self._slot, self._batcher, self._wall_clock = slot, batcher, wall_clock

    async def score(self, name: str, requests: tuple[ScoringInput, ...]) -> Answer:
        """Return scores for `requests`, all from the one model that `name` means now.

        Raises:
            NotReady, NotFound: from `Slot.resolve`.
            Overloaded, DeadlinePassed, BackendFailed: from `Batcher.score`.
        """
        model = self._slot.resolve(name)
        answer = await self._batcher.score(model, requests)
        if model.first_answer_seconds is None:
            model.first_answer_seconds = self._wall_clock()
        return answer
