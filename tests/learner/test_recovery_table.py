"""Recovery as a table: manifests, what is damaged and the plan -> where a start goes on.

A history is written as text: `F1 C2 C3 R4<2` is a fence, two checkpoints, and a restore of the
first of them; `Z` is a reset, `?` a manifest that is not whole. Numbers are those of the manifests.
Checkpoint n comes after step n, which ends at byte 10 n of the only journal segment, and its next
offset is 10 n; so a tail of steps 3 to 5 continues checkpoint 2.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import pytest

from learner.artifact import Store, Version
from learner.errors import Corrupt, FormatUnknown
from learner.store import manifest, manifest_codec
from learner.store.journal.records import JournalPosition, JournalRange, Part, Step
from learner.store.journal.tail import Damage, Tail
from learner.store.manifest import (
    Exclusions,
    Manifest,
    Parent,
    Replay,
    Reset,
    ResumePoint,
    RunState,
)
from learner.store.recovery import evidence
from learner.store.recovery.decision import Choice, Manifests, choose, recover
from learner.store.recovery.plan import RecoveryPlan
from learner.store.recovery.point import RecoveryPoint, Skipped, begin
from tests.learner.saving import cut, rewrite, saved
from weighting.provenance import Offsets

SEGMENT, CLICKS = "000001-0000", ("clicks", 0)
KINDS = {"F": "fence", "C": "checkpoint", "R": "restore", "Z": "reset"}
MOVED = Reset(command=1, step=3, offsets={"clicks": {0: (30, 7)}})
MOVED_BELOW = Reset(command=1, step=2, offsets={"clicks": {0: (20, 7)}})
EXCLUSIONS = [Exclusions(sha256=digit * 64, num=1, command=1) for digit in "ab"]
OTHER_SETTINGS: dict[str, Any] = {"fingerprint": {"torch": "9"}}


def described(kind: str, seq: int, state: int, parent: Version | None, held: RunState) -> Version:
    """Return a manifest as a store would describe it; `state` is the last step that it contains."""
    metadata = cut(
        state,
        offsets={"clicks": {0: 10 * state}},
        journal=ResumePoint(segment=SEGMENT, byte=10 * state),
    )
    whole = Manifest(
        format=manifest.FORMAT,
        kind=kind,
        version=manifest.version_name(seq),
        epoch=1,
        seq=seq,
        parent=Parent(version=parent.name, digest="0" * 64) if parent else None,
        created_us=0,
        files={},
        run_state=held,
        **msgspec.structs.asdict(metadata),
    )
    return Store(Path("/nowhere")).describe(
        *manifest_codec.decode(manifest_codec.encode(whole), where="man")
    )


def history(text: str, **held: Any) -> Manifests:
    """Return the manifests of a history; `held` changes the run state from the newest one on."""
    found: dict[int, Version] = {}
    seqs, damaged, parent = [], [], None
    run_state = RunState(timeline=(JournalRange(SEGMENT, 0, None),))
    entries = re.findall(r"([FCRZ?])(\d+)(?:<(\d+))?", text)
    for index, (letter, number, back) in enumerate(entries):
        seq = int(number)
        seqs.append(seq)
        if letter == "?":
            damaged.append(skipped(seq))
            continue
        if letter == "R":
            parent = found[int(back)]
            run_state = changed(run_state, superseded=((parent.seq + 1, seq),))
        if letter == "Z":
            run_state = changed(run_state, resets=(MOVED,))
        if index == len(entries) - 1:
            run_state = changed(run_state, **held)
        state = seq if letter == "C" else parent.seq if parent else 0
        found[seq] = described(KINDS[letter], seq, state, parent, run_state)
        if letter == "C":
            parent = found[seq]
    newest_first = tuple(reversed(found.values()))
    return Manifests(seqs=tuple(seqs), readable=newest_first, damaged=tuple(reversed(damaged)))


def changed(run_state: RunState, **changes: Any) -> RunState:
    return msgspec.structs.replace(run_state, **changes)


def skipped(seq: int) -> Skipped:
    return Skipped(name=manifest.version_name(seq), reason="damaged", path=f"man/M-{seq:08d}")


def journaled(choice: Choice, last: int) -> Tail | None:
    """Return the tail as the journal would, of which step `last` is the newest."""
    start = choice.tail_start
    if start is None:
        return None
    (span,) = choice.timeline
    end = 10 * last if span.end is None else min(span.end, 10 * last)
    steps = range(start.byte // 10 + 1, end // 10 + 1)
    records = [(JournalPosition(SEGMENT, 10 * n), Step(n, (Part((), "full"),))) for n in steps]
    closed = JournalRange(SEGMENT, 0, max(start.byte, end))
    return Tail(records=list(records), timeline=(closed,), damage=None)


@dataclass(frozen=True, kw_only=True)
class Row:
    """A start: what it finds, and where it must go on.

    Attributes:
        manifests: the history.
        damaged: checkpoints whose files are.
        plan: that it carries out.
        last: newest step in the journal.
        world_size: of the start.
        keep_tail: of the start.
        initial: metadata that differs now.
        state: number of the checkpoint whose state is taken; 0 for the origin.
        skipped: numbers that are reported as passed over.
        superseded: of the next manifest.
        tail: steps that are done again.
        offset: next offset of the state.
        then: number of the next manifest.
        holds: other fields of the run state.
    """

    manifests: str
    damaged: tuple[int, ...] = ()
    plan: RecoveryPlan | None = None
    last: int = 5
    world_size: int = 1
    keep_tail: bool = True
    initial: dict[str, Any] = field(default_factory=dict)
    state: int
    skipped: tuple[int, ...] = ()
    superseded: tuple[tuple[int, int], ...] = ()
    tail: tuple[int, ...] = ()
    offset: int
    then: int
    holds: dict[str, Any] = field(default_factory=dict)


def restore(version: str, **fields: Any) -> RecoveryPlan:
    return RecoveryPlan(kind="restore", version=version, commands_taken=1, **fields)


RESET = RecoveryPlan(kind="reset", offsets=Offsets({CLICKS: 7}), commands_taken=1)
REPLAY = Replay(mode="anew", until={}, command=1)

# fmt: off
TABLE = {
    "plain resume": Row(
        manifests="F1 C2 C3", state=3, tail=(4, 5), offset=30, then=4),
    "nothing journaled behind the state": Row(
        manifests="F1 C2 C3", last=3, state=3, offset=30, then=4),
    "origin only": Row(
        manifests="F1", state=0, tail=(1, 2, 3, 4, 5), offset=0, then=2),
    "fence newest": Row(
        manifests="F1 C2 F3 F4", state=2, tail=(3, 4, 5), offset=20, then=5),
    "oldest manifests retired": Row(
        manifests="C7 C8", last=9, state=8, tail=(9,), offset=80, then=9),

    "damaged newest": Row(
        manifests="F1 C2 C3", damaged=(3,),
        state=2, skipped=(3,), superseded=((3, 4),), tail=(3, 4, 5), offset=20, then=4),
    "two damaged": Row(
        manifests="F1 C2 C3 C4", damaged=(4, 3),
        state=2, skipped=(4, 3), superseded=((3, 5),), tail=(3, 4, 5), offset=20, then=5),
    "all damaged: back to the origin": Row(
        manifests="F1 C2 C3", damaged=(3, 2),
        state=0, skipped=(3, 2), superseded=((2, 4),), tail=(1, 2, 3, 4, 5), offset=0, then=4),
    "damaged below a fence": Row(
        manifests="F1 C2 C3 F4", damaged=(3,),
        state=2, skipped=(3,), superseded=((3, 5),), tail=(3, 4, 5), offset=20, then=5),
    "manifest not whole": Row(
        manifests="F1 C2 ?3",
        state=2, skipped=(3,), superseded=((3, 4),), tail=(3, 4, 5), offset=20, then=4),
    "manifest not whole, and the checkpoint before": Row(
        manifests="F1 C2 C3 ?4", damaged=(3,),
        state=2, skipped=(4, 3), superseded=((3, 5),), tail=(3, 4, 5), offset=20, then=5),
    "old manifest not whole": Row(
        manifests="F1 ?2 C3", state=3, tail=(4, 5), offset=30, then=4),

    "restore as it was": Row(
        manifests="F1 C2 C3 C4", plan=restore("v000002"),
        state=2, superseded=((3, 5),), tail=(3, 4, 5), offset=20, then=5),
    "restore anew": Row(
        manifests="F1 C2 C3 C4", plan=restore("v000002", as_it_was=False, replay=REPLAY),
        state=2, superseded=((3, 5),), offset=20, then=5, holds={"replay": REPLAY}),
    "restore anew, the version is damaged": Row(
        manifests="F1 C2 C3 C4", damaged=(3,), plan=restore("v000003", as_it_was=False),
        state=2, skipped=(3,), superseded=((3, 5),), tail=(3,), offset=20, then=5),
    "restore leaves steps out": Row(
        manifests="F1 C2 C3", plan=restore("v000002", quarantine=((4, 9),)),
        state=2, superseded=((3, 4),), tail=(3, 4, 5), offset=20, then=4,
        holds={"quarantine": ((4, 6),), "commands_taken": 1}),
    "restore gone on from": Row(
        manifests="F1 C2 C3 R4<2",
        state=2, superseded=((3, 5),), tail=(3, 4, 5), offset=20, then=5),
    "superseded chain": Row(
        manifests="F1 C2 C3 R4<2 C5", damaged=(5,),
        state=2, skipped=(5,), superseded=((3, 6),), tail=(3, 4, 5), offset=20, then=6),
    "superseded chain, nothing damaged": Row(
        manifests="F1 C2 C3 R4<2 C5", last=6,
        state=5, superseded=((3, 4),), tail=(6,), offset=50, then=6),

    "reset": Row(
        manifests="F1 C2 C3", plan=RESET, state=3, offset=7, then=4, holds={"resets": (MOVED,)}),
    "reset with damaged": Row(
        manifests="F1 C2 C3", damaged=(3,), plan=RESET,
        state=2, skipped=(3,), superseded=((3, 4),), offset=7, then=4,
        holds={"resets": (MOVED_BELOW,)}),
    "reset gone on from": Row(
        manifests="F1 C2 C3 Z4", last=3, state=3, offset=7, then=5, holds={"resets": (MOVED,)}),

    "world size changed": Row(
        manifests="F1 C2 C3", world_size=2, state=3, offset=30, then=4,
        holds={"bit_exact": False, "world_size": 2}),
    "fingerprint changed": Row(
        manifests="F1 C2 C3", initial=OTHER_SETTINGS, state=3, tail=(4, 5), offset=30, then=4,
        holds={"bit_exact": False}),
    "keep_tail False": Row(
        manifests="F1 C2 C3", keep_tail=False, state=3, offset=30, then=4,
        holds={"timeline": (JournalRange(SEGMENT, 30, 30),)}),
}
# fmt: on


def start(
    found: Manifests, plan: RecoveryPlan | None = None, damaged: tuple[int, ...] = (), last: int = 5
) -> tuple[Choice, Tail | None]:
    """Choose the state of a start, and read the journal behind it."""
    named = {version.name: version for version in found.readable}
    target = named[plan.version] if plan and plan.version else found.newest
    choice = choose(found, [skipped(n) for n in damaged], plan=plan, target=target)
    return choice, journaled(choice, last)


def recovered(row: Row) -> RecoveryPoint:
    choice, tail = start(history(row.manifests), row.plan, row.damaged, row.last)
    return recover(
        choice,
        tail if row.keep_tail else None,
        initial=cut(0, **row.initial),
        world_size=row.world_size,
        fencing_token=2,
    )


@pytest.mark.parametrize("row", TABLE.values(), ids=TABLE)
def test_a_start_goes_on_where_the_table_says(row: Row) -> None:
    point = recovered(row)
    found = (
        point.version.seq if point.version else 0,
        tuple(manifest.version_seq(each.name) for each in point.skipped),
        point.run_state.superseded,
        tuple(record.step for _, record in point.tail),
        point.next_offsets[CLICKS],
        point.next_seq,
    )
    assert found == (row.state, row.skipped, row.superseded, row.tail, row.offset, row.then)
    assert point.resumed_by == row.plan
    held = {name: getattr(point.run_state, name) for name in row.holds}
    assert held == row.holds


@pytest.mark.parametrize("row", TABLE.values(), ids=TABLE)
def test_the_timeline_is_closed_and_holds_the_place_where_the_tail_begins(row: Row) -> None:
    point = recovered(row)
    (span,) = point.run_state.timeline
    assert span.end is not None
    assert span.holds(point.journal.place)


def test_a_new_store_begins_at_the_beginning_of_its_first_owners_journal() -> None:
    point = begin(None, initial=cut(0), world_size=2, fencing_token=1)
    assert (point.newest, point.version, point.tail, point.next_seq) == (None, None, [], 1)
    assert point.journal == ResumePoint(segment=SEGMENT, byte=0)
    assert point.run_state == RunState(world_size=2)


@pytest.mark.parametrize(
    ("text", "damaged"), [("?1 C2 C3", (3, 2)), ("?1 ?2", ()), ("C2 C3", (3, 2))]
)
def test_without_a_whole_checkpoint_and_an_origin_a_start_is_refused(
    text: str, damaged: tuple[int, ...]
) -> None:
    with pytest.raises(Corrupt, match=r"man: expected one wholly valid checkpoint"):
        start(history(text), damaged=damaged)


def test_a_manifest_of_an_unknown_format_is_never_passed_over(tmp_path: Path) -> None:
    rewrite(tmp_path, saved(tmp_path, 1, 2)[-1], format=3)
    with pytest.raises(FormatUnknown, match="format"):
        evidence.read_manifests(Store(tmp_path))


@pytest.mark.parametrize(("undo", "kept"), [(False, EXCLUSIONS[1]), (True, None)])
def test_a_restore_keeps_exclusions_and_its_undoing_takes_those_of_the_version(
    undo: bool, kept: Exclusions | None
) -> None:
    found = history("F1 C2 C3", exclusions=EXCLUSIONS[1], commands_taken=4)
    plan = RecoveryPlan(kind="restore", version="v000002", as_it_was=False, undo=undo)
    choice, tail = start(found, plan)
    point = recover(choice, tail, initial=cut(0), world_size=1, fencing_token=2)
    assert point.run_state.exclusions == kept
    assert point.run_state.commands_taken == 4


def test_a_reset_inside_the_tail_is_left_to_be_made_in_its_place() -> None:
    choice, tail = start(history("F1 C2 C3 Z4"), damaged=(3,))
    point = recover(choice, tail, initial=cut(0), world_size=1, fencing_token=2)
    assert (point.resets, point.next_offsets[CLICKS]) == ((MOVED,), 20)


def test_a_damaged_segment_ends_the_tail_and_is_reported() -> None:
    choice, tail = start(history("F1 C2"), last=3)
    assert tail is not None
    tail = Tail(
        records=tail.records,
        timeline=tail.timeline,
        damage=Damage(place=JournalPosition(SEGMENT, 30), reason="a frame that is not whole"),
    )
    point = recover(choice, tail, initial=cut(0), world_size=1, fencing_token=2)
    (found,) = point.skipped
    assert (found.name, found.path) == (SEGMENT, f"journal/{SEGMENT}")
    assert found.reason == "@30: a frame that is not whole"
