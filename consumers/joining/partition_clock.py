"""Event time of one partition, from the clocks of its recent clients.

A single clock is never believed. The clock remembers the latest event time of each of the last 15
distinct clients, by arrival. *Stream time* is the second newest of them, but never more than half
of the grace beyond their median. So one wrong client moves nothing, a minority moves the watermark
by half of the grace at most, and a time before all others only waits for more clients. Events that
are late say nothing about the present, and are left out.

All of it is a pure function of the partition's records, whatever the order of polls.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import deque
from typing import NamedTuple, TypeAlias

import msgspec

#: Before every event; microseconds, and small enough to be subtracted from.
BEGINNING_US = -(2**62)

#: Distinct clients whose latest times are compared.
NUM_CLIENTS = 15

#: Later clients that are asked about an event ahead of them, and how many must contradict it.
_NUM_JUDGES, _NUM_CONTRADICTIONS = 4, 3
#: Later events after which those clients decide that there are, if there are fewer.
_PATIENCE = 200
_MAX_DOUBTED = 1000
#: With fewer clients a partition may hold the others back only until it is read to its end.
_LEAST_CLIENTS = 3
_LEAST_SLACK_US = 1_000_000


class Doubted(NamedTuple):
    """An event ahead of its partition's stream time.

    Attributes:
        arrival: number of events of the partition up to it.
        client_id: who sent it.
        offset: of its record.
        time_us: its event time.
        stream_us: stream time at its arrival.
    """

    arrival: int
    client_id: str
    offset: int
    time_us: int
    stream_us: int


_Latest: TypeAlias = tuple[int, int]  # event time, arrival


class PartitionClockState(msgspec.Struct, array_like=True):
    """State of a `PartitionClock`.

    Attributes:
        watermark_us: of the partition.
        idle: whether it is left out of the global watermark.
        num_events: observed so far.
        latest: client id -> event time and arrival of its latest event, oldest arrival first.
        doubted: events that wait for a verdict, in order of arrival.
    """

    watermark_us: int
    idle: bool
    num_events: int
    latest: list[tuple[str, int, int]]
    doubted: list[Doubted]


class PartitionClock:
    """Stream time and watermark of one partition.

    Attributes:
        doubted: events ahead of stream time that wait for a verdict, in order of arrival.
        watermark_us: stream time minus grace; it never moves backwards.
        stream_us: stream time; `BEGINNING_US` until two clients are known.
        idle: left out of the global watermark.
        moved_seconds: when enough clients moved the watermark last, on the injected clock.
    """

    __slots__ = (
        "_grace_us",
        "_latest",
        "_num_events",
        "_slack_us",
        "_times_us",
        "doubted",
        "idle",
        "moved_seconds",
        "stream_us",
        "watermark_us",
    )

    def __init__(self, grace_us: int, now: float) -> None:
        """Begin before every event; `now` is the injected clock's."""
        self.watermark_us = self.stream_us = BEGINNING_US
        self.idle = False
        self.moved_seconds = now
        self._grace_us = grace_us
        self._slack_us = max(grace_us, _LEAST_SLACK_US)
        self._num_events = 0
        self._latest: dict[str, _Latest] = {}  # oldest arrival first
        self._times_us: list[int] = []  # of `_latest`, sorted
        self.doubted: deque[Doubted] = deque()

    @property
    def times_us(self) -> list[int]:
        """Latest event time of each recent client, sorted."""
        return self._times_us

    def observe(self, client_id: str, time_us: int, now: float) -> None:
        """Take in one event's time; the partition is busy again."""
        self.idle = False
        self._num_events = arrival = self._num_events + 1
        if time_us < self.watermark_us:
            return
        latest, times_us = self._latest, self._times_us
        before = latest.pop(client_id, None)
        if before is None and len(latest) == NUM_CLIENTS:
            before = latest.pop(next(iter(latest)))
        if before is not None:
            del times_us[bisect_left(times_us, before[0])]
        latest[client_id] = (time_us, arrival)
        insort(times_us, time_us)
        if len(times_us) < 2:
            return
        self.stream_us = stream_us = self._stream_time()
        if stream_us - self._grace_us > self.watermark_us:
            self.watermark_us = stream_us - self._grace_us
            if len(times_us) >= _LEAST_CLIENTS:
                self.moved_seconds = now

    def _stream_time(self) -> int:
        times_us = self._times_us
        limit_us = times_us[(len(times_us) - 1) // 2] + self._grace_us // 2
        return min(times_us[-2], limit_us)

    # --- events ahead ---------------------------------------------------------------------------

    def is_ahead(self, time_us: int) -> bool:
        """Return whether an event would make the others late if its time were right."""
        return time_us > self.stream_us + self._slack_us

    def doubt(self, client_id: str, time_us: int, offset: int) -> None:
        """Ask the next clients about the event observed last."""
        self.doubted.append(Doubted(self._num_events, client_id, offset, time_us, self.stream_us))

    def contradicted(self) -> list[Doubted]:
        """Return the events that the clients after them have contradicted; each is told once.

        Four other clients are asked. If three are earlier by more than the grace, they are right.
        Where only two or three come, all must be. One that too many wait behind is wrong, too.
        """
        wrong, doubted = [], self.doubted
        while doubted:
            event = doubted[0]
            is_wrong = self._is_contradicted(event) if self.is_ahead(event.time_us) else False
            if is_wrong is None and len(doubted) > _MAX_DOUBTED:
                is_wrong = True
            if is_wrong is None:
                break
            doubted.popleft()
            if is_wrong:
                wrong.append(event)
        return wrong

    def _is_contradicted(self, event: Doubted) -> bool | None:
        """Return the verdict on an event; None before enough clients came after it."""
        num_asked = num_against = 0
        for client_id, (time_us, arrival) in reversed(self._latest.items()):
            if arrival <= event.arrival:
                break
            if client_id == event.client_id:
                continue
            num_asked += 1
            num_against += time_us < event.time_us - self._slack_us
            if num_asked == _NUM_JUDGES:
                return num_against >= _NUM_CONTRADICTIONS
        is_long_ago = self._num_events - event.arrival >= _PATIENCE
        return num_against == num_asked if num_asked > 1 and is_long_ago else None

    # --- state ----------------------------------------------------------------------------------

    def snapshot(self) -> PartitionClockState:
        """Return the state after the last event observed."""
        return PartitionClockState(
            watermark_us=self.watermark_us,
            idle=self.idle,
            num_events=self._num_events,
            latest=[(client, *latest) for client, latest in self._latest.items()],
            doubted=list(self.doubted),
        )

    def restore(self, state: PartitionClockState, now: float) -> None:
        """Restore what `snapshot` returned, as unmoved since `now`."""
        self.watermark_us = state.watermark_us
        self.idle = state.idle
        self.moved_seconds = now
        self._num_events = state.num_events
        self._latest = {client: (time_us, arrival) for client, time_us, arrival in state.latest}
        self._times_us = sorted(time_us for time_us, _ in self._latest.values())
        self.stream_us = self._stream_time() if len(self._times_us) > 1 else BEGINNING_US
        self.doubted.clear()
        self.doubted.extend(state.doubted)
