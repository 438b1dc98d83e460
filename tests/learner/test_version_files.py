"""Large files that do not change are shared by versions, and damage to them shows in each."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from learner.artifact import Store, Version
from learner.errors import Corrupt
from learner.store.blobs import Disk
from learner.store.checkpoint import Checkpointer
from tests.fakes.disk import Call, Fail, Fault, FaultyDisk, Plan
from tests.learner.saving import LONG_AFTER, cut, files, owner, resumed, start
from tests.learner.test_artifact import flip

LARGE = bytes(range(256)) * 4096


def frozen(step: int) -> dict[str, bytes]:
    same = {"model.safetensors": LARGE, "tokenizer.json": b"small, and always the same"}
    return files(step) | same


def inode(version: Version, path: str) -> int:
    return (version.path / path).stat().st_ino


def test_a_large_file_that_has_not_changed_is_shared_by_at_most_four_versions(
    tmp_path: Path,
) -> None:
    disk = FaultyDisk()
    checkpointer = owner(tmp_path, disk)
    versions = [checkpointer.save(frozen(step), cut(step)) for step in range(1, 7)]
    inodes = [inode(version, "model.safetensors") for version in versions]
    assert [inodes.count(each) for each in dict.fromkeys(inodes)] == [4, 2]
    assert len({inode(version, "tokenizer.json") for version in versions}) == 6
    created = [call.path.parent for call in disk.calls if call.op == "create"]
    assert created.count(versions[1].path) == 3  # configuration, tokenizer, manifest
    for version in versions:
        Store(tmp_path).verify(version)
    shared = owner(tmp_path).save({**frozen(7), "model.safetensors": LARGE[::-1]}, cut(7))
    assert inode(shared, "model.safetensors") not in inodes


def test_damage_to_a_shared_file_shows_in_all_that_share_it_and_a_start_passes_them_over(
    tmp_path: Path,
) -> None:
    checkpointer = owner(tmp_path)
    versions = [checkpointer.save(frozen(step), cut(step)) for step in range(1, 7)]
    flip(versions[-1].path / "model.safetensors")
    for version in versions[4:]:
        with pytest.raises(Corrupt, match=r"model\.safetensors"):
            Store(tmp_path).verify(version)
    found = start(Checkpointer(tmp_path, Disk(), lambda: 0.0), tmp_path, Disk())
    assert (resumed(found).name, len(found.skipped)) == (versions[3].name, 2)
    again = owner(tmp_path).save(frozen(8), cut(8))
    Store(tmp_path).verify(again)


def refused(code: int) -> Plan:
    """No link to the large file can be made."""

    def plan(call: Call) -> Fault | None:
        shares = call.op == "link" and call.path.name == "model.safetensors"
        return Fail(code) if shares else None

    return plan


def test_a_file_that_cannot_be_shared_is_written(tmp_path: Path) -> None:
    disk = FaultyDisk()
    checkpointer = owner(tmp_path, disk)
    first = checkpointer.save(frozen(1), cut(1))
    for code in (errno.EMLINK, errno.EPERM, errno.EXDEV):
        disk.plan = refused(code)
        version = checkpointer.save(frozen(2), cut(2))
        assert inode(version, "model.safetensors") != inode(first, "model.safetensors")
        Store(tmp_path).verify(version)


def test_a_pruned_version_leaves_the_files_that_others_share(tmp_path: Path) -> None:
    now = LONG_AFTER
    checkpointer = Checkpointer(tmp_path, Disk(), lambda: now)
    start(checkpointer, tmp_path, Disk())
    for step in range(1, 9):
        checkpointer.save(frozen(step), cut(step))
    assert len(checkpointer.prune(5)) == 3
    now += 3600
    checkpointer.prune(5)
    assert list((tmp_path / "trash").iterdir()) == []
    for version in Store(tmp_path).versions():
        Store(tmp_path).verify(version)
