"""Protocols of a partitioned log: `Source` to read by position, `Sink` to write."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Protocol

import msgspec

from weighting.provenance import TopicPartition


class Record(msgspec.Struct, frozen=True, gc=False):
    """Bytes on a topic, with a position; nothing is decoded yet.

    Attributes:
        timestamp_us: append time, or the producer's where the topic keeps that; -1 when there is
            none.
    """

    topic: str
    partition: int
    offset: int
    timestamp_us: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes], ...] = ()


class Source(Protocol):
    """A partitioned log that is read by position; every method is called from one thread."""

    def assignment(self) -> list[TopicPartition]:
        """Return all partitions of this reader, sorted; those added meanwhile begin paused at 0."""

    def partition_counts(self) -> Mapping[str, int]:
        """Return how many partitions every topic has by now, read or not."""

    def poll(self, timeout_seconds: float, max_records: int | None = None) -> list[Record]:
        """Return the next records of the partitions that are not paused, at most `max_records`.

        They are in offset order within each partition. Waits at most about `timeout_seconds`, and
        returns `[]` when there are none or the brokers do not answer.

        Raises:
            OffsetLost: a next offset lies outside of the retained range.
        """

    def position(self, topic: str, partition: int) -> int:
        """Return the next offset; it may have moved past records that are never delivered."""

    def seek(self, topic: str, partition: int, offset: int) -> None:
        """Continue with `offset`."""

    def pause(self, partitions: Iterable[TopicPartition]) -> None:
        """Deliver nothing of these partitions until they are resumed."""

    def resume(self, partitions: Iterable[TopicPartition]) -> None:
        """Deliver these partitions again."""

    def beginning_offsets(self) -> Mapping[TopicPartition, int]:
        """Return the oldest retained offset of every partition.

        Raises:
            SourceUnavailable: the brokers did not answer.
        """

    def end_offsets(self) -> Mapping[TopicPartition, int]:
        """Return the offset up to which every partition can be read now.

        Empty while the brokers do not answer.
        """

    def log_ends(self, ends: Mapping[TopicPartition, int]) -> Mapping[TopicPartition, int]:
        """Return the end offsets of the log itself, as far as known, given those of `end_offsets`.

        Records between the two wait for the end of an open transaction.
        """

    def close(self) -> None:
        """Close all connections."""


class Sink(Protocol):
    """A destination of records."""

    def send(
        self,
        topic: str,
        key: bytes | None,
        value: bytes | None,
        headers: Iterable[tuple[str, bytes]] = (),
    ) -> None:
        """Accept one record; it is only safe after the next `flush`."""

    def flush(self) -> None:
        """Wait until everything sent is acknowledged.

        Raises:
            SinkUnavailable: something was not.
        """
