"""Journal read back after a crash, up to the first record that is not whole."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from learner.errors import Corrupt
from learner.store import blobs
from learner.store.blobs import Disk
from learner.store.journal import frames
from learner.store.journal.records import (
    FOLDER,
    JournalPosition,
    JournalRange,
    JournalRecord,
    Open,
    following_segment,
    segment_name,
)

_MAX_SEGMENT_BYTES = 256 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Damage:
    """A corrupt frame that is not the last one, or a missing segment.

    Attributes:
        place: what follows it is not replayed.
        reason: for the log.
    """

    place: JournalPosition
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Tail:
    """Records of a timeline from a position on.

    Attributes:
        records: each with the position behind it.
        timeline: all of it, closed at the last whole record.
        damage: why it ends earlier than it should; a torn last record is none.
    """

    records: list[tuple[JournalPosition, JournalRecord]]
    timeline: tuple[JournalRange, ...]
    damage: Damage | None


def read_tail(
    root: Path, disk: Disk, timeline: Sequence[JournalRange], start: JournalPosition
) -> Tail:
    """Return the records of a timeline from `start` up to the first broken frame.

    Behind damage nothing is read, for it does not follow any more. A torn last record of the open
    range is no damage: its owner died while it wrote, and applied nothing of it.

    Args:
        root: the store.
        disk: to read it with.
        timeline: ranges in order, as a manifest names them; at most the last one is open.
        start: a position on it.

    Raises:
        ValueError: `start` is not on the timeline.
        OSError: a segment cannot be read for a reason that is no damage.
    """
    index = next((index for index, span in enumerate(timeline) if span.holds(start)), None)
    if index is None:
        raise ValueError(f"journal: {start.segment}@{start.byte} is not on the timeline")
    closed, records, damage = list(timeline[:index]), [], None
    rest, first = deque(timeline[index:]), start.byte
    while rest and damage is None:
        span = rest.popleft()
        data = _read(root, disk, span.segment)
        if data is None and span.end is None and first == 0 == span.start:
            span = JournalRange(span.segment, 0, 0)  # its owner died before A7
        scan = _scan(data, span, first)
        if _is_damage(scan, span, data):
            place = JournalPosition(span.segment, scan.end)
            damage = Damage(place=place, reason=scan.problem or "")
        records += scan.records
        if scan.records or span.holds(start):
            closed.append(JournalRange(span.segment, span.start, scan.end))
        if span.end is None and scan.problem is None:
            follower = following_segment(span.segment)
            if follower in disk.listdir(root / FOLDER):
                rest.append(JournalRange(follower, 0, None))
        first = 0
    return Tail(records=records, timeline=tuple(closed), damage=damage)


@dataclass(frozen=True, slots=True)
class _Scan:
    """Whole records of a range, their end, and the problem that ended them early."""

    records: list[tuple[JournalPosition, JournalRecord]]
    end: int
    problem: str | None


def _is_damage(scan: _Scan, span: JournalRange, data: bytes | None) -> bool:
    """Return whether a scan ended early for another reason than a torn last record."""
    if scan.problem is None:
        return False
    closed = span.end is not None
    return closed or data is None or scan.end > len(data) or not frames.is_torn(data, scan.end)


def _scan(data: bytes | None, span: JournalRange, first: int) -> _Scan:
    """Read the records of a range from byte `first` on."""
    at = max(first, span.start)
    if at == span.end:
        return _Scan([], at, None)
    if data is None:
        return _Scan([], at, "no such file, or not a regular one")
    if at == 0:
        if data[: len(frames.MAGIC)] != frames.MAGIC:
            return _Scan([], 0, f"expected {frames.MAGIC!r}, found {data[: len(frames.MAGIC)]!r}")
        at = len(frames.MAGIC)
    end = len(data) if span.end is None else span.end
    records: list[tuple[JournalPosition, JournalRecord]] = []
    number = None
    while at < end:
        payload, behind = frames.decode(data, at)
        if payload is None:
            return _Scan(records, at, "a frame that is not whole")
        if number is not None and payload.number != number + 1:
            wanted = number + 1
            return _Scan(records, at, f"expected record number {wanted}, found {payload.number}")
        record, number, at = payload.record, payload.number, behind
        if not isinstance(record, Open):
            records.append((JournalPosition(span.segment, at), record))
            continue
        named = segment_name(record.epoch, record.number)
        if named != span.segment or number:
            return _Scan(records, at, f"the beginning of segment {named}")
    problem = None if at == end else f"expected the end of a record at {end}, found it at {at}"
    return _Scan(records, at, problem)


def _read(root: Path, disk: Disk, segment: str) -> bytes | None:
    try:
        return blobs.read_small(disk, root, f"{FOLDER}/{segment}", max_bytes=_MAX_SEGMENT_BYTES)
    except (FileNotFoundError, Corrupt):
        return None
