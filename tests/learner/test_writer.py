"""Background writer: one checkpoint at a time, each outcome reported once."""

from __future__ import annotations

import errno
import gc
import threading
import weakref
from collections.abc import Mapping
from pathlib import Path

import pytest

from learner.artifact import Store, Version
from learner.errors import Fenced, StoreFailed
from learner.store.blobs import Disk
from learner.store.checkpoint import Checkpointer
from learner.store.manifest import CheckpointMetadata, RunState
from learner.store.writer import BackgroundWriter, Saved
from tests.fakes.disk import Call, Fail, Fault, FaultyDisk, Meanwhile, at, on
from tests.learner.saving import assert_whole, cut, files, names, owner, saved, start


def durable(outcome: Saved | None) -> Version:
    """Return the version of an outcome that has one."""
    assert outcome is not None
    assert outcome.version is not None
    return outcome.version


class Gate:
    """Holds a call until it is opened."""

    def __init__(self) -> None:
        self.reached, self.opened = threading.Event(), threading.Event()

    def pass_through(self) -> None:
        self.reached.set()
        assert self.opened.wait(60)


def test_one_save_at_most_is_in_flight_and_its_outcome_is_reported_once(tmp_path: Path) -> None:
    disk, gate = FaultyDisk(), Gate()
    checkpointer = owner(tmp_path, disk)
    disk.plan = on("link", 1, Meanwhile(gate.pass_through))
    writer = BackgroundWriter(checkpointer)
    assert writer.poll() is None
    assert writer.submit(lambda: files(1), cut(1))
    assert gate.reached.wait(60)
    assert not writer.submit(lambda: files(2), cut(2))
    assert writer.poll() is None
    assert Store(tmp_path).announced() is None  # nothing is said before it is durable
    gate.opened.set()
    outcome = writer.poll(timeout_seconds=None)
    assert outcome is not None
    assert outcome.error is None
    assert Store(tmp_path).announced() == durable(outcome).name == "v000002"
    assert writer.poll() is None
    assert writer.submit(lambda: files(2), cut(2))
    last = durable(writer.close())
    assert last.name == "v000003"
    assert_whole(tmp_path, last)


def test_a_failed_background_save_is_an_outcome_and_training_can_go_on(tmp_path: Path) -> None:
    disk = FaultyDisk()
    writer = BackgroundWriter(owner(tmp_path, disk))
    disk.plan = at(len(disk.calls) + 20, Fail(errno.ENOSPC))
    assert writer.submit(lambda: files(1), cut(1))
    failed = writer.poll(timeout_seconds=None)
    assert failed is not None
    assert failed.version is None
    assert isinstance(failed.error, StoreFailed)
    assert failed.error.errno == errno.ENOSPC
    assert writer.submit(lambda: files(1), cut(1))
    assert_whole(tmp_path, durable(writer.close()))


def test_a_failed_save_leaves_no_copies_to_the_garbage_collector(tmp_path: Path) -> None:
    disk = FaultyDisk()
    writer = BackgroundWriter(owner(tmp_path, disk))
    disk.plan = at(len(disk.calls) + 20, Fail(errno.ENOSPC))

    def copies() -> dict[str, bytes]:
        return files(1)

    left = weakref.ref(copies)
    gc.disable()
    try:
        assert writer.submit(copies, cut(1))
        failed = writer.close()
        assert failed is not None
        assert isinstance(failed.error, StoreFailed)
        del copies, failed
        assert left() is None
    finally:
        gc.enable()


def test_a_version_that_could_not_be_announced_is_reported_as_durable_with_the_error(
    tmp_path: Path,
) -> None:
    def plan(call: Call) -> Fault | None:
        announces = call.op == "create" and call.path.parent.name == "control"
        return Fail(errno.EROFS) if announces else None

    writer = BackgroundWriter(owner(tmp_path, FaultyDisk(plan)))
    writer.submit(lambda: files(1), cut(1))
    outcome = writer.close()
    assert durable(outcome).name == "v000002"
    assert outcome is not None
    assert isinstance(outcome.error, StoreFailed)
    assert outcome.error.step == "C11"


def test_a_fenced_writer_raises_in_the_loop(tmp_path: Path) -> None:
    writer = BackgroundWriter(owner(tmp_path))
    owner(tmp_path)
    writer.submit(lambda: files(1), cut(1))
    with pytest.raises(Fenced):
        writer.close()


def test_the_writer_prunes_after_it_has_announced(tmp_path: Path) -> None:
    saved(tmp_path, *range(1, 7))
    writer = BackgroundWriter(owner(tmp_path), keep=5)
    writer.submit(lambda: files(7), cut(7))
    writer.close()
    assert names(tmp_path) == ["v000004", "v000005", "v000006", "v000007", "v000009"]


class Slow(Checkpointer):
    """Begins to save when it may."""

    gate: Gate

    def save(
        self,
        files: Mapping[str, bytes],
        metadata: CheckpointMetadata,
        run_state: RunState | None = None,
    ) -> Version:
        self.gate.pass_through()
        return super().save(files, metadata, run_state)


def test_the_run_state_is_handed_over_with_the_checkpoint(tmp_path: Path) -> None:
    checkpointer = Slow(tmp_path, Disk(), lambda: 0.0)
    checkpointer.gate = Gate()
    start(checkpointer, tmp_path, Disk())
    writer = BackgroundWriter(checkpointer)
    checkpointer.update(quarantine=((3, 4),))
    writer.submit(lambda: files(1), cut(1))
    assert checkpointer.gate.reached.wait(60)
    checkpointer.update(quarantine=())
    checkpointer.gate.opened.set()
    assert durable(writer.close()).run_state.quarantine == ((3, 4),)
    assert checkpointer.save(files(2), cut(2)).run_state.quarantine == ()


def test_what_was_retired_is_deleted_although_the_disk_is_too_full_to_save(tmp_path: Path) -> None:
    now = 1e9
    disk = FaultyDisk()
    checkpointer = Checkpointer(tmp_path, disk, lambda: now)
    start(checkpointer, tmp_path, disk)
    for step in range(1, 9):
        checkpointer.save(files(step), cut(step))
    checkpointer.prune(5)
    now += 60
    disk.num_free_bytes = 0
    writer = BackgroundWriter(checkpointer, keep=5)
    writer.submit(lambda: files(9), cut(9))
    outcome = writer.close()
    assert outcome is not None
    assert isinstance(outcome.error, StoreFailed)
    assert list((tmp_path / "trash").iterdir()) == []
