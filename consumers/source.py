"""What we ask of any log: poll, position, seek, pause, resume, first and last offsets."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Protocol

import msgspec

from weighting.provenance import TopicPartition


class Record(msgspec.Struct, frozen=True, gc=False):
    """Bytes on a topic, with a position; nothing is decoded yet."""

    topic: str
    partition: int
    offset: int
    timestamp_us: (
        int  #: append time, or the producer's where the topic keeps that; -1 when there is none
    )
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes], ...] = ()


class Source(Protocol):
    """A partitioned log that is read by position; every method is called from one thread."""

    def assignment(self) -> list[TopicPartition]:
        """Return all partitions that are read, sorted."""

    def poll(self, timeout_seconds: float) -> list[Record]:
        """Return the next records of the partitions that are not paused, in offset order within each partition.

        Waits at most about `timeout_seconds`, and returns `[]` when there are none or the brokers do not answer.

        Raises:
            OffsetLost: a next offset lies outside of the retained range.
        """

    def position(self, topic: str, partition: int) -> int:
        """Return the next offset; it may have moved past records that are never delivered."""

    def seek(self, topic: str, partition: int, offset: int) -> None:
        """Continue with `offset`."""

    def pause(self, partitions: Iterable[TopicPartition]) -> None:
        """Deliver nothing of these until they are resumed."""

    def resume(self, partitions: Iterable[TopicPartition]) -> None:
        """Deliver these again."""

    def beginning_offsets(self) -> Mapping[TopicPartition, int]:
        """Return the oldest retained offset of every partition.

        Raises:
            SourceUnavailable: the brokers did not answer.
        """

    def end_offsets(self) -> Mapping[TopicPartition, int]:
        """Return the offset that the next record gets, of every partition; empty while the brokers do not answer."""

    def close(self) -> None:
        """Let go of connections."""


class Sink(Protocol):
    """Somewhere that records are written to."""

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
