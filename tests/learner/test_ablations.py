"""Ablations of the store: without one of its precautions the same crashes lose something."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Mapping
from pathlib import Path

import pytest

from learner.artifact import Store, Version
from learner.errors import Corrupt, Fenced, StoreFailed
from learner.store.checkpoint import Checkpointer
from learner.store.manifest import CheckpointMetadata, RunState
from tests.fakes.disk import Crash, Die, Fail, FailAfter, FaultyDisk, Plan, at, on
from tests.learner.fast import Learner, Log, finish
from tests.learner.saving import assert_whole, cut, files, start

LOG = Log.invented(40, 30)


class NoFsyncOfFiles(FaultyDisk):
    """Names are made durable in order, but the bytes whenever the system likes."""

    def fsync(self, fd: int) -> None:
        pass


class NoFsyncOfFolders(FaultyDisk):
    """Bytes are durable, but not under which name."""

    def fsync_folder(self, path: Path) -> None:
        pass


def broken(root: Path, make: type[FaultyDisk], every: int) -> list[str]:
    """Return the calls after which a loss of power loses something or leaves it half done."""
    found = []
    counting = FaultyDisk()
    root.mkdir()
    Learner(root / "counting", counting, LOG, 1).run()
    for index in range(40, len(counting.calls), every):
        where = root / f"{index}"
        disk = make(at(index, Die("after")))
        learner = Learner(where, disk, LOG, 1)
        with contextlib.suppress(Crash):
            learner.run()
        disk.lose_power(data=True, names=True)
        try:
            for version in learner.saved[-1:]:
                Store(where).verify(version)
            finish(where, LOG)
        except (AssertionError, Corrupt, Fenced, StoreFailed) as error:
            found.append(f"{counting.calls[index]}: {error!r}")
    return found


def test_what_is_reported_survives_a_loss_of_power_since_files_and_folders_are_synced(
    tmp_path: Path,
) -> None:
    assert broken(tmp_path / "ours", FaultyDisk, 17) == []
    assert broken(tmp_path / "files", NoFsyncOfFiles, 17)
    assert broken(tmp_path / "folders", NoFsyncOfFolders, 17)


class Reusing(Checkpointer):
    """Gives a number again after any failure."""

    def save(
        self,
        files: Mapping[str, bytes],
        metadata: CheckpointMetadata,
        run_state: RunState | None = None,
    ) -> Version:
        seq = self._next_seq
        try:
            return super().save(files, metadata, run_state)
        except StoreFailed:
            self._next_seq = seq
            raise


def linked_and_blind() -> Plan:
    """The commit mark is made, an error is reported, and whether it is there cannot be seen."""
    link, look = on("link", 1, FailAfter(errno.EIO)), on("num_links", 0, Fail(errno.EIO))
    return lambda call: link(call) or look(call)


def save_again(root: Path, make: type[Checkpointer]) -> None:
    disk = FaultyDisk(linked_and_blind())
    checkpointer = make(root, disk, lambda: 1_700_000_100.0)
    start(checkpointer, root, disk)
    with pytest.raises(StoreFailed, match="C9"):
        checkpointer.save(files(1), cut(1))
    with contextlib.suppress(Fenced):
        checkpointer.save(files(2), cut(2))
    for version in Store(root).versions():
        assert_whole(root, version)


def test_a_number_used_again_writes_over_a_version_that_is_there(tmp_path: Path) -> None:
    save_again(tmp_path / "ours", Checkpointer)
    with pytest.raises(Corrupt):
        save_again(tmp_path / "again", Reusing)
