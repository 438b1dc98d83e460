"""Ends of long-running processes: by a signal, with a child, or because reading has stalled."""

from __future__ import annotations

import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from threading import Event, Thread
from typing import Protocol

from deploy.errors import BrokerFailed
from weighting.provenance import TopicPartition

log = logging.getLogger("steelyard.lifecycle")

STALLED = 75
"""Exit code: the supervisor starts the process again."""


class Node(Protocol):
    """A child process that we wait for."""

    @property
    def pid(self) -> int | None:
        """Process id, None when it does not run."""

    def log_tail(self) -> str:
        """Return the end of its log."""


def until_ended(node: Node) -> None:
    """Wait for SIGTERM (exit 0) or SIGINT (exit 130); the caller then stops the node.

    Raises:
        BrokerFailed: the node ended by itself; holds the end of its log.
    """
    assert node.pid is not None, "start it first"
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    os.waitid(os.P_PID, node.pid, os.WEXITED | os.WNOWAIT)
    raise BrokerFailed(
        f"Apache Kafka (process {node.pid}) ended by itself. Its log ends:\n{node.log_tail()}"
    )


class Progress:
    """Lock-free consumer progress, shared with the watchdog.

    The loop writes, the watchdog reads: nobody waits for anybody. Two things are timed, each in
    whichever thread it is done, and they may overlap: reading, by a clock that stands still while
    nobody reads, and work on what was read. So a long step is not taken for a consumer that stands
    still, a consumer that stands still beside a step is found, and so is a step that hangs while
    the next batch is read.

    Attributes:
        lag: records that wait in partitions that are not paused.
        since: since when the slowest of these partitions has not moved, on the clock of reading.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """Nothing waits yet; `clock` is in seconds and only goes forward."""
        self._clock = clock
        # partition -> next offset, and since when it is that
        self._moved: dict[TopicPartition, tuple[int, float]] = {}
        # Seconds of reading so far, and since when there is reading; replaced together
        self._read: tuple[float, float | None] = (0.0, clock())
        self._works: dict[object, float] = {}  # each work under way -> when it began
        self.lag = 0
        self.since = self.reading_seconds()

    def reading_seconds(self) -> float:
        """Return the time on the clock of reading, which runs at first."""
        before, began = self._read
        return before if began is None else before + self._clock() - began

    def working_seconds(self) -> float:
        """Return for how long the oldest work under way has gone on; 0 without any."""
        began = list(self._works.values())
        return self._clock() - min(began) if began else 0.0

    @contextmanager
    def working(self) -> Iterator[None]:
        """Time one piece of work on what was read; others may be under way in other threads."""
        work = object()
        self._works[work] = self._clock()
        try:
            yield
        finally:
            self._works.pop(work, None)

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Let the clock of reading run; one thread reads at a time."""
        before, began = self._read
        if began is None:
            self._read = before, self._clock()
        try:
            yield
        finally:
            self._read = self.reading_seconds(), None

    def observe(
        self,
        next_offsets: Mapping[TopicPartition, int],
        end_offsets: Mapping[TopicPartition, int],
        paused: Collection[TopicPartition] = (),
    ) -> None:
        """Take in the offsets of every partition; the loop calls it about once a second.

        Args:
            next_offsets: of every partition.
            end_offsets: the last known; while the brokers do not answer, those from before.
            paused: partitions that wait for others.
        """
        now = self.reading_seconds()
        waiting = {}
        for partition, offset in next_offsets.items():
            lag = end_offsets.get(partition, offset) - offset
            waits = lag > 0 and partition not in paused
            if waits:
                waiting[partition] = lag
            known = self._moved.get(partition)
            if known is None or known[0] != offset or not waits:
                self._moved[partition] = (offset, now)
        self.since = min((self._moved[partition][1] for partition in waiting), default=now)
        self.lag = sum(waiting.values())

    def rest(self) -> None:
        """Reset: reading stops for a good reason, such as the last checkpoint.

        With the next `observe` time begins anew.
        """
        self._works.clear()
        self.lag = 0
        self._moved.clear()


class Watchdog:
    """A thread that acts when records wait and none is read, or when a step does not end.

    It asks for a new consumer once, and after as long again ends the process. The client library's
    timeouts are not hard (a slow name lookup outlasts them all), so this must not depend on the
    loop being alive. It knows nothing but a `Progress`: never the consumer, which belongs to the
    loop's thread.

    Example:
        watchdog = Watchdog(progress, stall_seconds=60).start()
        ...
        if watchdog.asks():
            source.rebuild("stall")
    """

    def __init__(
        self,
        progress: Progress,
        stall_seconds: float,
        *,
        step_seconds: float = 600.0,
        end: Callable[[int], object] = os._exit,
    ) -> None:
        """Take what it needs; `start` makes the thread.

        Args:
            progress: written by the loop.
            stall_seconds: T; records that wait for T of reading are a reason to ask, T after that
                to end.
            step_seconds: longest work of the loop; warned of then, ended T later.
            end: ends the process at once with an exit code; what is not durable yet is lost, as in
                a crash.
        """
        self._progress = progress
        self._stall_seconds = stall_seconds
        self._step_seconds = step_seconds
        self._end = end
        self._asked_at: float | None = None  # on the clock of reading
        self._warned = False  # of the present work
        self._most_seconds = 0.0
        self._asks = Event()
        self._closed = Event()
        self._thread = Thread(target=self._watch, name="watchdog", daemon=True)

    def start(self) -> Watchdog:
        """Begin to watch."""
        self._thread.start()
        return self

    def asks(self) -> bool:
        """Return whether the loop should replace its consumer; true once per stall."""
        asked = self._asks.is_set()
        self._asks.clear()
        return asked

    def close(self) -> None:
        """Stop watching; safe to repeat."""
        self._closed.set()
        if self._thread.is_alive():
            self._thread.join()

    def look(self) -> None:
        """Compare progress with the clock, and act; the thread does it several times in T."""
        self._look_at_work()
        now, lag, since = (
            self._progress.reading_seconds(),
            self._progress.lag,
            self._progress.since,
        )
        if lag <= 0 or now - since < self._stall_seconds:
            self._asked_at = None
            self._asks.clear()
        elif self._asked_at is None:
            self._asked_at = now
            log.warning(
                "nothing is read though records wait: a new consumer is needed (kafka.stall)",
                extra={"lag": lag, "seconds": now - since},
            )
            self._asks.set()
        elif now - self._asked_at >= self._stall_seconds:
            log.critical(
                "nothing is read though records wait: the process ends (kafka.stall)",
                extra={"lag": lag, "seconds": now - since},
            )
            self._end(STALLED)

    def _look_at_work(self) -> None:
        """End the process where a step hangs, at the second look at the earliest.

        A process that was suspended in a step shall go on with it.
        """
        seconds = self._progress.working_seconds()
        if seconds < self._step_seconds:
            self._warned = False
        elif not self._warned:
            self._warned = True
            self._most_seconds = seconds + self._stall_seconds
            log.warning("a step does not end (learner.step_timeout)", extra={"seconds": seconds})
        elif seconds >= self._most_seconds:
            log.critical(
                "a step does not end: the process ends (learner.step_timeout)",
                extra={"seconds": seconds},
            )
            self._end(STALLED)

    def _watch(self) -> None:
        while not self._closed.wait(self._stall_seconds / 20):
            self.look()
