"""Re-reading of journaled polls: the same slices of the log as before."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Mapping, Sequence
from typing import NamedTuple

from consumers.source import Record, Source
from weighting.provenance import Poll, Slice, TopicPartition
from weighting.sample import Signal

_POLL_TIMEOUT_SECONDS = 0.1
_MAX_BUFFERED = 50_000  # records of one partition; beyond it the partition is paused


class Replayed(NamedTuple):
    """One journaled batch, or offsets that an operator moved at this place.

    Attributes:
        polls: what was consumed for the batch.
        cause: why the batch closed; None when it did not close here.
        moved: (topic, partition, next offset) of each partition that was moved before.
    """

    polls: Sequence[Poll]
    cause: str | None
    moved: Sequence[tuple[str, int, int]] = ()


class Replay:
    """Journaled slices of the log, whatever its polls return now.

    After `close` the source is positioned at the end of the slices.
    """

    def __init__(self, source: Source, next_offsets: Mapping[TopicPartition, int]) -> None:
        """Take a source positioned at `next_offsets`."""
        self._source = source
        self._next = dict(next_offsets)
        self._buffers: dict[TopicPartition, deque[Record]] = {tp: deque() for tp in next_offsets}
        self._paused: set[TopicPartition] = set()

    def read(self, poll: Poll) -> Generator[Signal, None, list[Record]]:
        """Return the records of one poll; yields IDLE until the log has delivered them."""
        records: list[Record] = []
        for part in poll.slices:
            tp = (part.topic, part.partition)
            buffer = self._buffers[tp]
            if part.start != self._next[tp]:  # records between were lost to retention, as before
                buffer.clear()
                self._source.seek(*tp, part.start)
            while not self._has_read(part):
                self._poll(tp)
                if not _ends_in(buffer, part):
                    yield Signal.IDLE
            while buffer and buffer[0].offset < part.end:
                records.append(buffer.popleft())
            self._next[tp] = part.end
        return records

    def move(self, tp: TopicPartition, offset: int) -> None:
        """Continue elsewhere in one partition."""
        self._next[tp] = offset
        self._buffers[tp].clear()
        self._source.seek(*tp, offset)

    def add(self, tp: TopicPartition) -> None:
        """Read one more partition, from its first record on."""
        self._next[tp] = 0
        self._buffers[tp] = deque()

    def close(self) -> None:
        """Return to the source what was read beyond the slices."""
        for tp, buffer in self._buffers.items():
            buffer.clear()
            self._source.seek(*tp, self._next[tp])
        self._source.resume(self._paused)
        self._paused.clear()

    def _has_read(self, part: Slice) -> bool:
        buffer = self._buffers[part.topic, part.partition]
        position = self._source.position(part.topic, part.partition)
        return _ends_in(buffer, part) or position >= part.end

    def _poll(self, wanted: TopicPartition) -> None:
        if wanted in self._paused:
            self._paused.discard(wanted)
            self._source.resume([wanted])
        for record in self._source.poll(_POLL_TIMEOUT_SECONDS):
            self._buffers[record.topic, record.partition].append(record)
        full = {tp for tp, buffer in self._buffers.items() if len(buffer) > _MAX_BUFFERED}
        full.discard(wanted)
        self._source.pause(full - self._paused)
        self._paused |= full


def _ends_in(buffer: deque[Record], part: Slice) -> bool:
    """Return whether a buffer reaches the end of a slice."""
    return bool(buffer) and buffer[-1].offset >= part.end - 1
