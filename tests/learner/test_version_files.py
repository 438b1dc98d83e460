"""Large files that do not change are shared by versions, and damage to them shows in each."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from learner.artifact import Store, Version
from learner.errors import Corrupt, StoreFailed
from learner.store import blobs
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


def test_a_large_file_that_does_not_change_is_on_disk_twice_however_many_versions_there_are(
    tmp_path: Path,
) -> None:
    disk = FaultyDisk()
    checkpointer = owner(tmp_path, disk)
    versions = [checkpointer.save(frozen(step), cut(step)) for step in range(1, 7)]
    inodes = [inode(version, "model.safetensors") for version in versions]
    assert inodes == inodes[:2] * 3
    assert inodes[0] != inodes[1]
    assert len({inode(version, "tokenizer.json") for version in versions}) == 6
    created = [call.path.parent for call in disk.calls if call.op == "create"]
    assert created.count(versions[2].path) == 3  # configuration, tokenizer, manifest
    for version in versions:
        Store(tmp_path).verify(version)
    again = owner(tmp_path)
    assert inode(again.save(frozen(7), cut(7)), "model.safetensors") == inodes[0]
    changed = again.save({**frozen(8), "model.safetensors": LARGE[::-1]}, cut(8))
    assert inode(changed, "model.safetensors") not in inodes


def test_damage_to_one_copy_shows_in_every_other_version_and_a_start_makes_a_new_copy(
    tmp_path: Path,
) -> None:
    checkpointer = owner(tmp_path)
    versions = [checkpointer.save(frozen(step), cut(step)) for step in range(1, 7)]
    flip(versions[-1].path / "model.safetensors")
    for version in versions[1::2]:
        with pytest.raises(Corrupt, match=r"model\.safetensors"):
            Store(tmp_path).verify(version)
    again = Checkpointer(tmp_path, Disk(), lambda: 0.0)
    found = start(again, tmp_path, Disk())
    assert (resumed(found).name, len(found.skipped)) == (versions[4].name, 1)
    for step in (8, 9):
        Store(tmp_path).verify(again.save(frozen(step), cut(step)))


def test_only_what_is_new_needs_room(tmp_path: Path) -> None:
    disk = FaultyDisk()
    checkpointer = owner(tmp_path, disk)
    for step in (1, 2):
        checkpointer.save(frozen(step), cut(step))
    disk.num_free_bytes = len(LARGE) // 2
    Store(tmp_path).verify(checkpointer.save(frozen(3), cut(3)))
    with pytest.raises(StoreFailed, match="wanted"):
        checkpointer.save({**frozen(4), "model.safetensors": LARGE[::-1]}, cut(4))


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


def test_what_does_not_change_is_hashed_until_it_is_shared_and_never_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed: list[int] = []
    real = blobs.digest

    def counted(data: bytes) -> blobs.Digest:
        hashed.append(len(data))
        return real(data)

    monkeypatch.setattr(blobs, "digest", counted)
    checkpointer, versions = owner(tmp_path), []
    for step in range(1, 7):
        versions.append(checkpointer.save(frozen(step), cut(step)))
    assert hashed.count(len(LARGE)) == 3
    equal = bytes(bytearray(LARGE))  # the same bytes in another place
    versions.append(checkpointer.save({**frozen(7), "model.safetensors": equal}, cut(7)))
    assert hashed.count(len(LARGE)) == 4
    other = LARGE[::-1]
    for step in (8, 9, 10):
        versions.append(checkpointer.save({**frozen(step), "model.safetensors": other}, cut(step)))
    for version in versions:
        Store(tmp_path).verify(version)
    found = {v.files["model.safetensors"] for v in versions[:7]}, versions[-1].files
    assert found[0] == {real(LARGE)}
    assert found[1]["model.safetensors"] == real(other)


def test_a_pruned_version_leaves_the_files_that_others_share(tmp_path: Path) -> None:
    now = LONG_AFTER
    checkpointer = Checkpointer(tmp_path, Disk(), lambda: now)
    start(checkpointer, tmp_path, Disk())
    for step in range(1, 9):
        checkpointer.save(frozen(step), cut(step))
    assert len(checkpointer.prune(5)) == 3
    now += 60
    checkpointer.prune(5)
    assert list((tmp_path / "trash").iterdir()) == []
    for version in Store(tmp_path).versions():
        Store(tmp_path).verify(version)
