"""Journaled steps after the checkpoint, to be done again before anything new.

The log must still give what the journal says of each step: otherwise other records would be trained
on under the same positions.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from learner.errors import LogRewritten
from learner.store.journal.records import JournalPosition, JournalRecord, Outcome, Part, Step
from weighting.sample import Batch, Signal


@dataclass(frozen=True, slots=True)
class _Journaled:
    """A step, its outcome, and the position behind both."""

    behind: JournalPosition
    step: Step
    outcome: Outcome | None


class Redo:
    """Queue of the journaled steps that are still to be done again."""

    def __init__(self, tail: Sequence[tuple[JournalPosition, JournalRecord]]) -> None:
        """Take journal records, each with the position behind it."""
        self._steps: deque[_Journaled] = deque()
        for behind, record in tail:
            if isinstance(record, Step):
                self._steps.append(_Journaled(behind, record, None))
            elif self._steps:
                last = self._steps.pop()
                self._steps.append(_Journaled(behind, last.step, record))

    @property
    def pending(self) -> bool:
        """Return whether steps are left."""
        return bool(self._steps)

    def pull(self, stream: Iterator[Batch | Signal], rank: int) -> Batch | Signal:
        """Wait for a rank's batch of the next step; IDLE if it had none."""
        if not self._steps[0].step.parts[rank].has_batch:
            return Signal.IDLE
        for item in stream:
            if item is not Signal.IDLE:
                return item
        return Signal.ENDED

    def confirm(self, step: Step) -> tuple[JournalPosition, Outcome | None]:
        """Remove the next step; return the position behind it and its outcome, and the outcome.

        Raises:
            LogRewritten: the log gives another step than the journal says.
        """
        journaled = self._steps.popleft()
        expected = journaled.step
        if step != expected:
            where = f"step {expected.step}"
            raise LogRewritten(where, expected=_text(expected), found=_text(step))
        return journaled.behind, journaled.outcome


def _text(step: Step) -> str:
    """Describe a step: its batches, with slices, numbers of records and sums."""
    return f"step {step.step} ({'; '.join(map(_part_text, step.parts))})"


def _part_text(part: Part) -> str:
    slices = [
        f"{s.topic}[{s.partition}]@{s.start}-{s.end} {s.num_records} {s.sum64:016x}"
        for poll in part.polls
        for s in poll.slices
    ]
    return f"{part.cause}: {part.num_samples} samples of {', '.join(slices)}"
