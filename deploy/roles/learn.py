"""The role `learn`: consume, join, weigh, train and publish until a signal or `stop`.

Operator commands are taken at a start, never in between. A learner that sees one ends its *term* in
good order, with a last checkpoint that is the way back, and begins the next term in the same
process. A model that diverges ends its term too.
"""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from threading import Event, current_thread, main_thread

from consumers.kafka.admin import KafkaAdmin
from consumers.kafka.sink import KafkaSink
from consumers.kafka.source import KafkaSource, own
from consumers.pipeline import Pipeline
from consumers.telemetry import Telemetry as ConsumerTelemetry
from deploy.process.lifecycle import Progress, Watchdog
from deploy.process.observability import MetricsServer, new_registry, start_metrics
from deploy.roles import batch_stream, wiring
from deploy.roles import start as starting
from deploy.roles.advisory_commit import AdvisoryCommit
from deploy.roles.backlog import Backlog, Monitor
from deploy.roles.commands import CommandInbox, back_from_divergence, recovery_plan
from deploy.roles.restoring import RestoredTrainer, restore
from deploy.roles.start import Start
from deploy.settings.tree import Settings
from learner.artifact import Version
from learner.errors import Diverged, without_tracebacks
from learner.loop import train
from learner.process_group import ProcessGroup, SingleProcess, TorchGroup
from learner.publish import Identity, Publisher
from learner.store.blobs import Disk
from learner.store.checkpoint import Checkpointer
from learner.store.journal.writer import Journal
from learner.store.manifest import Replay
from learner.store.recovery.plan import RecoveryPlan
from learner.store.writer import BackgroundWriter
from learner.telemetry import Telemetry
from learner.tracking.config import TrackingConfig
from learner.tracking.recorder import Recorder
from learner.tracking.start import check_installed, start_recorder
from learner.trainer import Trainer
from learner.training_step import StepReport
from weighting.provenance import Offsets
from weighting.weigher import Weigher

log = logging.getLogger("steelyard.learner")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Kafka:
    """Open connections to the brokers."""

    source: KafkaSource
    sink: KafkaSink
    admin: KafkaAdmin


@dataclass(frozen=True, slots=True, kw_only=True)
class _Term:
    """The parts of one term, wired and restored; only the first rank has a journal."""

    start: Start
    kafka: _Kafka
    trainer: Trainer
    pipeline: Pipeline
    publisher: Publisher
    checkpointer: Checkpointer
    journal: Journal | None
    progress: Progress
    watchdog: Watchdog
    backlog: Backlog
    recorder: Recorder


class LearnRole:
    """One learner: opens store, log and model, learns in `run`, ends by a signal or `stop`."""

    def __init__(
        self,
        settings: Settings,
        *,
        clock: Callable[[], float] = time.time,
        accept_config: bool = False,
        group: ProcessGroup | None = None,
        trainer: Callable[..., Trainer] = Trainer,
    ) -> None:
        """Keep the settings; nothing is opened yet.

        Args:
            settings: of all roles.
            clock: seconds since the Unix epoch.
            accept_config: learn on under settings other than those of the newest checkpoint,
                without the steps journaled behind it.
            group: the ranks that learn together.
            trainer: makes the model, as `Trainer` does.
        """
        self._new_trainer = trainer
        self._settings = settings
        self._clock = clock
        self._accept_config = accept_config
        self._group: ProcessGroup = group or SingleProcess()
        self._disk = Disk()
        root, num_ranks = settings.store.root, self._group.world
        self._commands = CommandInbox(root, self._disk, clock, num_ranks=num_ranks)
        self._stopped = Event()
        self._diverged: Diverged | None = None
        self.registry = new_registry()
        self._consumer_telemetry = ConsumerTelemetry(self.registry)
        self._telemetry = Telemetry(self.registry)
        self._telemetry.watch_verdicts(root, self._disk)

    def run(
        self, each: Callable[[StepReport, Trainer], None] = lambda report, trainer: None
    ) -> None:
        """Learn until stopped, then make the last checkpoint durable.

        Args:
            each: called after every step.

        Raises:
            KeyboardInterrupt: it was SIGINT; everything has ended in good order.
            Fenced: another learner took the store.
            Unsafe: going on would break the guarantee; says what to do.
            TrackerMissing: the library of `tracking.to` is not installed.
        """
        check_installed(self._settings.tracking)
        interrupted = self._catch_signals()
        metrics = self._start_metrics()
        try:
            while self._run_term(each, metrics.port):
                pass
        finally:
            metrics.close()
        log.info("stopped; the last checkpoint is durable")
        if interrupted.is_set():
            raise KeyboardInterrupt

    def stop(self) -> None:
        """End after the current step; from any thread."""
        self._stopped.set()

    def _run_term(self, each: Callable[[StepReport, Trainer], None], metrics_port: int) -> bool:
        """Run one term; return whether another follows."""
        with ExitStack() as opened:
            term = self._open(opened)
            start = term.start
            extra = {"epoch": start.epoch, "resumed": start.version, "replays": len(start.tail)}
            log.info("learning", extra=extra | {"metrics_port": metrics_port})
            try:
                self._train(term, each)
            except Diverged as error:
                log.error("diverged", extra={"error": str(error)})
                self._telemetry.recoveries.labels("diverged").inc()
                self._diverged = without_tracebacks(error)  # they would keep this term's model
                term.publisher.abandon()
                return True
            term.progress.rest()
            term.publisher.close()
            return self._another_term()

    def _open(self, opened: ExitStack) -> _Term:
        """Open everything that may refuse, claim the store, then wire and restore the parts."""
        settings, group = self._settings, self._group
        kafka = self._connect(opened)  # before the model, which takes long to load
        trainer = self._new_trainer(settings.learner, Weigher(settings.weighting), group)
        identity = Identity(
            config_sha256=wiring.config_sha256(settings),
            fingerprint=wiring.fingerprint(settings, group),
            inputs=starting.inputs_of(kafka.source),
        )
        checkpointer = Checkpointer(settings.store.root, self._disk, self._clock)
        journal, start = None, None
        restored = RestoredTrainer(trainer, checkpointer)
        if group.rank == 0:
            journal = Journal(settings.store.root, self._disk)
            opened.callback(journal.close)
            start = self._acquire(checkpointer, journal, identity, kafka.admin, restored)
        start = starting.share(start, group)
        progress = Progress()
        watchdog = Watchdog(
            progress,
            settings.kafka.stall_seconds,
            step_seconds=settings.learner.step_timeout_seconds,
        ).start()
        opened.callback(watchdog.close)
        pipeline, dead_letters = wiring.new_pipeline(
            settings,
            kafka.source,
            kafka.sink,
            self._consumer_telemetry,
            clock=self._clock,
            rank=group.rank,
            world=group.world,
            counts=start.counts,
            excluded=wiring.excluded(settings, start.run_state),
            retention_seconds=kafka.admin.retention_seconds(settings.kafka.topics.kinds()),
            observe=progress.observe,
        )
        backlog = Backlog(pipeline, lambda: trainer.num_samples)
        publisher = Publisher(
            trainer,
            self._writer(checkpointer),
            lambda: wiring.ingest_state(pipeline, dead_letters),
            self._telemetry,
            clock=self._clock,
            identity=identity,
            journal=start.journal,
            process_group=group,
            published=self._after_publishing(kafka.admin, opened),
            replaying=start.run_state.replay is not None,
            live=lambda: pipeline.live,
            samples_per_second=lambda: backlog.samples_per_second,
            waiting=backlog.facts,
            counts=pipeline.counts,
        )
        restore(start, checkpointer, restored, pipeline, publisher, group)
        recorder = self._start_recorder(trainer)
        opened.callback(recorder.close)
        term = _Term(
            start=start,
            kafka=kafka,
            trainer=trainer,
            pipeline=pipeline,
            publisher=publisher,
            checkpointer=checkpointer,
            journal=journal,
            progress=progress,
            watchdog=watchdog,
            backlog=backlog,
            recorder=recorder,
        )
        self._monitor(term, opened)
        return term

    def _monitor(self, term: _Term, opened: ExitStack) -> None:
        """Report lag and backlog from now on, whatever the learner does."""
        version = term.start.version and term.checkpointer.store.version(term.start.version)
        known = version.manifest.get("samples_per_second", 0.0) if version else 0.0
        term.backlog.begin(term.start.tail, float(known))
        admin = KafkaAdmin(self._settings.kafka).start()
        opened.callback(admin.close)
        topics = list(self._settings.kafka.topics.kinds())
        monitor = Monitor(
            term.backlog, term.pipeline, admin, topics, self._telemetry, clock=self._clock
        )
        opened.callback(monitor.start().close)

    def _connect(self, opened: ExitStack) -> _Kafka:
        kafka, group = self._settings.kafka, self._group
        topics = kafka.topics
        whole = () if topics.items is None else (topics.items,)
        source = KafkaSource(
            kafka,
            tuple(topics.kinds()),
            partitions=own(group.rank, group.world, whole=whole),
            rebuilt=lambda cause: self._consumer_telemetry.rebuilds.labels(cause).inc(),
        ).start()
        opened.callback(source.close)
        sink = KafkaSink(kafka, (topics.dead_letter,)).start()
        opened.callback(sink.close)
        admin = KafkaAdmin(kafka).start()
        opened.callback(admin.close)
        return _Kafka(source=source, sink=sink, admin=admin)

    def _acquire(
        self,
        checkpointer: Checkpointer,
        journal: Journal,
        identity: Identity,
        admin: KafkaAdmin,
        restored: RestoredTrainer,
    ) -> Start:
        """Claim the store, and carry out the operator command that waits, if any.

        The model is restored first: a version that it cannot go on from must not fence the learner
        that can.
        """
        store = checkpointer.store
        command = self._commands.take(store, identity, admin)

        def plan(newest: Version | None) -> RecoveryPlan | None:
            if newest is None:
                return None
            if self._diverged is not None:
                return back_from_divergence(store, newest, self._diverged)
            return None if command is None else recovery_plan(command, newest)

        found, acquired = starting.acquire(
            checkpointer,
            journal,
            identity,
            plan,
            root=self._settings.store.root,
            num_ranks=self._group.world,
            accept_config=self._accept_config,
            restore=restored.to,
        )
        self._commands.waiting = False
        self._diverged = None
        cause = starting.recovery_cause(acquired)
        if acquired.version is not None:
            self._telemetry.recoveries.labels(cause).inc()
        before = found.newest.run_state if found.newest else None
        self._commands.settle_cut_short(before, acquired.run_state)
        self._commands.settle(acquired.run_state)
        return Start.of(acquired)

    def _writer(self, checkpointer: Checkpointer) -> BackgroundWriter | None:
        if self._group.rank != 0:
            return None
        return BackgroundWriter(checkpointer, keep=self._settings.store.keep)

    def _after_publishing(self, admin: KafkaAdmin, opened: ExitStack) -> Callable[[Version], None]:
        """Return what to do with a durable version: commit, and answer a replay that it ends."""
        group = self._settings.kafka.group_id
        commit = AdvisoryCommit(admin, group, self._consumer_telemetry)
        opened.callback(commit.close)

        def published(version: Version) -> None:
            commit(version.next_offsets)
            if version.run_state.replay is None:
                self._commands.settle(version.run_state)

        return published

    def _start_recorder(self, trainer: Trainer) -> Recorder:
        """Track the steps to come, in the first rank alone."""
        settings = self._settings
        return start_recorder(
            settings.tracking if self._group.rank == 0 else TrackingConfig(),
            trainer,
            kind="learn",
            root=settings.store.root,
            clock=self._clock,
            counted=lambda outcome: self._telemetry.tracked.labels(outcome).inc(),
        )

    def _train(self, term: _Term, each: Callable[[StepReport, Trainer], None]) -> None:
        """Take steps until a signal, an operator command, or the end of a shadow's replay."""
        start, pipeline = term.start, term.pipeline
        replay = start.run_state.replay
        until = replay.end_offsets if replay else Offsets()
        shadow = replay is not None and replay.into == "shadow"
        anew = replay is not None and replay.mode == "anew"
        replayed = start.replayed(self._group.rank)
        stream = pipeline.batches(replayed, until if anew else None, end=anew and shadow)
        if replay is not None:
            stream = batch_stream.after_each(stream, partial(self._report_replay, term, replay))
        stream = batch_stream.rebuild_on_stall(stream, term.watchdog, term.kafka.source)
        shadow_done = partial(batch_stream.has_read, pipeline, until)
        stream = batch_stream.until_ended(
            stream, lambda: self._term_ends(term.checkpointer) or (shadow and shadow_done())
        )
        stream = batch_stream.time_reading(term.backlog.pulled(stream), term.progress)
        for report in train(
            stream,
            term.trainer,
            term.publisher,
            self._telemetry,
            term.journal,
            tail=start.tail,
            quarantine=start.run_state.quarantine,
            process_group=self._group,
            working=term.progress.working,
        ):
            term.backlog.stepped()
            if isinstance(report, StepReport):
                term.recorder.stepped(report)
                each(report, term.trainer)

    def _report_replay(self, term: _Term, replay: Replay) -> None:
        over = term.pipeline.live
        if replay.into == "shadow":
            over = batch_stream.has_read(term.pipeline, replay.end_offsets)
        ratio = term.backlog.replayed_ratio(replay.since, replay.samples, over=over)
        self._telemetry.replay_progress.labels(replay.into).set(ratio)

    def _term_ends(self, checkpointer: Checkpointer) -> bool:
        if self._stopped.is_set():
            return True
        first = self._group.rank == 0
        return first and self._commands.poll(checkpointer.run_state.commands_taken)

    def _another_term(self) -> bool:
        """Let the first rank decide for all whether a command is to be taken."""
        again = self._commands.waiting and not self._stopped.is_set()
        answer = (b"again" if again else b"") if self._group.rank == 0 else None
        return self._group.broadcast(answer) == b"again"

    def _start_metrics(self) -> MetricsServer:
        """Serve metrics; each rank has a port of its own, above the first one's."""
        config = self._settings.observability
        port = config.metrics_port + self._group.rank if config.metrics_port else 0
        return start_metrics(self.registry, port, config.metrics_host)

    def _catch_signals(self) -> Event:
        """Let SIGTERM and SIGINT end the loop after its step; the event is set by SIGINT."""
        interrupted = Event()
        if current_thread() is main_thread():

            def end(number: int, frame: object) -> None:
                self._stopped.set()
                if number == signal.SIGINT:
                    interrupted.set()

            signal.signal(signal.SIGTERM, end)
            signal.signal(signal.SIGINT, end)
        return interrupted


def run(settings: Settings, *, accept_config: bool = False) -> None:
    """Run one learner in this process, as one of several ranks where torchrun started it."""
    group: ProcessGroup = SingleProcess()
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        group = TorchGroup(settings.learner.device)
        group.start()
    try:
        LearnRole(settings, accept_config=accept_config, group=group).run()
    finally:
        group.close()
