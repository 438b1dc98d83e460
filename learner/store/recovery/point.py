"""Recovery point: state, journal tail and run state that a start resumes from."""

from __future__ import annotations

from dataclasses import dataclass

from learner.artifact import Version
from learner.store.journal.records import JournalPosition, JournalRecord, segment_name
from learner.store.manifest import CheckpointMetadata, Reset, ResumePoint, RunState
from learner.store.recovery.plan import RecoveryPlan
from weighting.provenance import Offsets


@dataclass(frozen=True, slots=True, kw_only=True)
class Skipped:
    """A damaged checkpoint or journal segment that was passed over.

    It stays where it is, and ``quarantine/`` keeps a link to it.

    Attributes:
        name: of the version or segment.
        reason: expected and found.
        path: of the damaged file, below the root.
    """

    name: str
    reason: str
    path: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RecoveryPoint:
    """State and journal position that a start resumes from.

    Attributes:
        newest: manifest of any kind that gives the timeline; None in a new store.
        version: whose state to take; None: the state before the first checkpoint.
        skipped: damaged and newer than the state, newest first.
        tail: journal records to be done again, with the place behind each.
        metadata: of the state; offsets that a reset moved are moved.
        journal: where the tail begins, and how many polls of its first record the state contains.
        resets: offsets to move during the tail, or behind it if it ends before.
        run_state: with the timeline closed.
        resumed_by: the plan that was carried out.
        next_seq: number of the next manifest.
        fencing_token: of the owner; 0 if the store was only looked at.
    """

    newest: Version | None
    version: Version | None
    skipped: tuple[Skipped, ...]
    tail: list[tuple[JournalPosition, JournalRecord]]
    metadata: CheckpointMetadata
    journal: ResumePoint
    resets: tuple[Reset, ...]
    run_state: RunState
    resumed_by: RecoveryPlan | None
    next_seq: int
    fencing_token: int

    @property
    def next_offsets(self) -> Offsets:
        """The first offsets that the state does not contain."""
        return self.metadata.next_offsets


def begin(
    plan: RecoveryPlan | None,
    *,
    initial: CheckpointMetadata,
    world_size: int,
    fencing_token: int,
) -> RecoveryPoint:
    """Return the recovery point of a new store."""
    taken = (plan and plan.commands_taken) or 0
    return RecoveryPoint(
        newest=None,
        version=None,
        skipped=(),
        tail=[],
        metadata=initial,
        journal=beginning(fencing_token),
        resets=(),
        run_state=RunState(world_size=world_size, commands_taken=taken),
        resumed_by=plan,
        next_seq=1,
        fencing_token=fencing_token,
    )


def beginning(fencing_token: int) -> ResumePoint:
    """Return the beginning of the owner's own journal."""
    return ResumePoint(segment=segment_name(fencing_token, 0), byte=0)
