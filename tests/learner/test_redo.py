"""Journaled steps are done again from the same batches, or not at all."""

from __future__ import annotations

import pytest

from learner.errors import LogRewritten
from learner.store.journal.records import NO_BATCH, JournalPosition, Outcome, Part, Step
from learner.store.journal.redo import Redo
from weighting.provenance import Poll, Slice
from weighting.sample import Batch, Signal

POLL = Poll((Slice("clicks", 0, 3, 9, 6, 255),))
STEP = Step(4, (NO_BATCH, Part((POLL,), "full")))
BEHIND = [JournalPosition("000001-0000", byte) for byte in (50, 70)]
BATCH = Batch(samples=(), polls=(POLL,), cause="full", watermark_us=0)


def test_a_rank_waits_for_its_batch_and_has_none_where_it_had_none() -> None:
    redo = Redo([(BEHIND[0], STEP)])
    items: list[Batch | Signal] = [Signal.IDLE, Signal.IDLE, BATCH]
    stream = iter(items)
    assert redo.pull(stream, rank=0) is Signal.IDLE
    assert redo.pull(stream, rank=1) is BATCH
    assert redo.pull(stream, rank=1) is Signal.ENDED


def test_a_step_comes_with_its_outcome_and_the_position_behind_both() -> None:
    redo = Redo([(BEHIND[0], STEP), (BEHIND[1], Outcome(4, 2))])
    assert redo.pending
    assert redo.confirm(STEP) == (BEHIND[1], Outcome(4, 2))
    assert not redo.pending


def test_another_step_than_the_journaled_one_is_refused_with_its_slices() -> None:
    rewritten = Poll((Slice("clicks", 0, 3, 9, 6, 254),))
    with pytest.raises(LogRewritten, match=r"clicks\[0\]@3-9 6 0{14}ff.*found.* 0{14}fe"):
        Redo([(BEHIND[0], STEP)]).confirm(Step(4, (NO_BATCH, Part((rewritten,), "full"))))
