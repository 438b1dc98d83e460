"""The whole job, saved as one or not at all, whatever fails, dies or fills up (T01, T08 to T12)."""

from __future__ import annotations

import errno
import itertools
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path

import pytest

from learner.artifact import Store, Version
from learner.errors import Corrupt, Fenced, FormatUnknown, StoreFailed
from learner.store import commands
from learner.store.blobs import Disk
from learner.store.checkpoint import Checkpointer
from learner.store.journal.records import JournalRange, Part, Step
from learner.store.journal.writer import Journal
from learner.store.manifest import CheckpointMetadata, Replay, ResumePoint, RunState
from learner.store.recovery import RecoveryPoint
from learner.store.writer import BackgroundWriter
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
    on,
    tree,
)
from tests.learner.saving import (
    LONG_AFTER,
    Boastful,
    assert_whole,
    cut,
    files,
    owner,
    recover,
    rewrite,
    saved,
    start,
)
from tests.learner.test_artifact import DAMAGES, Damage, flip, remove, truncate

LOSSES = [(False, False), (True, False), (False, True), (True, True)]


def life(root: Path, disk: Disk) -> list[str]:
    """A start, two checkpoints, and what a crash leaves of it: the versions that the loop was told are durable."""
    told = []
    try:
        checkpointer = owner(root, disk)
        checkpointer.sweep()
        for step in (1, 2):
            version = checkpointer.save(files(step), cut(step))
            told.append(version.name)
            checkpointer.announce(version)
    except Crash:
        pass
    return told


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
        told = life(root, disk)
        disk.lose_power(data=data, names=names)
        announced = Store(root).announced()
        version = recover(root)
        name = version.name if version else None
        assert name in (None, "v000002", "v000003")
        assert (name or "") >= max([*told, announced or ""], default=""), (
            f"died {when} {disk.calls[-1]}"
        )
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
        told = life(root, FaultyDisk(at(index, Die("after"))))
        for place in (again, again + 3):
            disk = FaultyDisk(at(place, Die("middle")))
            told += life(root, disk)
            disk.lose_power(data=data, names=names)
        version = recover(root)
        assert (version.name if version else "") >= max(told, default="")


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
    with pytest.raises(StoreFailed, match=r"C4 failed with ENOSPC .*twice the checkpoint"):
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
    assert (mark.path, mark.target) == (
        version.path / "manifest.json",
        tmp_path / "man" / "M-00000002",
    )

    for rename in [call for call in disk.calls[first:] if call.op == "rename"]:
        own = [call.op for call in disk.calls[first : rename.index] if call.path == rename.path]
        assert own[-1] == "fsync", rename
        assert rename.path.parent == (rename.target or rename.path).parent
    named = [call for call in calls if call.op in ("rename", "mkdir")]
    assert {(call.target or call.path).relative_to(version.path).as_posix() for call in named} == {
        *files(1), "manifest.json", "training", "."
    }  # fmt: skip
    for name in named:  # C5, C7: each folder after its last name and before the mark
        folder = (name.target or name.path).parent
        assert any(
            call.op == "fsync_folder"
            and call.path == folder
            and name.index < call.index < mark.index
            for call in calls
        ), name
    manifest = next(call for call in named if call.target == version.path / "manifest.json")
    assert all(call.index < manifest.index for call in named if call != manifest)
    assert any(
        call.op == "fsync_folder"
        and call.path == tmp_path / "blobs"
        and call.index < manifest.index
        for call in calls
    )
    claims = [call for call in calls if call.op == "listdir" and call.path == tmp_path / "epoch"]
    assert manifest.index < claims[-1].index < mark.index  # C8 just before C9
    assert [(call.op, call.path) for call in calls if call.index > mark.index] == [
        ("fsync_folder", tmp_path / "man")
    ]  # C10
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
    """What the seam promises, as strace sees it: the same order of calls as through a disk that only takes note."""
    if shutil.which("strace") is None:
        pytest.skip("NOT RUN: no strace here; the order is held through the seam only")
    root, log = (tmp_path / "store").resolve(), tmp_path / "calls"
    calls = "fsync,link,linkat,rename,renameat,renameat2"
    traced = subprocess.run(
        [
            "strace",
            "-f",
            "-y",
            "-e",
            f"trace={calls}",
            "-e",
            "signal=none",
            "-o",
            str(log),
            sys.executable,
            "-c",
            TRACED,
            str(root),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    if traced.returncode and "ptrace" in traced.stderr:
        pytest.skip(
            f"NOT RUN: strace is not permitted here ({traced.stderr.strip().splitlines()[0]})"
        )
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


@pytest.mark.parametrize("damage", [*DAMAGES, "manifest flipped", "manifest emptied"])
def test_a_damaged_checkpoint_is_passed_over_loudly_for_the_one_before(
    tmp_path: Path, damage: Damage | str
) -> None:
    _, newest = saved(tmp_path, 1, 2)
    mark = tmp_path / "man" / "M-00000003"
    if damage == "manifest flipped":
        flip(mark)
    elif damage == "manifest emptied":
        mark.write_bytes(b"")
    else:
        assert callable(damage)
        damage(newest.path / "model.safetensors")
    before = tree(tmp_path)
    checkpointer = Checkpointer(tmp_path, Disk(), lambda: LONG_AFTER)
    found = start(checkpointer, tmp_path, Disk())
    assert found.version is not None
    assert found.version.name == "v000002"
    assert [skipped.name for skipped in found.skipped] == ["v000003"]
    assert (
        "model.safetensors" in found.skipped[0].reason
        or "man/M-00000003" in found.skipped[0].reason
    )
    checkpointer.sweep()
    after = checkpointer.save(files(3), cut(3))
    assert after.name == "v000005"  # the number of the damaged one is not used again
    assert after.parent == "v000002"
    assert before.items() <= tree(tmp_path).items()  # evidence stays
    assert damage is remove or [path.name for path in (tmp_path / "quarantine").iterdir()] == [
        found.skipped[0].path.replace("/", "+")
    ]
    again = start(checkpointer, tmp_path, Disk())
    assert (again.version and again.version.name, again.skipped) == (after.name, ())


def test_two_damaged_checkpoints_are_passed_over_and_a_store_with_none_left_says_so(
    tmp_path: Path,
) -> None:
    first, second, third = saved(tmp_path, 1, 2, 3)
    truncate(third.path / "config.json")
    remove(second.path / "training" / "rng.safetensors")
    found = start(Checkpointer(tmp_path, Disk(), lambda: LONG_AFTER), tmp_path, Disk())
    assert found.version is not None
    assert found.version.name == "v000002"
    assert [skipped.name for skipped in found.skipped] == ["v000004", "v000003"]
    flip(first.path / "model.safetensors")
    found = start(Checkpointer(tmp_path, Disk(), lambda: LONG_AFTER), tmp_path, Disk())
    assert found.version is None  # the origin
    assert [skipped.name for skipped in found.skipped] == ["v000002"]  # of the others was told
    for fence in [fence for fence in Store(tmp_path).manifests() if fence.kind == "fence"]:
        flip(tmp_path / "man" / f"M-{fence.seq:08d}")
    with pytest.raises(
        Corrupt, match="man: expected one wholly valid checkpoint, found 6 damaged ones"
    ):
        owner(tmp_path)


def test_a_store_that_cannot_be_read_for_now_is_not_taken_for_a_damaged_one(tmp_path: Path) -> None:
    saved(tmp_path, 1, 2)
    checkpointer = Checkpointer(
        tmp_path, FaultyDisk(on("open", 0, Fail(errno.EMFILE))), lambda: LONG_AFTER
    )
    with pytest.raises(StoreFailed, match="A4 failed with EMFILE"):
        start(checkpointer, tmp_path, Disk())


def test_a_checkpoint_of_a_newer_release_stops_the_start_instead_of_falling_back(
    tmp_path: Path,
) -> None:
    _, second = saved(tmp_path, 1, 2)
    rewrite(tmp_path, second, format=3)
    with pytest.raises(FormatUnknown, match="run that one"):
        owner(tmp_path)


def test_the_second_claim_fences_the_first(tmp_path: Path) -> None:
    first = owner(tmp_path)
    version = first.save(files(1), cut(1))
    second = owner(tmp_path)
    before = tree(tmp_path / "man")
    with pytest.raises(Fenced, match="owner epoch 1 is fenced: epoch 2 was claimed"):
        first.save(files(2), cut(2))
    for refused in (lambda: first.announce(version), first.sweep, lambda: first.prune(5)):
        with pytest.raises(Fenced):
            refused()
    assert tree(tmp_path / "man") == before
    assert Store(tmp_path).announced() is None
    assert second.save(files(3), cut(3)).name == "v000004"
    assert second.sweep() == ["blobs/000001-00000003"]


def test_an_owner_that_slept_before_the_link_loses_to_the_one_that_linked(tmp_path: Path) -> None:
    disk = FaultyDisk()
    sleeper = owner(tmp_path, disk)
    other: list[Checkpointer] = []

    def overtake() -> None:
        other.append(owner(tmp_path))
        other[0].announce(other[0].save(files(2), cut(2)))

    disk.plan = on("link", 1, Meanwhile(overtake))
    with pytest.raises(Fenced, match="M-00000002 is another owner's"):
        sleeper.save(files(1), cut(1))
    (version,) = Store(tmp_path).versions()
    assert (version.epoch, version.step) == (2, 2)
    assert_whole(tmp_path, version)
    assert other[0].save(files(3), cut(3)).name == "v000004"


def test_an_owner_that_wakes_after_its_successor_has_started_can_take_no_number(
    tmp_path: Path,
) -> None:
    """Not even between its last look (C8) and its link (C9): the successor's fence has the number."""
    saved(tmp_path, 1)
    disk = FaultyDisk()
    sleeper = owner(tmp_path, disk)
    successor: list[Checkpointer] = []
    disk.plan = on("link", 1, Meanwhile(lambda: successor.append(owner(tmp_path))))
    with pytest.raises(Fenced, match="M-00000004 is another owner's"):
        sleeper.save(files(2), cut(2))
    assert successor[0].save(files(2), cut(2)).name == "v000005"
    assert Store(tmp_path).announced() == "v000002"


def test_a_start_whose_number_an_older_owner_takes_at_the_last_moment_goes_on_from_what_that_one_saved(
    tmp_path: Path,
) -> None:
    disk = FaultyDisk()
    sleeper = owner(tmp_path, disk)
    found: list[RecoveryPoint] = []

    def wake_up() -> None:
        (tmp_path / "man" / "M-00000002").hardlink_to(
            tmp_path / "blobs" / "000001-00000002" / "manifest.json"
        )

    def overtake() -> None:
        other = FaultyDisk(on("link", 0, Meanwhile(wake_up)))
        found.append(start(Checkpointer(tmp_path, other, lambda: 0.0), tmp_path, other))

    disk.plan = on("link", 1, Meanwhile(overtake))
    with pytest.raises(Fenced):
        sleeper.save(files(1), cut(1))
    (acquired,) = found
    assert acquired.version is not None
    assert (acquired.version.name, acquired.version.step) == ("v000002", 1)
    newest = Store(tmp_path).newest()
    assert newest is not None
    assert (newest.name, newest.kind, newest.parent) == ("v000003", "fence", "v000002")


def test_an_owner_whose_successor_retired_what_it_is_about_to_load_is_fenced_and_reports_no_damage(
    tmp_path: Path,
) -> None:
    (version,) = saved(tmp_path, 1)
    sleeper = owner(tmp_path)
    successor = owner(tmp_path)
    for step in range(2, 8):
        successor.announce(successor.save(files(step), cut(step)))
    assert successor.prune(5) == [version.name, "v000005"]
    with pytest.raises(Fenced, match="owner epoch 2 is fenced"):
        sleeper.read(version, "model.safetensors")


def test_owners_that_start_at_the_same_time_get_different_epochs_and_the_newer_one_wins(
    tmp_path: Path,
) -> None:
    disk = FaultyDisk(on("create", 0, Meanwhile(lambda: owner(tmp_path))))
    assert start(Checkpointer(tmp_path, disk, lambda: 0.0), tmp_path, disk).fencing_token == 2
    assert sorted(path.name for path in (tmp_path / "epoch").iterdir()) == ["000001", "000002"]
    disk = FaultyDisk(on("link", 0, Meanwhile(lambda: owner(tmp_path))))
    with pytest.raises(Fenced, match="owner epoch 3 is fenced"):
        owner(tmp_path, disk)


def test_a_start_makes_its_claim_its_fence_and_its_segment_durable_in_that_order(
    tmp_path: Path,
) -> None:
    disk = FaultyDisk()
    owner(tmp_path, disk)
    claim, mark, segment = (
        tmp_path / "epoch" / "000001",
        tmp_path / "man" / "M-00000001",
        tmp_path / "journal" / "000001-0000",
    )
    asked = [
        call
        for call in disk.calls
        if call.op in ("create", "fsync", "fsync_folder", "link", "unlink")
    ]
    fence = next(call.path for call in asked if call.op == "link")
    steps = [(call.op, call.target or call.path) for call in asked]
    assert steps[steps.index(("create", claim)) :] == [
        ("create", claim), ("fsync", claim), ("fsync_folder", claim.parent),
        ("create", fence), ("fsync", fence), ("link", mark), ("fsync_folder", mark.parent), ("unlink", fence),
        ("create", segment), ("fsync", segment), ("fsync_folder", segment.parent),
    ]  # fmt: skip


def test_a_link_that_was_made_though_it_reported_an_error_counts(tmp_path: Path) -> None:
    checkpointer = owner(tmp_path, FaultyDisk(on("link", 1, FailAfter(errno.EIO))))
    assert_whole(tmp_path, checkpointer.save(files(1), cut(1)))
    assert checkpointer.save(files(2), cut(2)).name == "v000003"


def test_a_mark_that_may_be_there_is_never_overwritten(tmp_path: Path) -> None:
    """The link is made, reports an error, and cannot be looked at: its blobs must stay as they are."""
    link, look = on("link", 1, FailAfter(errno.EIO)), on("num_links", 0, Fail(errno.EIO))
    checkpointer = owner(tmp_path, FaultyDisk(lambda call: link(call) or look(call)))
    with pytest.raises(StoreFailed, match="C9"):
        checkpointer.save(files(1), cut(1))
    assert checkpointer.save(files(2), cut(2)).name == "v000003"
    for version in Store(tmp_path).versions():
        assert_whole(tmp_path, version)


@pytest.mark.parametrize(
    "path", ["manifest.json", "../x", "/x", "a//b", ".hidden", "", "training/../x"]
)
def test_a_file_outside_the_versions_folder_is_not_saved(tmp_path: Path, path: str) -> None:
    checkpointer = owner(tmp_path)
    with pytest.raises(ValueError, match="checkpoint file"):
        checkpointer.save({path: b"x"}, cut(1))
    assert list((tmp_path / "blobs").iterdir()) == []


def test_a_cut_that_could_not_be_read_back_is_refused_before_anything_is_visible(
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


def names(root: Path) -> list[str]:
    return [version.name for version in Store(root).versions()]


def test_pruning_keeps_the_newest_the_aliased_and_the_announced(tmp_path: Path) -> None:
    versions = saved(tmp_path, *range(1, 10))
    Store(tmp_path).promote(versions[0])
    Store(tmp_path).promote(versions[2])
    checkpointer = owner(tmp_path)
    assert checkpointer.prune(5) == ["v000003", "v000005"]
    assert names(tmp_path) == [
        "v000002",
        "v000004",
        "v000006",
        "v000007",
        "v000008",
        "v000009",
        "v000010",
    ]
    for version in Store(tmp_path).versions():
        assert_whole(tmp_path, version)
    with pytest.raises(ValueError, match="keep: got 4"):
        checkpointer.prune(4)


def test_pruning_never_takes_the_newest_wholly_valid_one(tmp_path: Path) -> None:
    versions = saved(tmp_path, *range(1, 10))
    for version in versions[3:]:
        flip(version.path / "model.safetensors")
    checkpointer = owner(tmp_path)
    assert checkpointer.prune(5) == ["v000005"]  # older ones are all that is left of the chain
    found = start(checkpointer, tmp_path, Disk())
    assert found.version is not None
    assert found.version.name == "v000004"


def test_what_is_pruned_leaves_in_two_phases_an_hour_apart(tmp_path: Path) -> None:
    saved(tmp_path, *range(1, 8))
    now = LONG_AFTER
    checkpointer = Checkpointer(tmp_path, Disk(), lambda: now)
    start(checkpointer, tmp_path, Disk())
    assert checkpointer.prune(5) == ["v000002", "v000003"]
    thrown = [path.name for path in (tmp_path / "trash").iterdir()]
    now += 3599
    assert checkpointer.prune(5) == []
    assert [path.name for path in (tmp_path / "trash").iterdir()] == thrown != []
    now += 1
    assert checkpointer.prune(5) == []
    assert list((tmp_path / "trash").iterdir()) == []
    assert len(list((tmp_path / "blobs").iterdir())) == 5


def test_a_crash_while_pruning_never_leaves_a_version_without_its_files(tmp_path: Path) -> None:
    saved(tmp_path / "probe", *range(1, 9))
    disk = FaultyDisk()
    checkpointer = owner(tmp_path / "probe", disk)
    first = len(disk.calls)
    checkpointer.prune(5)
    for index in range(len(disk.calls) - first):
        root = tmp_path / f"{index}"
        saved(root, *range(1, 9))
        disk = FaultyDisk()
        checkpointer = owner(root, disk)
        disk.plan = at(len(disk.calls) + index, Die("after"))
        with pytest.raises(Crash):
            checkpointer.prune(5)
        for version in Store(root).versions():
            assert_whole(root, version)
        recovered = recover(root)
        assert recovered is not None
        assert recovered.name == "v000009"


def test_a_segment_that_the_journal_begins_while_others_are_retired_stays(tmp_path: Path) -> None:
    disk, journal = FaultyDisk(), Journal(tmp_path, Disk(), segment_bytes=1)
    checkpointer = Checkpointer(tmp_path, disk, lambda: LONG_AFTER)
    checkpointer.acquire(journal, initial=cut(0))
    rotate = Meanwhile(lambda: journal.append(Step(1, (Part((), "full"),))))
    disk.plan = lambda call: rotate if (call.op, call.path.name) == ("listdir", "journal") else None
    checkpointer.prune(5)
    journal.close()
    assert [path.name for path in sorted((tmp_path / "journal").iterdir())] == [
        span.segment for span in journal.spans
    ]
    assert len(journal.spans) == 2


def test_old_claims_are_swept_but_the_newest_stay(tmp_path: Path) -> None:
    for _ in range(103):
        checkpointer = owner(tmp_path)
    checkpointer.sweep()
    claims = sorted(int(path.name) for path in (tmp_path / "epoch").iterdir())
    assert claims == list(range(4, 104))


class Gate:
    """Holds a call until it is opened."""

    def __init__(self) -> None:
        self.reached, self.opened = threading.Event(), threading.Event()

    def pass_through(self) -> None:
        self.reached.set()
        assert self.opened.wait(60)


def test_one_save_at_most_is_in_flight_and_its_outcome_is_told_once(tmp_path: Path) -> None:
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
    saved_one = writer.poll(timeout_seconds=None)
    assert saved_one is not None
    assert saved_one.error is None
    assert saved_one.version is not None
    assert Store(tmp_path).announced() == saved_one.version.name == "v000002"
    assert writer.poll() is None
    assert writer.submit(lambda: files(2), cut(2))
    last = writer.close()
    assert last is not None
    assert last.version is not None
    assert last.version.name == "v000003"
    assert_whole(tmp_path, last.version)


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
    again = writer.close()
    assert again is not None
    assert again.version is not None
    assert_whole(tmp_path, again.version)


def test_a_version_that_could_not_be_announced_is_told_as_durable_with_the_error(
    tmp_path: Path,
) -> None:
    disk = FaultyDisk(
        lambda call: (
            Fail(errno.EROFS)
            if call.op == "create" and call.path.parent.name == "control"
            else None
        )
    )
    writer = BackgroundWriter(owner(tmp_path, disk))
    writer.submit(lambda: files(1), cut(1))
    outcome = writer.close()
    assert outcome is not None
    assert outcome.version is not None
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


LARGE = bytes(range(256)) * 4096


def frozen(step: int) -> dict[str, bytes]:
    return {
        **files(step),
        "model.safetensors": LARGE,
        "tokenizer.json": b"small, and always the same",
    }


def inode(version: Version, path: str) -> int:
    return (version.path / path).stat().st_ino


def test_a_large_file_that_has_not_changed_is_not_written_again_and_at_most_four_versions_share_it(
    tmp_path: Path,
) -> None:
    disk = FaultyDisk()
    checkpointer = owner(tmp_path, disk)
    versions = [checkpointer.save(frozen(step), cut(step)) for step in range(1, 7)]
    inodes = [inode(version, "model.safetensors") for version in versions]
    assert [inodes.count(each) for each in dict.fromkeys(inodes)] == [4, 2]
    assert len({inode(version, "tokenizer.json") for version in versions}) == 6
    written = sum(
        call.op == "create" and call.path.parent == versions[1].path for call in disk.calls
    )
    assert written == 3  # configuration, tokenizer, manifest
    for version in versions:
        Store(tmp_path).verify(version)
    shared = owner(tmp_path).save({**frozen(7), "model.safetensors": LARGE[::-1]}, cut(7))
    assert inode(shared, "model.safetensors") not in inodes


def test_damage_to_a_shared_file_shows_in_every_version_that_shares_it_and_the_next_ones_are_fallen_back_to(
    tmp_path: Path,
) -> None:
    checkpointer = owner(tmp_path)
    versions = [checkpointer.save(frozen(step), cut(step)) for step in range(1, 7)]
    flip(versions[-1].path / "model.safetensors")
    for version in versions[4:]:
        with pytest.raises(Corrupt, match=r"model\.safetensors"):
            Store(tmp_path).verify(version)
    found = start(Checkpointer(tmp_path, Disk(), lambda: 0.0), tmp_path, Disk())
    assert found.version is not None
    assert (found.version.name, len(found.skipped)) == (versions[3].name, 2)
    again = owner(tmp_path).save(frozen(8), cut(8))
    Store(tmp_path).verify(again)


def test_a_file_that_cannot_be_shared_is_written(tmp_path: Path) -> None:
    disk = FaultyDisk()
    checkpointer = owner(tmp_path, disk)
    first = checkpointer.save(frozen(1), cut(1))
    for code in (errno.EMLINK, errno.EPERM, errno.EXDEV):
        disk.plan = lambda call, code=code: (
            Fail(code) if call.op == "link" and call.path.name == "model.safetensors" else None
        )  # type: ignore[misc]
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


def test_fences_go_once_the_next_one_stands_on_the_same_state_or_enough_checkpoints_are_newer(
    tmp_path: Path,
) -> None:
    for _ in range(4):
        owner(tmp_path)
    checkpointer = owner(tmp_path)
    version = checkpointer.save(files(1), cut(1))
    checkpointer.prune(5)
    kinds = [(found.seq, found.kind) for found in Store(tmp_path).manifests()]
    assert kinds == [
        (5, "fence"),
        (6, "checkpoint"),
    ]  # the origin stays as long as it could be needed
    checkpointer = owner(tmp_path)
    for step in range(2, 7):
        checkpointer.save(files(step), cut(step))
    assert checkpointer.prune(5) == [version.name]
    assert [found.kind for found in Store(tmp_path).manifests()] == ["checkpoint"] * 5


def test_versions_of_commands_that_are_not_taken_yet_stay(tmp_path: Path) -> None:
    versions = saved(tmp_path, *range(1, 10))
    for version in (versions[0], versions[2]):
        commands.write(tmp_path, Disk(), "replay", {"version": version.name}, now_us=0)
    (tmp_path / "control" / "orders" / "000003.json").write_text("no command")
    checkpointer = owner(tmp_path)
    assert checkpointer.prune(5) == [versions[1].name, versions[3].name]
    checkpointer.update(commands_taken=1)
    assert checkpointer.prune(5) == [versions[0].name]
    checkpointer.update(commands_taken=2)
    assert checkpointer.prune(5) == [versions[2].name]


def test_the_way_back_from_a_replay_stays_until_it_is_over(tmp_path: Path) -> None:
    checkpointer = owner(tmp_path)
    way_back = [checkpointer.save(files(step), cut(step)) for step in (1, 2)][-1]
    replay = Replay(mode="anew", until={}, command=1)
    checkpointer.update(commands_taken=1, replay=replay)
    versions = [checkpointer.save(files(step), cut(step)) for step in range(3, 10)]
    retired = checkpointer.prune(5)
    assert way_back.name not in retired
    assert versions[1].name in retired
    checkpointer.update(replay=None)
    assert checkpointer.prune(5) == [way_back.name]


def test_what_is_damaged_is_kept_in_quarantine_when_retention_takes_its_version(
    tmp_path: Path,
) -> None:
    versions = saved(tmp_path, 1, 2)
    flip(versions[1].path / "model.safetensors")
    damaged = (versions[1].path / "model.safetensors").read_bytes()
    now = LONG_AFTER
    checkpointer = Checkpointer(tmp_path, Disk(), lambda: now)
    start(checkpointer, tmp_path, Disk())
    for step in range(3, 10):
        checkpointer.announce(checkpointer.save(files(step), cut(step)))
    assert versions[1].name in checkpointer.prune(5)
    now += 3600
    checkpointer.prune(5)
    assert not versions[1].path.exists()
    (evidence,) = (tmp_path / "quarantine").iterdir()
    assert evidence.read_bytes() == damaged


def test_a_store_of_the_first_format_goes_on(tmp_path: Path) -> None:
    (version,) = saved(tmp_path, 1)
    for name in (*RunState.__struct_encode_fields__, "journal", "audit", "inputs", "trained"):
        version.manifest.pop(name)
    rewrite(tmp_path, version, format=1)
    (tmp_path / "man" / "M-00000001").unlink()
    shutil.rmtree(tmp_path / "journal")
    old = Store(tmp_path).version(version.name)
    assert (old.journal, old.timeline) == (None, ())
    journal = Journal(tmp_path, Disk())
    found = Checkpointer(tmp_path, Disk(), lambda: 0.0).acquire(journal, initial=cut(0))
    assert found.version is not None
    assert (found.version.name, found.tail, found.run_state.timeline) == (
        version.name,
        [],
        (JournalRange("000002-0000", 0, None),),
    )
    journal.append(Step(2, (Part((), "full"),)))
    journal.close()
    again = start(Checkpointer(tmp_path, Disk(), lambda: 0.0), tmp_path, Disk())
    assert [record.step for _, record in again.tail] == [2]


def test_a_cut_whose_place_is_not_on_the_timeline_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="000009-0000@3 is not on the timeline"):
        owner(tmp_path).save(files(1), cut(1, journal=ResumePoint(segment="000009-0000", byte=3)))


class Slow(Checkpointer):
    """Begins to save when it may."""

    gate: Gate

    def save(
        self, files: Mapping[str, bytes], cut: CheckpointMetadata, run_state: RunState | None = None
    ) -> Version:
        self.gate.pass_through()
        return super().save(files, cut, run_state)


def test_what_stands_is_handed_over_with_the_cut(tmp_path: Path) -> None:
    checkpointer = Slow(tmp_path, Disk(), lambda: 0.0)
    checkpointer.gate = Gate()
    start(checkpointer, tmp_path, Disk())
    writer = BackgroundWriter(checkpointer)
    checkpointer.update(quarantine=((3, 4),))
    writer.submit(lambda: files(1), cut(1))
    assert checkpointer.gate.reached.wait(60)
    checkpointer.update(quarantine=())
    checkpointer.gate.opened.set()
    done = writer.close()
    assert done is not None
    assert done.version is not None
    assert done.version.run_state.quarantine == ((3, 4),)
    assert checkpointer.save(files(2), cut(2)).run_state.quarantine == ()
