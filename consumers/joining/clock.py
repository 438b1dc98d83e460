"""Watermarks of all event partitions, robust against wrong clocks.

The global watermark is the least of the partitions' own watermarks, idle partitions left out. It
never moves backwards. When all are idle it is the greatest; or the newest event time that the wall
clock vouches for, minus the grace: not in the future, and no older than an event on time can be.

The key of a record is its event time, or the watermark of its partition if that is later. So keys
are never below the partition's watermark, whatever the order in which partitions are polled, and
everything with a key below the global watermark is complete. Wall-clock input is idleness and the
time at which everything was idle; both are journaled.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from consumers.joining.partition_clock import (
    BEGINNING_US,
    Doubted,
    PartitionClock,
    PartitionClockState,
)
from weighting.provenance import TopicPartition

__all__ = ["BEGINNING_US", "Correction", "Watermarks"]


class Correction(NamedTuple):
    """A new event time of an event whose time was wrong.

    Attributes:
        partition: its topic and partition number.
        offset: of its record.
        before_us: the time that it had, also as its key.
        time_us: an estimate: stream time at its arrival.
        key_us: the key to it.
    """

    partition: TopicPartition
    offset: int
    before_us: int
    time_us: int
    key_us: int


class Watermarks:
    """Clocks of all event partitions; `snapshot` resumes after the last record observed.

    Attributes:
        watermark_us: the global watermark.
        corrections: of events observed so far; the caller applies and clears them.
    """

    def __init__(
        self,
        partitions: Iterable[TopicPartition],
        *,
        grace_us: int,
        attribution_us: int,
        idle_timeout_us: int,
        now: float,
    ) -> None:
        """Begin before every event.

        Args:
            partitions: every partition that can hold the watermark back.
            grace_us: extra wait for disorder; a partition's own watermark is its stream time minus
                this.
            attribution_us: an event older than this is joined to nothing: its time is estimated.
            idle_timeout_us: how long the watermark of a partition that is read to its end must
                stand still before the partition is left out.
            now: seconds on the injected clock.
        """
        self._clocks = {tp: PartitionClock(grace_us, now) for tp in sorted(partitions)}
        self._grace_us = grace_us
        self._behind_us = attribution_us + grace_us
        self._idle_timeout_us = idle_timeout_us
        self.watermark_us = BEGINNING_US
        self.corrections: list[Correction] = []

    def add(self, partition: TopicPartition, now: float) -> None:
        """Wait for one more partition; it holds the watermark where it is, until it is quiet."""
        self._clocks[partition] = PartitionClock(self._grace_us, now)
        self._clocks = dict(sorted(self._clocks.items()))

    def observe(
        self, partition: TopicPartition, client_id: str, offset: int, time_us: int, now: float
    ) -> tuple[int, int, int]:
        """Take in one event's time.

        Returns:
            its time, an estimate if it is older than the attribution window; its key, above its
            time when the event is late; and the watermark behind which no key of the partition
            will be.
        """
        clock = self._clocks[partition]
        clock.observe(client_id, time_us, now)
        own_us = clock.watermark_us
        if own_us < self.watermark_us:
            own_us = self.watermark_us
        if time_us < clock.stream_us - self._behind_us:
            time_us = clock.stream_us
        if time_us < own_us:
            key_us = own_us
        else:
            key_us = time_us
            if clock.is_ahead(time_us):
                clock.doubt(client_id, time_us, offset)
        if clock.doubted:
            self._correct(partition, clock, clock.contradicted())
        return time_us, key_us, own_us

    def _correct(
        self, partition: TopicPartition, clock: PartitionClock, wrong: Iterable[Doubted]
    ) -> None:
        for event in wrong:
            if event.time_us < self.watermark_us:
                continue  # event time has come to it
            known = event.stream_us > BEGINNING_US
            time_us = event.stream_us if known else clock.stream_us
            key_us = max(time_us, clock.watermark_us, self.watermark_us)
            correction = Correction(partition, event.offset, event.time_us, time_us, key_us)
            self.corrections.append(correction)

    # --- idleness -------------------------------------------------------------------------------

    def quiet(self, now: float) -> list[TopicPartition]:
        """Return the partitions that stand still for the idle timeout and are not left out yet."""
        return [
            partition
            for partition, clock in self._clocks.items()
            if not clock.idle and now - clock.moved_seconds >= self._idle_timeout_us / 1e6
        ]

    def set_idle(self, partition: TopicPartition) -> None:
        """Leave this partition out until its next event; the caller has read it to its end."""
        self._clocks[partition].idle = True

    def set_busy(self, partitions: Iterable[TopicPartition]) -> None:
        """Wait for these partitions again, although they were idle."""
        for partition in partitions:
            self._clocks[partition].idle = False

    @property
    def num_busy(self) -> int:
        """Number of partitions that are not left out."""
        return sum(not clock.idle for clock in self._clocks.values())

    @property
    def all_idle(self) -> bool:
        """Every partition is left out: event time stands still until the next event."""
        return not self.num_busy

    def on_time_us(self, wall_us: int) -> int:
        """Return the watermark that a wall clock vouches for, if everything is idle.

        An event that was read on time is not in the future, and older by at most the grace and the
        waits until everything is idle.
        """
        oldest_us = wall_us - self._grace_us - 2 * self._idle_timeout_us
        newest_us = BEGINNING_US
        for clock in self._clocks.values():
            times_us = clock.times_us
            num_past = bisect_right(times_us, wall_us)
            if num_past and times_us[num_past - 1] >= oldest_us:
                newest_us = max(newest_us, times_us[num_past - 1])
        return newest_us - self._grace_us if newest_us > BEGINNING_US else BEGINNING_US

    # --- the global watermark -------------------------------------------------------------------

    def advance(self, wall_us: int = 0) -> int:
        """Move the global watermark and return it.

        Args:
            wall_us: wall clock, when everything was found idle; else 0.
        """
        busy = [clock.watermark_us for clock in self._clocks.values() if not clock.idle]
        if busy:
            self.advance_to(min(busy))
        else:
            own = (clock.watermark_us for clock in self._clocks.values())
            self.advance_to(max(own, default=BEGINNING_US))
            if wall_us:
                self.advance_to(self.on_time_us(wall_us))
        return self.watermark_us

    def advance_to(self, watermark_us: int) -> None:
        """Move the global watermark to at least this, whatever the partitions say."""
        self.watermark_us = max(self.watermark_us, watermark_us)

    def ahead(self) -> list[TopicPartition]:
        """Return the partitions that are ahead of the global watermark."""
        return [p for p, clock in self._clocks.items() if clock.watermark_us > self.watermark_us]

    def own_watermark(self, partition: TopicPartition) -> int:
        """Return the watermark of one partition."""
        return self._clocks[partition].watermark_us

    @property
    def present_us(self) -> int:
        """Greatest stream time of a partition; the newest event time before there is one."""
        greatest_us = max(
            (clock.stream_us for clock in self._clocks.values()), default=BEGINNING_US
        )
        return greatest_us if greatest_us > BEGINNING_US else self.newest_us

    @property
    def newest_us(self) -> int:
        """Newest of the recent clients' latest times, right or wrong."""
        newest = (clock.times_us[-1] for clock in self._clocks.values() if clock.times_us)
        return max(newest, default=BEGINNING_US)

    # --- state ----------------------------------------------------------------------------------

    def snapshot(self, number: int) -> dict[str, PartitionClockState]:
        """Return the clocks of one partition number, by topic."""
        of_number = [(topic, clock) for (topic, p), clock in self._clocks.items() if p == number]
        return {topic: clock.snapshot() for topic, clock in of_number}

    def restore(self, number: int, clocks: Mapping[str, PartitionClockState], now: float) -> None:
        """Restore the clocks of one partition number, as unmoved since `now`."""
        for topic, state in clocks.items():
            self._clocks[topic, number].restore(state, now)
