"""The waiting line in front of the scorer, bounded by the time that its work should take.

A bound on time and not on requests: documents cost from microseconds to a second, and a line that
is longer than callers wait is scored for nobody. The line holds about one batch while another one
runs. That keeps the scorer busy, and nothing waits much longer than under an ordinary load. What
is too much is refused when it comes, before its body is read.
"""

from __future__ import annotations

import math
from collections import OrderedDict, deque
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from serving.inference.pace import Pace

#: Requests of ordinary size that may wait: (while too many come, else). The first number leaves no
#: gap between batches, the second takes in the bursts of an ordinary load.
_REQUESTS = (2, 8)
#: Work that may wait in any case, in seconds: outlasts hiccups of the process.
_LEAST_SECONDS = (0.02, 0.05)
#: Share of refused requests from which on too many come, and the weight of the newest one in it.
_TOO_MANY, _REFUSED_RATE = 0.15, 0.05
#: A batch may take so many times its fixed cost: larger ones would hardly be cheaper.
_FIXED_COSTS = 8
_SIZE_RATE = 0.05
#: Time for which room is kept for a request whose headers were let in: its body should be here by
#: then.
_EXPECTED_SECONDS = 0.02


class Work(Protocol):
    """Documents to score for one caller."""

    @property
    def num_documents(self) -> int:
        """Number of documents."""

    @property
    def deadline_seconds(self) -> float:
        """Time at which its caller goes away."""

    @property
    def gone(self) -> bool:
        """True if its caller has gone away."""


W = TypeVar("W", bound=Work)


@dataclass(frozen=True, slots=True, kw_only=True)
class Taken(Generic[W]):
    """The next batch; what came out beside it cannot be answered in time, or has no caller."""

    batch: list[W]
    late: list[W]
    gone: list[W]


class Line(Generic[W]):
    """Work in the order of its coming; not thread-safe. Times are monotonic, in seconds."""

    def __init__(
        self, pace: Pace, *, max_documents: int, max_wait_seconds: float, deadline_seconds: float
    ) -> None:
        """Start empty.

        Args:
            pace: of the scorer; learns from every batch.
            max_documents: that close a batch.
            max_wait_seconds: longest time for which anything is let in behind other work.
            deadline_seconds: that every caller waits.
        """
        self.pace = pace
        self._max_documents, self._max_wait_seconds = max_documents, max_wait_seconds
        self._deadline_seconds = deadline_seconds
        self._waiting: OrderedDict[W, None] = OrderedDict()
        self._expected: deque[float] = deque()  # until when room is kept, one per request
        self._typical = 0.0  # documents of a request, averaged
        self._refused = 0.0  # share of requests, averaged
        self._running: tuple[int, float] | None = None  # documents, and since when
        self.num_documents = 0

    def __len__(self) -> int:
        """Return the number of requests that wait."""
        return len(self._waiting)

    @property
    def num_expected(self) -> int:
        """Number of requests for which room is kept, as `full` saw it last."""
        return len(self._expected)

    def full(self, now: float) -> bool:
        """Return whether a request that comes now must be refused, whatever its size."""
        while self._expected and self._expected[0] <= now:
            self._expected.popleft()
        running = self._running_seconds(now)
        if not self._waiting and not self._expected:
            own = self.pace.seconds(self._typical)
            return running > 0 and running + own > self._deadline_seconds
        num_documents = self.num_documents + self._typical * len(self._expected)
        if num_documents >= self._most_documents():
            return True
        return running + self._seconds_of(num_documents) > self._max_wait_seconds

    def expect(self, now: float) -> None:
        """Keep room for a request whose headers have come; the caller has asked if it is `full`.

        Else all requests that come at the same moment would find the same room.
        """
        self._expected.append(now + _EXPECTED_SECONDS)

    def arrive(self) -> None:
        """Give up the room of the request that has been expected longest, if one is."""
        if self._expected:
            self._expected.popleft()

    def wait_seconds(self, now: float) -> float:
        """Return the time until all work of this moment should be done."""
        waiting = self._seconds_of(self.num_documents) if self._waiting else 0.0
        return self._running_seconds(now) + waiting

    def refuse(self) -> None:
        """Take note that a request was refused: while many are, less may wait."""
        self._refused += _REFUSED_RATE * (1.0 - self._refused)

    def append(self, work: W) -> None:
        """Let work in; the caller has asked whether the line is `full`."""
        self._refused -= _REFUSED_RATE * self._refused
        self._waiting[work] = None
        self.num_documents += work.num_documents
        rate = _SIZE_RATE if self._typical else 1.0
        self._typical += rate * (work.num_documents - self._typical)

    def remove(self, work: W) -> bool:
        """Take work out of the line because its caller is gone; False if it is no longer there."""
        if work not in self._waiting:
            return False
        del self._waiting[work]
        self.num_documents -= work.num_documents
        return True

    def oldest(self) -> W | None:
        """Return what waits longest, None if nothing does."""
        return next(iter(self._waiting), None)

    def take(self, now: float) -> Taken[W]:
        """Take the next batch out of the line, as large as its most urgent request allows.

        What cannot be done in time comes out beside it. The last of the line is tried even so:
        an estimate that is wrong would otherwise never be corrected.
        """
        batch: list[W] = []
        late: list[W] = []
        gone: list[W] = []
        num_documents = 0
        while self._waiting and num_documents < self._max_documents:
            work = next(iter(self._waiting))
            if batch and not self._in_time(now, num_documents + work.num_documents, batch[0]):
                break
            del self._waiting[work]
            self.num_documents -= work.num_documents
            last = not self._waiting and now < work.deadline_seconds
            if work.gone:
                gone.append(work)
            elif batch or last or self._in_time(now, work.num_documents, work):
                batch.append(work)
                num_documents += work.num_documents
            else:
                late.append(work)
        self._running = (num_documents, now) if batch else None
        return Taken(batch=batch, late=late, gone=gone)

    def finish(self) -> None:
        """End the batch that was taken last."""
        self._running = None

    def _in_time(self, now: float, num_documents: int, work: W) -> bool:
        return now + self.pace.seconds(num_documents) < work.deadline_seconds

    def _most_documents(self) -> float:
        """Return the number of documents that may wait."""
        pace, calm = self.pace, max(0.0, 1.0 - self._refused / _TOO_MANY)
        ordinary = _between(_REQUESTS, calm) * self._typical
        worth = _FIXED_COSTS * pace.fixed / pace.per_document
        least = _between(_LEAST_SECONDS, calm) / pace.per_document
        return min(max(ordinary, worth, least), max(ordinary, self._max_documents))

    def _seconds_of(self, num_documents: float) -> float:
        batches = math.ceil(num_documents / self._max_documents)
        return self.pace.per_document * num_documents + self.pace.fixed * batches

    def _running_seconds(self, now: float) -> float:
        """Return the time that the running batch should still take.

        One that is late is as likely to go on as it has been late.
        """
        if self._running is None:
            return 0.0
        num_documents, since = self._running
        return abs(self.pace.seconds(num_documents) - (now - since))


def _between(ends: tuple[float, float], share: float) -> float:
    return ends[0] + share * (ends[1] - ends[0])
