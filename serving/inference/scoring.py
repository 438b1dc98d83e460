"""From a model's name and requests to scores: the one call behind every route that scores, with its limits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

from msgspec import Meta

from learner.artifact import ScoringInput
from serving.errors import Empty, TooLarge
from serving.inference.batcher import Answer, Batcher
from serving.inference.slot import NO_VERSION, Slot
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
    """Resolve the version, admit, score, and mark the version's first answer."""

    def __init__(
        self, slot: Slot, batcher: Batcher, limits: Limits, *, wall_clock: Callable[[], float]
    ) -> None:
        """Take the collaborators; `wall_clock` is in seconds since the Unix epoch."""
        self._slot, self._batcher, self._limits, self._wall_clock = (
            slot,
            batcher,
            limits,
            wall_clock,
        )

    async def score(self, model: str, requests: tuple[ScoringInput, ...], *, field: str) -> Answer:
        """Return scores for `requests`, all from the one version that `model` names now.

        Args:
            model: alias or version.
            requests: what to score.
            field: where the documents stood in the request, for errors.

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
        serving = self._slot.resolve(model)
        answer = await self._batcher.score(serving, requests)
        if serving.first_answer_seconds is None:
            serving.first_answer_seconds = self._wall_clock()
        return answer


def headers(answer: Answer) -> dict[str, str]:
    """Return the headers that say which version gave `answer`, and where the time went."""
    timing = f"queue;dur={answer.queue_seconds * 1e3:.2f}, forward;dur={answer.forward_seconds * 1e3:.2f}"
    return {
        "X-Model-Version": answer.serving.name,
        "X-Model-Event-Time": answer.serving.event_time or NO_VERSION,
        "Server-Timing": timing,
    }
