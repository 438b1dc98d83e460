"""Batches in, steps out, checkpoints behind: a generator that yields after every step. Reads like the sentence.

```
for batch in batches:
    report = trainer.step(batch.samples)     # test, weigh, then train
    publisher.after(batch, report)           # cut a checkpoint when one is due
    yield report
```

The cut is consistent by construction: batches are pulled by this very loop, so between two steps neither ingest nor model is ahead.
"""

from __future__ import annotations

import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from learner.artifact import Version
from learner.checkpoint import BackgroundWriter, Saved
from learner.errors import Fenced
from learner.manifest import Cut, Span
from learner.telemetry import Telemetry
from learner.trainer import StepReport, Trainer
from weighting.errors import WeightError
from weighting.sample import Batch, Sample

log = logging.getLogger("steelyard.learner")
_FRESH_US = 100_000  #: event times are told to the tenth of a second


@dataclass(frozen=True, slots=True, kw_only=True)
class IngestState:
    """What ingest adds to a checkpoint; the learner never looks inside the parts."""

    parts: Mapping[str, bytes]
    offsets: dict[str, dict[int, int]]  #: topic -> partition -> next offset
    watermark_us: int | None


class Publisher:
    """Cuts a checkpoint every so often, lets it be written in the background, and tells how that ended."""

    def __init__(
        self,
        trainer: Trainer,
        writer: BackgroundWriter,
        ingest: Callable[[], IngestState],
        telemetry: Telemetry,
        *,
        clock: Callable[[], float],
        config_sha256: str,
        fingerprint: Mapping[str, str | int | float | bool | None],
        published: Callable[[Version], None] = lambda version: None,
    ) -> None:
        """Take the state's owners.

        Args:
            trainer: the model.
            writer: makes checkpoints durable.
            ingest: gives ingest's part of a cut, as of the last batch.
            telemetry: the series.
            clock: seconds since the Unix epoch.
            config_sha256: of the settings.
            fingerprint: of the environment.
            published: called with each durable version; an advisory commit goes here.
        """
        self._trainer = trainer
        self._writer = writer
        self._ingest = ingest
        self._telemetry = telemetry
        self._clock = clock
        self._config_sha256 = config_sha256
        self._fingerprint = dict(fingerprint)
        self._published = published
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
            self._span = (at, at) if self._span is None else (min(self._span[0], at), max(self._span[1], at))

    def tick(self) -> None:
        """Hear of the checkpoint in flight; cut the next when it is due and there is something new.

        Raises:
            Fenced: there is another owner of the store.
        """
        self._hear(self._poll(timeout_seconds=0.0))
        if self._in_flight is None and self._clock() >= self._due and (self._fresh or self._due == -math.inf):
            self.cut()

    def cut(self) -> None:
        """Copy all state as it is between two steps, and hand it to the writer."""
        began = time.perf_counter()
        ingest = self._ingest()
        files = {**self._trainer.files(), **{f"training/{name}.msgpack": part for name, part in ingest.parts.items()}}
        evaluation = {name: value for name, value in self._trainer.evaluation().items() if math.isfinite(value)}
        config = self._trainer.weigher.config
        cut = Cut(
            step=self._trainer.step_number,
            samples=self._trainer.num_samples,
            offsets=ingest.offsets,
            event_time=Span(min=self._span[0], max=self._span[1]) if self._span else None,
            watermark_us=ingest.watermark_us,
            weighting={"scheme": "ratio", "exponent": config.exponent, "denoise": config.denoise},
            evaluation=evaluation,
            fresh_events=tuple(sorted(self._fresh.items())),
            config_sha256=self._config_sha256,
            fingerprint=self._fingerprint,
        )
        taken = self._writer.submit(files, cut)
        assert taken, "one checkpoint at a time"
        self._in_flight, self._fresh = self._fresh, Counter()
        self._began = self._clock()
        self._due = self._began + self._trainer.config.publish_every_seconds
        self._telemetry.stall.observe(time.perf_counter() - began)
        self._telemetry.size.set(sum(len(data) for data in files.values()))

    def close(self) -> None:
        """Make what was learned last durable, and end the writer.

        Raises:
            StoreFailed: it could not be made durable; the version before it still is.
        """
        self._hear(self._poll(timeout_seconds=None))
        saved = None
        if self._fresh:
            self.cut()
            saved = self._poll(timeout_seconds=None)
            self._hear(saved)
        self._writer.close()
        if saved is not None and saved.version is None and saved.error is not None:
            raise saved.error

    def _poll(self, *, timeout_seconds: float | None) -> Saved | None:
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
            log.error("checkpoint failed", extra={"error": str(saved.error), "version": saved.version and saved.version.name})
            return
        assert saved.version is not None
        self._telemetry.publishes.labels("ok").inc()
        self._telemetry.publish_duration.observe(max(0.0, self._clock() - self._began))
        self._telemetry.last_publish.set(self._clock())
        log.info("published", extra={"version": saved.version.name, "step": saved.version.step, "samples": saved.version.num_samples})
        self._published(saved.version)


def train(batches: Iterable[Batch | None], trainer: Trainer, publisher: Publisher, telemetry: Telemetry) -> Iterator[StepReport | None]:
    """Step on every batch, publish when due; yields each step's report, and None whenever nothing was ready.

    A batch of which a weight is refused is not trained on: logged with its position and counted.

    Raises:
        Fenced: there is another owner of the store.
    """
    for batch in batches:
        report = None
        if batch is not None and batch.samples:
            began = time.perf_counter()
            try:
                report = trainer.step(batch.samples)
            except WeightError as error:
                telemetry.refused.labels("weight").inc()
                log.error("batch refused", extra={"error": str(error), "num_samples": len(batch.samples)})
            else:
                publisher.trained(batch.samples)
                telemetry.stepped(report, trainer, time.perf_counter() - began)
        publisher.tick()
        yield report
