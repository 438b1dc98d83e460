"""TensorBoard: event files, which `tensorboard --logdir` reads while they grow.

A tracker that begins after a step writes the start of a session there, as a learner's does that
goes on from a checkpoint. TensorBoard then drops what earlier files have of later steps, so that no
step has two values. The library's own asynchronous writer is not used: its errors end a thread.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from learner.errors import TrackerMissing
from learner.extras import needed_by
from learner.tracking.record import NUM_BINS, Record
from learner.tracking.table import table

_NAME = re.compile(r"events\.out\.tfevents\.(\d+)\.")


class TensorBoardTracker:
    """Writer of one event file."""

    def __init__(self, folder: Path, *, after_step: int, now_seconds: float) -> None:
        """Begin a file that is read after those that are there.

        Args:
            folder: of the run; made if it is missing.
            after_step: no later step of other files counts any more.
            now_seconds: since the Unix epoch.

        Raises:
            TrackerMissing: the library is not installed.
            OSError: the folder or the file cannot be written.
        """
        require()
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.summary.writer.record_writer import RecordWriter

        self._event: Any = Event
        folder.mkdir(parents=True, exist_ok=True)
        stamps = [int(m[1]) for path in folder.iterdir() if (m := _NAME.match(path.name))]
        stamp = max(int(now_seconds), *(known + 1 for known in stamps), 0)
        # Files are read in the order of their names; none is appended to, as it may end in half
        # a record
        self._file = (folder / f"events.out.tfevents.{stamp:010d}.steelyard").open("xb")
        self._writer: Any = RecordWriter(self._file)
        self._add(now_seconds, file_version="brain.Event:2")
        session = SessionLog(status=SessionLog.START)
        self._add(now_seconds, step=after_step + 1, session_log=session)
        self._file.flush()

    def write(self, record: Record) -> None:
        """Write a record and flush it.

        Raises:
            OSError: it cannot be written.
        """
        from torch.utils.tensorboard import summary as make

        scalar: Any = make.scalar
        histogram: Any = make.histogram
        text: Any = make.text
        found = [scalar(name, value) for name, value in record.scalars.items()]
        found += [
            histogram(name, values, bins=NUM_BINS) for name, values in record.histograms.items()
        ]
        found += [text(f"predictions/{n}", table(own)) for n, own in enumerate(record.lists, 1)]
        for summary in found:
            self._add(record.time_seconds, step=record.step, summary=summary)
        self._file.flush()

    def close(self) -> None:
        """Close the file.

        Raises:
            OSError: its end cannot be written.
        """
        self._file.close()

    def _add(self, time_seconds: float, **fields: Any) -> None:
        event = self._event(wall_time=time_seconds, **fields)
        self._writer.write(event.SerializeToString())


def require() -> None:
    """Load the library.

    Raises:
        TrackerMissing: it is not installed.
    """
    with needed_by("tracking.to: tensorboard", TrackerMissing):
        import tensorboard  # noqa: F401
