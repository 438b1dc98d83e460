"""Micro-batching of requests in front of one inference thread.

The first request opens a window, which closes by number of candidates or by time. The bound on
requests in flight counts each until the inference thread is done with it, also where its caller
has given up.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, TypeAlias

from msgspec import Meta

from learner.artifact import Scores, ScoringInput
from serving.errors import BackendFailed, DeadlinePassed, NotReady, Overloaded, ServingError
from serving.inference.slot import LoadedModel
from serving.rollout.gate import check_finite, check_shape
from serving.telemetry import Telemetry
from weighting.constraints import Count, NotNegative, check

log = logging.getLogger("steelyard.serving")


@dataclass(frozen=True, slots=True, kw_only=True)
class BatcherConfig:
    """Batching of requests, and the bound on those in flight."""

    window_seconds: Annotated[NotNegative, Meta(description="Longest wait for more requests.")] = (
        0.002
    )
    max_candidates: Annotated[
        Count, Meta(description="Documents that close a batch; a larger request goes whole.")
    ] = 256
    max_in_flight: Annotated[Count, Meta(description="Requests accepted at a time.")] = 512
    deadline_seconds: Annotated[NotNegative, Meta(description="Longest wait for an answer.")] = 10.0
    retry_after_seconds: Annotated[
        Count, Meta(description="Wait that a refused caller is told.")
    ] = 1
    num_recent: Annotated[
        Count, Meta(description="Newest requests kept, to warm the next version with.")
    ] = 16

    def __post_init__(self) -> None:
        """Check every field."""
        check(self, "batcher")


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """Scores, one per request asked, all from the same model."""

    model: LoadedModel
    scores: Sequence[Scores]
    queue_seconds: float
    forward_seconds: float


Outcome: TypeAlias = Answer | ServingError


@dataclass(frozen=True, slots=True, kw_only=True)
class _Work:
    """One call of `score`, on its way through the inference thread."""

    model: LoadedModel
    requests: tuple[ScoringInput, ...]
    enqueued_seconds: float
    deliver: Callable[[Outcome], None]

    @property
    def num_candidates(self) -> int:
        return sum(len(request.documents) for request in self.requests)


class Batcher:
    """One inference thread in front of the scorer that each request was admitted with."""

    def __init__(
        self,
        config: BatcherConfig,
        telemetry: Telemetry,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Take the collaborators; `start` starts the thread. `clock` is monotonic, in seconds."""
        self.config = config
        self._telemetry, self._clock = telemetry, clock
        self._inbox: queue.Queue[_Work | None] = queue.Queue()
        self._thread: threading.Thread | None = None
        self._closing = False
        self._in_flight = 0
        self._recent: tuple[ScoringInput, ...] = ()

    def start(self) -> None:
        """Start the inference thread."""
        self._thread = threading.Thread(target=self._run, name="inference", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Admit nothing more, answer all that was admitted, end the thread."""
        self._closing = True
        self._inbox.put(None)
        if self._thread is not None:
            self._thread.join()

    @property
    def open(self) -> bool:
        """True while requests are admitted."""
        return not self._closing

    @property
    def healthy(self) -> bool:
        """False if the inference thread has ended by itself."""
        return self._thread is None or self._closing or self._thread.is_alive()

    def recent(self) -> Sequence[ScoringInput]:
        """Return the newest requests that were scored, oldest first."""
        return self._recent

    async def score(self, model: LoadedModel, requests: tuple[ScoringInput, ...]) -> Answer:
        """Score `requests` with `model`, together with others that wait for it.

        Raises:
            Overloaded: too many in flight.
            NotReady: closing.
            DeadlinePassed: no answer in time.
            BackendFailed: the scorer raised, or its answer is no score.
        """
        if self._closing:
            raise self._draining()
        if self._in_flight >= self.config.max_in_flight:
            raise Overloaded(self._in_flight, self.config.retry_after_seconds)
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Answer] = loop.create_future()

        def settle(outcome: Outcome) -> None:
            self._count(-1)
            if future.done():
                return
            if isinstance(outcome, Answer):
                future.set_result(outcome)
            else:
                future.set_exception(outcome)

        def deliver(outcome: Outcome) -> None:
            with contextlib.suppress(RuntimeError):  # the loop has closed: nobody waits any more
                loop.call_soon_threadsafe(settle, outcome)

        self._count(+1)
        enqueued = self._clock()
        work = _Work(model=model, requests=requests, enqueued_seconds=enqueued, deliver=deliver)
        self._inbox.put(work)
        try:
            return await asyncio.wait_for(future, self.config.deadline_seconds)
        except TimeoutError:
            raise DeadlinePassed(self.config.deadline_seconds) from None

    def _draining(self) -> NotReady:
        return NotReady("this process is draining", self.config.retry_after_seconds)

    def _count(self, change: int) -> None:
        self._in_flight += change  # event loop only
        self._telemetry.inflight.set(self._in_flight)

    def _run(self) -> None:
        while (first := self._inbox.get()) is not None:
            batch, last = self._collect(first)
            self._score(batch)
            if last:
                break
        while not self._inbox.empty():
            if (work := self._inbox.get()) is not None:
                work.deliver(self._draining())

    def _collect(self, first: _Work) -> tuple[list[_Work], bool]:
        """Return the batch that `first` opens, and whether it is the last one.

        A window that is already over takes the work that is there, and waits for none.
        """
        batch, num_candidates = [first], first.num_candidates
        closes = first.enqueued_seconds + self.config.window_seconds
        while num_candidates < self.config.max_candidates:
            try:
                work = self._inbox.get(timeout=max(0.0, closes - self._clock()))
            except queue.Empty:
                break
            if work is None:
                return batch, True
            batch.append(work)
            num_candidates += work.num_candidates
        return batch, False

    def _score(self, batch: Sequence[_Work]) -> None:
        """Score a batch, one forward pass per model in it (two only around a swap)."""
        now = self._clock()
        by_model: dict[int, list[_Work]] = {}
        for work in batch:
            if now - work.enqueued_seconds >= self.config.deadline_seconds:
                work.deliver(DeadlinePassed(self.config.deadline_seconds))
            else:
                by_model.setdefault(id(work.model), []).append(work)
        for works in by_model.values():
            self._score_together(works[0].model, works)

    def _score_together(self, model: LoadedModel, works: Sequence[_Work]) -> None:
        """Score with one model; if that fails, each alone, so that a bad request fails alone."""
        requests = [request for work in works for request in work.requests]
        started = self._clock()
        try:
            scores = model.scorer.score(requests)
            check_shape(requests, scores)
            check_finite(scores)
        # Whatever a model may raise is an answer to its caller, never the end of the thread.
        except Exception as error:
            if len(works) > 1:
                for work in works:
                    self._score_together(model, [work])
            else:
                self._fail(works[0], error)
            return
        forward_seconds = self._clock() - started
        self._telemetry.batch_candidates.observe(sum(work.num_candidates for work in works))
        self._telemetry.stage_duration.labels("forward").observe(forward_seconds)
        self._recent = (*self._recent, *requests)[-self.config.num_recent :]
        begin = 0
        for work in works:
            end = begin + len(work.requests)
            self._answer(work, scores[begin:end], started, forward_seconds)
            begin = end

    def _answer(
        self, work: _Work, scores: Sequence[Scores], started: float, forward_seconds: float
    ) -> None:
        queue_seconds = started - work.enqueued_seconds
        self._telemetry.stage_duration.labels("queue").observe(queue_seconds)
        answer = Answer(
            model=work.model,
            scores=scores,
            queue_seconds=queue_seconds,
            forward_seconds=forward_seconds,
        )
        work.deliver(answer)

    def _fail(self, work: _Work, error: Exception) -> None:
        version = work.model.name
        message = f"{type(error).__name__}: {error}"
        log.warning("backend failed", extra={"version": version, "error": message})
        work.deliver(BackendFailed(version, error))
