"""Event time per partition, and the global watermark.

The global watermark is the least of the partitions' own watermarks, idle partitions left out. It
never moves backwards.

The time of a record becomes monotone per partition: its key is the maximum of its event time and
the partition's own watermark at its arrival. So later keys of a partition are never below its own
watermark, whatever the order in which partitions are polled, and everything with a key below the
global watermark is complete. The only wall-clock input is idleness.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from weighting.provenance import TopicPartition

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
    """Clocks of all event partitions; `snapshot` resumes after the last record observed.

    Attributes:
        watermark_us: the global watermark.
        newest_us: the newest event time in any partition.
    """

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
            grace_us: extra wait for disorder; a partition's own watermark is its newest event time
                minus this.
            idle_timeout_us: how long a partition that is read to its end must be quiet before it
                is left out.
            now: seconds on the injected clock.
        """
        self._clocks = {partition: PartitionClock(now) for partition in sorted(partitions)}
        self._grace_us = grace_us
        self._idle_timeout_seconds = idle_timeout_us / 1e6
        self.watermark_us = BEGINNING_US
        self.newest_us = BEGINNING_US

    def add(self, partition: TopicPartition, now: float) -> None:
        """Wait for one more partition; it holds the watermark where it is, until it is quiet."""
        self._clocks[partition] = PartitionClock(now)
        self._clocks = dict(sorted(self._clocks.items()))

    def observe(self, partition: TopicPartition, time_us: int, now: float) -> tuple[int, int]:
        """Take in one event's time.

        Returns:
            its key, above `time_us` when the event is late; and the partition's own watermark.
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
        """Return the partitions quiet for the idle timeout that are not yet left out."""
        return [
            partition
            for partition, clock in self._clocks.items()
            if not clock.idle and now - clock.last_arrival >= self._idle_timeout_seconds
        ]

    def set_idle(self, partition: TopicPartition) -> None:
        """Leave this partition out until its next event; the caller has read it to its end."""
        self._clocks[partition].idle = True

    def set_busy(self, partitions: Iterable[TopicPartition]) -> None:
        """Wait for these partitions again, although they were idle."""
        for partition in partitions:
            self._clocks[partition].idle = False

    @property
    def all_idle(self) -> bool:
        """Every partition is left out: event time stands still until the next event."""
        return all(clock.idle for clock in self._clocks.values())

    def advance(self) -> int:
        """Move the global watermark and return it.

        It becomes the least of the busy partitions, or the greatest when all are idle.
        """
        busy = [clock.watermark_us for clock in self._clocks.values() if not clock.idle]
        if busy:
            self.advance_to(min(busy))
        else:
            own = (clock.watermark_us for clock in self._clocks.values())
            self.advance_to(max(own, default=BEGINNING_US))
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

    def snapshot(self, number: int) -> dict[str, tuple[int, int, bool]]:
        """Return the clocks of one partition number: topic -> (newest, watermark, idle)."""
        return {
            topic: (clock.newest_us, clock.watermark_us, clock.idle)
            for (topic, p), clock in self._clocks.items()
            if p == number
        }

    def restore(self, number: int, clocks: Mapping[str, tuple[int, int, bool]], now: float) -> None:
        """Restore the clocks of one partition number, as quiet since `now`."""
        for topic, (newest_us, watermark_us, idle) in clocks.items():
            clock = self._clocks[topic, number]
            clock.newest_us = newest_us
            clock.watermark_us = watermark_us
            clock.idle = idle
            clock.last_arrival = now
            self.newest_us = max(self.newest_us, newest_us)
