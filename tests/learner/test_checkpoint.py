"""Checkpoints are saved whole or not at all, whatever fails, dies or fills up (T01, T08 to T12)."""

from __future__ import annotations

import errno
import itertools
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from learner.artifact import Store
from learner.errors import StoreFailed
from learner.store.blobs import Disk
from learner.store.checkpoint import Checkpointer
from learner.store.manifest import ResumePoint
from tests.fakes.disk import (
    Call,
    Crash,
    Die,
    Fail,
    FailAfter,
    Fault,
    FaultyDisk,
    Meanwhile,
    at,
    tree,
)
from tests.learner.saving import Boastful, assert_whole, cut, files, owner, recover, saved

LOSSES = [(False, False), (True, False), (False, True), (True, True)]


def life(root: Path, disk: Disk) -> list[str]:
    """Start and save two checkpoints; return those reported as durable before a crash."""
    durable = []
    try:
        checkpointer = owner(root, disk)
        checkpointer.sweep()
        for step in (1, 2):
            version = checkpointer.save(files(step), cut(step))
            durable.append(version.name)
            checkpointer.announce(version)
    except Crash:
        pass
    return durable


def num_calls(tmp_path: Path) -> int:
    disk = FaultyDisk()
    assert life(tmp_path / "counting", disk) == ["v000002", "v000003"]
    return len(disk.calls)


@pytest.mark.parametrize("when", ["before", "middle", "after"])
@pytest.mark.parametrize(("data", "names"), LOSSES)
def test_a_crash_at_every_call_leaves_the_old_or_the_new_checkpoint_whole(
    tmp_path: Path, when: str, data: bool, names: bool
) -> None:
    found = []
    for index in range(num_calls(tmp_path)):
        root = tmp_path / f"{index}"
        disk = FaultyDisk(at(index, Die(when)))
        durable = life(root, disk)
        disk.lose_power(data=data, names=names)
        announced = Store(root).announced()
        version = recover(root)
        name = version.name if version else None
        assert name in (None, "v000002", "v000003")
        promised = max([*durable, announced or ""])
        assert (name or "") >= promised, f"died {when} {disk.calls[-1]}"
        found.append(name)
    assert found == sorted(found, key=lambda name: name or "")
    assert set(found) == {None, "v000002", "v000003"}


@pytest.mark.parametrize(("data", "names"), [LOSSES[0], LOSSES[3]])
def test_a_second_and_a_third_crash_in_recovery_change_nothing(
    tmp_path: Path, data: bool, names: bool
) -> None:
    total = num_calls(tmp_path)
    for index, again in itertools.product(range(7, total, 17), range(0, total, 7)):
        root = tmp_path / f"{index}-{again}"
        durable = life(root, FaultyDisk(at(index, Die("after"))))
        for place in (again, again + 3):
            disk = FaultyDisk(at(place, Die("middle")))
            durable += life(root, disk)
            disk.lose_power(data=data, names=names)
        version = recover(root)
        assert (version.name if version else "") >= max(durable, default="")


def test_a_reader_at_any_moment_of_a_save_sees_the_old_or_the_new_version_whole(
    tmp_path: Path,
) -> None:
    saved(tmp_path, 1)
    seen = set()

    def look(call: Call) -> None:
        store = Store(tmp_path)
        for version in store.versions():
            assert_whole(tmp_path, version)
        seen.add(store.announced())

    checkpointer = owner(tmp_path, FaultyDisk(lambda call: Meanwhile(lambda: look(call))))
    checkpointer.announce(checkpointer.save(files(2), cut(2)))
    look(Call(0, "end", 0, tmp_path))
    assert seen == {"v000002", "v000004"}


def save_and_announce(checkpointer: Checkpointer, step: int) -> StoreFailed | None:
    try:
        checkpointer.announce(checkpointer.save(files(step), cut(step)))
    except StoreFailed as error:
        return error
    return None


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EROFS, errno.EACCES])
def test_a_save_that_fails_at_any_call_leaves_the_old_checkpoint_and_the_next_save_succeeds(
    tmp_path: Path, code: int
) -> None:
    probe = FaultyDisk()
    checkpointer = owner(tmp_path / "probe", probe)
    first = len(probe.calls)
    checkpointer.announce(checkpointer.save(files(1), cut(1)))
    faults: list[Fault] = [Fail(code), FailAfter(code)]
    for index, fault in itertools.product(range(first, len(probe.calls)), faults):
        root = tmp_path / f"{index}-{type(fault).__name__}"
        saved(root, 5)
        disk = FaultyDisk()
        checkpointer = owner(root, disk)
        healthy = tree(root)
        disk.plan = at(len(disk.calls) + index - first, fault)
        error = save_and_announce(checkpointer, 6)
        if error is not None:  # the disk may fail where it does not matter
            assert (error.retriable, error.errno, error.step in str(error)) == (True, code, True)
            if error.step not in ("C10", "C11"):
                assert tree(root) == healthy
        version = Store(root).version("v000002")
        assert_whole(root, version)
        after = checkpointer.save(files(7), cut(7))
        checkpointer.announce(after)
        assert_whole(root, after)
        fsyncs = [call.path for call in disk.calls if call.op == "fsync"]
        assert len(fsyncs) == len(set(fsyncs)), "an fsync was repeated on the same file"
        recovered = recover(root)
        assert recovered is not None
        assert recovered.name == after.name


def test_a_save_without_room_for_twice_its_size_writes_nothing(tmp_path: Path) -> None:
    saved(tmp_path, 1)
    disk = FaultyDisk(free_bytes=2 * sum(map(len, files(2).values())) - 1)
    checkpointer = owner(tmp_path, disk)
    first = len(disk.calls)
    with pytest.raises(StoreFailed, match=r"C4 failed with ENOSPC .*twice what is new"):
        checkpointer.save(files(2), cut(2))
    assert not [call for call in disk.calls[first:] if call.op in ("create", "mkdir")]


def test_a_disk_that_is_really_full_keeps_the_old_checkpoint_and_recovers_when_there_is_room(
    small_disk: Path,
) -> None:
    root = small_disk / "store"
    saved(root, 1)
    checkpointer = owner(root, Boastful())
    with pytest.raises(StoreFailed, match="C4 failed with ENOSPC"):
        checkpointer.save({"model.safetensors": bytes(300_000)}, cut(2))
    assert_whole(root, Store(root).version("v000002"))
    assert [path.name for path in (root / "blobs").iterdir()] == ["000001-00000002"]
    assert checkpointer.save(files(2), cut(2)).name == "v000004"
    assert_whole(root, Store(root).version("v000004"))


def test_every_name_is_given_after_the_fsync_of_its_bytes_and_made_durable_before_anyone_hears(
    tmp_path: Path,
) -> None:
    disk = FaultyDisk()
    checkpointer = owner(tmp_path, disk)
    first = len(disk.calls)
    version = checkpointer.save(files(1), cut(1))
    end_of_save = len(disk.calls)
    checkpointer.announce(version)
    calls = disk.calls[first:end_of_save]
    mark = next(call for call in calls if call.op == "link")
    assert mark.path == version.path / "manifest.json"
    assert mark.target == tmp_path / "man" / "M-00000002"

    for rename in [call for call in disk.calls[first:] if call.op == "rename"]:
        own = [call.op for call in disk.calls[first : rename.index] if call.path == rename.path]
        assert own[-1] == "fsync", rename
        assert rename.path.parent == (rename.target or rename.path).parent
    named = [call for call in calls if call.op in ("rename", "mkdir")]
    paths = {(call.target or call.path).relative_to(version.path).as_posix() for call in named}
    assert paths == {*files(1), "manifest.json", "training", "."}
    synced = [(call.path, call.index) for call in calls if call.op == "fsync_folder"]
    for name in named:  # C5, C7: each folder after its last name and before the mark
        folder = (name.target or name.path).parent
        behind = [index for path, index in synced if path == folder and index > name.index]
        assert any(index < mark.index for index in behind), name
    manifest = next(call for call in named if call.target == version.path / "manifest.json")
    assert all(call.index < manifest.index for call in named if call != manifest)
    assert min(index for path, index in synced if path == tmp_path / "blobs") < manifest.index
    claims = [call for call in calls if call.op == "listdir" and call.path == tmp_path / "epoch"]
    assert manifest.index < claims[-1].index < mark.index  # C8 just before C9
    last = [(call.op, call.path) for call in calls if call.index > mark.index]
    assert last == [("fsync_folder", tmp_path / "man")]  # C10
    assert disk.calls[-1].op == "fsync_folder"  # C11
    assert disk.calls[-1].path == tmp_path / "control"


TRACED = """
import sys
from pathlib import Path
from learner.store.blobs import Disk
from tests.learner.saving import cut, files, owner
checkpointer = owner(Path(sys.argv[1]), Disk())
checkpointer.announce(checkpointer.save(files(1), cut(1)))
"""


def test_the_system_is_really_asked_for_each_fsync_in_that_order(tmp_path: Path) -> None:
    """The order of calls that strace sees is the one that a recording disk sees."""
    if shutil.which("strace") is None:
        pytest.skip("NOT RUN: no strace here; the order is held through the seam only")
    root, log = (tmp_path / "store").resolve(), tmp_path / "calls"
    calls = "trace=fsync,link,linkat,rename,renameat,renameat2"
    strace = ["strace", "-f", "-y", "-e", calls, "-e", "signal=none", "-o", str(log)]
    saving = [sys.executable, "-c", TRACED, str(root)]
    traced = subprocess.run([*strace, *saving], capture_output=True, text=True, check=False)
    if traced.returncode and "ptrace" in traced.stderr:
        reason = traced.stderr.strip().splitlines()[0]
        pytest.skip(f"NOT RUN: strace is not permitted here ({reason})")
    assert traced.returncode == 0, traced.stderr
    fsync = re.compile(r"fsync\(\d+<(.*)>\)")
    lines = [line for line in log.read_text().splitlines() if str(root) in line]
    found = [
        match[1] if (match := fsync.search(line)) else "link" if "link" in line else "rename"
        for line in lines
    ]

    disk = FaultyDisk()
    checkpointer = owner(tmp_path / "seam", disk)
    checkpointer.announce(checkpointer.save(files(1), cut(1)))
    asked = [call for call in disk.calls if call.op in ("fsync", "fsync_folder", "link", "rename")]
    assert asked[0].path == tmp_path  # of the folder above the store, which the lines do not name
    expected = [
        str(root / call.path.relative_to(tmp_path / "seam")) if "fsync" in call.op else call.op
        for call in asked[1:]
    ]
    hidden = re.compile(r"\.[0-9a-f]+\.tmp")
    assert [hidden.sub("*", name) for name in found] == [hidden.sub("*", name) for name in expected]


@pytest.mark.parametrize(
    "path", ["manifest.json", "../x", "/x", "a//b", ".hidden", "", "training/../x"]
)
def test_a_file_outside_the_versions_folder_is_not_saved(tmp_path: Path, path: str) -> None:
    checkpointer = owner(tmp_path)
    with pytest.raises(ValueError, match="checkpoint file"):
        checkpointer.save({path: b"x"}, cut(1))
    assert list((tmp_path / "blobs").iterdir()) == []


def test_metadata_that_could_not_be_read_back_is_refused_before_anything_is_visible(
    tmp_path: Path,
) -> None:
    checkpointer = owner(tmp_path)
    with pytest.raises(ValueError, match="evaluation"):
        checkpointer.save(files(1), cut(1, evaluation={"auc": float("nan")}))
    assert (Store(tmp_path).versions(), list((tmp_path / "blobs").iterdir())) == ([], [])
    assert checkpointer.save(files(1), cut(1)).name == "v000002"


def test_a_store_that_cannot_be_made_says_where_and_why(tmp_path: Path) -> None:
    with pytest.raises(StoreFailed, match=r"missing/store: step A1 failed with ENOENT"):
        owner(tmp_path / "missing" / "store")


def test_a_checkpoint_whose_place_is_not_on_the_timeline_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="000009-0000@3 is not on the timeline"):
        owner(tmp_path).save(files(1), cut(1, journal=ResumePoint(segment="000009-0000", byte=3)))
