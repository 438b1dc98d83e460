"""Choice of state and timeline for a start, by manifests and plan.

Pure functions: nothing is read or written here, so a start can be tested as a table. The caller
reads manifests, verifies checkpoints and reads the journal in between. The steps are those of
RELIABILITY 5:

- A2 the next number is above every commit mark, readable or not;
- A3 the timeline is that of the newest readable manifest;
- A4 the state is the newest checkpoint on the chain of which every file has its digest;
- A5 the timeline is closed at the last whole journal record.

The chain of a manifest is its ancestors: every older checkpoint that is not in its
`superseded`. A start that passes over a newer checkpoint, or goes back by command, supersedes what
lies between. A fence without a parent is the origin: it stands for the state before the first
checkpoint, so that even with all of them damaged the journal gives everything again, as long as it
reaches back that far.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import msgspec

from learner.artifact import Version
from learner.errors import Corrupt
from learner.store import manifest, manifest_codec
from learner.store.journal.records import FOLDER as JOURNAL
from learner.store.journal.records import JournalPosition, JournalRange, Step, truncate
from learner.store.journal.tail import Damage, Tail
from learner.store.manifest import CHECKPOINT, CheckpointMetadata, Reset, ResumePoint, RunState
from learner.store.recovery.plan import RecoveryPlan, moved
from learner.store.recovery.point import RecoveryPoint, Skipped, beginning


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifests:
    """The manifests of a store, as a start reads them.

    Attributes:
        seqs: numbers of all commit marks, readable or not, in order.
        readable: whole manifests of any kind, newest first.
        damaged: the others, newest first.
    """

    seqs: tuple[int, ...]
    readable: tuple[Version, ...]
    damaged: tuple[Skipped, ...] = ()

    @property
    def next_seq(self) -> int:
        """The number of the next manifest (A2)."""
        return max(self.seqs, default=0) + 1

    @property
    def newest(self) -> Version | None:
        """The newest readable manifest (A3); None in a new store."""
        return self.readable[0] if self.readable else None

    def chain(self, target: Version | None) -> list[Version]:
        """Return the readable ancestors of `target`, itself included."""
        if target is None:
            return []
        older = [found for found in self.readable if found.seq <= target.seq]
        return [found for found in older if not target.run_state.leaves_out(found.seq)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """State and timeline of a start, before the journal is read (A4).

    Attributes:
        manifests: that the choice was made from.
        newest: manifest that gives the timeline.
        state: checkpoint whose state is taken, or the origin.
        plan: that the start carries out.
        skipped: damaged and newer than the state, newest first.
        timeline: to be closed at the last whole record.
        resume: position of the state in the journal; None: nothing was journaled then.
        run_state: of the newest manifest, or of the version that is restored.
    """

    manifests: Manifests
    newest: Version
    state: Version
    plan: RecoveryPlan | None
    skipped: tuple[Skipped, ...]
    timeline: tuple[JournalRange, ...]
    resume: ResumePoint | None
    run_state: RunState

    @property
    def tail_start(self) -> JournalPosition | None:
        """Place to read the journal from; None where the timeline lacks it."""
        place = self.resume.place if self.resume else None
        if place is None or not any(span.holds(place) for span in self.timeline):
            return None
        return place


def choose(
    manifests: Manifests,
    damaged: Sequence[Skipped],
    *,
    plan: RecoveryPlan | None,
    target: Version | None,
) -> Choice:
    """Choose the state and its timeline (A3, A4).

    Args:
        manifests: of a store that is not new.
        damaged: checkpoints on the chain of `target` that failed verification.
        plan: to be carried out.
        target: the version that the plan names, or the newest manifest.

    Raises:
        Corrupt: no state is left, not even the origin.
    """
    state = _state(manifests.chain(target), {each.name for each in damaged})  # A4
    skipped = _passed_over(manifests.damaged, damaged, state)
    newest = manifests.newest
    if newest is None or target is None or state is None:
        raise _no_state_left(skipped)
    resume = newest.journal if _stands_on(newest, state) else state.journal
    timeline, run_state = newest.timeline, newest.run_state  # A3
    if plan is not None and plan.ends_timeline:
        end = target.journal if plan.version and target.seq != state.seq else resume
        timeline = truncate(timeline, end.place) if end else ()
        if plan.kind == "restore":
            run_state = _restored(target, newest, plan)
    return Choice(
        manifests=manifests,
        newest=newest,
        state=state,
        plan=plan,
        skipped=skipped,
        timeline=timeline,
        resume=resume,
        run_state=run_state,
    )


def recover(
    choice: Choice,
    tail: Tail | None,
    *,
    initial: CheckpointMetadata,
    world_size: int,
    fencing_token: int,
) -> RecoveryPoint:
    """Return the recovery point of a choice (A5).

    Args:
        choice: state and timeline.
        tail: of the timeline, from `Choice.tail_start` on; None for none.
        initial: fingerprint and settings of now.
        world_size: ranks; a tail of another number of them is not replayed.
        fencing_token: of the owner; 0 to look only.
    """
    tail = _replayable(choice, tail, world_size)  # A5
    metadata = manifest_codec.metadata(choice.state.manifest)
    last_step = max([choice.state.step, *(record.step for _, record in tail.records)])
    run_state = _closed(choice, tail, last_step)
    run_state = _in_environment(run_state, metadata, initial, choice.newest, world_size)
    pending = [each for each in run_state.resets if each not in choice.state.run_state.resets]
    journal = choice.resume or beginning(fencing_token)
    due = _due(pending, tail, (choice.state.step, sum(journal.skip)))
    for reset in due:
        metadata = moved(metadata, reset)
    if choice.plan is not None:
        run_state, metadata = choice.plan.carry_out(run_state, metadata, journal.skip)
    return RecoveryPoint(
        newest=choice.newest,
        version=choice.state if choice.state.kind == CHECKPOINT else None,
        skipped=(*choice.skipped, *_damaged_segments(tail.damage)),
        tail=tail.records,
        metadata=metadata,
        journal=journal,
        resets=tuple(reset for reset in pending if reset not in due),
        run_state=_quarantined_up_to(run_state, last_step),
        resumed_by=choice.plan,
        next_seq=choice.manifests.next_seq,
        fencing_token=fencing_token,
    )


def needed(timeline: Sequence[JournalRange], kept: Sequence[Version]) -> tuple[JournalRange, ...]:
    """Return the part of a timeline that one of `kept` resumes in."""
    places = [found.journal.place for found in kept if found.journal is not None]
    for index, span in enumerate(timeline):
        if any(span.holds(place) for place in places):
            return tuple(timeline[index:])
    return tuple(timeline)


def _state(chain: Sequence[Version], damaged: Collection[str]) -> Version | None:
    """Return the newest whole checkpoint of a chain, else its origin (A4)."""
    for found in chain:
        if found.kind == CHECKPOINT and found.name not in damaged:
            return found
    for found in chain:
        if found.kind != CHECKPOINT and found.parent is None:
            return found
    return None


def _no_state_left(skipped: Sequence[Skipped]) -> Corrupt:
    reasons = "; ".join(each.reason for each in skipped)
    found = f"{len(skipped)} damaged ones: {reasons}"
    return Corrupt("man", expected="one wholly valid checkpoint", found=found)


def _passed_over(
    manifests: Sequence[Skipped], checkpoints: Sequence[Skipped], state: Version | None
) -> tuple[Skipped, ...]:
    """Return what is damaged and newer than the state, newest first."""

    def seq(each: Skipped) -> int:
        return manifest.version_seq(each.name) or 0

    newer = [each for each in manifests if state is None or seq(each) > state.seq]
    return tuple(sorted((*newer, *checkpoints), key=seq, reverse=True))


def _stands_on(newest: Version, state: Version) -> bool:
    """Return whether the newest manifest is a fence, restore or reset on this state."""
    if newest.kind == CHECKPOINT:
        return False
    return newest.parent == (state.name if state.kind == CHECKPOINT else None)


def _restored(target: Version, newest: Version, plan: RecoveryPlan) -> RunState:
    """Return the run state of a restored version.

    Of what came behind it, only what operators decided holds.
    """
    holds = target.run_state if plan.undo else newest.run_state
    return msgspec.structs.replace(
        target.run_state,
        commands_taken=newest.run_state.commands_taken,
        exclusions=holds.exclusions,
    )


def _replayable(choice: Choice, tail: Tail | None, world_size: int) -> Tail:
    """Return the tail, or none of it where other ranks journaled it.

    Without a tail the timeline begins anew at the position of the state.
    """
    if tail is not None:
        steps = [record for _, record in tail.records if isinstance(record, Step)]
        if all(len(step.parts) == world_size for step in steps):
            return tail
    timeline: tuple[JournalRange, ...] = ()
    if choice.resume is not None:
        segment, byte = choice.resume.segment, choice.resume.byte
        timeline = (JournalRange(segment, byte, byte),)
    return Tail(records=[], timeline=timeline, damage=None)


def _damaged_segments(damage: Damage | None) -> list[Skipped]:
    if damage is None:
        return []
    segment = damage.place.segment
    reason = f"@{damage.place.byte}: {damage.reason}"
    return [Skipped(name=segment, reason=reason, path=f"{JOURNAL}/{segment}")]


def _closed(choice: Choice, tail: Tail, last_step: int) -> RunState:
    """Return the run state with the timeline closed."""
    before, found = choice.run_state, choice.manifests
    return msgspec.structs.replace(
        before,
        timeline=needed(tail.timeline, found.readable),
        resets=tuple(reset for reset in before.resets if reset.step <= last_step),
        superseded=_superseded(choice.state, found),
    )


def _superseded(state: Version, manifests: Manifests) -> tuple[tuple[int, int], ...]:
    """Return what the next manifest's chain leaves out.

    That is what the state's leaves out, and what lies between the two. Fences alone between the two
    are no other history.
    """
    fences = {found.seq for found in manifests.readable if found.kind != CHECKPOINT}
    passed = any(seq > state.seq and seq not in fences for seq in manifests.seqs)
    oldest = min(manifests.seqs)
    before = [span for span in state.run_state.superseded if span[1] > oldest]
    return (*before, (state.seq + 1, manifests.next_seq)) if passed else tuple(before)


def _in_environment(
    run_state: RunState,
    metadata: CheckpointMetadata,
    initial: CheckpointMetadata,
    newest: Version,
    world_size: int,
) -> RunState:
    """Return the run state under the present fingerprint and world size."""
    same = newest.run_state.world_size == world_size
    same = same and metadata.fingerprint == initial.fingerprint
    return msgspec.structs.replace(
        run_state, bit_exact=run_state.bit_exact and same, world_size=world_size
    )


def _due(pending: Sequence[Reset], tail: Tail, place: tuple[int, int]) -> list[Reset]:
    """Return the resets that take effect before the tail.

    Args:
        pending: resets that the state does not contain.
        tail: to be replayed.
        place: the state's step, and polls of the next one that it contains.
    """
    if not tail.records:
        return list(pending)
    return [reset for reset in pending if (reset.step, sum(reset.skip)) <= place]


def _quarantined_up_to(run_state: RunState, last_step: int) -> RunState:
    """Return the run state with quarantine up to the last step."""
    within = [span for span in run_state.quarantine if span[0] <= last_step]
    quarantine = tuple((first, min(end, last_step + 1)) for first, end in within)
    return msgspec.structs.replace(run_state, quarantine=quarantine)
