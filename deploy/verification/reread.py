"""Ranges of the log, read once more by a reader of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from consumers.errors import SourceUnavailable
from consumers.source import Record, Source
from weighting.provenance import TopicPartition

_POLL_SECONDS = 0.5
_MAX_EMPTY_POLLS = 60


def between(
    source: Source,
    starts: Mapping[TopicPartition, int],
    ends: Mapping[TopicPartition, int],
    advance: Callable[[int], None] = lambda num_offsets: None,
    *,
    pace: Callable[[], None] = lambda: None,
) -> Iterator[Record]:
    """Yield the records of ``[start, end)`` of each partition, in offset order within it.

    Args:
        source: of these topics, used by nobody else.
        starts: first offsets; partitions that are not in it are left alone.
        ends: the offsets behind the last ones.
        advance: hears how many offsets were passed.
        pace: called before each record; waits where it should.

    Raises:
        OffsetLost: a start is not retained any more.
        SourceUnavailable: nothing came for half a minute.
    """
    reached = {tp: start for tp, start in starts.items() if start < ends[tp]}
    for tp, start in reached.items():
        source.seek(*tp, start)
    idle = [tp for tp in source.assignment() if tp not in reached]
    for tp in idle:
        source.seek(*tp, 0)
    source.pause(idle)
    source.resume(list(reached))
    num_empty = 0
    while reached:
        records = source.poll(_POLL_SECONDS)
        for record in records:
            if record.offset < ends[record.topic, record.partition]:
                pace()
                yield record
        before = sum(reached.values())
        reached = {tp: min(source.position(*tp), ends[tp]) for tp in reached}
        moved = sum(reached.values()) - before
        advance(moved)
        num_empty = 0 if moved else num_empty + 1
        if num_empty >= _MAX_EMPTY_POLLS:
            stuck = ", ".join(
                f"{topic}[{partition}]@{offset}" for (topic, partition), offset in reached.items()
            )
            raise SourceUnavailable(
                "the brokers", _POLL_SECONDS * _MAX_EMPTY_POLLS, f"nothing came behind {stuck}"
            )
        done = [tp for tp, offset in reached.items() if offset >= ends[tp]]
        source.pause(done)
        reached = {tp: offset for tp, offset in reached.items() if tp not in done}
