"""Retention: what is needed stays, the rest leaves in two phases, whatever crashes."""

from __future__ import annotations

from pathlib import Path

import pytest

from learner.artifact import Store
from learner.store import commands
from learner.store.blobs import Disk
from learner.store.checkpoint import Checkpointer
from learner.store.journal.records import Part, Step
from learner.store.journal.writer import Journal
from learner.store.manifest import Replay
from tests.fakes.disk import Crash, Die, FaultyDisk, Meanwhile, at
from tests.learner.saving import (
    LONG_AFTER,
    assert_whole,
    cut,
    files,
    names,
    owner,
    recover,
    resumed,
    saved,
    start,
)
from tests.learner.test_artifact import flip


def test_pruning_keeps_the_newest_the_aliased_and_the_announced(tmp_path: Path) -> None:
    versions = saved(tmp_path, *range(1, 10))
    Store(tmp_path).promote(versions[0])
    Store(tmp_path).promote(versions[2])
    checkpointer = owner(tmp_path)
    assert checkpointer.prune(5) == ["v000003", "v000005"]
    assert names(tmp_path) == [f"v{seq:06d}" for seq in (2, 4, 6, 7, 8, 9, 10)]
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
    assert resumed(start(checkpointer, tmp_path, Disk())).name == "v000004"


def test_what_is_pruned_leaves_in_two_phases_a_minute_apart(tmp_path: Path) -> None:
    saved(tmp_path, *range(1, 8))
    now = LONG_AFTER
    checkpointer = Checkpointer(tmp_path, Disk(), lambda: now)
    start(checkpointer, tmp_path, Disk())
    assert checkpointer.prune(5) == ["v000002", "v000003"]
    thrown = [path.name for path in (tmp_path / "trash").iterdir()]
    now += 59
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


def test_a_fence_goes_once_the_next_is_on_the_same_state_or_enough_checkpoints_are_newer(
    tmp_path: Path,
) -> None:
    for _ in range(4):
        owner(tmp_path)
    checkpointer = owner(tmp_path)
    version = checkpointer.save(files(1), cut(1))
    checkpointer.prune(5)
    kinds = [(found.seq, found.kind) for found in Store(tmp_path).manifests()]
    assert kinds == [(5, "fence"), (6, "checkpoint")]  # the origin stays while it may be needed
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


def test_a_command_that_names_no_version_keeps_none_and_ends_nothing(tmp_path: Path) -> None:
    versions = saved(tmp_path, *range(1, 8))
    for plan in ({"version": ["v000002"]}, {"version": 2}, {"version": None}, {}):
        commands.write(tmp_path, Disk(), "replay", plan, now_us=0)
    owner(tmp_path).prune(5)
    assert len(Store(tmp_path).versions()) == 5 < len(versions)


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


def test_a_segment_that_the_journal_begins_while_others_are_retired_stays(tmp_path: Path) -> None:
    disk, journal = FaultyDisk(), Journal(tmp_path, Disk(), segment_bytes=1)
    checkpointer = Checkpointer(tmp_path, disk, lambda: LONG_AFTER)
    checkpointer.acquire(journal, initial=cut(0))
    rotate = Meanwhile(lambda: journal.append(Step(1, (Part((), "full"),))))
    disk.plan = lambda call: rotate if (call.op, call.path.name) == ("listdir", "journal") else None
    checkpointer.prune(5)
    journal.close()
    segments = [path.name for path in sorted((tmp_path / "journal").iterdir())]
    assert segments == [span.segment for span in journal.spans]
    assert len(segments) == 2


def test_old_claims_are_swept_but_the_newest_stay(tmp_path: Path) -> None:
    for _ in range(103):
        checkpointer = owner(tmp_path)
    checkpointer.sweep()
    claims = sorted(int(path.name) for path in (tmp_path / "epoch").iterdir())
    assert claims == list(range(4, 104))
