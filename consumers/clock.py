"""Event time, partition by partition, with its watermark: least over partitions, idle ones excepted, never backwards.

The time of a record becomes monotone per partition: key = max(event time, the partition's own watermark at its arrival). So a partition's
later keys are never below its own watermark, whatever the order in which partitions are polled, and everything with a key below the global
watermark is complete. The only wall-clock input is idleness.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from consumers.source import TopicPartition

#: Before every event; microseconds, and small enough to be subtracted from.
BEGINNING_US = -(2**62)


class PartitionClock:
    """The event time of one partition."""

    __slots__ = ("idle", "last_arrival", "newest_us", "watermark_us")

    def __init__(self, now: float) -> None:
        """Begin before every event; `now` is the injected clock's."""
        self.newest_us = BEGINNING_US
        self.watermark_us = BEGINNING_US
        self.idle = False
        self.last_arrival = now


class Watermarks:
    """The clocks of all event partitions; `snapshot` resumes after the last record that was observed."""

    def __init__(
        self,
        partitions: Iterable[TopicPartition],
        *,
        grace_us: int,
        idle_timeout_us: int,
        now: float,
    ) -> None:
        """Begin before every event.

        Args:
            partitions: every partition that can hold the watermark back.
            grace_us: extra wait for disorder; a partition's own watermark is its newest event time minus this.
            idle_timeout_us: how long a partition that is read to its end must be quiet before it is left out.
            now: seconds on the injected clock.
        """
        self._clocks = {partition: PartitionClock(now) for partition in sorted(partitions)}
        self._grace_us = grace_us
        self._idle_timeout_seconds = idle_timeout_us / 1e6
        self.watermark_us = BEGINNING_US
        self.newest_us = BEGINNING_US  #: the newest event time in any partition

    def observe(self, partition: TopicPartition, time_us: int, now: float) -> tuple[int, int]:
        """Take in one event's time.

        Returns:
            its key, which is above `time_us` when the event is late; and the partition's own watermark.
        """
        clock = self._clocks[partition]
        clock.last_arrival = now
        clock.idle = False
        own_us = clock.watermark_us
        key_us = time_us
        if key_us < own_us:
            key_us = own_us
        if key_us < self.watermark_us:
            key_us = self.watermark_us
        if time_us > clock.newest_us:
            clock.newest_us = time_us
            if time_us - self._grace_us > own_us:
                clock.watermark_us = own_us = time_us - self._grace_us
            if time_us > self.newest_us:
                self.newest_us = time_us
        return key_us, own_us

    def quiet(self, now: float) -> list[TopicPartition]:
        """Return the partitions that have been quiet for the idle timeout and are not yet left out."""
        return [
            p
            for p, c in self._clocks.items()
            if not c.idle and now - c.last_arrival >= self._idle_timeout_seconds
        ]

    def set_idle(self, partition: TopicPartition) -> None:
        """Leave this one out until its next event; the caller has seen that it is read to its end."""
        self._clocks[partition].idle = True

    def set_busy(self, partitions: Iterable[TopicPartition]) -> None:
        """Wait for these again, though they were idle."""
        for partition in partitions:
            self._clocks[partition].idle = False

    @property
    def all_idle(self) -> bool:
        """Whether every partition is left out: nothing moves event time until the next event."""
        return all(clock.idle for clock in self._clocks.values())

    def advance(self) -> int:
        """Return the global watermark after moving it: the least of the busy partitions, or the greatest when all are idle."""
        busy = [c.watermark_us for c in self._clocks.values() if not c.idle]
        reached = (
            min(busy)
            if busy
            else max((c.watermark_us for c in self._clocks.values()), default=BEGINNING_US)
        )
        self.watermark_us = max(self.watermark_us, reached)
        return self.watermark_us

    def advance_to(self, watermark_us: int) -> None:
        """Move the global watermark by decree: the stream has ended."""
        self.watermark_us = max(self.watermark_us, watermark_us)

    def ahead(self) -> list[TopicPartition]:
        """Return the partitions whose own watermark is ahead of the global one: nothing waits for them."""
        return [p for p, c in self._clocks.items() if c.watermark_us > self.watermark_us]

    def own_watermark(self, partition: TopicPartition) -> int:
        """Return the watermark of one partition."""
        return self._clocks[partition].watermark_us

    def snapshot(self, number: int) -> dict[str, tuple[int, int, bool]]:
        """Return the clocks of one partition number: topic -> (newest, watermark, idle)."""
        return {
            topic: (c.newest_us, c.watermark_us, c.idle)
            for (topic, p), c in self._clocks.items()
            if p == number
        }

    def restore(self, number: int, clocks: Mapping[str, tuple[int, int, bool]], now: float) -> None:
        """Take back the clocks of one partition number; they were quiet since `now`."""
        for topic, (newest_us, watermark_us, idle) in clocks.items():
            clock = self._clocks[(topic, number)]
            clock.newest_us, clock.watermark_us, clock.idle, clock.last_arrival = (
                newest_us,
                watermark_us,
                idle,
                now,
            )
            self.newest_us = max(self.newest_us, newest_us)
