"""Micro-batching of requests in front of one inference thread.

The first request opens a window, which closes by number of candidates or by time. What is let in
is decided by `serving.inference.line`: as much as can be scored while callers wait. Work whose
caller has gone away is dropped before it is scored.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass
from typing import Annotated

import msgspec
from msgspec import Meta

from learner.artifact import Scores, ScoringInput, Version
from serving.errors import BackendFailed, DeadlinePassed, NotReady, Overloaded
from serving.inference.delivery import Answer, Delivery, Settled, Work
from serving.inference.line import Line
from serving.inference.pace import Pace
from serving.inference.slot import LoadedModel
from serving.rollout.comparison import Replayed
from serving.rollout.gate import check_finite, check_shape
from serving.telemetry import Telemetry
from weighting.constraints import Count, NotNegative, Positive, check

log = logging.getLogger("steelyard.serving")

MAX_RECENT_DOCUMENTS = 32
"""Documents of a request that are kept."""
_STANDS_SECONDS = 0.01


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
    max_wait_seconds: Annotated[
        Positive,
        Meta(
            description="Longest wait for the model that a request is let in for, as expected from "
            "the batches before; further ones are refused at once."
        ),
    ] = 4.0
    deadline_seconds: Annotated[NotNegative, Meta(description="Longest wait for an answer.")] = 10.0
    retry_after_seconds: Annotated[
        Count, Meta(description="Least wait that a refused caller is told.")
    ] = 1
    num_recent: Annotated[
        Count,
        Meta(description="Newest requests kept, with their scores, to compare the next version."),
    ] = 64

    def __post_init__(self) -> None:
        """Check every field."""
        check(self, "batcher")


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
        self._line: Line[Work] = Line(
            Pace(),
            max_documents=config.max_candidates,
            max_wait_seconds=config.max_wait_seconds,
            deadline_seconds=config.deadline_seconds,
        )
        self._changed = threading.Condition()  # guards the line
        self._thread: threading.Thread | None = None
        self._spare: deque[tuple[Future[object], Callable[[], object]]] = deque()
        self._closing = False
        self._in_flight = 0
        self._standing: Overloaded | None = None
        self._stands_until = 0.0
        self._delivery = Delivery(lambda: self._count(-1))
        self._recent: tuple[tuple[Version, Replayed], ...] = ()  # no models: they would stay

    def start(self) -> None:
        """Start the inference thread."""
        self._thread = threading.Thread(target=self._run, name="inference", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Admit nothing more, answer all that was admitted, end the thread."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        if self._thread is not None:
            self._thread.join()
        with self._changed:
            for future, _ in self._spare:
                future.cancel()

    @property
    def open(self) -> bool:
        """True while requests are admitted."""
        return not self._closing

    @property
    def healthy(self) -> bool:
        """False if the inference thread has ended by itself."""
        return self._thread is None or self._closing or self._thread.is_alive()

    def replayed(self, model: LoadedModel) -> Sequence[Replayed]:
        """Return the newest requests that a model scored, oldest first, with its scores."""
        return [replayed for own, replayed in self._recent if own is model.version]

    def admit(self) -> Overloaded | None:
        """Keep room for a request whose headers have come; return the error if there is none.

        An error stands for a moment, or until a batch is taken out of the line.
        """
        now, standing = self._clock(), self._standing
        if standing is not None and now < self._stands_until:
            self._line.refuse()  # event loop only, so it needs no lock
            return standing
        with self._changed:
            self._standing = refusal = self._refusal(now)
            self._stands_until = now + _STANDS_SECONDS
            if refusal is None:
                self._line.expect(now)
        return refusal

    def _refusal(self, now: float) -> Overloaded | None:
        full = self._line.full(now)
        if not full and self._in_flight + self._line.num_expected < self.config.max_in_flight:
            return None
        self._line.refuse()
        wait_seconds = self._line.wait_seconds(now)
        return Overloaded(wait_seconds, self._retry_after(wait_seconds))

    def when_idle(self, task: Callable[[], object], seconds: float) -> bool:
        """Run `task` on the inference thread when no request waits; return False if it never came.

        Any thread may call it, and is held up meanwhile, at most for `seconds` before the task has
        begun. Errors of the task are raised here.
        """
        future: Future[object] = Future()
        with self._changed:
            if self._closing:
                return False
            self._spare.append((future, task))
            self._changed.notify()
        with contextlib.suppress(TimeoutError, CancelledError):
            future.exception(timeout=max(0.0, seconds))
        if future.cancel():
            with self._changed, contextlib.suppress(ValueError):  # taken out by its thread
                self._spare.remove((future, task))  # or a task, and its scorer, would stay
            return False
        try:
            future.result()
        finally:
            del future  # as in `_finish`
        return True

    async def score(self, model: LoadedModel, requests: tuple[ScoringInput, ...]) -> Answer:
        """Score `requests` with `model`, together with others that wait for it.

        Cancel it when the caller has gone away.

        Raises:
            Overloaded: more work waits than can be scored while callers wait.
            NotReady: closing.
            DeadlinePassed: no answer in time.
            BackendFailed: the scorer raised, or its answer is no score.
        """
        if self._closing:
            raise self._draining()
        work = self._work(model, requests)
        with self._changed:
            self._line.arrive()
            if refusal := self._refusal(work.enqueued_seconds):
                raise refusal
            self._line.append(work)
            self._changed.notify()
        self._count(+1)
        try:
            return await asyncio.wait_for(work.future, self.config.deadline_seconds)
        except TimeoutError:
            raise self._late() from None
        finally:
            with self._changed:
                left = self._line.remove(work)
            if left:
                self._count(-1)

    def _work(self, model: LoadedModel, requests: tuple[ScoringInput, ...]) -> Work:
        enqueued = self._clock()
        return Work(
            model=model,
            requests=requests,
            num_documents=sum(len(request.documents) for request in requests),
            enqueued_seconds=enqueued,
            deadline_seconds=enqueued + self.config.deadline_seconds,
            future=asyncio.get_running_loop().create_future(),
        )

    def _retry_after(self, wait_seconds: float) -> int:
        return max(self.config.retry_after_seconds, math.ceil(wait_seconds))

    def _late(self) -> DeadlinePassed:
        with self._changed:
            wait_seconds = self._line.wait_seconds(self._clock())
        return DeadlinePassed(self.config.deadline_seconds, self._retry_after(wait_seconds))

    def _draining(self) -> NotReady:
        return NotReady("this process is draining", self.config.retry_after_seconds)

    def _count(self, change: int) -> None:
        self._in_flight += change  # event loop only
        self._telemetry.inflight.set(self._in_flight)

    def _run(self) -> None:
        while self._score_next():  # which holds no model while it waits
            pass

    def _score_next(self) -> bool:
        """Wait for the next batch and score it; False at the end."""
        if (batch := self._next()) is None:
            return False
        by_model: dict[int, list[Work]] = {}  # two only around a swap
        for work in batch:
            by_model.setdefault(id(work.model), []).append(work)
        for works in by_model.values():
            self._score_together(works[0].model, works)
        with self._changed:
            self._line.finish()
        return True

    def _next(self) -> Sequence[Work] | None:
        """Wait for the next batch and take it; None at the end.

        A window that is already over takes the work that is there, and waits for none.
        """
        if (first := self._oldest()) is None:
            return None
        with self._changed:
            closes = first.enqueued_seconds + self.config.window_seconds
            while self._opens(left := closes - self._clock()):
                self._changed.wait(left)
            taken = self._line.take(self._clock())
            self._standing = None
        late: list[Settled] = [(work, self._late()) for work in taken.late]
        self._delivery.send([*late, *((work, None) for work in taken.gone)])
        return taken.batch

    def _oldest(self) -> Work | None:
        """Wait for work, with tasks for idle moments meanwhile; None at the end."""
        while True:
            with self._changed:
                while (first := self._line.oldest()) is None and not (self._spare or self._closing):
                    self._changed.wait()
                if first is not None or self._closing:
                    return first
                spare = self._spare.popleft()
            _finish(*spare)
            del spare  # it may hold a scorer

    def _opens(self, left_seconds: float) -> bool:
        """Return whether the window stays open for more requests."""
        room = 0 < self._line.num_documents < self.config.max_candidates
        return left_seconds > 0 and room and not self._closing

    def _score_together(self, model: LoadedModel, works: Sequence[Work]) -> None:
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
        num_documents = sum(work.num_documents for work in works)
        with self._changed:
            self._line.pace.learn(num_documents, forward_seconds)
        self._telemetry.batch_candidates.observe(num_documents)
        self._telemetry.stage_duration.labels("forward").observe(forward_seconds)
        num_recent = self.config.num_recent
        newest = zip(requests[-num_recent:], scores[-num_recent:], strict=True)
        kept = ((model.version, _shortened(*one)) for one in newest)
        self._recent = (*self._recent, *kept)[-num_recent:]
        settled: list[Settled] = []
        begin = 0
        for work in works:
            end = begin + len(work.requests)
            answer = self._answer(work, scores[begin:end], started, forward_seconds)
            settled.append((work, answer))
            begin = end
        self._delivery.send(settled)

    def _answer(
        self, work: Work, scores: Sequence[Scores], started: float, forward_seconds: float
    ) -> Answer:
        queue_seconds = started - work.enqueued_seconds
        self._telemetry.stage_duration.labels("queue").observe(queue_seconds)
        work.model.outcomes.append(True)
        return Answer(
            model=work.model,
            scores=scores,
            queue_seconds=queue_seconds,
            forward_seconds=forward_seconds,
        )

    def _fail(self, work: Work, error: Exception) -> None:
        version = work.model.name
        message = f"{type(error).__name__}: {error}"
        log.warning("backend failed", extra={"version": version, "error": message})
        work.model.outcomes.append(False)
        self._delivery.send([(work, BackendFailed(version, error))])


def _finish(future: Future[object], task: Callable[[], object]) -> None:
    """Run a task unless nobody waits for it any more."""
    if not future.set_running_or_notify_cancel():
        return
    try:
        future.set_result(task())
    # It belongs to who waits for it, never to this thread.
    except Exception as error:
        future.set_exception(error)
        del future  # which would refer to itself by the error's traceback


def _shortened(request: ScoringInput, scores: Scores) -> Replayed:
    """Return the first documents of a request and their scores."""
    n = MAX_RECENT_DOCUMENTS
    return Replayed(
        request=msgspec.structs.replace(request, documents=request.documents[:n]),
        scores=Scores(
            probability={task: values[:n] for task, values in scores.probability.items()},
            score=scores.score[:n],
            prior=scores.prior,
            contributions={part: values[:n] for part, values in scores.contributions.items()},
            value=None if scores.value is None else scores.value[:n],
        ),
    )
