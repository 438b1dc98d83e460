"""Trackers that a test can break, and the files of real ones read back."""

from __future__ import annotations

import errno
import json
import struct
from collections import Counter
from collections.abc import Collection, Iterator
from pathlib import Path
from threading import Event
from typing import Any

import pytest

from learner.tracking.record import Record


class Broken:
    """Opens trackers that fail at the given records, and remembers what was done."""

    def __init__(self, failing: Collection[int] = ()) -> None:
        self.failing = failing
        self.opened: list[int] = []
        self.written: list[int] = []
        self.num_closed = 0

    def __call__(self, after_step: int, now_seconds: float) -> Broken:
        self.opened.append(after_step)
        return self

    def write(self, record: Record) -> None:
        if record.step in self.failing:
            raise OSError(errno.ENOSPC, "No space left on device")
        self.written.append(record.step)

    def close(self) -> None:
        self.num_closed += 1


class Stuck(Broken):
    """A tracker whose disk does not answer until it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.began, self.goes_on = Event(), Event()

    def write(self, record: Record) -> None:
        self.began.set()
        self.goes_on.wait()
        super().write(record)


def record(step: int, **scalars: float) -> Record:
    return Record(step=step, time_seconds=1e9 + step, scalars=scalars or {"loss": 1.0})


def counted() -> tuple[Counter[str], Any]:
    """Return counts of outcomes, and what counts them."""
    found: Counter[str] = Counter()
    return found, lambda outcome: found.update([outcome])


def events(folder: Path) -> Any:
    """Return what TensorBoard reads from a run's folder."""
    module = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    found = module.EventAccumulator(str(folder), size_guidance={"scalars": 0, "tensors": 0})
    return found.Reload()


def scalars(folder: Path, name: str) -> list[tuple[int, float]]:
    return [(event.step, event.value) for event in events(folder).Scalars(name)]


def _log_records(data: bytes) -> Iterator[bytes]:
    """Yield the records of a log file in LevelDB's format, behind wandb's header of 7 bytes."""
    assert data[:4] == b":W&B"
    at, record = 7, b""
    while at < len(data):
        if 32_768 - at % 32_768 < 7:  # the rest of a block is padding
            at += 32_768 - at % 32_768
            continue
        _, length, kind = struct.unpack_from("<IHB", data, at)
        record += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield record
            record = b""


def offline_runs(folder: Path) -> list[dict[str, Any]]:
    """Return config, name, group and history of each offline run, oldest first."""
    messages = pytest.importorskip("wandb.proto.wandb_internal_pb2")
    runs = []
    for path in folder.glob("wandb/offline-run-*/run-*.wandb"):
        own: dict[str, Any] = {"history": [], "files": path.parent / "files"}
        for data in _log_records(path.read_bytes()):
            found = messages.Record()
            found.ParseFromString(data)
            if found.WhichOneof("record_type") == "run":
                own |= {"name": found.run.display_name, "group": found.run.run_group}
            if found.WhichOneof("record_type") == "history":
                items = {
                    ".".join(item.nested_key or [item.key]): json.loads(item.value_json)
                    for item in found.history.item
                }
                own["history"].append(items)
        runs.append(own)
    return sorted(runs, key=lambda own: own["history"][0]["_step"] if own["history"] else 0)
