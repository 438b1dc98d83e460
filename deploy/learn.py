"""The role `learn`: consume, join, weigh, train, publish, wired together and run until a signal or `stop`."""

from __future__ import annotations

import hashlib
import logging
import platform
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import asdict
from importlib.metadata import version as installed
from threading import Event, current_thread, main_thread

from consumers.dead_letter import DeadLetters
from consumers.kafka_admin import KafkaAdmin
from consumers.kafka_sink import KafkaSink
from consumers.kafka_source import KafkaSource
from consumers.pipeline import BatchConfig, Pipeline
from consumers.telemetry import Telemetry as ConsumerTelemetry
from deploy.observability import new_registry, start_metrics
from deploy.settings import Settings
from learner.artifact import Version
from learner.blobs import Disk
from learner.checkpoint import BackgroundWriter, Checkpointer
from learner.loop import IngestState, Publisher, train
from learner.telemetry import Telemetry
from learner.trainer import StepReport, Trainer
from weighting.sample import Batch
from weighting.weigher import Weigher

log = logging.getLogger("steelyard.learner")


class LearnRole:
    """One learner: takes the store, the log and the model when started, learns in `run`, ends by SIGTERM, SIGINT or `stop`."""

    def __init__(self, settings: Settings, *, clock: Callable[[], float] = time.time) -> None:
        """Keep the settings; nothing is opened yet."""
        self._settings = settings
        self._clock = clock
        self._stopped = Event()
        self.registry = new_registry()

    def run(self, each: Callable[[StepReport, Trainer], None] = lambda report, trainer: None) -> None:
        """Learn until told to end, then make the last checkpoint durable.

        Args:
            each: hears of every step.

        Raises:
            KeyboardInterrupt: it was SIGINT; everything has ended in good order.
            Fenced: another learner took the store.
        """
        interrupted = self._catch_signals()
        with ExitStack() as opened:
            self._learn(each, opened)
        if interrupted.is_set():
            raise KeyboardInterrupt

    def _learn(self, each: Callable[[StepReport, Trainer], None], opened: ExitStack) -> None:
        """Open everything that may be refused, and only then claim the store: a start that fails must not fence the learner that runs."""
        settings, topics = self._settings, self._settings.kafka.topics
        trainer = Trainer(settings.learner, Weigher(settings.weighting))
        source = KafkaSource(settings.kafka, tuple(topics.kinds())).start()
        opened.callback(source.close)
        sink = KafkaSink(settings.kafka, (topics.dead_letter,)).start()
        opened.callback(sink.close)
        admin = KafkaAdmin(settings.kafka).start()
        opened.callback(admin.close)
        metrics = start_metrics(self.registry, settings.observability.metrics_port, settings.observability.metrics_host)
        opened.callback(metrics.close)
        consumer_telemetry, telemetry = ConsumerTelemetry(self.registry), Telemetry(self.registry)
        dead_letters = DeadLetters(sink, topics.dead_letter, consumer_telemetry)
        pipeline = Pipeline(
            source,
            topics=topics,
            join=settings.join,
            batch=BatchConfig(size=settings.learner.batch, flush_seconds=settings.learner.flush_seconds),
            clock=self._clock,
            dead_letters=dead_letters,
            telemetry=consumer_telemetry,
        )
        checkpointer = Checkpointer(settings.store.root, Disk(), self._clock)
        epoch = checkpointer.claim()
        recovered = checkpointer.latest()
        for skipped in recovered.skipped:
            log.error("checkpoint passed over", extra={"version": skipped.name, "reason": skipped.reason})
        publisher = Publisher(
            trainer,
            BackgroundWriter(checkpointer, keep=settings.store.keep),
            lambda: _ingest_state(pipeline, dead_letters),
            telemetry,
            clock=self._clock,
            config_sha256=hashlib.sha256(repr(asdict(settings.learner)).encode()).hexdigest(),
            fingerprint=_fingerprint(settings),
            published=AdvisoryCommit(admin, settings.kafka.group_id, consumer_telemetry),
        )
        checkpointer.sweep()
        if recovered.version is not None:
            checkpointer.announce(recovered.version)
            self._resume(recovered.version, checkpointer, trainer, pipeline, publisher)
        log.info("learning", extra={"epoch": epoch, "resumed": recovered.version and recovered.version.name, "metrics_port": metrics.port})
        for report in train(self._until_stopped(pipeline), trainer, publisher, telemetry):
            if report is not None:
                each(report, trainer)
        publisher.close()

    def stop(self) -> None:
        """End after the step at hand; from any thread."""
        self._stopped.set()

    def _until_stopped(self, pipeline: Pipeline) -> Iterator[Batch | None]:
        for batch in pipeline.batches():
            yield batch
            if self._stopped.is_set():
                return

    def _resume(self, version: Version, checkpointer: Checkpointer, trainer: Trainer, pipeline: Pipeline, publisher: Publisher) -> None:
        """Take model, estimators, joins and next offsets from one checkpoint."""
        trainer.restore(lambda path: checkpointer.read(version, path))
        own = set(trainer.files())
        names = [path for path in version.files if path.startswith("training/") and path.endswith(".msgpack") and path not in own]
        parts = {path.removeprefix("training/").removesuffix(".msgpack"): checkpointer.read(version, path) for path in names}
        pipeline.restore(parts, version.next_offsets)
        publisher.restore(version)

    def _catch_signals(self) -> Event:
        """SIGTERM and SIGINT end the loop after its step; the event says that it was SIGINT."""
        interrupted = Event()
        if current_thread() is main_thread():

            def end(number: int, frame: object) -> None:
                self._stopped.set()
                if number == signal.SIGINT:
                    interrupted.set()

            signal.signal(signal.SIGTERM, end)
            signal.signal(signal.SIGINT, end)
        return interrupted


def run(settings: Settings) -> None:
    """Run one learner in this process; see `LearnRole.run`."""
    LearnRole(settings).run()


def _ingest_state(pipeline: Pipeline, dead_letters: DeadLetters) -> IngestState:
    """Ingest's part of a cut; every dead letter below it is acknowledged first."""
    dead_letters.flush()
    offsets: dict[str, dict[int, int]] = {}
    for (topic, partition), offset in sorted(pipeline.next_offsets().items()):
        offsets.setdefault(topic, {})[partition] = offset
    return IngestState(parts=pipeline.snapshot(), offsets=offsets, watermark_us=pipeline.watermark_us())


class AdvisoryCommit:
    """Tells Kafka, for lag dashboards, what a durable version contains; nobody reads it back, so a failure is only logged."""

    def __init__(self, admin: KafkaAdmin, group: str, telemetry: ConsumerTelemetry) -> None:
        """Take whom to tell, and the group."""
        self._admin, self._group, self._telemetry = admin, group, telemetry
        self._num_failed = 0  # in a row

    def __call__(self, version: Version) -> None:
        """Commit what `version` contains. One failure is expected: a new cluster makes its coordinator at the first question."""
        try:
            self._admin.commit(self._group, version.next_offsets)
        except Exception as error:  # whatever the client raises must not stop training: the commit is advisory
            level = logging.WARNING if self._num_failed else logging.INFO
            log.log(level, "advisory commit failed", extra={"group": self._group, "error": str(error)})
            self._num_failed += 1
            return
        self._num_failed = 0
        for (topic, partition), offset in version.next_offsets.items():
            self._telemetry.committed_offset.labels(topic, str(partition)).set(offset)


def _fingerprint(settings: Settings) -> dict[str, str | int | float | bool | None]:
    """What bit-identical recovery depends on."""
    libraries = {name: installed(name) for name in ("torch", "numpy", "river", "transformers", "kafka-python", "msgspec")}
    return {**libraries, "python": platform.python_version(), "threads": settings.learner.threads, "device": settings.learner.device}
