"""Tracking beside learning: a thread of its own, a bounded queue, and errors that stop nothing.

A record that cannot be written is lost and counted. After an error the tracker is opened anew, at
first for the next record, then ever more rarely: a full disk, or one that does not answer, costs
learning nothing.
"""

from __future__ import annotations

import logging
import queue
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from threading import Thread
from typing import TypeAlias

from learner.tracking.record import Record, Tracker

log = logging.getLogger("steelyard.learner")

OUTCOMES = ("written", "failed", "busy", "limit")
"""Of a record: it was written; an error; the queue was full; the folder has reached its size."""

_CAPACITY = 8
_MOST_SKIPPED = 63
_MEASURE_EVERY = 16

Open: TypeAlias = Callable[[int, float], Tracker]
"""Opens a tracker that begins after a step, at a time in seconds since the Unix epoch."""


class Background:
    """Takes records, and writes them in a daemon thread until it is closed."""

    def __init__(
        self,
        open_tracker: Open,
        *,
        folder: Path,
        after_step: int,
        max_size_bytes: int,
        counted: Callable[[str], None],
    ) -> None:
        """Start the thread; a tracker is opened with the first record.

        Args:
            open_tracker: may raise anything.
            folder: that the tracker fills.
            after_step: step that the learner goes on from.
            max_size_bytes: of the folder.
            counted: called with the outcome of each record, from either thread.
        """
        self._open = open_tracker
        self._folder = folder
        self._after_step = after_step
        self._max_size_bytes = max_size_bytes
        self._counted = counted
        self._queue: queue.Queue[Record | None] = queue.Queue(_CAPACITY)
        self._tracker: Tracker | None = None
        self._num_failures = 0
        self._num_skipped = 0
        self._until_measured = 0
        self._is_full = False
        self._thread = Thread(target=self._run, name="tracking", daemon=True)
        self._thread.start()

    def put(self, record: Record) -> None:
        """Hand a record over, or count it as lost; never waits."""
        try:
            self._queue.put_nowait(record)
        except queue.Full:
            self._counted("busy")

    def close(self, timeout_seconds: float) -> None:
        """Write what waits and end the tracker, or leave them behind after a time."""
        half = timeout_seconds / 2
        with suppress(queue.Full):
            self._queue.put(None, timeout=half)
        self._thread.join(half)
        if self._thread.is_alive():
            log.warning("tracking does not end; what waits is not written", extra=self._facts())

    def _run(self) -> None:
        while (record := self._queue.get()) is not None:
            self._counted(self._outcome(record))
        self._drop_tracker()

    def _outcome(self, record: Record) -> str:
        """Write a record; return what became of it."""
        if self._num_skipped > 0:
            self._num_skipped -= 1
            return "failed"
        try:
            if self._has_reached_size():
                return "limit"
            if self._tracker is None:
                self._tracker = self._open(self._after_step, record.time_seconds)
            self._after_step = record.step
            self._tracker.write(record)
        except Exception as error:  # whatever a tracker raises, learning goes on
            self._failed(error)
            return "failed"
        if self._num_failures:
            log.info("tracking works again", extra=self._facts())
        self._num_failures = 0
        return "written"

    def _failed(self, error: Exception) -> None:
        if not self._num_failures:
            facts = self._facts() | {"error": f"{type(error).__name__}: {error}"}
            log.warning("tracking failed; learning goes on without it", extra=facts)
        self._num_failures += 1
        self._num_skipped = min(2 ** (self._num_failures - 1) - 1, _MOST_SKIPPED)
        self._drop_tracker()

    def _drop_tracker(self) -> None:
        if self._tracker is not None:
            with suppress(Exception):  # its errors have been told, or it is at its end
                self._tracker.close()
        self._tracker = None

    def _has_reached_size(self) -> bool:
        self._until_measured -= 1
        if self._until_measured < 0:
            self._until_measured = _MEASURE_EVERY - 1
            was_full = self._is_full
            self._is_full = _size_bytes(self._folder) >= self._max_size_bytes
            if self._is_full and not was_full:
                facts = self._facts() | {"max_size_bytes": self._max_size_bytes}
                log.warning("tracking.folder has reached tracking.max_size", extra=facts)
        return self._is_full

    def _facts(self) -> dict[str, str | int]:
        return {"folder": str(self._folder)}


def _size_bytes(folder: Path) -> int:
    """Return the size of all files in a folder, 0 if there is none."""
    total = 0
    for path in folder.rglob("*"):
        with suppress(FileNotFoundError):
            total += path.lstat().st_size
    return total
