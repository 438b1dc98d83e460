"""Whatever crashes, each record counts once and the state is that of one clean run over its own history (T01, T08, T09)."""

from __future__ import annotations

import errno
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from learner.artifact import Store, Version
from learner.errors import Corrupt, Fenced, JournalFailed, StoreFailed
from tests.fakes.disk import Crash, Die, Fail, FailAfter, FaultyDisk, at, on
from tests.learner.fast import Learner, Log, State, finish
from tests.learner.saving import Boastful
from tests.learner.storm import Told, storm
from tests.learner.test_artifact import Damage, extend, flip, remove, truncate

LOG = Log.invented(110, 80)
LOSSES = [
    {"data": False, "names": False},
    {"data": True, "names": False},
    {"data": False, "names": True},
    {"data": True, "names": True},
    {"data": True, "names": False, "zeros": True},
]


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with a past: two owners, more checkpoints than are kept, and journal that no checkpoint covers."""
    root = tmp_path_factory.mktemp("begun") / "store"
    Learner(root, FaultyDisk(), LOG, 1).run(20)
    disk = FaultyDisk(on("link", 3, Die()))
    with pytest.raises(Crash):
        Learner(root, disk, LOG, 2).run()
    return root


def live(root: Path, disk: FaultyDisk, seed: int, num_polls: int = 6) -> None:
    try:
        Learner(root, disk, LOG, seed).run(num_polls)
    except Crash:
        pass


def num_calls(root: Path, seed: int) -> int:
    disk = FaultyDisk()
    Learner(root, disk, LOG, seed).run(6)
    return len(disk.calls)


@pytest.mark.parametrize("when", ["before", "middle", "after"])
def test_a_crash_at_every_call_and_two_more_in_recovery_change_nothing(begun: Path, tmp_path: Path, when: str) -> None:
    total = num_calls(shutil.copytree(begun, tmp_path / "probe"), 2)
    for index in range(total):
        root = shutil.copytree(begun, tmp_path / f"{index}")
        for life, place in enumerate((index, (index * 7) % total, (index * 13) % total)):
            disk = FaultyDisk(at(place, Die(when)))
            live(root, disk, 2 + life)
            disk.lose_power(**LOSSES[(index + life) % len(LOSSES)])
        finish(root, LOG)
        shutil.rmtree(root)


def stormy(root: Path, seed: int) -> Told:
    told = storm(seed, lambda disk, number: keep(Learner(root, disk, LOG, seed * 100 + number).run(15)))
    for error in told.ended:
        assert error is None or isinstance(error, Fenced), repr(error)
    finish(root, LOG)
    return told


def keep(state: State) -> None:
    """Nothing is asked of a state that was not the last."""


@pytest.mark.parametrize("first", [0, pytest.param(1000, marks=pytest.mark.long)])
def test_owners_that_are_stopped_woken_and_killed_at_any_call_leave_one_history(tmp_path: Path, first: int) -> None:
    told = [stormy(tmp_path / f"{seed}", seed) for seed in range(first, first + (first or 24))]
    assert sum(each.stops for each in told) > 500
    assert sum(each.kills for each in told) > 20
    assert sum(isinstance(error, Fenced) for each in told for error in each.ended) > 10


def newest_versions(root: Path) -> list[Version]:
    return [version for version in reversed(Store(root).versions())]


def in_blobs(damage: Damage, *which: int) -> Callable[[Path], None]:
    def do(root: Path) -> None:
        for index in which:
            damage(newest_versions(root)[index].path / "state.json")

    return do


def in_manifests(damage: Damage, *which: int) -> Callable[[Path], None]:
    def do(root: Path) -> None:
        for index in which:
            damage(root / "man" / f"M-{newest_versions(root)[0].seq - index:08d}")

    return do


def both(*damages: Callable[[Path], None]) -> Callable[[Path], None]:
    def do(root: Path) -> None:
        for damage in damages:
            damage(root)

    return do


def empty(path: Path) -> None:
    path.write_bytes(b"")


def swapped(root: Path) -> None:
    newest, before, *_ = newest_versions(root)
    shutil.copy(before.path / "state.json", newest.path / "state.json")


def in_the_journal(damage: Damage, which: int = -1) -> Callable[[Path], None]:
    return lambda root: damage(sorted((root / "journal").iterdir())[which])


def junk(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\x07junk" * 9)


DAMAGED: dict[str, Callable[[Path], None]] = {
    "blob flipped": in_blobs(flip, 0),
    "blob cut": in_blobs(truncate, 0),
    "blob longer": in_blobs(extend, 0),
    "blob gone": in_blobs(remove, 0),
    "blob of the version before": swapped,
    "two blobs": in_blobs(flip, 0, 1),
    "all blobs but the oldest kept": in_blobs(flip, 0, 1, 2, 3),
    "manifest flipped": in_manifests(flip, 0),
    "manifest empty": in_manifests(empty, 0),
    "two manifests": in_manifests(flip, 0, 1),
    "manifest, and the blob before": both(in_manifests(flip, 0), in_blobs(flip, 0)),
    "junk behind the journal": in_the_journal(junk),
    "junk behind the journal, and a blob": both(in_the_journal(junk), in_blobs(flip, 0)),
    "the journal flipped inside": in_the_journal(flip),
    "the journal flipped inside, and a blob": both(in_the_journal(flip), in_blobs(flip, 0)),
    "a segment gone, and two blobs": both(in_the_journal(remove, -2), in_blobs(flip, 0, 1)),
    "an old segment flipped": in_the_journal(flip, 0),
}


@pytest.mark.parametrize("what", DAMAGED)
def test_what_is_damaged_is_never_loaded_and_the_history_stays_one(begun: Path, tmp_path: Path, what: str) -> None:
    for seed in range(4):
        root = shutil.copytree(begun, tmp_path / f"{seed}")
        Learner(root, FaultyDisk(), LOG, seed).run(9)
        live(root, FaultyDisk(on("link", 2, Die())), seed + 10, 20)
        DAMAGED[what](root)
        finish(root, LOG, seed, whole_journal=False)


@pytest.mark.parametrize("what", ["blob flipped", "manifest, and the blob before", "the journal flipped inside, and a blob"])
def test_crashes_while_a_start_passes_over_damage_change_nothing(begun: Path, tmp_path: Path, what: str) -> None:
    damaged = shutil.copytree(begun, tmp_path / "damaged")
    Learner(damaged, FaultyDisk(), LOG, 5).run(9)
    DAMAGED[what](damaged)
    probe = FaultyDisk()
    Learner(shutil.copytree(damaged, tmp_path / "probe"), probe, LOG, 6).run(1)
    for index in range(0, len(probe.calls), 3):
        root = shutil.copytree(damaged, tmp_path / f"{index}")
        for life in range(2):
            disk = FaultyDisk(at(index + life, Die("after")))
            live(root, disk, 6 + life)
            disk.lose_power(**LOSSES[index % len(LOSSES)])
        finish(root, LOG, whole_journal=False)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EROFS, errno.EACCES])
def test_a_disk_that_fails_at_any_call_stops_the_owner_or_one_checkpoint_and_nothing_is_lost(
    begun: Path, tmp_path: Path, code: int
) -> None:
    probe = FaultyDisk()
    Learner(shutil.copytree(begun, tmp_path / "probe"), probe, LOG, 2).run(6)
    outcomes: Counter[str] = Counter()
    for index in range(0, len(probe.calls), 2):
        root = shutil.copytree(begun, tmp_path / f"{index}")
        disk = FaultyDisk(at(index, (Fail if index % 4 else FailAfter)(code)))
        learner = Learner(root, disk, LOG, 2)
        try:
            learner.run(6)
            outcomes["failed checkpoint" if learner.num_failed else "no matter"] += 1
        except (StoreFailed, JournalFailed) as error:
            outcomes[f"{type(error).__name__} {error.errno == code}"] += 1
        except (OSError, Corrupt):
            outcomes["not loaded"] += 1
        failed = [call for call in disk.failed if call.op == "fsync"]
        for call in failed:
            assert not [later for later in disk.calls if later.op == "fsync" and later.path == call.path and later.index > call.index]
        for call in [call for call in disk.failed if call.path.parent.name == "journal" and call.op in ("write", "fsync")]:
            assert not [later for later in disk.calls if later.path == call.path and later.op == "write" and later.index > call.index]
        finish(root, LOG)
    assert min(outcomes[kind] for kind in ("failed checkpoint", "StoreFailed True", "JournalFailed True")) > 2, outcomes


def test_a_disk_that_is_really_full_stops_and_with_more_room_goes_on_where_it_was(small_disk: Path) -> None:
    root, log = small_disk / "store", Log.invented(5000, 4000)
    with pytest.raises(JournalFailed, match="ENOSPC"):  # it goes on without checkpoints until there is no room for the journal
        Learner(root, Boastful(), log, 3).run()
    subprocess.run(["mount", "-o", "remount,size=64m", str(small_disk)], check=True)
    finish(root, log)


def test_every_name_of_a_whole_life_is_given_after_the_fsync_of_its_bytes_and_made_durable(begun: Path, tmp_path: Path) -> None:
    disk = FaultyDisk()
    Learner(shutil.copytree(begun, tmp_path / "store"), disk, LOG, 2).run(12)
    for call in disk.calls:
        if call.op == "link" or (call.op == "rename" and call.path.name.endswith(".tmp")):
            written = next((made.path for made in disk.calls if made.op == "rename" and made.target == call.path), call.path)
            assert any(made.op == "fsync" and made.path == written for made in disk.calls[: call.index]), call
        if call.op in ("link", "rename") or (call.op in ("create", "mkdir") and call.path.parent.name in ("epoch", "journal", "blobs")):
            folder = (call.target or call.path).parent
            assert any(later.op == "fsync_folder" and later.path == folder for later in disk.calls[call.index :]), call
