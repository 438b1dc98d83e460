"""A partitioned log in memory, as a `Source`, and a `Sink` that remembers.

Polls can be cut and interleaved in any way.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from random import Random

from consumers.source import Record
from weighting.provenance import TopicPartition


class Log:
    """Appended records, delivered in bounded polls.

    With a `random`, the partitions of a poll and its length are shuffled.
    """

    def __init__(
        self,
        partitions: Iterable[TopicPartition],
        *,
        max_records: int = 500,
        random: Random | None = None,
    ) -> None:
        self.records: dict[TopicPartition, list[Record]] = {tp: [] for tp in sorted(partitions)}
        self.beginnings: dict[TopicPartition, int] = dict.fromkeys(self.records, 0)
        self.paused: set[TopicPartition] = set()
        self.uncommitted: dict[TopicPartition, int] = {}
        self.num_polls = 0
        self.available = True
        self._max_records = max_records
        self._random = random
        self._positions = dict.fromkeys(self.records, 0)

    def append(
        self,
        topic: str,
        partition: int,
        value: bytes | None,
        *,
        key: bytes | None = None,
        timestamp_us: int = -1,
        headers: Sequence[tuple[str, bytes]] = (),
    ) -> Record:
        records = self.records[topic, partition]
        record = Record(topic, partition, len(records), timestamp_us, key, value, tuple(headers))
        records.append(record)
        return record

    def reader(self, *, max_records: int | None = None, random: Random | None = None) -> Log:
        """The same records, read anew and independently."""
        log = Log(self.records, max_records=max_records or self._max_records, random=random)
        log.records = self.records
        return log

    @property
    def exhausted(self) -> bool:
        return all(
            self._positions.get(tp, 0) >= len(records) for tp, records in self.records.items()
        )

    def assignment(self) -> list[TopicPartition]:
        return sorted(self._positions)

    def grow(self, topic: str, count: int) -> None:
        """Add partitions to a topic; every reader of the log has them from then on."""
        for p in range(sum(name == topic for name, _ in self.records), count):
            self.records[topic, p] = []
            self.beginnings[topic, p] = 0

    def partition_counts(self) -> dict[str, int]:
        return dict(Counter(topic for topic, _ in self._positions))

    def poll(self, timeout_seconds: float, max_records: int | None = None) -> list[Record]:
        self.num_polls += 1
        if not self.available:
            return []
        order = [tp for tp in self._positions if tp not in self.paused]
        left = min(self._max_records, max_records or self._max_records)
        if self._random is not None:
            self._random.shuffle(order)
            order = order[: self._random.randint(1, max(len(order), 1))]
            left = self._random.randint(1, left)
        polled: list[Record] = []
        for tp in order:
            start = self._positions[tp]
            # A poll takes a fair share of each partition, as one of many fetched together does.
            end = min(start + max(left // max(len(order), 1), 1), len(self.records[tp]))
            if max_records is not None:
                end = min(end, start + max_records - len(polled))
            polled.extend(self.records[tp][start:end])
            self._positions[tp] = end
        self._take_added()
        return polled

    def _take_added(self) -> None:
        """Take partitions that were added; they begin paused, as those of the real source do."""
        for tp in self.records:
            if tp not in self._positions:
                self._positions[tp] = 0
                self.paused.add(tp)

    def position(self, topic: str, partition: int) -> int:
        return self._positions[topic, partition]

    def seek(self, topic: str, partition: int, offset: int) -> None:
        self._positions[topic, partition] = offset

    def pause(self, partitions: Iterable[TopicPartition]) -> None:
        self.paused.update(partitions)

    def resume(self, partitions: Iterable[TopicPartition]) -> None:
        self.paused.difference_update(partitions)

    def beginning_offsets(self) -> dict[TopicPartition, int]:
        return {tp: self.beginnings.get(tp, 0) for tp in self.records}

    def end_offsets(self) -> dict[TopicPartition, int]:
        return {tp: len(records) for tp, records in self.records.items()} if self.available else {}

    def log_ends(self, ends: Mapping[TopicPartition, int]) -> dict[TopicPartition, int]:
        return {tp: end + self.uncommitted.get(tp, 0) for tp, end in ends.items()}

    def close(self) -> None:
        pass


class Shelf:
    """A sink that keeps what was sent."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, bytes | None, bytes | None, dict[str, bytes]]] = []
        self.num_flushes = 0

    def send(
        self,
        topic: str,
        key: bytes | None,
        value: bytes | None,
        headers: Iterable[tuple[str, bytes]] = (),
    ) -> None:
        self.sent.append((topic, key, value, dict(headers)))

    def flush(self) -> None:
        self.num_flushes += 1
