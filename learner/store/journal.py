"""Write-ahead journal of each step's input, durable before the step and read back after a crash.

A segment is ``journal/<owner epoch>-<number>``: a magic word, then frames of u32 length, u32 crc32
(both little-endian) and a msgpack payload with a running number. Only the owner that created a
segment appends to it; which parts of which segments count is for a manifest's timeline to say. So
what an older owner appends once it has a successor lies outside, harmless.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, TypeAlias

import msgspec

from learner.errors import Corrupt, JournalFailed
from learner.store import blobs
from learner.store.blobs import Disk
from weighting.provenance import Poll

FOLDER = "journal"
MAGIC = b"SYJRNL01"
MAX_RECORD_BYTES = 32 << 20
_MAX_SEGMENT_BYTES = 256 << 20
_HEADER = struct.Struct("<II")
_TWO_FIELDS = 0x92  # the first byte of every payload: a msgpack array of two
_SEGMENT = re.compile(r"([0-9]{6,15})-([0-9]{4,9})")
_COUNT = Annotated[int, msgspec.Meta(ge=0)]
SegmentName: TypeAlias = Annotated[str, msgspec.Meta(pattern=rf"^{_SEGMENT.pattern}$")]

Fingerprint: TypeAlias = Mapping[str, str | int | float | bool | None]


class JournalPosition(msgspec.Struct, frozen=True, array_like=True):
    """Position at which a journal record begins."""

    segment: SegmentName
    byte: _COUNT


class JournalRange(msgspec.Struct, frozen=True, array_like=True):
    """The part ``[start, end)`` of a segment.

    Without an end it is open: all that follows, in this segment and the next ones of the owner.
    """

    segment: SegmentName
    start: _COUNT
    end: _COUNT | None

    def holds(self, place: JournalPosition) -> bool:
        """Return whether a position lies in it; its end does."""
        return (
            place.segment == self.segment
            and self.start <= place.byte
            and (self.end is None or place.byte <= self.end)
        )


class Part(msgspec.Struct, frozen=True, array_like=True):
    """Source of one rank's batch.

    Attributes:
        polls: all since the batch before.
        cause: why the batch closed; None for a rank that had none.
    """

    polls: tuple[Poll, ...]
    cause: str | None

    @property
    def has_batch(self) -> bool:
        """Return whether the rank had a batch in this step."""
        return self.cause is not None


NO_BATCH = Part((), None)


class Open(msgspec.Struct, frozen=True, array_like=True, tag="open"):
    """Head of a segment; its number counts from 0."""

    epoch: int
    number: int
    fingerprint: dict[str, str | int | float | bool | None]


class Step(msgspec.Struct, frozen=True, array_like=True, tag="step"):
    """Input of a step, by rank; written before anything of the step is applied."""

    step: int
    parts: tuple[Part, ...]


class Outcome(msgspec.Struct, frozen=True, array_like=True, tag="outcome"):
    """Number of micro-batches of a step, where out of memory changed it."""

    step: int
    num_micro_batches: int


JournalRecord: TypeAlias = Step | Outcome


class _Payload(msgspec.Struct, frozen=True, array_like=True):
    number: int
    record: Open | Step | Outcome


_decoder = msgspec.msgpack.Decoder(_Payload)
_encoder = msgspec.msgpack.Encoder(order="deterministic")


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


class Journal:
    """The segments of one owner; used by one thread at a time.

    A write or fsync that failed is never repeated: the pages may be gone, and a second fsync would
    succeed. The owner stops instead, and its successor goes on behind the last whole record.
    `spans` may be read by another thread.

    Attributes:
        num_bytes: written by this owner.
    """

    def __init__(self, root: Path, disk: Disk, *, segment_bytes: int = 64 << 20) -> None:
        """Keep the arguments; nothing is created before `start`.

        Args:
            root: the store.
            disk: the file system, or a test's.
            segment_bytes: a segment that has reached this size is followed by another.
        """
        self.num_bytes = 0
        self._folder = root / FOLDER
        self._disk = disk
        self._segment_bytes = segment_bytes
        self._epoch = 0
        self._fingerprint: dict[str, str | int | float | bool | None] = {}
        self._fd: int | None = None
        self._closed: tuple[JournalRange, ...] = ()
        self._place = JournalPosition("", 0)
        self._number = 0
        self._failed: JournalFailed | None = None

    def start(self, epoch: int, fingerprint: Fingerprint) -> None:
        """Create the owner's first segment, durably (A7).

        Raises:
            JournalFailed: it could not be.
        """
        assert not self._epoch, "start() once"
        self._epoch, self._fingerprint = epoch, dict(fingerprint)
        self._create(0)

    def append(self, record: JournalRecord) -> None:
        """Write a record durably; only then may anything of its step be applied.

        Raises:
            JournalFailed: it is not durable, and nothing can be appended any more (exit 75).
        """
        assert self._epoch, "start() first"
        if self._failed is not None:
            raise self._failed
        if self._place.byte >= self._segment_bytes:
            self.close()
            self._closed = (*self._closed, JournalRange(self._place.segment, 0, self._place.byte))
            self._create(len(self._closed))
        self._write(_frame(self._number, record))

    @property
    def place(self) -> JournalPosition:
        """Position of the next record."""
        return self._place

    @property
    def spans(self) -> list[JournalRange]:
        """Full segments of this owner, then the open one; none before `start`."""
        if not self._epoch:
            return []
        current = segment_name(self._epoch, len(self._closed))
        return [*self._closed, JournalRange(current, 0, None)]

    def close(self) -> None:
        """Close the open segment; nothing is left to be written."""
        if self._fd is not None:
            self._disk.close(self._fd)
            self._fd = None

    def _create(self, number: int) -> None:
        segment = segment_name(self._epoch, number)
        self._place, self._number = JournalPosition(segment, 0), 0
        try:
            self._fd = self._disk.create(self._folder / segment)
        except OSError as error:
            raise self._fail(error) from error
        self._write(MAGIC + _frame(0, Open(self._epoch, number, self._fingerprint)))
        try:
            self._disk.fsync_folder(self._folder)
        except OSError as error:
            raise self._fail(error) from error

    def _write(self, data: bytes) -> None:
        assert self._fd is not None
        try:
            blobs.write_all(self._disk, self._fd, data)
            self._disk.fsync(self._fd)
        except OSError as error:
            raise self._fail(error) from error
        self._place = JournalPosition(self._place.segment, self._place.byte + len(data))
        self._number += 1
        self.num_bytes += len(data)

    def _fail(self, cause: OSError) -> JournalFailed:
        self._failed = JournalFailed(path=self._folder / self._place.segment, cause=cause)
        return self._failed


def segment_name(epoch: int, number: int) -> str:
    """Return the name of an owner's `number`-th segment (from 0)."""
    return f"{epoch:06d}-{number:04d}"


def segment_epoch(segment: str) -> int:
    """Return the owner epoch in a segment's name, 0 if it is none."""
    match = _SEGMENT.fullmatch(segment)
    return int(match[1]) if match else 0


def truncate(timeline: Sequence[JournalRange], place: JournalPosition) -> tuple[JournalRange, ...]:
    """Return a timeline up to a position on it; empty if the position is not on it."""
    for index, span in enumerate(timeline):
        if span.holds(place):
            return (*timeline[:index], JournalRange(span.segment, span.start, place.byte))
    return ()


def tail(root: Path, disk: Disk, timeline: Sequence[JournalRange], start: JournalPosition) -> Tail:
    """Return the records of a timeline from `start` on, up to the first frame that is not whole.

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
            follower = _follower(span.segment)
            if follower in disk.listdir(root / FOLDER):
                rest.append(JournalRange(follower, 0, None))
        first = 0
    return Tail(records=records, timeline=tuple(closed), damage=damage)


def _frame(number: int, record: Open | JournalRecord) -> bytes:
    payload = _encoder.encode(_Payload(number, record))
    assert len(payload) <= MAX_RECORD_BYTES, "a record names slices and holds no events"
    return _HEADER.pack(len(payload), zlib.crc32(payload)) + payload


@dataclass(frozen=True, slots=True)
class _Scan:
    """Whole records of a range, their end, and the problem if that is not the range's end."""

    records: list[tuple[JournalPosition, JournalRecord]]
    end: int
    problem: str | None


def _is_damage(scan: _Scan, span: JournalRange, data: bytes | None) -> bool:
    """Return whether a scan ended early for another reason than a torn last record."""
    if scan.problem is None:
        return False
    closed = span.end is not None
    return closed or data is None or scan.end > len(data) or not _is_torn(data, scan.end)


def _scan(data: bytes | None, span: JournalRange, first: int) -> _Scan:
    """Read the records of a range from byte `first` on."""
    at = max(first, span.start)
    if at == span.end:
        return _Scan([], at, None)
    if data is None:
        return _Scan([], at, "no such file, or not a regular one")
    if at == 0:
        if data[: len(MAGIC)] != MAGIC:
            return _Scan([], 0, f"expected {MAGIC!r}, found {data[: len(MAGIC)]!r}")
        at = len(MAGIC)
    end = len(data) if span.end is None else span.end
    records: list[tuple[JournalPosition, JournalRecord]] = []
    number = None
    while at < end:
        payload, behind = _payload(data, at)
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


def _payload(data: bytes, at: int) -> tuple[_Payload | None, int]:
    if at + _HEADER.size > len(data):
        return None, at
    size, crc = _HEADER.unpack_from(data, at)
    begin = at + _HEADER.size
    if not 0 < size <= min(MAX_RECORD_BYTES, len(data) - begin):
        return None, at
    payload = data[begin : begin + size]
    if zlib.crc32(payload) != crc:
        return None, at
    try:
        return _decoder.decode(payload), begin + size
    except (msgspec.DecodeError, RecursionError, ValueError):
        return None, at


def _is_torn(data: bytes, at: int) -> bool:
    """Return whether no whole frame stands here or behind.

    Then the bad frame was the last, and its owner died while it wrote it. Looks at every byte, for
    the length of the bad frame is not to be trusted. Its cost is bounded: past that, it is damage.
    """
    budget = 4 * len(data) + MAX_RECORD_BYTES
    for place in range(at, len(data) - _HEADER.size):
        begin = place + _HEADER.size
        size = int.from_bytes(data[place : place + 4], "little")
        if not 0 < size <= min(MAX_RECORD_BYTES, len(data) - begin) or data[begin] != _TWO_FIELDS:
            continue
        budget -= size
        if budget < 0 or _payload(data, place)[0] is not None:
            return False
    return True


def _read(root: Path, disk: Disk, segment: str) -> bytes | None:
    try:
        return blobs.read_small(disk, root, f"{FOLDER}/{segment}", max_bytes=_MAX_SEGMENT_BYTES)
    except (FileNotFoundError, Corrupt):
        return None


def _follower(segment: str) -> str:
    match = _SEGMENT.fullmatch(segment)
    assert match is not None
    return segment_name(int(match[1]), int(match[2]) + 1)
