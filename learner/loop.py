"""Batches in, steps out, checkpoints behind: a generator that yields after every step. Reads like the sentence.

```
for batch in batches:
    journal.append(batch)                    # what will be used, durably; or, after a crash, what was used
    report = trainer.step(batch.samples)     # test, weigh, then train
    publisher.after(batch, report)           # cut a checkpoint when one is due
    yield report
```

The cut is consistent by construction: batches are pulled by this very loop, so between two steps neither ingest nor model is ahead.
With several ranks every round begins with all of them saying what they have; rank 0 alone writes, and writes before anyone steps.
"""

from __future__ import annotations

import logging
import math
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import msgspec

from learner.artifact import Version
from learner.errors import Fenced, LogRewritten
from learner.process_group import ProcessGroup, SingleProcess
from learner.store.checkpoint import BackgroundWriter, Saved
from learner.store.journal import Journal, JournalPosition, JournalRecord, Outcome, Part, Step
from learner.store.manifest import CheckpointMetadata, EventTimeRange, Input, ResumePoint, Trained
from learner.telemetry import Telemetry
from learner.trainer import StepReport, Trainer
from weighting.errors import WeightError
from weighting.provenance import Audit, Gap
from weighting.sample import Batch, Sample, Signal

log = logging.getLogger("steelyard.learner")
_FRESH_US = 100_000  #: event times are told to the tenth of a second
_NOTHING = Part((), None)


class IngestState(msgspec.Struct, frozen=True, kw_only=True):
    """What ingest adds to a checkpoint; the learner never looks inside the parts."""

    parts: dict[str, bytes]
    offsets: dict[str, dict[int, int]]  #: topic -> partition -> next offset
    watermark_us: int | None
    num_polls: int = 0  #: turns that the parts contain and no batch has named yet
    audit: dict[str, dict[int, Audit]] = {}
    gaps: tuple[Gap, ...] = ()  #: found since the start
    live: bool = True  #: whether the log is read as it grows; false while it is replayed


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """What a checkpoint says of who made it from what; the same for all of one owner."""

    config_sha256: str  #: of the settings that learning depends on
    fingerprint: Mapping[str, str | int | float | bool | None]  #: of the environment
    inputs: Mapping[str, Input]  #: topic -> as it was found at the start


class Publisher:
    """Cuts a checkpoint every so often, lets it be written in the background, and tells how that ended."""

    def __init__(
        self,
        trainer: Trainer,
        writer: BackgroundWriter | None,
        ingest: Callable[[], IngestState],
        telemetry: Telemetry,
        *,
        clock: Callable[[], float],
        identity: Identity,
        journal: ResumePoint,
        ranks: ProcessGroup | None = None,
        published: Callable[[Version], None] = lambda version: None,
        replaying: bool = False,
        live: Callable[[], bool] = lambda: True,
    ) -> None:
        """Take the state's owners.

        Args:
            trainer: the model.
            writer: makes checkpoints durable; None for a rank that is not the first.
            ingest: gives ingest's part of a cut, as of the last batch.
            telemetry: the series.
            clock: seconds since the Unix epoch.
            identity: what every checkpoint says of its owner.
            journal: where the state stands at the start.
            ranks: who contributes to a checkpoint.
            published: called with each durable version; an advisory commit goes here.
            replaying: whether the state stands in a replay; the first checkpoint behind it says that it is over, new samples or not.
            live: whether the log is read as it grows.
        """
        self._trainer = trainer
        self._writer = writer
        self._ingest = ingest
        self._telemetry = telemetry
        self._clock = clock
        self._identity = identity
        self._place = JournalPosition(journal.segment, journal.byte)
        self._ranks: ProcessGroup = ranks or SingleProcess()
        self._gaps: tuple[Gap, ...] = ()
        self._published = published
        self._replaying = replaying
        self._live = live
        self._due = -math.inf
        self._in_flight: Counter[int] | None = None
        self._began = 0.0
        self._fresh: Counter[int] = Counter()
        self._span: tuple[int, int] | None = None

    def restore(self, version: Version) -> None:
        """Go on from a version: the span of event times that it contains."""
        span = version.manifest["event_time"]
        self._span = (span["min"], span["max"]) if span else None

    def trained(self, samples: Iterable[Sample]) -> None:
        """Note what the model contains from now on."""
        for sample in samples:
            at = sample.event_time_us
            self._fresh[at - at % _FRESH_US] += 1
            self._span = (
                (at, at) if self._span is None else (min(self._span[0], at), max(self._span[1], at))
            )

    def stepped(self, place: JournalPosition) -> None:
        """Note where the journal goes on behind the step that was just done."""
        self._place = place

    def due(self, *, more: bool) -> bool:
        """Hear of the checkpoint in flight; say whether the next is due and there is something to say, or `more` is about to be learned.

        Raises:
            Fenced: there is another owner of the store.
        """
        if self._writer is None:
            return False
        self._hear(self._poll(timeout_seconds=0.0))
        return (
            self._in_flight is None
            and self._clock() >= self._due
            and bool(more or self._is_new() or self._due == -math.inf)
        )

    def cut(self) -> None:
        """Copy all state as it is between two steps, and hand it to the writer; by all ranks together."""
        began = time.perf_counter()
        states = [self._ingest()]
        if self._ranks.world > 1:
            states = [
                msgspec.msgpack.decode(said, type=IngestState)
                for said in self._ranks.gather(msgspec.msgpack.encode(states[0]))
            ]
        if self._writer is None:
            self._fresh.clear()
            return
        ingest = _merged(states)
        make, parts = (
            self._trainer.copied(),
            {f"training/{name}.msgpack": part for name, part in ingest.parts.items()},
        )
        evaluation = {
            name: value
            for name, value in self._trainer.evaluation().items()
            if math.isfinite(value)
        }
        config = self._trainer.weigher.config
        num, sum64 = self._trainer.trained
        cut = CheckpointMetadata(
            step=self._trainer.step_number,
            samples=self._trainer.num_samples,
            offsets=ingest.offsets,
            event_time=EventTimeRange(min=self._span[0], max=self._span[1]) if self._span else None,
            watermark_us=ingest.watermark_us,
            weighting={"scheme": "ratio", "exponent": config.exponent, "denoise": config.denoise},
            evaluation=evaluation,
            fresh_events=tuple(sorted(self._fresh.items())),
            config_sha256=self._identity.config_sha256,
            fingerprint=dict(self._identity.fingerprint),
            journal=ResumePoint(
                segment=self._place.segment,
                byte=self._place.byte,
                skip=tuple(state.num_polls for state in states),
            ),
            audit=ingest.audit,
            inputs=dict(self._identity.inputs),
            trained=Trained(num=num, sum64=sum64),
        )
        new_gaps = tuple(gap for gap in ingest.gaps if gap not in self._gaps)
        self._gaps += new_gaps
        taken = self._writer.submit(
            lambda: {**make(), **parts}, cut, gaps=new_gaps, live=ingest.live
        )
        assert taken, "one checkpoint at a time"
        self._in_flight, self._fresh = self._fresh, Counter()
        self._began = self._clock()
        self._due = self._began + self._trainer.config.publish_every_seconds
        self._telemetry.stall.observe(time.perf_counter() - began)

    def abandon(self) -> None:
        """End the writer, and learn nothing more from here: what is durable already stays."""
        if self._writer is not None:
            self._writer.close()

    def close(self) -> None:
        """Make what was learned last durable, and end the writer; by all ranks together.

        Raises:
            StoreFailed: it could not be made durable; the version before it still is.
        """
        saved = None
        if self._writer is not None:
            self._hear(self._poll(timeout_seconds=None))
        if any(
            said != b""
            for said in self._ranks.gather(
                b"new" if self._is_new() and self._writer is not None else b""
            )
        ):
            self.cut()
            if self._writer is not None:
                saved = self._poll(timeout_seconds=None)
                self._hear(saved)
        if self._writer is not None:
            self._writer.close()
        if saved is not None and saved.version is None and saved.error is not None:
            raise saved.error

    def _is_new(self) -> bool:
        return bool(self._fresh) or (self._replaying and self._live())

    def _poll(self, *, timeout_seconds: float | None) -> Saved | None:
        assert self._writer is not None
        try:
            return self._writer.poll(timeout_seconds=timeout_seconds)
        except Fenced:
            self._telemetry.publishes.labels("fenced").inc()
            raise

    def _hear(self, saved: Saved | None) -> None:
        if saved is None:
            return
        assert self._in_flight is not None
        if saved.version is None:
            self._fresh += self._in_flight  # not in any version yet: the next cut tells them
        self._in_flight = None
        if saved.error is not None:
            self._telemetry.publishes.labels("failed").inc()
            log.error(
                "checkpoint failed",
                extra={"error": str(saved.error), "version": saved.version and saved.version.name},
            )
            return
        assert saved.version is not None
        self._replaying = saved.version.run_state.replay is not None
        self._telemetry.publishes.labels("ok").inc()
        self._telemetry.publish_duration.observe(max(0.0, self._clock() - self._began))
        self._telemetry.last_publish.set(self._clock())
        self._telemetry.size.set(sum(digest.size for digest in saved.version.files.values()))
        log.info(
            "published",
            extra={
                "version": saved.version.name,
                "step": saved.version.step,
                "samples": saved.version.num_samples,
            },
        )
        self._published(saved.version)


class _Said(msgspec.Struct, frozen=True, array_like=True):
    """What a rank says at the beginning of a round."""

    part: Part
    over: bool  #: its batches have ended
    cut: bool  #: a checkpoint is due


def train(
    batches: Iterable[Batch | Signal | None],
    trainer: Trainer,
    publisher: Publisher,
    telemetry: Telemetry,
    journal: Journal | None,
    *,
    tail: Sequence[tuple[JournalPosition, JournalRecord]] = (),
    quarantine: Sequence[tuple[int, int]] = (),
    ranks: ProcessGroup | None = None,
) -> Iterator[StepReport | None]:
    """Step on every batch, publish when due; yields each step's report, and None whenever nothing was ready.

    A batch of which a weight is refused is not trained on: logged with its position and counted.

    Args:
        batches: of this rank; while the tail lasts, what its records say.
        trainer: the model, with the same ranks.
        publisher: cuts checkpoints.
        telemetry: the series.
        journal: None for a rank that is not the first.
        tail: what was journaled behind the state, done again first.
        quarantine: steps ``[from, to)`` that are not learned.
        ranks: who steps together.

    Raises:
        Fenced: there is another owner of the store.
        JournalFailed: a step could not be journaled; nothing of it was applied.
        LogRewritten: the log no longer gives what the journal says of it.
        Diverged: the model is about to be lost; nothing of the step was applied.
    """
    ranks = ranks or SingleProcess()
    stream, again = iter(batches), _Tail(tail)
    while True:
        batch, over = again.pull(stream, ranks.rank)
        due = not again.left and publisher.due(more=batch is not None)
        mine = _Said(_NOTHING if batch is None else Part(batch.polls, batch.cause), over, due)
        said = [mine]
        if ranks.world > 1:
            said = [
                msgspec.msgpack.decode(data, type=_Said)
                for data in ranks.gather(msgspec.msgpack.encode(mine))
            ]
        report = None
        if any(each.part.cause is not None for each in said):
            record = Step(trainer.step_number + 1, tuple(each.part for each in said))
            place: JournalPosition | None
            if again.left:
                place = again.confirm(record, trainer)
                telemetry.replayed.inc()
            else:
                place = _write(journal, record, telemetry)
            num_micro_batches = trainer.num_micro_batches
            report = _step(
                trainer, () if batch is None else batch.samples, record.step, quarantine, telemetry
            )
            if report is not None:
                publisher.trained(report.weighted.samples)
            if trainer.num_micro_batches != num_micro_batches:
                place = _write(journal, Outcome(record.step, trainer.num_micro_batches), telemetry)
            if place is not None:
                publisher.stepped(place)
        if any(each.cut for each in said):
            publisher.cut()
        over = any(each.over for each in said)
        if report is not None or not over:
            yield report
        if over:
            return


def _step(
    trainer: Trainer,
    samples: Sequence[Sample],
    number: int,
    quarantine: Sequence[tuple[int, int]],
    telemetry: Telemetry,
) -> StepReport | None:
    if any(first <= number < end for first, end in quarantine):
        trainer.skip(samples)
        telemetry.refused.labels("quarantine").inc()
        return None
    began = time.perf_counter()
    try:
        report = trainer.step(samples)
    except WeightError as error:
        trainer.skip(samples)
        telemetry.refused.labels("weight").inc()
        log.error("batch refused", extra={"error": str(error), "num_samples": len(samples)})
        return None
    if report.weighted.samples:
        telemetry.stepped(report, trainer, time.perf_counter() - began)
    return report


def _write(
    journal: Journal | None, record: JournalRecord, telemetry: Telemetry
) -> JournalPosition | None:
    if journal is None:
        return None
    journal.append(record)
    telemetry.journaled.labels(type(record).__name__.lower()).inc()
    telemetry.journal_size.set(journal.num_bytes)
    return journal.place


class _Tail:
    """What was journaled behind the state, and what of it is left to be done again."""

    def __init__(self, records: Sequence[tuple[JournalPosition, JournalRecord]]) -> None:
        self._steps: deque[tuple[JournalPosition, Step, Outcome | None]] = deque()
        for place, record in records:
            if isinstance(record, Step):
                self._steps.append((place, record, None))
            elif self._steps:
                _, step, _ = self._steps.pop()
                self._steps.append((place, step, record))

    @property
    def left(self) -> int:
        """How many steps are left."""
        return len(self._steps)

    def pull(self, stream: Iterator[Batch | Signal | None], rank: int) -> tuple[Batch | None, bool]:
        """Return this rank's batch of the next step, or None; and whether there will be no more."""
        if not self._steps:
            batch = next(stream, _OVER)
            if batch is _OVER:
                return None, True
            return (batch if isinstance(batch, Batch) else None), False
        if self._steps[0][1].parts[rank].cause is None:
            return None, False
        for batch in stream:
            if isinstance(batch, Batch):
                return batch, False
        return None, True

    def confirm(self, record: Step, trainer: Trainer) -> JournalPosition:
        """Return the place behind the next step, if the log still gives what was journaled of it."""
        place, was, outcome = self._steps.popleft()
        if record != was:
            raise LogRewritten(f"step {was.step}", expected=_told(was), found=_told(record))
        if outcome is not None:
            trainer.num_micro_batches = outcome.num_micro_batches
        return place


_OVER = Batch(samples=(), polls=(), cause="over", watermark_us=0)


def _told(step: Step) -> str:
    """Return a step as a person reads it: its batches, with slices, numbers of records and sums."""
    told = []
    for part in step.parts:
        slices = [s for poll in part.polls for s in poll.slices]
        told.append(
            f"{part.cause}: "
            + ", ".join(
                f"{s.topic}[{s.partition}]@{s.start}-{s.end} {s.num_records} {s.sum64:016x}"
                for s in slices
            )
        )
    return f"step {step.step} ({'; '.join(told)})"


def _merged(states: Sequence[IngestState]) -> IngestState:
    """Return what all ranks have together; of topics that every rank reads, the least that all have seen."""
    if len(states) == 1:
        return states[0]
    offsets: dict[str, dict[int, int]] = {}
    audit: dict[str, dict[int, Audit]] = {}
    for state in states:
        for topic, parts in state.offsets.items():
            for partition, offset in parts.items():
                known = offsets.setdefault(topic, {})
                if offset <= known.get(partition, offset):
                    known[partition] = offset
                    audit.setdefault(topic, {})[partition] = state.audit[topic][partition]
    watermarks = [state.watermark_us for state in states]
    return IngestState(
        parts={name: part for state in states for name, part in sorted(state.parts.items())},
        offsets=offsets,
        watermark_us=None if None in watermarks else min(w for w in watermarks if w is not None),
        audit=audit,
        gaps=tuple(gap for state in states for gap in state.gaps),
        live=all(state.live for state in states),
    )
