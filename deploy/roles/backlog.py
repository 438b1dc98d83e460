"""Samples that wait to be learned: how many, how fast they are learned, and for how long yet.

The learner's thread measures, a thread of its own reports: both lag and backlog stay true while one
step, a checkpoint or the replay of a journal takes long. It has a Kafka client of its own, because
the source's belongs to the learner's thread.
"""

from __future__ import annotations

import logging
import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from threading import Event, Thread
from typing import Protocol, TypeVar

from consumers.errors import ConsumersError
from deploy.admin.brokers import Brokers
from learner.store.journal.records import JournalPosition, JournalRecord, Step
from learner.telemetry import Telemetry
from weighting.provenance import Offsets, TopicPartition
from weighting.sample import Batch

log = logging.getLogger("steelyard.learner")
T = TypeVar("T")
_REFRESH_SECONDS = 2.0
_LAST_SECONDS = 2.0
_LOG_SECONDS = 30.0
_WORTH_LOGGING_SECONDS = 60.0  # to catch up
_ARRIVAL_SECONDS = 60.0  # over which arrival is measured
_FADE = 0.98  # of what was measured before, at each batch


class Reading(Protocol):
    """What a pipeline tells from any thread."""

    def event_offsets(self) -> Offsets:
        """Return the next offset of every partition of events."""

    def num_records(self) -> int:
        """Return the number of events consumed so far."""

    def num_ready(self) -> int:
        """Return about how many samples are read and wait for a batch."""

    def report_offsets(self, ends: Mapping[TopicPartition, int], now: float) -> None:
        """Report how far every partition is behind the end of the log."""


class Backlog:
    """Samples that wait, the rate of learning, and the time to catch up.

    Attributes:
        samples_per_second: rate of learning while there was something to learn; 0 before the first.
    """

    def __init__(
        self,
        reading: Reading,
        num_samples: Callable[[], int],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Take a new learner's parts; `begin` follows when their state is restored.

        Args:
            reading: the pipeline.
            num_samples: returns how many samples the model has stepped on.
            clock: seconds that only go forward.
        """
        self._reading = reading
        self._num_samples = num_samples
        self._clock = clock
        self._journaled = 0  # samples in all, once the journal is done again
        self._journal_ends: dict[TopicPartition, int] = {}
        self._in_step: deque[int] = deque()  # samples of each batch pulled and not learned
        self._stepped = (0.0, 0)  # time and samples when the last round was over
        self._measured = (0.0, 0.0)  # samples and seconds, faded
        self._arrived: deque[tuple[float, int]] = deque()  # time, sum of end offsets
        self._ends: dict[TopicPartition, int] = {}
        self.samples_per_second = 0.0

    def begin(
        self,
        tail: Sequence[tuple[JournalPosition, JournalRecord]],
        samples_per_second: float = 0.0,
    ) -> None:
        """Begin at the restored state.

        Args:
            tail: journaled steps to be done again.
            samples_per_second: rate of before, until one is measured.
        """
        steps = [record for _, record in tail if isinstance(record, Step)]
        self._journaled = self._num_samples() + sum(step.num_samples for step in steps)
        self._journal_ends = _ends(steps)
        self.samples_per_second = samples_per_second

    # --- the learner's threads ------------------------------------------------------------------

    def pulled(self, items: Iterator[T]) -> Iterator[T]:
        """Pass on items; the samples of the batches among them wait until they are learned."""
        self._stepped = self._clock(), self._num_samples()
        for item in items:
            if isinstance(item, Batch):
                self._in_step.append(len(item.samples))
            yield item

    def stepped(self) -> None:
        """Note the end of a round, and so of the step on the oldest batch that was pulled, if any.

        Measures how fast batches are learned; rounds without any do not count.
        """
        if self._in_step:
            self._in_step.popleft()
        began, before = self._stepped
        self._stepped = now, num = self._clock(), self._num_samples()
        if num > before:
            self._learned(num - before, now - began)

    def _learned(self, num_samples: int, seconds: float) -> None:
        num, before = self._measured
        self._measured = num * _FADE + num_samples, before * _FADE + seconds
        if self._measured[1] > 0:
            self.samples_per_second = self._measured[0] / self._measured[1]

    @property
    def num_journaled(self) -> int:
        """Number of samples of journaled steps that are still to be done again."""
        return max(0, self._journaled - self._num_samples())

    def replayed_ratio(self, since: int, planned: int, *, over: bool) -> float:
        """Return the share of a replay's samples that is learned; 1 only when it is over.

        Args:
            since: samples of the version that it went back to.
            planned: samples to be learned; where the journal has more, that counts.
            over: whether it is.
        """
        total = max(planned, self._journaled - since)
        if over or total <= 0:
            return 1.0 if over else 0.0
        return min((self._num_samples() - since) / total, 0.999)

    # --- any thread -----------------------------------------------------------------------------

    def arrived(self, ends: Mapping[TopicPartition, int]) -> None:
        """Note the end offsets of the log, as known now."""
        self._ends |= ends
        now = self._clock()
        self._arrived.append((now, sum(self._ends.values())))
        while now - self._arrived[0][0] > _ARRIVAL_SECONDS:
            self._arrived.popleft()

    def waiting(self) -> dict[str, int]:
        """Return the samples that wait: in the journal, read from the log, and not read yet."""
        journaled = self.num_journaled
        num_ready = self._reading.num_ready() if not journaled else 0
        return {
            "journal": journaled,
            "read": num_ready + (0 if journaled else sum(tuple(self._in_step))),
            "unread": round(self._num_unread() * self.samples_per_record()),
        }

    def _num_unread(self) -> int:
        """Return the records that wait; journaled ones count as samples of the journal."""
        ends = self._journal_ends
        return sum(
            max(0, self._ends.get(tp, offset) - max(offset, ends.get(tp, 0)))
            for tp, offset in self._reading.event_offsets().items()
        )

    def samples_per_record(self) -> float:
        """Return how many samples one event has brought so far, on average."""
        num_records = self._reading.num_records()
        return self._num_samples() / num_records if num_records else 0.0

    def arriving_per_second(self) -> float:
        """Return the rate at which samples arrive, by the growth of the log."""
        if len(self._arrived) < 2:
            return 0.0
        (first, before), (last, now) = self._arrived[0], self._arrived[-1]
        return self.samples_per_record() * (now - before) / (last - first) if last > first else 0.0

    def catch_up_seconds(self) -> float:
        """Return the time until nothing waits.

        Infinite where more arrives than is learned; NaN until a rate has been measured.
        """
        num = sum(self.waiting().values())
        if not self.samples_per_second:
            return math.nan if num or self._num_unread() else 0.0
        if not num:
            return 0.0
        gained = self.samples_per_second - self.arriving_per_second()
        return num / gained if gained > 0 else math.inf

    def facts(self) -> dict[str, float | None]:
        """Return the backlog for a line of the log; the time is None where none can be said."""
        seconds = self.catch_up_seconds()
        return {
            "samples_waiting": sum(self.waiting().values()),
            "samples_per_second": round(self.samples_per_second, 1),
            "catch_up_seconds": round(seconds) if math.isfinite(seconds) else None,
        }


class Monitor:
    """A thread that reports lag and backlog every two seconds.

    Example:
        monitor = Monitor(backlog, pipeline, admin, topics, telemetry, clock=time.time).start()
        ...
        monitor.close()
    """

    def __init__(
        self,
        backlog: Backlog,
        reading: Reading,
        brokers: Brokers,
        topics: Sequence[str],
        telemetry: Telemetry,
        *,
        clock: Callable[[], float],
        ticks: Callable[[], float] = time.monotonic,
    ) -> None:
        """Take what is reported; `start` makes the thread.

        Args:
            backlog: of the learner.
            reading: its pipeline.
            brokers: a client that nobody else uses.
            topics: that are read.
            telemetry: the series.
            clock: seconds since the Unix epoch.
            ticks: seconds that only go forward; for the log.
        """
        self._backlog = backlog
        self._reading = reading
        self._brokers = brokers
        self._topics = list(topics)
        self._telemetry = telemetry
        self._clock = clock
        self._ticks = ticks
        self._logged = ticks()
        self._closed = Event()
        self._thread = Thread(target=self._run, name="monitor", daemon=True)

    def start(self) -> Monitor:
        """Begin to report."""
        self._thread.start()
        return self

    def close(self, timeout_seconds: float = _LAST_SECONDS) -> None:
        """Stop, leaving behind what brokers do not answer in time; safe to repeat."""
        self._closed.set()
        if self._thread.is_alive():
            self._thread.join(timeout_seconds)

    def refresh(self) -> None:
        """Report once; what brokers do not answer stays as it was known."""
        ends: Mapping[TopicPartition, int] = {}
        try:
            ends = self._brokers.end_offsets(self._topics)
        except ConsumersError as error:
            log.debug("end offsets are not known", extra={"error": str(error)})
        if self._closed.is_set():  # the series are those of another term, by now
            return
        self._reading.report_offsets(ends, self._clock())
        events = self._reading.event_offsets()
        self._backlog.arrived({tp: end for tp, end in ends.items() if tp in events})
        for stage, num in self._backlog.waiting().items():
            self._telemetry.samples_waiting.labels(stage).set(num)
        seconds = self._backlog.catch_up_seconds()
        self._telemetry.samples_per_second.set(self._backlog.samples_per_second)
        self._telemetry.catch_up.set(seconds)
        if seconds >= _WORTH_LOGGING_SECONDS and self._ticks() - self._logged >= _LOG_SECONDS:
            self._logged = self._ticks()
            log.info("samples wait to be learned", extra=self._backlog.facts())

    def _run(self) -> None:
        while True:
            try:
                self.refresh()
            except Exception:  # monitoring must not end; the next look may succeed
                log.warning("lag could not be reported", exc_info=True)
            if self._closed.wait(_REFRESH_SECONDS):
                return


def _ends(steps: Sequence[Step]) -> dict[TopicPartition, int]:
    """Return the offsets behind the records of journaled steps."""
    ends: dict[TopicPartition, int] = {}
    for part in (part for step in steps for part in step.parts):
        for found in (found for poll in part.polls for found in poll.slices):
            ends[found.topic, found.partition] = found.end
    return ends
