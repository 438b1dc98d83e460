"""Whatever crashes, records count once and the state is that of a clean run (T01, T08, T09)."""

from __future__ import annotations

import contextlib
import errno
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from learner.artifact import Store, Version
from learner.errors import Corrupt, Fenced, JournalFailed, StoreFailed
from learner.store.blobs import Disk
from learner.store.checkpoint import Checkpointer
from learner.store.journal.records import Step
from learner.store.manifest import Exclusions, Replay
from learner.store.recovery.plan import RecoveryPlan
from learner.store.recovery.point import RecoveryPoint
from tests.fakes.disk import Call, Crash, Die, Fail, FailAfter, FaultyDisk, at, on
from tests.learner.fast import NOW, TOPIC, Learner, Log, State, check, finish
from tests.learner.saving import Boastful, cut, resumed, start
from tests.learner.storm import Report, storm
from tests.learner.test_artifact import Damage, extend, flip, remove, truncate
from weighting.provenance import Offsets

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
    """A store with a past: two owners, retired checkpoints, and steps that none covers."""
    root = tmp_path_factory.mktemp("begun") / "store"
    Learner(root, FaultyDisk(), LOG, 1).run(20)
    for nth in range(3, 9):
        begun = shutil.copytree(root, root.with_name(f"{nth}"))
        live(begun, FaultyDisk(on("link", nth, Die())), 2, 1_000_000)
        if len(looked_at(begun).tail) > 1:
            return begun
    raise AssertionError("no owner died with steps that no checkpoint covers")


def looked_at(root: Path, **options: Any) -> RecoveryPoint:
    """Return where a start would go on; change nothing."""
    return Checkpointer(root, Disk(), lambda: 0.0).look(**{"initial": cut(0), **options})


def live(root: Path, disk: FaultyDisk, seed: int, num_polls: int = 6) -> list[Step]:
    """Live once, until a crash if there is one; return the steps done, each journaled before."""
    learner = Learner(root, disk, LOG, seed)
    with contextlib.suppress(Crash):
        learner.run(num_polls)
    return learner.state.history


def calls(root: Path, seed: int) -> list[Call]:
    disk = FaultyDisk()
    Learner(root, disk, LOG, seed).run(6)
    return disk.calls


def points(made: Sequence[Call], when: str) -> list[int]:
    """Return the calls to crash at.

    Only a write has a middle, and before a call is after the one before it: so some will do.
    """
    every = [call for call in made if when == "after" or (when, call.op) == ("middle", "write")]
    return sorted({call.index for call in every} | {call.index for call in made[::8]})


def of_each_kind(made: Sequence[Call], first: int, every: int) -> list[int]:
    """Return every so-manieth call of each operation in each folder, and at least one of each."""
    kinds: dict[tuple[str, str], list[int]] = {}
    for call in made:
        kinds.setdefault((call.op, call.path.parent.name), []).append(call.index)
    return sorted(
        index for of_kind in kinds.values() for index in of_kind[first % len(of_kind) :: every]
    )


@pytest.mark.parametrize("every", [5, pytest.param(1, marks=pytest.mark.long)])
@pytest.mark.parametrize("when", ["before", "middle", "after"])
def test_a_crash_at_every_call_and_two_more_in_recovery_change_nothing(
    begun: Path, tmp_path: Path, when: str, every: int
) -> None:
    made = calls(shutil.copytree(begun, tmp_path / "probe"), 2)
    total = len(made)
    for index in points(made, when)[::every]:
        root = shutil.copytree(begun, tmp_path / f"{index}")
        crash_and_finish(root, (index, (index * 7) % total, (index * 13) % total), when, index)
        shutil.rmtree(root)


def known(root: Path) -> list[Step]:
    """Return the steps of a store without damage, by its newest version and its journal."""
    if not root.exists():
        return []
    found, history = looked_at(root), []
    if found.version:
        history = State.read(Checkpointer(root, Disk(), lambda: 0.0), found.version).history
    return [*history, *(record for _, record in found.tail if isinstance(record, Step))]


def crash_and_finish(root: Path, places: Sequence[int], when: str, loss: int) -> None:
    lives = [known(root)]
    for life, place in enumerate(places):
        disk = FaultyDisk(at(place, Die(when)))
        lives.append(live(root, disk, 2 + life))
        disk.lose_power(**LOSSES[(loss + life) % len(LOSSES)])
    history = finish(root, LOG).history
    for steps in lives:
        assert history[: len(steps)] == steps  # as if there had been no crash


@pytest.mark.parametrize("when", ["before", "middle", "after"])
def test_a_crash_at_every_call_of_the_first_start_changes_nothing(
    tmp_path: Path, when: str
) -> None:
    made = calls(tmp_path / "probe", 2)
    total = len(made)
    for index in points(made, when):
        places = (index, min(index + 5, 60), (index * 13) % total)
        crash_and_finish(tmp_path / f"{index}", places, when, index)


def stormy(root: Path, seed: int) -> Report:
    def live(disk: FaultyDisk, number: int) -> None:
        Learner(root, disk, LOG, seed * 100 + number).run(15)

    report = storm(seed, live)
    for error in report.ended:
        assert error is None or isinstance(error, Fenced), repr(error)
    finish(root, LOG)
    return report


@pytest.mark.parametrize("first", [0, pytest.param(1000, marks=pytest.mark.long)])
def test_owners_that_are_stopped_woken_and_killed_at_any_call_leave_one_history(
    tmp_path: Path, first: int
) -> None:
    seeds = range(first, first + (first or 40))
    reports = [stormy(tmp_path / f"{seed}", seed) for seed in seeds]
    assert sum(each.stops for each in reports) > 500
    assert sum(each.kills for each in reports) > 20
    assert sum(isinstance(error, Fenced) for each in reports for error in each.ended) > 10


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
def test_what_is_damaged_is_never_loaded_and_the_history_stays_one(
    begun: Path, tmp_path: Path, what: str
) -> None:
    for seed in range(4):
        root = shutil.copytree(begun, tmp_path / f"{seed}")
        Learner(root, FaultyDisk(), LOG, seed).run(9)
        live(root, FaultyDisk(on("link", 2, Die())), seed + 10, 20)
        DAMAGED[what](root)
        finish(root, LOG, seed, whole_journal=False)


@pytest.mark.parametrize(
    "what",
    ["blob flipped", "manifest, and the blob before", "the journal flipped inside, and a blob"],
)
def test_crashes_while_a_start_passes_over_damage_change_nothing(
    begun: Path, tmp_path: Path, what: str
) -> None:
    damaged = shutil.copytree(begun, tmp_path / "damaged")
    Learner(damaged, FaultyDisk(), LOG, 5).run(9)
    DAMAGED[what](damaged)
    probe = FaultyDisk()
    Learner(shutil.copytree(damaged, tmp_path / "probe"), probe, LOG, 6).run(1)
    for index in range(0, len(probe.calls), 5):
        root = shutil.copytree(damaged, tmp_path / f"{index}")
        for life in range(2):
            disk = FaultyDisk(at(index + life, Die("after")))
            live(root, disk, 6 + life)
            disk.lose_power(**LOSSES[index % len(LOSSES)])
        finish(root, LOG, whole_journal=False)


@pytest.mark.parametrize("every", [12, pytest.param(3, marks=pytest.mark.long)])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EROFS, errno.EACCES])
def test_a_disk_that_fails_at_any_call_stops_the_owner_or_one_checkpoint_and_nothing_is_lost(
    begun: Path, tmp_path: Path, code: int, every: int
) -> None:
    probe = FaultyDisk()
    Learner(shutil.copytree(begun, tmp_path / "probe"), probe, LOG, 2).run(6)
    outcomes: Counter[str] = Counter()
    for index in of_each_kind(probe.calls, code % 3, every):
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
        for call in disk.failed:
            later = {made.op for made in disk.calls[call.index + 1 :] if made.path == call.path}
            assert call.op != "fsync" or "fsync" not in later
            if call.path.parent.name == "journal" and call.op in ("write", "fsync"):
                assert "write" not in later
        finish(root, LOG)
    wanted = ("failed checkpoint", "StoreFailed True", "JournalFailed True")
    assert min(outcomes[kind] for kind in wanted) > 0, outcomes


def test_a_disk_that_is_really_full_stops_and_with_more_room_goes_on_where_it_was(
    small_disk: Path,
) -> None:
    root, log = small_disk / "store", Log.invented(5000, 4000)
    hours = count(int(NOW), 3600)  # at each reading an hour later: the trash is emptied
    # It goes on without checkpoints until there is no room for the journal.
    with pytest.raises(JournalFailed, match="ENOSPC"):
        Learner(root, Boastful(), log, 3, clock=lambda: next(hours)).run()
    subprocess.run(["mount", "-o", "remount,size=64m", str(small_disk)], check=True)
    finish(root, log, clock=lambda: next(hours))


def test_every_name_of_a_whole_life_is_given_after_the_fsync_of_its_bytes_and_made_durable(
    begun: Path, tmp_path: Path
) -> None:
    disk = FaultyDisk()
    Learner(shutil.copytree(begun, tmp_path / "store"), disk, LOG, 2).run(12)
    renamed = [(call.path, call.target) for call in disk.calls if call.op == "rename"]
    durable = ("epoch", "journal", "blobs")
    for call in disk.calls:
        if call.op == "link" or (call.op == "rename" and call.path.name.endswith(".tmp")):
            written = next((made for made, name in renamed if name == call.path), call.path)
            assert ("fsync", written) in [(made.op, made.path) for made in disk.calls[: call.index]]
        is_new = call.op in ("create", "mkdir") and call.path.parent.name in durable
        if call.op in ("link", "rename") or is_new:
            folder = (call.target or call.path).parent
            later = [(made.op, made.path) for made in disk.calls[call.index :]]
            assert ("fsync_folder", folder) in later, call


def life(
    root: Path,
    seed: int,
    num_polls: int,
    plan: RecoveryPlan | None = None,
    disk: FaultyDisk | None = None,
) -> Learner:
    disk = disk or FaultyDisk()
    learner = Learner(root, disk, LOG, seed, recovery_plan=pending(plan), keep=50)
    learner.run(num_polls)
    return learner


def acquired(learner: Learner) -> RecoveryPoint:
    assert learner.acquired is not None
    return learner.acquired


def pending(plan: RecoveryPlan | None) -> Callable[[Version | None], RecoveryPlan | None]:
    """A command is taken by the first start that finds it; commands are numbered."""

    def ask(newest: Version | None) -> RecoveryPlan | None:
        taken = newest.run_state.commands_taken if newest else 0
        return plan if plan is not None and (plan.commands_taken or 0) > taken else None

    return ask


def test_a_restore_as_it_was_comes_back_to_the_same_states_and_goes_on_from_the_end(
    tmp_path: Path,
) -> None:
    before = life(tmp_path, 1, 40)
    back = Store(tmp_path).versions()[3]
    replay = Replay(mode="as-it-was", until={TOPIC: dict(before.state.next)}, command=1)
    plan = RecoveryPlan(kind="restore", version=back.name, commands_taken=1)
    after = life(tmp_path, 2, 3, replace(plan, replay=replay))
    point = acquired(after)
    assert resumed(point).name == back.name
    assert point.resumed_by is not None
    assert len(point.tail) == before.state.step - back.step > 5
    assert after.state.history[: before.state.step] == before.state.history
    restored = Store(tmp_path).read_manifest(before.saved[-1].seq + 1)
    assert (restored.kind, restored.parent) == ("restore", back.name)
    assert (restored.run_state.commands_taken, restored.run_state.replay) == (1, replay)
    assert restored.run_state.superseded == ((back.seq + 1, restored.seq),)
    again = life(tmp_path, 3, 3, plan)
    assert acquired(again).resumed_by is None  # once
    assert acquired(again).run_state.commands_taken == 1
    assert acquired(again).run_state.superseded == restored.run_state.superseded
    lineage = [version.name for version in Store(tmp_path).lineage(again.saved[-1].name)]
    assert before.saved[-1].name not in lineage
    finish(tmp_path, LOG)


def test_a_restore_anew_ends_the_timeline_at_the_versions_cut_and_each_record_counts_once_again(
    tmp_path: Path,
) -> None:
    before = life(tmp_path, 1, 40)
    back = Store(tmp_path).versions()[3]
    exclusions = Exclusions(sha256="e" * 64, num=3, command=1)
    plan = RecoveryPlan(kind="restore", version=back.name, as_it_was=False, commands_taken=1)
    after = life(tmp_path, 7, 10, replace(plan, exclusions=exclusions))
    assert acquired(after).tail == []
    assert back.journal is not None
    assert acquired(after).run_state.timeline[-2].end == back.journal.byte
    history = after.state.history
    assert history[: back.step] == before.state.history[: back.step]
    assert history[back.step :] != before.state.history[back.step : len(history)]
    finish(tmp_path, LOG)
    newest = Store(tmp_path).newest()
    assert newest is not None
    assert newest.run_state.exclusions == exclusions  # named for good


def test_what_a_restore_left_behind_is_never_fallen_back_to(tmp_path: Path) -> None:
    life(tmp_path, 1, 40)
    back, *behind = Store(tmp_path).versions()[3:]
    plan = RecoveryPlan(kind="restore", version=back.name, as_it_was=False, commands_taken=1)
    after = life(tmp_path, 7, 4, plan)
    for version in after.saved:
        flip(version.path / "state.json")
    again = acquired(life(tmp_path, 8, 4))
    assert resumed(again).name == back.name
    skipped = {each.name for each in again.skipped}
    assert skipped == {version.name for version in after.saved}
    assert len(again.tail) == after.state.step - back.step
    assert len(behind) > 3
    finish(tmp_path, LOG)


def test_a_reset_keeps_the_state_moves_the_offsets_and_stands_in_every_later_manifest(
    tmp_path: Path,
) -> None:
    before = life(tmp_path, 1, 30)
    at_partition_0, at_partition_1 = before.state.next[0], before.state.next[1]
    plan = RecoveryPlan(kind="reset", offsets=Offsets({(TOPIC, 0): 5}), commands_taken=1)
    after = life(tmp_path, 2, 2, plan)
    assert acquired(after).next_offsets == {(TOPIC, 0): 5, (TOPIC, 1): at_partition_1}
    assert acquired(after).tail == []
    assert after.state.history[: before.state.step] == before.state.history
    for version in [*after.saved, *life(tmp_path, 3, 2).saved]:
        (reset,) = version.run_state.resets
        assert (reset.command, reset.step) == (1, before.state.step)
        assert reset.offsets == {TOPIC: {0: (at_partition_0, 5)}}
    # Back beyond the reset: it is made again, in its place in the journal.
    for version in Store(tmp_path).versions()[-6:]:
        flip(version.path / "state.json")
    assert len(acquired(life(tmp_path, 4, 2)).resets) == 1
    finish(tmp_path, LOG)


def test_a_reset_that_crashed_before_anything_was_learned_is_found_by_the_next_start(
    tmp_path: Path,
) -> None:
    before = life(tmp_path, 1, 30)
    plan = RecoveryPlan(kind="reset", offsets=Offsets({(TOPIC, 1): 2}), commands_taken=1)
    for resumed_by in (plan, None):
        checkpointer = Checkpointer(tmp_path, FaultyDisk(), lambda: 0.0)
        point = start(checkpointer, tmp_path, FaultyDisk(), recovery_plan=pending(plan))
        assert point.next_offsets == {(TOPIC, 0): before.state.next[0], (TOPIC, 1): 2}
        assert (point.resumed_by, len(point.run_state.resets)) == (resumed_by, 1)


COMMANDS: dict[str, Callable[[str], RecoveryPlan]] = {
    "as it was": lambda back: RecoveryPlan(
        kind="restore", version=back, commands_taken=1, quarantine=((12, 14),)
    ),
    "anew": lambda back: RecoveryPlan(
        kind="restore", version=back, as_it_was=False, commands_taken=1
    ),
    "reset": lambda back: RecoveryPlan(
        kind="reset", offsets=Offsets({(TOPIC, 0): 3}), commands_taken=1
    ),
}


@pytest.mark.parametrize("kind", COMMANDS)
def test_a_command_is_taken_once_whatever_crashes(tmp_path: Path, kind: str) -> None:
    base = tmp_path / "base"
    life(base, 1, 30)
    plan = COMMANDS[kind](Store(base).versions()[2].name)
    probe = FaultyDisk()
    life(shutil.copytree(base, tmp_path / "probe"), 2, 4, plan, probe)
    for index in range(0, len(probe.calls), 7):
        root = shutil.copytree(base, tmp_path / f"{index}")
        for again in range(2):
            disk = FaultyDisk(at(index + again * 11, Die("after")))
            with contextlib.suppress(Crash):
                life(root, 2 + again, 4, plan, disk)
            disk.lose_power(**LOSSES[index % len(LOSSES)])
        life(root, 5, 1_000_000, plan)
        check(root, LOG)
        newest = Store(root).newest()
        assert newest is not None
        assert newest.run_state.commands_taken == 1
        assert len(newest.run_state.resets) == (kind == "reset")
        assert newest.run_state.quarantine == plan.quarantine


def test_other_ranks_do_not_replay_what_these_journaled_and_it_is_not_bit_exact_any_more(
    tmp_path: Path,
) -> None:
    before = life(tmp_path, 1, 10)
    disk = FaultyDisk(on("link", 1, Die()))
    with pytest.raises(Crash):
        life(tmp_path, 2, 10, None, disk)
    assert Store(tmp_path).versions()[-1].name == before.saved[-1].name
    found = looked_at(tmp_path)
    assert (len(found.tail) > 0, found.run_state.bit_exact) == (True, True)
    checkpointer = Checkpointer(tmp_path, FaultyDisk(), lambda: 0.0)
    point = start(checkpointer, tmp_path, FaultyDisk(), world_size=2)
    assert point.tail == []
    assert (point.run_state.world_size, point.run_state.bit_exact) == (2, False)
    assert point.next_offsets == {(TOPIC, p): before.state.next[p] for p in (0, 1)}
    finish(tmp_path, LOG)


def test_another_environment_is_not_bit_exact_but_replays(tmp_path: Path) -> None:
    life(tmp_path, 1, 10)
    with pytest.raises(Crash):
        life(tmp_path, 2, 10, None, FaultyDisk(on("link", 1, Die())))
    found = looked_at(tmp_path, initial=cut(0, fingerprint={"torch": "9"}))
    assert (len(found.tail) > 0, found.run_state.bit_exact) == (True, False)
    dropped = looked_at(tmp_path, keep_tail=False)
    assert (dropped.tail, len(dropped.run_state.timeline)) == ([], 1)
