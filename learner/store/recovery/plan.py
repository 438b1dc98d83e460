"""Recovery plan: changes of run state and offsets at a start."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import msgspec

from learner.store.manifest import CheckpointMetadata, Exclusions, Replay, Reset, RunState
from weighting.provenance import Gap, Offsets


@dataclass(frozen=True, slots=True, kw_only=True)
class RecoveryPlan:
    """Changes that a start makes.

    It is an operator's command, or the way back from a divergence.

    Attributes:
        kind: fence: go on, with these changes.
        version: whose state is taken; None for the newest.
        as_it_was: of a restore: replay the whole timeline, else it ends at the version.
        offsets: of a reset: next offsets in place of those of the state.
        commands_taken: the command that this is, if it is one.
        quarantine: steps ``[from, to)``, added to those of before.
        gaps: added to those of before.
        exclusions: None: as they were.
        undo: of a restore: exclusions are those of the version.
        replay: that the restore begins.
    """

    kind: Literal["fence", "restore", "reset"]
    version: str | None = None
    as_it_was: bool = True
    offsets: Offsets | None = None
    commands_taken: int | None = None
    quarantine: tuple[tuple[int, int], ...] = ()
    gaps: tuple[Gap, ...] = ()
    exclusions: Exclusions | None = None
    undo: bool = False
    replay: Replay | None = None

    @property
    def ends_timeline(self) -> bool:
        """True if journal records behind the state are not replayed."""
        return self.kind == "reset" or not self.as_it_was

    def carry_out(
        self, run_state: RunState, metadata: CheckpointMetadata, skip: tuple[int, ...]
    ) -> tuple[RunState, CheckpointMetadata]:
        """Return run state and metadata with the changes of this plan.

        Args:
            run_state: with the timeline closed.
            metadata: of the state.
            skip: by rank, how many polls of the next journal record the state contains.
        """
        changes: dict[str, Any] = {
            "quarantine": tuple(dict.fromkeys((*run_state.quarantine, *self.quarantine))),
            "gaps": tuple(dict.fromkeys((*run_state.gaps, *self.gaps))),
        }
        if self.commands_taken is not None:
            changes["commands_taken"] = self.commands_taken
        if self.exclusions is not None:
            changes["exclusions"] = self.exclusions
        if self.kind != "fence":
            changes["replay"] = self.replay
        if self.kind == "reset":
            reset = self._reset(metadata, skip)
            changes["resets"] = (*run_state.resets, reset)
            metadata = moved(metadata, reset)
        return msgspec.structs.replace(run_state, **changes), metadata

    def _reset(self, metadata: CheckpointMetadata, skip: tuple[int, ...]) -> Reset:
        """Return the offsets that this plan moves, before and after."""
        before = metadata.next_offsets
        parts: dict[str, dict[int, tuple[int, int]]] = {}
        for tp, offset in (self.offsets or Offsets()).items():
            topic, partition = tp
            parts.setdefault(topic, {})[partition] = (before.get(tp, offset), offset)
        command = self.commands_taken or 0
        return Reset(command=command, step=metadata.step, skip=skip, offsets=parts)


def moved(metadata: CheckpointMetadata, reset: Reset) -> CheckpointMetadata:
    """Return the metadata with the offsets of a reset."""
    offsets = metadata.next_offsets.moved(reset.moved_to)
    return msgspec.structs.replace(metadata, offsets=offsets.nested())
