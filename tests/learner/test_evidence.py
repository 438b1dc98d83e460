"""Damaged checkpoints are passed over, reported and kept as evidence (T09)."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path

import pytest

from learner.artifact import Store
from learner.errors import Corrupt, FormatUnknown, StoreFailed
from learner.store.blobs import Disk
from learner.store.checkpoint import Checkpointer
from learner.store.journal.records import JournalRange, Part, Step
from learner.store.journal.writer import Journal
from learner.store.manifest import RunState
from tests.fakes.disk import Fail, FaultyDisk, on, tree
from tests.learner.saving import LONG_AFTER, cut, files, owner, resumed, rewrite, saved, start
from tests.learner.test_artifact import DAMAGES, Damage, flip, remove, truncate


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
    assert resumed(found).name == "v000002"
    (skipped,) = found.skipped
    assert skipped.name == "v000003"
    assert any(path in skipped.reason for path in ("model.safetensors", "man/M-00000003"))
    checkpointer.sweep()
    after = checkpointer.save(files(3), cut(3))
    assert after.name == "v000005"  # the number of the damaged one is not used again
    assert after.parent == "v000002"
    assert before.items() <= tree(tmp_path).items()  # evidence stays
    quarantined = [path.name for path in (tmp_path / "quarantine").iterdir()]
    assert damage is remove or quarantined == [skipped.path.replace("/", "+")]
    again = start(checkpointer, tmp_path, Disk())
    assert (again.version and again.version.name, again.skipped) == (after.name, ())


def test_two_damaged_checkpoints_are_passed_over_and_a_store_with_none_left_says_so(
    tmp_path: Path,
) -> None:
    first, second, third = saved(tmp_path, 1, 2, 3)
    truncate(third.path / "config.json")
    remove(second.path / "training" / "rng.safetensors")
    found = start(Checkpointer(tmp_path, Disk(), lambda: LONG_AFTER), tmp_path, Disk())
    assert resumed(found).name == "v000002"
    assert [skipped.name for skipped in found.skipped] == ["v000004", "v000003"]
    flip(first.path / "model.safetensors")
    found = start(Checkpointer(tmp_path, Disk(), lambda: LONG_AFTER), tmp_path, Disk())
    assert found.version is None  # the origin
    assert [skipped.name for skipped in found.skipped] == [
        "v000002"
    ]  # the others were reported before
    for fence in [fence for fence in Store(tmp_path).manifests() if fence.kind == "fence"]:
        flip(tmp_path / "man" / f"M-{fence.seq:08d}")
    none_left = "man: expected one wholly valid checkpoint, found 6 damaged ones"
    with pytest.raises(Corrupt, match=none_left):
        owner(tmp_path)


def test_a_store_that_cannot_be_read_for_now_is_not_taken_for_a_damaged_one(tmp_path: Path) -> None:
    saved(tmp_path, 1, 2)
    disk = FaultyDisk(on("open", 0, Fail(errno.EMFILE)))
    checkpointer = Checkpointer(tmp_path, disk, lambda: LONG_AFTER)
    with pytest.raises(StoreFailed, match="A4 failed with EMFILE"):
        start(checkpointer, tmp_path, Disk())


def test_a_checkpoint_of_a_newer_release_stops_the_start_instead_of_falling_back(
    tmp_path: Path,
) -> None:
    _, second = saved(tmp_path, 1, 2)
    rewrite(tmp_path, second, format=3)
    with pytest.raises(FormatUnknown, match="run that one"):
        owner(tmp_path)


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
    assert (resumed(found).name, found.tail) == (version.name, [])
    assert found.run_state.timeline == (JournalRange("000002-0000", 0, None),)
    journal.append(Step(2, (Part((), "full"),)))
    journal.close()
    again = start(Checkpointer(tmp_path, Disk(), lambda: 0.0), tmp_path, Disk())
    assert [record.step for _, record in again.tail] == [2]
