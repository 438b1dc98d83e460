"""Partitions that one pipeline reads: offsets, gaps and consumption."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from operator import attrgetter, itemgetter

from consumers.dead_letter import DeadLetters
from consumers.errors import LogTruncated, OffsetLost
from consumers.events import Kind
from consumers.reading.partition import Partition
from consumers.reading.replay import Replay
from consumers.reporting import Reporting
from consumers.source import Record, Source
from weighting.provenance import Gap, Offsets, Poll, Slice, TopicPartition
from weighting.sample import Signal

#: What to do about records that retention deleted before they were read.
STOP, RECORD = "stop", "record"

_log = logging.getLogger(__name__)
_partition = attrgetter("topic", "partition")


class Reader:
    """A source and its partitions.

    Attributes:
        partitions: of events and of items, sorted.
        events: the partitions of events.
        items: the partitions of the items topic.
        gaps: records that can never be read, found by this reader.
    """

    def __init__(
        self,
        source: Source,
        partitions: dict[TopicPartition, Partition],
        *,
        dead_letters: DeadLetters,
        reporting: Reporting,
        on_gap: str,
    ) -> None:
        """Take a started source; `open` positions it."""
        self.source = source
        self.partitions = partitions
        self.events = [tp for tp, each in partitions.items() if each.kind is not Kind.ITEM]
        self.items = [tp for tp, each in partitions.items() if each.kind is Kind.ITEM]
        self.gaps: list[Gap] = []
        self._dead_letters = dead_letters
        self._reporting = reporting
        self._on_gap = on_gap
        # Offset and hash of the record consumed last, where it is retained.
        self._last: dict[TopicPartition, tuple[int, int]] = {}

    # --- opening --------------------------------------------------------------------------------

    def open(self, restored: Mapping[TopicPartition, int]) -> None:
        """Position the source at the restored offsets or the beginning.

        Raises:
            OffsetLost: the log does not hold the next offset of a partition; `on_gap` is `stop`.
            SourceUnavailable: the brokers did not answer.
        """
        beginnings, ends = self.source.beginning_offsets(), self.source.end_offsets()
        for tp, partition in self.partitions.items():
            beginning, end = beginnings[tp], ends.get(tp)
            partition.next_offset = self._start(tp, restored.get(tp), beginning, end)
            last = partition.audit.last
            is_event = partition.kind is not Kind.ITEM
            if last is not None and is_event and beginning <= last[0] < (end or 0):
                self._last[tp] = last
                self.source.seek(*tp, last[0])
            else:
                self.source.seek(*tp, partition.next_offset)
        later = [tp for tp in self.source.assignment() if tp not in self.partitions]
        for tp in later:
            self.source.seek(*tp, 0)
        self.source.pause(later)

    def admit(self, partition: Partition) -> None:
        """Read one more partition, from its first record on."""
        tp = partition.tp
        known = {**self.partitions, tp: partition}
        self.partitions.clear()
        self.partitions.update(sorted(known.items()))  # slices come in this order, as at a start
        of_kind = self.items if partition.kind is Kind.ITEM else self.events
        of_kind.append(tp)
        of_kind.sort()
        self.source.seek(*tp, 0)
        self.source.resume([tp])

    def _start(
        self, tp: TopicPartition, restored: int | None, beginning: int, end: int | None
    ) -> int:
        if restored is None:
            return beginning
        if beginning <= restored and (end is None or restored <= end):
            return restored
        return self._skip(OffsetLost(*tp, restored, beginning, end))

    def verify_last(self, replay: Replay) -> Iterator[Signal]:
        """Read the record consumed last in every partition again, and compare its hash.

        Brokers that lost it may have another record at its offset.

        Raises:
            LogTruncated: it is another record now.
        """
        for tp, (offset, known) in self._last.items():
            partition = self.partitions[tp]
            last = Slice(*tp, offset, offset + 1, 1, known)
            records = yield from replay.read(Poll((last,), ()))
            if any(partition.digest(record) != known for record in records):
                raise LogTruncated(*tp, partition.next_offset, offset)
            if partition.next_offset != offset + 1:
                replay.move(tp, partition.next_offset)

    # --- reading --------------------------------------------------------------------------------

    def poll(self, timeout_seconds: float, max_records: int) -> Sequence[Record]:
        """Return the next records; see `Source.poll`.

        Raises:
            OffsetLost: as in `open`.
        """
        try:
            return self.source.poll(timeout_seconds, max_records)
        except OffsetLost as lost:
            tp = (lost.topic, lost.partition)
            offset = self._skip(lost)
            self.partitions[tp].next_offset = offset
            self.source.seek(*tp, offset)
            return []

    def consume(
        self, records: Sequence[Record], ends: Mapping[TopicPartition, int], now: float
    ) -> tuple[Slice, ...]:
        """Hand records to their partitions; return the slices up to `ends`."""
        runs = [(tp, list(run)) for tp, run in groupby(records, _partition)]
        # The order within a poll is not journaled, and partitions of a grown topic share event ids.
        runs.sort(key=itemgetter(0))
        num_records: Counter[str] = Counter()
        for (topic, _), run in runs:
            num_records[topic] += len(run)
        for topic, num in num_records.items():
            self._dead_letters.seen(topic, num)
        times_us: dict[str, int] = {}
        for tp, run in runs:
            times_us |= self.partitions[tp].consume(run, now)
        slices = [self.partitions[tp].advance_to(end) for tp, end in ends.items()]
        if records:
            self._reporting.consumed(times_us, now)
        return tuple(part for part in slices if part is not None)

    def move(self, offsets: Iterable[tuple[TopicPartition, int]]) -> None:
        """Set the next offsets of some partitions; the source is left where it is."""
        for tp, offset in offsets:
            self.partitions[tp].next_offset = offset

    # --- offsets --------------------------------------------------------------------------------

    def positions(self) -> dict[TopicPartition, int]:
        """Return the position of the source in every partition."""
        position = self.source.position
        return {tp: position(*tp) for tp in self.partitions}

    def next_offsets(self) -> Offsets:
        """Return the offset of the next record to consume, of every partition."""
        return Offsets((tp, partition.next_offset) for tp, partition in self.partitions.items())

    def behind(
        self, partitions: Iterable[TopicPartition], ends: Mapping[TopicPartition, int]
    ) -> list[TopicPartition]:
        """Return the partitions that are not consumed up to their end."""
        return [tp for tp in partitions if self.partitions[tp].next_offset < ends.get(tp, 0)]

    def _skip(self, lost: OffsetLost) -> int:
        """Return the offset behind lost records if `on_gap` is `record`; otherwise raise."""
        if lost.num_missing:
            self._reporting.lost(lost)
        if self._on_gap != RECORD or not lost.num_missing or lost.beginning is None:
            raise lost
        gap = Gap(
            topic=lost.topic,
            partition=lost.partition,
            start=lost.next_offset,
            end=lost.beginning,
            reason="retention",
            policy=self._on_gap,
        )
        self.gaps.append(gap)
        message = "%s[%d]: records [%d, %d) are lost to retention; skipping them (kafka.on_gap)."
        _log.error(message, gap.topic, gap.partition, gap.start, gap.end)
        return lost.beginning
