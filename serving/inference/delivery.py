"""Delivery of scores to the event loop, one request per iteration, so that none is held up."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from learner.artifact import Scores, ScoringInput
from serving.errors import ServingError
from serving.inference.slot import LoadedModel


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """Scores, one per request asked, all from the same model."""

    model: LoadedModel
    scores: Sequence[Scores]
    queue_seconds: float
    forward_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Work:
    """One call of `Batcher.score`, on its way through the inference thread."""

    model: LoadedModel
    requests: tuple[ScoringInput, ...]
    num_documents: int
    enqueued_seconds: float
    deadline_seconds: float
    future: asyncio.Future[Answer]

    @property
    def gone(self) -> bool:
        """True if its caller has gone away."""
        return self.future.done()


Settled: TypeAlias = tuple[Work, Answer | ServingError | None]
"""A work, and what became of it; None of one whose caller has gone away."""


class Delivery:
    """Outcomes on their way from the inference thread to the futures that wait for them."""

    def __init__(self, settled: Callable[[], None]) -> None:
        """Take `settled`, called on the event loop for each work."""
        self._settled = settled

    def send(self, outcomes: Sequence[Settled]) -> None:
        """Hand outcomes over; from any thread."""
        by_loop: dict[asyncio.AbstractEventLoop, deque[Settled]] = {}
        for work, outcome in outcomes:
            by_loop.setdefault(work.future.get_loop(), deque()).append((work, outcome))
        for loop, own in by_loop.items():
            with contextlib.suppress(RuntimeError):  # the loop has closed: nobody waits any more
                loop.call_soon_threadsafe(self._settle, own)

    def _settle(self, outcomes: deque[Settled]) -> None:
        """Settle the first, and the others in later iterations of the event loop.

        Each leads to an answer that is written. A whole batch of them in one iteration would hold
        up all that arrives meanwhile.
        """
        work, outcome = outcomes.popleft()
        self._settled()
        if not work.gone and isinstance(outcome, Answer):
            work.future.set_result(outcome)
        elif not work.gone and isinstance(outcome, ServingError):
            work.future.set_exception(outcome)
        if outcomes:
            work.future.get_loop().call_soon(self._settle, outcomes)
