"""One owner at a time: whoever has a successor is fenced and can take no number (T08)."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from learner.artifact import Store
from learner.errors import Fenced, StoreFailed
from learner.store.checkpoint import Checkpointer
from learner.store.recovery.point import RecoveryPoint
from tests.fakes.disk import Fail, FailAfter, FaultyDisk, Meanwhile, on, tree
from tests.learner.saving import assert_whole, cut, files, owner, resumed, saved, start


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
    """Not even between C8 and C9: the successor's fence has the number."""
    saved(tmp_path, 1)
    disk = FaultyDisk()
    sleeper = owner(tmp_path, disk)
    successor: list[Checkpointer] = []
    disk.plan = on("link", 1, Meanwhile(lambda: successor.append(owner(tmp_path))))
    with pytest.raises(Fenced, match="M-00000004 is another owner's"):
        sleeper.save(files(2), cut(2))
    assert successor[0].save(files(2), cut(2)).name == "v000005"
    assert Store(tmp_path).announced() == "v000002"


def test_a_start_whose_number_an_older_owner_takes_goes_on_from_what_that_one_saved(
    tmp_path: Path,
) -> None:
    disk = FaultyDisk()
    sleeper = owner(tmp_path, disk)
    found: list[RecoveryPoint] = []

    def wake_up() -> None:
        written = tmp_path / "blobs" / "000001-00000002" / "manifest.json"
        (tmp_path / "man" / "M-00000002").hardlink_to(written)

    def overtake() -> None:
        other = FaultyDisk(on("link", 0, Meanwhile(wake_up)))
        found.append(start(Checkpointer(tmp_path, other, lambda: 0.0), tmp_path, other))

    disk.plan = on("link", 1, Meanwhile(overtake))
    with pytest.raises(Fenced):
        sleeper.save(files(1), cut(1))
    (acquired,) = found
    assert (resumed(acquired).name, resumed(acquired).step) == ("v000002", 1)
    newest = Store(tmp_path).newest()
    assert newest is not None
    assert (newest.name, newest.kind, newest.parent) == ("v000003", "fence", "v000002")


def test_an_owner_whose_successor_retired_what_it_loads_is_fenced_and_reports_no_damage(
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


def test_owners_that_start_at_the_same_time_get_different_tokens_and_the_newer_one_wins(
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
    claim, mark = tmp_path / "epoch" / "000001", tmp_path / "man" / "M-00000001"
    segment = tmp_path / "journal" / "000001-0000"
    durable = ("create", "fsync", "fsync_folder", "link", "unlink")
    asked = [call for call in disk.calls if call.op in durable]
    fence = next(call.path for call in asked if call.op == "link")
    steps = [(call.op, call.target or call.path) for call in asked]
    assert steps[steps.index(("create", claim)) :] == [
        ("create", claim), ("fsync", claim), ("fsync_folder", claim.parent),
        ("create", fence), ("fsync", fence),
        ("link", mark), ("fsync_folder", mark.parent), ("unlink", fence),
        ("create", segment), ("fsync", segment), ("fsync_folder", segment.parent),
    ]  # fmt: skip


def test_a_link_that_was_made_though_it_reported_an_error_counts(tmp_path: Path) -> None:
    checkpointer = owner(tmp_path, FaultyDisk(on("link", 1, FailAfter(errno.EIO))))
    assert_whole(tmp_path, checkpointer.save(files(1), cut(1)))
    assert checkpointer.save(files(2), cut(2)).name == "v000003"


def test_a_mark_that_may_be_there_is_never_overwritten(tmp_path: Path) -> None:
    """The link is made, reports an error, and cannot be looked at: its blobs must stay."""
    link, look = on("link", 1, FailAfter(errno.EIO)), on("num_links", 0, Fail(errno.EIO))
    checkpointer = owner(tmp_path, FaultyDisk(lambda call: link(call) or look(call)))
    with pytest.raises(StoreFailed, match="C9"):
        checkpointer.save(files(1), cut(1))
    assert checkpointer.save(files(2), cut(2)).name == "v000003"
    for version in Store(tmp_path).versions():
        assert_whole(tmp_path, version)
