"""Training loop: batches in, steps out, checkpoints in the background.

```
for batch in batches:
    journal.append(batch)            # 1. its input, durably; after a crash, as it was journaled
    report = trainer.step(batch)     # 2. test, weigh, then train
    publisher.take_checkpoint()      # 3. when one is due
    yield report
```

A checkpoint is consistent by construction: this very loop pulls the batches, so between two steps
neither ingest nor model is ahead. With several ranks each round begins with an exchange of what
every rank has; rank 0 alone writes, and writes before anyone steps.

Under `learner.run_ahead` the next batch is pulled and prepared in a thread of its own while 2. is
under way (`RunAhead`). Whether a checkpoint follows is decided before the step; in such a round
nothing runs ahead. Each round ends when both have ended, so 1., 3. and the caller are alone.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass

import msgspec

from learner.process_group import ProcessGroup, SingleProcess
from learner.publish import Publisher
from learner.run_ahead import RunAhead, Working
from learner.store.journal.records import (
    NO_BATCH,
    JournalPosition,
    JournalRecord,
    Outcome,
    Part,
    Step,
)
from learner.store.journal.redo import Redo
from learner.store.journal.writer import Journal
from learner.telemetry import Telemetry
from learner.trainer import Trainer
from learner.training_step import StepReport
from weighting.errors import WeightError
from weighting.sample import Batch, Sample, Signal

log = logging.getLogger("steelyard.learner")


def train(
    batches: Iterable[Batch | Signal],
    trainer: Trainer,
    publisher: Publisher,
    telemetry: Telemetry,
    journal: Journal | None,
    *,
    tail: Sequence[tuple[JournalPosition, JournalRecord]] = (),
    quarantine: Sequence[tuple[int, int]] = (),
    process_group: ProcessGroup | None = None,
    working: Working = nullcontext,
) -> Iterator[StepReport | Signal]:
    """Step on every batch, publish when due, until the batches of any rank end.

    Yields the report of each step, and `Signal.IDLE` after a round that learned nothing: no batch
    was ready, or its batch was left out. A batch of which a weight is refused is not trained on:
    logged with its position and counted. Where batches run ahead, the next one may have been
    pulled, and the estimators may have learned it, whenever a report is yielded; never when a
    checkpoint is taken, or after ENDED.

    Args:
        batches: of this rank; while the tail lasts, those of its records.
        trainer: the model, with the same process group.
        publisher: takes checkpoints.
        telemetry: the series.
        journal: None for a rank that is not the first.
        tail: what was journaled after the checkpoint, done again first.
        quarantine: steps ``[from, to)`` that are not learned.
        process_group: the ranks that step together.
        working: entered around all that is not reading, in whichever thread; so around the caller's
            own work between two reports.

    Raises:
        Fenced: there is another owner of the store.
        JournalFailed: a step could not be journaled; nothing of it was applied.
        LogRewritten: the log no longer gives what the journal says of it.
        Diverged: the model is about to be lost; nothing of the step was applied.
    """
    group = process_group or SingleProcess()
    if trainer.config.run_ahead and group.world > 1:
        log.warning("learner.run_ahead has no effect with several ranks")
    stream = RunAhead(iter(batches), trainer, working=working)
    steps = _Steps(trainer, publisher, telemetry, journal, Redo(tail), quarantine, stream)
    try:
        ended = False
        while not ended:
            pulled = steps.pull(group.rank)
            with working():
                result, ended = _round(steps, pulled, group)
            stream.wait()
            if isinstance(result, StepReport) or not ended:
                with working():
                    yield result
    finally:
        stream.close()
        publisher.consumers_ahead |= stream.pending


def _round(
    steps: _Steps, pulled: Batch | Signal, group: ProcessGroup
) -> tuple[StepReport | Signal, bool]:
    """Learn what the ranks have pulled; return the result, and whether a rank's stream ended."""
    offers = _exchange(group, steps.offer(pulled))
    due = any(offer.checkpoint_due for offer in offers)
    result: StepReport | Signal = Signal.IDLE
    if any(offer.part.has_batch for offer in offers):
        samples = pulled.samples if isinstance(pulled, Batch) else ()
        ahead = steps.may_run_ahead and not due
        result = steps.take([offer.part for offer in offers], samples, ahead=ahead)
    if due:
        steps.publisher.take_checkpoint()
    return result, any(offer.ended for offer in offers)


class _Offer(msgspec.Struct, frozen=True, array_like=True):
    """A rank's contribution to a round."""

    part: Part
    ended: bool
    checkpoint_due: bool


def _exchange(group: ProcessGroup, offer: _Offer) -> list[_Offer]:
    """Return the offers of all ranks, in rank order."""
    if group.world == 1:
        return [offer]
    gathered = group.gather(msgspec.msgpack.encode(offer))
    return [msgspec.msgpack.decode(data, type=_Offer) for data in gathered]


@dataclass(frozen=True, slots=True)
class _Steps:
    """Journaled steps of one rank."""

    trainer: Trainer
    publisher: Publisher
    telemetry: Telemetry
    journal: Journal | None
    redo: Redo
    quarantine: Sequence[tuple[int, int]]
    stream: RunAhead

    def pull(self, rank: int) -> Batch | Signal:
        """Return the next batch, IDLE or ENDED."""
        if self.redo.pending:
            return self.redo.pull(self.stream, rank)
        return next(self.stream)

    @property
    def may_run_ahead(self) -> bool:
        """Return whether the next batch may be pulled during a step: not while steps are redone."""
        config, group = self.trainer.config, self.trainer.process_group
        return config.run_ahead and group.world == 1 and not self.redo.pending

    def offer(self, pulled: Batch | Signal) -> _Offer:
        """Return this rank's offer; no checkpoint is due while journaled steps are left."""
        part = NO_BATCH
        if isinstance(pulled, Batch):
            part = Part(pulled.polls, pulled.cause, len(pulled.samples))
        due = not self.redo.pending and self.publisher.due(more=part.has_batch)
        return _Offer(part, pulled is Signal.ENDED, due)

    def take(
        self, parts: Sequence[Part], samples: Sequence[Sample], *, ahead: bool
    ) -> StepReport | Signal:
        """Journal a step of all ranks' `parts`, then learn our own `samples` of it.

        With `ahead`, the next batch is pulled and prepared meanwhile.
        """
        step = Step(self.trainer.step_number + 1, tuple(parts))
        position = self._journaled(step)
        num_micro_batches = self.trainer.num_micro_batches
        result = self._learn(samples, step.step, ahead=ahead)
        if isinstance(result, StepReport):
            self.publisher.learned(result.weighted.samples)
        if self.trainer.num_micro_batches != num_micro_batches:
            position = self._append(Outcome(step.step, self.trainer.num_micro_batches))
        if position is not None:
            self.publisher.moved_to(position)
        return result

    def _journaled(self, step: Step) -> JournalPosition | None:
        """Return the position behind a step, journaled before or now."""
        if not self.redo.pending:
            return self._append(step)
        position, outcome = self.redo.confirm(step)
        if outcome is not None:
            self.trainer.num_micro_batches = outcome.num_micro_batches
        self.telemetry.replayed.inc()
        return position

    def _append(self, record: JournalRecord) -> JournalPosition | None:
        if self.journal is None:
            return None
        self.journal.append(record)
        self.telemetry.journaled.labels(type(record).__name__.lower()).inc()
        self.telemetry.journal_size.set(self.journal.num_bytes)
        return self.journal.place

    def _is_quarantined(self, step: int) -> bool:
        return any(first <= step < end for first, end in self.quarantine)

    def _learn(self, samples: Sequence[Sample], step: int, *, ahead: bool) -> StepReport | Signal:
        if self._is_quarantined(step):
            self.trainer.skip(samples)
            self.telemetry.refused.labels("quarantine").inc()
            return Signal.IDLE
        began = time.perf_counter()
        try:
            prepared = self.stream.prepared(samples)
            if ahead:  # only now: the estimators learn one batch after the other
                weigh = self.trainer.weighs_ahead and not self._is_quarantined(step + 1)
                self.stream.begin(weigh=weigh)
            report = self.trainer.take(prepared)
        except WeightError as error:
            self.trainer.skip(samples)
            self.telemetry.refused.labels("weight").inc()
            log.error("batch refused", extra={"error": str(error), "num_samples": len(samples)})
            return Signal.IDLE
        for change in report.changes:
            facts = msgspec.structs.asdict(change) | {"step": report.step}
            log.info("another weighting scheme is in force", extra=facts)
        for task, drifts in report.weighted.drifts.items():
            for drift in drifts:
                log.info("stream changed", extra={"task": task, **asdict(drift)})
        if report.weighted.samples:
            self.telemetry.stepped(report, self.trainer, time.perf_counter() - began)
        return report
