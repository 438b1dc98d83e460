"""Periodic checkpoints: taken between two steps, written in the background, then reported."""

from __future__ import annotations

import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import msgspec

from learner import version_layout as layout
from learner.artifact import Version
from learner.errors import Fenced, StoreError
from learner.process_group import ProcessGroup, SingleProcess
from learner.store.journal.records import JournalPosition
from learner.store.manifest import (
    CheckpointMetadata,
    EventTimeRange,
    Input,
    LearnedSamples,
    ResumePoint,
)
from learner.store.writer import BackgroundWriter, Saved
from learner.telemetry import Telemetry
from learner.trainer import Trainer
from weighting.provenance import Audit, Gap, Offsets, TopicPartition, by_topic
from weighting.sample import Sample

log = logging.getLogger("steelyard.learner")
_EVENT_TIME_RESOLUTION_US = 100_000


class IngestState(msgspec.Struct, frozen=True, kw_only=True):
    """Ingest's share of a checkpoint; the learner never looks inside the parts.

    Attributes:
        parts: name -> snapshot.
        offsets: first offsets that the parts do not contain.
        watermark_us: in event time; None before the first record.
        num_polls: polls that the parts contain and no batch has named yet.
        audit: of each partition.
        gaps: records that can never be read, found since the start.
        live: whether the log is read as it grows; false while it is replayed.
        counts: topic -> number of its partitions that are read.
    """

    parts: dict[str, bytes]
    offsets: Offsets
    watermark_us: int | None
    num_polls: int = 0
    audit: dict[TopicPartition, Audit] = {}
    gaps: tuple[Gap, ...] = ()
    live: bool = True
    counts: dict[str, int] = {}


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """Provenance recorded in every checkpoint of one owner.

    Attributes:
        config_sha256: of the settings that learning depends on.
        fingerprint: of the environment.
        inputs: topic -> as it was found at the start.
    """

    config_sha256: str
    fingerprint: Mapping[str, str | int | float | bool | None]
    inputs: Mapping[str, Input]


class Publisher:
    """Takes a checkpoint when one is due and reports how its background write ended.

    Attributes:
        consumers_ahead: whether training was broken off with a batch that is pulled and not
            learned: no checkpoint can be taken any more.
    """

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
        process_group: ProcessGroup | None = None,
        published: Callable[[Version], None] = lambda version: None,
        replaying: bool = False,
        live: Callable[[], bool] = lambda: True,
        samples_per_second: Callable[[], float] = lambda: 0.0,
        waiting: Callable[[], Mapping[str, float | None]] = dict,
        counts: Callable[[], Mapping[str, int]] = dict,
    ) -> None:
        """Take the owners of the state.

        Args:
            trainer: the model.
            writer: makes checkpoints durable; None for a rank that is not the first.
            ingest: gives ingest's share of a checkpoint, as of the last batch.
            telemetry: the series.
            clock: seconds since the Unix epoch.
            identity: provenance of every checkpoint.
            journal: position of the state at the start.
            process_group: the ranks that contribute to a checkpoint.
            published: called with each durable version; an advisory commit goes here.
            replaying: whether the state stands in a replay; the first checkpoint after it says
                that it is over, new samples or not.
            live: whether the log is read as it grows.
            samples_per_second: measured rate of learning, 0 while it is not known.
            waiting: what is logged of the samples that wait, with each durable version.
            counts: partition counts that are read; when they grow, a checkpoint is due.
        """
        self.consumers_ahead = False
        self._samples_per_second = samples_per_second
        self._waiting = waiting
        self._trainer = trainer
        self._writer = writer
        self._ingest = ingest
        self._telemetry = telemetry
        self._clock = clock
        self._identity = identity
        self._position = JournalPosition(journal.segment, journal.byte)
        self._process_group = process_group or SingleProcess()
        self._gaps: tuple[Gap, ...] = ()
        self._published = published
        self._replaying = replaying
        self._live = live
        self._counts = counts
        self._counts_taken = dict(counts())
        self._due_seconds = -math.inf
        self._in_flight: Counter[int] | None = None
        self._began_seconds = 0.0
        self._fresh: Counter[int] = Counter()  # event time -> samples that no version contains
        self._event_time: EventTimeRange | None = None
        self._num_failed = 0  # in a row
        self._last_cause: object = None

    def restore(self, version: Version) -> None:
        """Go on from a version: the range of event times that it contains."""
        written = version.manifest["event_time"]
        self._event_time = EventTimeRange(**written) if written else None

    def learned(self, samples: Iterable[Sample]) -> None:
        """Note samples that the model contains from now on."""
        times = [sample.event_time_us for sample in samples]
        if not times:
            return
        self._fresh.update(at - at % _EVENT_TIME_RESOLUTION_US for at in times)
        if self._event_time is not None:
            times += [self._event_time.min, self._event_time.max]
        self._event_time = EventTimeRange(min=min(times), max=max(times))

    def moved_to(self, position: JournalPosition) -> None:
        """Note the position in the journal behind the last step."""
        self._position = position

    def due(self, *, more: bool) -> bool:
        """Report the checkpoint in flight, and return whether the next one is due.

        It is once its time has come and there is something new, or `more` is about to be learned;
        and at once when more partitions are read.

        Raises:
            Fenced: there is another owner of the store.
        """
        if self._writer is None:
            return False
        self._report(self._poll(timeout_seconds=0.0))
        is_first = self._due_seconds == -math.inf
        if self._in_flight is not None:
            return False
        if self._has_grown():
            return True
        return self._clock() >= self._due_seconds and (more or self._is_new() or is_first)

    def take_checkpoint(self) -> None:
        """Copy all state between two steps for the writer; a collective call."""
        assert not self.consumers_ahead, "a batch was pulled and not learned"
        began = time.perf_counter()
        states = self._gather(self._ingest())
        self._counts_taken = dict(self._counts())
        if self._writer is None:
            self._fresh.clear()
            return
        ingest = _merged(states)
        files = self._trainer.copied()
        parts = {layout.ingest_path(name): part for name, part in ingest.parts.items()}
        metadata = self._metadata(ingest, skip=tuple(state.num_polls for state in states))
        gaps = tuple(gap for gap in ingest.gaps if gap not in self._gaps)
        self._gaps += gaps
        accepted = self._writer.submit(
            lambda: {**files(), **parts}, metadata, gaps=gaps, live=ingest.live
        )
        assert accepted, "one checkpoint at a time"
        self._in_flight, self._fresh = self._fresh, Counter()
        self._began_seconds = self._clock()
        self._due_seconds = self._began_seconds + self._trainer.config.publish_every_seconds
        self._telemetry.stall.observe(time.perf_counter() - began)

    def abandon(self) -> None:
        """End the writer; nothing more is learned, and what is durable stays."""
        if self._writer is not None:
            self._writer.close()

    def close(self) -> None:
        """Take a last checkpoint if anything is new, and end the writer; a collective call.

        Raises:
            StoreFailed: it could not be made durable; the version before it still is.
        """
        self._report(self._poll(timeout_seconds=None))
        is_new = self._writer is not None and self._is_new()
        last = None
        if any(self._process_group.gather(b"new" if is_new else b"")):
            self.take_checkpoint()
            last = self._poll(timeout_seconds=None)
            self._report(last)
        if self._writer is not None:
            self._writer.close()
        if last is not None and last.version is None and last.error is not None:
            raise last.error

    def _is_new(self) -> bool:
        return bool(self._fresh) or self._has_grown() or (self._replaying and self._live())

    def _has_grown(self) -> bool:
        return self._counts() != self._counts_taken

    def _gather(self, state: IngestState) -> list[IngestState]:
        """Return the ingest states of all ranks, in rank order."""
        if self._process_group.world == 1:
            return [state]
        data = msgspec.msgpack.encode(state, enc_hook=Offsets.nested)
        decoder = msgspec.msgpack.Decoder(IngestState, dec_hook=Offsets.dec_hook)
        return [decoder.decode(each) for each in self._process_group.gather(data)]

    def _metadata(self, ingest: IngestState, *, skip: tuple[int, ...]) -> CheckpointMetadata:
        trainer, identity, position = self._trainer, self._identity, self._position
        num, sum64 = trainer.trained
        evaluation = trainer.evaluation().items()
        return CheckpointMetadata(
            step=trainer.step_number,
            samples=trainer.num_samples,
            offsets=ingest.offsets.nested(),
            event_time=self._event_time,
            watermark_us=ingest.watermark_us,
            weighting=self._trainer.weigher.description(),
            evaluation={name: value for name, value in evaluation if math.isfinite(value)},
            fresh_events=tuple(sorted(self._fresh.items())),
            config_sha256=identity.config_sha256,
            fingerprint=dict(identity.fingerprint),
            journal=ResumePoint(segment=position.segment, byte=position.byte, skip=skip),
            audit=by_topic(ingest.audit),
            inputs={
                topic: msgspec.structs.replace(
                    found, num_partitions=ingest.counts.get(topic, found.num_partitions)
                )
                for topic, found in identity.inputs.items()
            },
            learned=LearnedSamples(num=num, sum64=sum64),
            samples_per_second=self._samples_per_second(),
        )

    def _poll(self, *, timeout_seconds: float | None) -> Saved | None:
        if self._writer is None:
            return None
        try:
            return self._writer.poll(timeout_seconds=timeout_seconds)
        except Fenced:
            self._telemetry.publishes.labels("fenced").inc()
            raise

    def _report(self, saved: Saved | None) -> None:
        if saved is None:
            return
        assert self._in_flight is not None
        version = saved.version
        if version is None:
            self._fresh += self._in_flight  # not in any version yet: the next one lists them
        self._in_flight = None
        if saved.error is not None:
            self._failed(saved.error, version)
            return
        assert version is not None
        if self._num_failed:
            log.info("checkpoints work again", extra={"failed_in_a_row": self._num_failed})
            self._num_failed = 0
        self._replaying = version.run_state.replay is not None
        self._telemetry.published(version, self._began_seconds, self._clock())
        contents = {"version": version.name, "step": version.step, "samples": version.num_samples}
        log.info("published", extra=contents | dict(self._waiting()))
        self._published(version)

    def _failed(self, error: StoreError, version: Version | None) -> None:
        """Count a failure; log the 1st in a row, the 2nd, the 4th and so on, and another cause."""
        self._telemetry.publishes.labels("failed").inc()
        self._num_failed += 1
        cause = type(error), getattr(error, "errno", None)
        if self._num_failed.bit_count() == 1 or cause != self._last_cause:
            self._last_cause = cause
            facts = {"error": str(error), "version": version and version.name}
            log.error("checkpoint failed", extra={**facts, "failed_in_a_row": self._num_failed})


def _merged(states: Sequence[IngestState]) -> IngestState:
    """Return the state of all ranks; of partitions that several read, the least offset."""
    if len(states) == 1:
        return states[0]
    offsets: dict[TopicPartition, int] = {}
    audit: dict[TopicPartition, Audit] = {}
    for state in states:
        for partition, offset in state.offsets.items():
            if offset <= offsets.get(partition, offset):
                offsets[partition] = offset
                audit[partition] = state.audit[partition]
    watermarks = [state.watermark_us for state in states if state.watermark_us is not None]
    return IngestState(
        parts={name: part for state in states for name, part in sorted(state.parts.items())},
        offsets=Offsets(offsets),
        watermark_us=min(watermarks) if len(watermarks) == len(states) else None,
        audit=audit,
        gaps=tuple(gap for state in states for gap in state.gaps),
        live=all(state.live for state in states),
        counts=states[0].counts,
    )
