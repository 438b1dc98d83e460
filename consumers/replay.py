"""Exactly the turns of a journal, read from the log again."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Mapping

from consumers.source import Record, Source, TopicPartition
from weighting.provenance import Poll
from weighting.sample import Signal

_POLL_TIMEOUT_SECONDS = 0.1
_MAX_BUFFERED = 50_000  #: records of one partition; beyond it the partition is paused


class Replay:
    """Cuts the log into the slices that were read before, whatever the polls give now; `close` leaves the source where they end."""

    def __init__(self, source: Source, next_offsets: Mapping[TopicPartition, int]) -> None:
        """Take a source that stands at `next_offsets`."""
        self._source = source
        self._next = dict(next_offsets)
        self._buffers: dict[TopicPartition, deque[Record]] = {tp: deque() for tp in next_offsets}
        self._paused: set[TopicPartition] = set()

    def read(self, poll: Poll) -> Generator[Signal, None, list[Record]]:
        """Return the records of one turn; yields IDLE while the log has not given them."""
        records: list[Record] = []
        for part in poll.slices:
            tp = (part.topic, part.partition)
            buffer = self._buffers[tp]
            if (
                part.start != self._next[tp]
            ):  # records in between were lost to retention, then as now
                buffer.clear()
                self._source.seek(*tp, part.start)
            while (
                not (buffer and buffer[-1].offset >= part.end - 1)
                and self._source.position(*tp) < part.end
            ):
                self._poll(tp)
                if not (buffer and buffer[-1].offset >= part.end - 1):
                    yield Signal.IDLE
            while buffer and buffer[0].offset < part.end:
                records.append(buffer.popleft())
            self._next[tp] = part.end
        return records

    def move(self, tp: TopicPartition, offset: int) -> None:
        """Go on elsewhere in one partition, as an operator had it then."""
        self._next[tp] = offset
        self._buffers[tp].clear()
        self._source.seek(*tp, offset)

    def close(self) -> None:
        """Give back what was read too far."""
        for tp, buffer in self._buffers.items():
            buffer.clear()
            self._source.seek(*tp, self._next[tp])
        self._source.resume(self._paused)
        self._paused.clear()

    def _poll(self, wanted: TopicPartition) -> None:
        if wanted in self._paused:
            self._paused.discard(wanted)
            self._source.resume([wanted])
        for record in self._source.poll(_POLL_TIMEOUT_SECONDS):
            self._buffers[record.topic, record.partition].append(record)
        full = {
            tp
            for tp, buffer in self._buffers.items()
            if len(buffer) > _MAX_BUFFERED and tp != wanted
        }
        self._source.pause(full - self._paused)
        self._paused |= full
