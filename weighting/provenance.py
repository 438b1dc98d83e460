"""Places in the log: positions, slices, polls, next offsets, gaps, audits.

Values only, shared by the reader of the log and the store that keeps its progress.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, TypeAlias, TypeVar

import msgspec

TopicPartition: TypeAlias = tuple[str, int]
Count: TypeAlias = Annotated[int, msgspec.Meta(ge=0)]
_MODULUS = 1 << 64
_T = TypeVar("_T")


class Position(msgspec.Struct, frozen=True, order=True, array_like=True, gc=False):
    """Position of one record in the log; prints as ``clicks[3]@171004``."""

    topic: str
    partition: int
    offset: int

    def __str__(self) -> str:
        """Return ``topic[partition]@offset``."""
        return f"{self.topic}[{self.partition}]@{self.offset}"


class Slice(msgspec.Struct, frozen=True, order=True, array_like=True):
    """A half-open run of offsets ``[start, end)`` of one partition.

    Attributes:
        topic: its topic.
        partition: its partition.
        start: first offset.
        end: offset after the last.
        num_records: records in it; fewer than offsets where the log was compacted.
        sum64: sum mod 2^64 of the hashes of its records.
    """

    topic: str
    partition: int
    start: int
    end: int
    num_records: int
    sum64: int


Counts: TypeAlias = tuple[tuple[str, int], ...]
"""Topics with their partition counts."""


class Poll(msgspec.Struct, frozen=True, array_like=True):
    """Records returned by one poll, and the partitions that were idle meanwhile.

    Attributes:
        counts: partition counts that are read from here on, of topics that have grown.
        wall_us: wall clock, when everything was found idle; else 0.
    """

    slices: tuple[Slice, ...]
    idle: tuple[TopicPartition, ...] = ()
    counts: Counts = ()
    wall_us: int = 0


class Audit(msgspec.Struct, array_like=True):
    """Everything consumed from one partition so far; every record has exactly one outcome.

    Attributes:
        num_records: records consumed.
        sum64: sum mod 2^64 of their hashes.
        outcomes: outcome -> number of records.
        last: offset and hash of the record consumed last.
    """

    num_records: Count = 0
    sum64: Count = 0
    outcomes: dict[str, Count] = {}
    last: tuple[Count, Count] | None = None

    def add(self, num_records: int, sum64: int, last: tuple[int, int]) -> None:
        """Count records that were consumed together."""
        self.num_records += num_records
        self.sum64 = (self.sum64 + sum64) % _MODULUS
        self.last = last

    def count(self, outcome: str, num_records: int) -> None:
        """Count the outcome of some of them."""
        known = outcome in self.outcomes
        self.outcomes[outcome] = self.outcomes.get(outcome, 0) + num_records
        if not known:
            self.outcomes = dict(sorted(self.outcomes.items()))  # equal audits are equal bytes

    @property
    def num_unaccounted(self) -> int:
        """Number of records without an outcome; 0 unless there is a bug."""
        return self.num_records - sum(self.outcomes.values())

    def copy(self) -> Audit:
        """Return an equal audit that later counts do not change."""
        return Audit(self.num_records, self.sum64, dict(self.outcomes), self.last)


class Gap(msgspec.Struct, frozen=True, kw_only=True):
    """Records ``[start, end)`` of a partition that can never be read."""

    topic: str
    partition: int
    start: int
    end: int
    reason: str
    policy: str = ""


class Offsets(Mapping[TopicPartition, int]):
    """Next offset of each partition; written as ``{topic: {partition: offset}}``."""

    __slots__ = ("_offsets",)

    def __init__(
        self, offsets: Mapping[TopicPartition, int] | Iterable[tuple[TopicPartition, int]] = ()
    ) -> None:
        """Copy pairs of partition and next offset."""
        self._offsets: dict[TopicPartition, int] = dict(offsets)

    @classmethod
    def from_nested(cls, nested: Mapping[str, Mapping[int, int]]) -> Offsets:
        """Return the offsets that `nested` wrote."""
        return cls(by_partition(nested))

    @classmethod
    def dec_hook(cls, kind: type, nested: Mapping[str, Mapping[int, int]]) -> Offsets:
        """Decode an Offsets field for msgspec; `nested` is the hook that encodes it."""
        assert kind is cls
        return cls.from_nested(nested)

    def nested(self) -> dict[str, dict[int, int]]:
        """Return ``{topic: {partition: offset}}``, sorted."""
        return by_topic(self._offsets)

    def moved(self, changes: Mapping[TopicPartition, int]) -> Offsets:
        """Return a copy with `changes` applied."""
        return Offsets({**self._offsets, **changes})

    def __getitem__(self, partition: TopicPartition) -> int:
        """Return the next offset of one partition."""
        return self._offsets[partition]

    def __iter__(self) -> Iterator[TopicPartition]:
        """Iterate over the partitions."""
        return iter(self._offsets)

    def __len__(self) -> int:
        """Return the number of partitions."""
        return len(self._offsets)

    def __repr__(self) -> str:
        """Return the partitions with their next offsets."""
        return f"Offsets({self._offsets!r})"


def by_topic(values: Mapping[TopicPartition, _T]) -> dict[str, dict[int, _T]]:
    """Nest values of partitions under their topics, sorted."""
    nested: dict[str, dict[int, _T]] = {}
    for topic, partition in sorted(values):
        nested.setdefault(topic, {})[partition] = values[topic, partition]
    return nested


def by_partition(nested: Mapping[str, Mapping[int, _T]]) -> dict[TopicPartition, _T]:
    """Undo `by_topic`."""
    return {(topic, p): value for topic, parts in nested.items() for p, value in parts.items()}
