"""Write-ahead journal of each step's input, durable before the step.

A segment is ``journal/<owner epoch>-<number>``: a magic word, then frames. Only the owner that
created a segment appends to it; which parts of which segments count is for a manifest's timeline to
say. So what an older owner appends once it has a successor lies outside, harmless.
"""

from __future__ import annotations

from pathlib import Path

from learner.errors import JournalFailed
from learner.store import blobs
from learner.store.blobs import Disk
from learner.store.journal import frames
from learner.store.journal.records import (
    FOLDER,
    Fingerprint,
    JournalPosition,
    JournalRange,
    JournalRecord,
    Open,
    segment_name,
)


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
        self._write(frames.encode(self._number, record))

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
        self._write(frames.MAGIC + frames.encode(0, Open(self._epoch, number, self._fingerprint)))
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
