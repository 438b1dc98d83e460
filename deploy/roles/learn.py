"""The role `learn`: consume, join, weigh, train, publish, wired together and run until a signal or `stop`.

What an operator orders is taken at a start, never in between: a learner that sees an order ends its *term* in good order, with a last
checkpoint that is the way back, and begins the next in the same process. A model that diverges ends its term too.
"""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from threading import Event, current_thread, main_thread
from typing import Literal, TypeVar

import msgspec

from consumers.kafka.admin import KafkaAdmin
from consumers.kafka.sink import KafkaSink
from consumers.kafka.source import KafkaSource, own
from consumers.pipeline import Pipeline
from consumers.reading.replay import Replayed
from consumers.telemetry import Telemetry as ConsumerTelemetry
from deploy.admin import exclusions
from deploy.errors import Unsafe
from deploy.process.lifecycle import Progress, Watchdog
from deploy.process.observability import new_registry, start_metrics
from deploy.roles import wiring
from deploy.settings.tree import Settings
from learner.artifact import Store, Version
from learner.errors import Corrupt, Diverged, VersionMissing
from learner.loop import Identity, Publisher, train
from learner.process_group import GlooGroup, ProcessGroup, SingleProcess
from learner.store import commands, manifest
from learner.store.blobs import Disk
from learner.store.checkpoint import Acquired, BackgroundWriter, Checkpointer, RecoveryPlan
from learner.store.journal import Journal, JournalPosition, JournalRecord, Step
from learner.store.manifest import CheckpointMetadata, Input, ResumePoint, RunState
from learner.telemetry import Telemetry
from learner.trainer import StepReport, Trainer
from weighting.provenance import TopicPartition
from weighting.sample import Batch, Signal
from weighting.weigher import Weigher

log = logging.getLogger("steelyard.learner")
_LOOK_SECONDS = 1.0  #: how often a running learner looks for an order
_P = TypeVar("_P")


class _Start(msgspec.Struct, frozen=True, kw_only=True):
    """What the first rank tells the others about what it has acquired."""

    epoch: int
    version: str | None
    next_offsets: list[tuple[str, int, int]]
    journal: ResumePoint
    tail: list[tuple[JournalPosition, JournalRecord]]
    moves: list[
        tuple[int, list[tuple[str, int, int]]]
    ]  #: behind which step, (topic, partition, next offset)
    run_state: RunState


class _ReplayPlan(msgspec.Struct, frozen=True, kw_only=True, rename={"digest": "self"}):
    """What an order to replay says."""

    version: str
    digest: str
    mode: Literal["as-it-was", "anew"]
    into: Literal["live", "shadow"]
    until: dict[str, dict[int, int]]
    exclude: str | None
    num_excluded: int
    cancels: int | None


class _ResetPlan(msgspec.Struct, frozen=True, kw_only=True):
    """What an order to move offsets says."""

    offsets: dict[str, dict[int, int]]


class LearnRole:
    """One learner: takes the store, the log and the model when started, learns in `run`, ends by SIGTERM, SIGINT or `stop`."""

    def __init__(
        self,
        settings: Settings,
        *,
        clock: Callable[[], float] = time.time,
        accept_config: bool = False,
        ranks: ProcessGroup | None = None,
        trainer: Callable[..., Trainer] = Trainer,
    ) -> None:
        """Keep the settings; nothing is opened yet.

        Args:
            settings: of all roles.
            clock: seconds since the Unix epoch.
            accept_config: learn on under settings other than those of the newest checkpoint, without the steps journaled behind it.
            ranks: who learns together.
            trainer: makes the model, as `Trainer` does.
        """
        self._new_trainer = trainer
        self._settings = settings
        self._clock = clock
        self._accept_config = accept_config
        self._ranks: ProcessGroup = ranks or SingleProcess()
        self._disk = Disk()
        self._stopped = Event()
        self._ordered = False
        self._looked = float("-inf")
        self._diverged: Diverged | None = None
        self.registry = new_registry()
        self._consumer_telemetry, self._telemetry = (
            ConsumerTelemetry(self.registry),
            Telemetry(self.registry),
        )
        self._telemetry.watch_verdicts(settings.store.root, self._disk)

    def run(
        self, each: Callable[[StepReport, Trainer], None] = lambda report, trainer: None
    ) -> None:
        """Learn until told to end, then make the last checkpoint durable.

        Args:
            each: hears of every step.

        Raises:
            KeyboardInterrupt: it was SIGINT; everything has ended in good order.
            Fenced: another learner took the store.
            Unsafe: going on would break the guarantee; says what to do.
        """
        interrupted = self._catch_signals()
        metrics_port = self._settings.observability.metrics_port + (
            self._ranks.rank if self._settings.observability.metrics_port else 0
        )
        metrics = start_metrics(
            self.registry, metrics_port, self._settings.observability.metrics_host
        )
        try:
            again = True
            while again:
                with ExitStack() as opened:
                    again = self._learn(each, opened, metrics.port)
        finally:
            metrics.close()
        if interrupted.is_set():
            raise KeyboardInterrupt

    def _learn(
        self, each: Callable[[StepReport, Trainer], None], opened: ExitStack, metrics_port: int
    ) -> bool:
        """One term; returns whether another follows.

        Everything that may be refused is opened first, and only then the store is claimed: a start that fails must not fence the learner
        that runs.
        """
        settings, topics, ranks = self._settings, self._settings.kafka.topics, self._ranks
        trainer = self._new_trainer(settings.learner, Weigher(settings.weighting), ranks)
        mine = own(ranks.rank, ranks.world, whole=() if topics.items is None else (topics.items,))
        source = KafkaSource(
            settings.kafka, tuple(topics.kinds()), partitions=mine, rebuilt=self._rebuilt
        ).start()
        opened.callback(source.close)
        sink = KafkaSink(settings.kafka, (topics.dead_letter,)).start()
        opened.callback(sink.close)
        admin = KafkaAdmin(settings.kafka).start()
        opened.callback(admin.close)
        identity = Identity(
            config_sha256=wiring.config_sha256(settings),
            fingerprint=wiring.fingerprint(settings, ranks),
            inputs=_inputs(source),
        )
        checkpointer, journal = Checkpointer(settings.store.root, self._disk, self._clock), None
        start = None
        if ranks.rank == 0:
            journal = Journal(settings.store.root, self._disk)
            opened.callback(journal.close)
            start = self._acquire(checkpointer, journal, identity, admin)
        start = msgspec.msgpack.decode(
            ranks.broadcast(None if start is None else msgspec.msgpack.encode(start)), type=_Start
        )
        progress = Progress()
        watchdog = Watchdog(progress, settings.kafka.stall_seconds).start()
        opened.callback(watchdog.close)
        pipeline, dead_letters = wiring.new_pipeline(
            settings,
            source,
            sink,
            self._consumer_telemetry,
            clock=self._clock,
            rank=ranks.rank,
            excluded=wiring.excluded(settings, start.run_state),
            retention_seconds=admin.retention_seconds(topics.kinds()),
            observe=progress.observe,
        )
        version = checkpointer.store.version(start.version) if start.version else None
        commit = AdvisoryCommit(admin, settings.kafka.group_id, self._consumer_telemetry)
        publisher = Publisher(
            trainer,
            BackgroundWriter(checkpointer, keep=settings.store.keep) if ranks.rank == 0 else None,
            lambda: wiring.ingest_state(pipeline, dead_letters),
            self._telemetry,
            clock=self._clock,
            identity=identity,
            journal=start.journal,
            ranks=ranks,
            published=lambda version: self._published(version, commit),
            replaying=start.run_state.replay is not None,
            live=lambda: pipeline.live,
        )
        if version is not None:
            if ranks.rank == 0:
                checkpointer.sweep()
                if start.run_state.replay is None:
                    checkpointer.announce(version)
            next_offsets = {(topic, p): offset for topic, p, offset in start.next_offsets}
            wiring.restore(
                version, checkpointer.read, trainer, pipeline, next_offsets, num_ranks=ranks.world
            )
            publisher.restore(version)
        log.info(
            "learning",
            extra={
                "epoch": start.epoch,
                "resumed": start.version,
                "replays": len(start.tail),
                "metrics_port": metrics_port,
            },
        )
        replay = start.run_state.replay
        until = _by_partition(replay.until) if replay else {}
        shadow = replay is not None and replay.into == "shadow"
        anew = replay is not None and replay.mode == "anew"
        stream = pipeline.batches(
            _replayed(start, ranks.rank), until if anew else None, end=anew and shadow
        )
        over = (lambda: _has_read(pipeline, until)) if shadow else lambda: False
        if replay is not None:
            stream = _told(
                stream, pipeline, until, self._telemetry.replay_progress.labels(replay.into).set
            )
        batches = self._until_stopped(_watched(stream, watchdog, source), checkpointer, over)
        try:
            for report in train(
                batches,
                trainer,
                publisher,
                self._telemetry,
                journal,
                tail=start.tail,
                quarantine=start.run_state.quarantine,
                ranks=ranks,
            ):
                if report is not None:
                    each(report, trainer)
        except Diverged as error:
            log.error("diverged", extra={"error": str(error)})
            self._telemetry.recoveries.labels("diverged").inc()
            self._diverged = error
            publisher.abandon()
            return True
        progress.rest()
        publisher.close()
        again = b"again" if self._ordered and not self._stopped.is_set() else b""
        return ranks.broadcast(again if ranks.rank == 0 else None) == b"again"

    def _rebuilt(self, cause: str) -> None:
        self._consumer_telemetry.rebuilds.labels(cause).inc()

    def stop(self) -> None:
        """End after the step at hand; from any thread."""
        self._stopped.set()

    # --- starting ---------------------------------------------------------------------------------------------------------------

    def _acquire(
        self, checkpointer: Checkpointer, journal: Journal, identity: Identity, admin: KafkaAdmin
    ) -> _Start:
        """Take the store, and with it whatever an operator has ordered."""
        new = CheckpointMetadata(
            step=0,
            samples=0,
            offsets={},
            event_time=None,
            watermark_us=None,
            weighting={},
            evaluation={},
            fresh_events=(),
            config_sha256=identity.config_sha256,
            fingerprint=dict(identity.fingerprint),
            inputs=dict(identity.inputs),
        )
        order = self._take(checkpointer.store, identity, admin)

        def recovery_plan(newest: Version | None) -> RecoveryPlan | None:
            return self._recovery_plan(checkpointer, newest, order)

        found = checkpointer.look(
            initial=new, recovery_plan=recovery_plan, world_size=self._ranks.world
        )
        keep_tail = True
        if found.newest is not None:
            _refuse_other_inputs(found.cut.inputs, identity.inputs)
            if found.newest.manifest["config_sha256"] != identity.config_sha256:
                if found.tail and not self._accept_config:
                    raise Unsafe(
                        f"{self._settings.store.root}: {len(found.tail)} journal records follow the newest checkpoint, and they were made "
                        "under other settings. Start once with the old settings, or with --accept-config: these steps' events are then "
                        "read again and learned under the new ones, each once."
                    )
                keep_tail = False
                log.warning(
                    "settings differ from the newest checkpoint's: its state goes on under the new ones"
                )
        acquired = checkpointer.acquire(
            journal,
            initial=new,
            recovery_plan=recovery_plan,
            world_size=self._ranks.world,
            keep_tail=keep_tail,
        )
        self._ordered, self._diverged = False, None
        self._tell(acquired)
        before = found.newest.run_state.replay if found.newest else None
        if before and before.command != (acquired.run_state.replay or before).command:
            self._answer(
                before.command,
                commands.WITHDRAWN,
                reason=f"order {acquired.run_state.commands_taken} came before it was over",
            )
        self._settle(acquired.run_state)
        return _Start(
            epoch=acquired.epoch,
            version=acquired.version.name if acquired.version else None,
            next_offsets=[(*tp, offset) for tp, offset in sorted(acquired.next_offsets.items())],
            journal=acquired.journal,
            tail=acquired.tail,
            moves=[
                (
                    reset.step,
                    [
                        (topic, p, after)
                        for topic, parts in reset.offsets.items()
                        for p, (_, after) in parts.items()
                    ],
                )
                for reset in acquired.resets
            ],
            run_state=acquired.run_state,
        )

    def _take(self, store: Store, identity: Identity, admin: KafkaAdmin) -> commands.Command | None:
        """The oldest order that can be carried out exactly as it was planned; what cannot is answered so, and nothing of it is done."""
        root, newest = (
            self._settings.store.root,
            store.newest() if self._settings.store.root.exists() else None,
        )
        while newest is not None:
            order = commands.pending(root, newest.run_state.commands_taken, self._disk)
            if order is None:
                return None
            reason = self._refusal(order, store, newest, identity, admin)
            if reason:
                log.error("order refused", extra={"order": order.id, "reason": reason})
                self._answer(order.id, commands.REFUSED, reason=reason)
            elif commands.take(root, order.id, self._disk):
                return order
        return None

    def _refusal(
        self,
        order: commands.Command,
        store: Store,
        newest: Version,
        identity: Identity,
        admin: KafkaAdmin,
    ) -> str | None:
        """Why an order cannot be carried out, None if it can."""
        try:
            if order.kind == "reset":
                return _off_the_log(_by_partition(_planned(order, _ResetPlan).offsets), admin)
            plan = _planned(order, _ReplayPlan)
            version = store.version(plan.version)
            if version.manifest["self"] != plan.digest:
                return f"{version.name} is not the one that was planned with"
            store.verify(version)
            if plan.exclude is not None:
                exclusions.load(self._settings.store.root, self._disk, plan.exclude)
        except (Corrupt, VersionMissing, msgspec.ValidationError) as error:
            return str(error)
        if plan.into == "shadow" and self._ranks.world > 1:
            return "a shadow is learned by one rank"
        if plan.mode == "as-it-was":
            same = (
                version.manifest["config_sha256"]
                == newest.manifest["config_sha256"]
                == identity.config_sha256
            )
            if not same or newest.run_state.world_size != self._ranks.world:
                return f"as it was cannot be repeated: settings or number of ranks differ from those of {version.name}"
            if version.journal is None or not any(
                span.holds(version.journal.place) for span in newest.timeline
            ):
                return (
                    f"as it was cannot be repeated: the journal does not go on from {version.name}"
                )
        return _off_the_log(version.next_offsets, admin)

    def _answer(self, order_id: int, state: str, **said: object) -> None:
        commands.answer(self._settings.store.root, order_id, {"state": state, **said}, self._disk)

    def _settle(self, run_state: RunState) -> None:
        """Say how the order that was taken last stands; said again at every start, as a crash may have come between."""
        if order_id := run_state.commands_taken:
            going_on = run_state.replay is not None and run_state.replay.command == order_id
            said = commands.answered(self._settings.store.root, order_id, self._disk) or {}
            if said.get("state") != commands.DONE and (
                not going_on or said.get("state") != commands.TAKEN
            ):
                self._answer(order_id, commands.TAKEN if going_on else commands.DONE)

    def _published(self, version: Version, commit: AdvisoryCommit) -> None:
        """Hear of a durable version: a replay that it ends is over."""
        commit(version)
        if version.run_state.replay is None:
            self._settle(version.run_state)

    def _recovery_plan(
        self, checkpointer: Checkpointer, newest: Version | None, order: commands.Command | None
    ) -> RecoveryPlan | None:
        """What this start shall do other than go on."""
        if newest is None:
            return None
        if self._diverged is not None:
            bad = self._diverged
            good = [
                found
                for found in checkpointer.store.lineage(_checkpoint(newest))
                if found.step < bad.first_step
            ]
            if not good:
                raise Unsafe(
                    f"{bad} No checkpoint is older than that; mend the settings (learner.lr) and start with an empty store."
                )
            return RecoveryPlan(
                kind="restore",
                version=good[0].name,
                quarantine=((bad.first_step, bad.last_step + 1),),
                replay=newest.run_state.replay,
            )
        if order is None or order.id <= newest.run_state.commands_taken:
            return None
        if order.kind == "reset":
            return RecoveryPlan(
                kind="reset", offsets=_planned(order, _ResetPlan).offsets, commands_taken=order.id
            )
        plan = _planned(order, _ReplayPlan)
        excluded = None
        if plan.exclude is not None:
            excluded = manifest.Exclusions(
                sha256=plan.exclude, num=plan.num_excluded, command=order.id
            )
        return RecoveryPlan(
            kind="restore",
            version=plan.version,
            as_it_was=plan.mode == "as-it-was",
            commands_taken=order.id,
            exclusions=excluded,
            undo=plan.cancels is not None,
            replay=manifest.Replay(
                mode=plan.mode, until=plan.until, command=order.id, into=plan.into
            ),
        )

    def _tell(self, acquired: Acquired) -> None:
        for skipped in acquired.skipped:
            log.error(
                "checkpoint passed over", extra={"version": skipped.name, "reason": skipped.reason}
            )
        cause = (
            "corrupt"
            if acquired.skipped
            else "order"
            if acquired.resumed_by
            else "crash"
            if acquired.tail
            else "restart"
        )
        if acquired.version is not None:
            self._telemetry.recoveries.labels(cause).inc()

    # --- running ----------------------------------------------------------------------------------------------------------------

    def _until_stopped(
        self,
        batches: Iterator[Batch | Signal],
        checkpointer: Checkpointer,
        over: Callable[[], bool],
    ) -> Iterator[Batch | Signal]:
        for batch in batches:
            yield batch
            if self._stopped.is_set() or self._is_ordered(checkpointer) or over():
                return

    def _is_ordered(self, checkpointer: Checkpointer) -> bool:
        """Whether there is an order to be taken; looks about once a second."""
        now = self._clock()
        if self._ranks.rank == 0 and not self._ordered and now - self._looked >= _LOOK_SECONDS:
            self._looked = now
            root = self._settings.store.root
            self._ordered = (
                commands.pending(root, checkpointer.run_state.commands_taken, self._disk)
                is not None
            )
        return self._ordered

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


def run(settings: Settings, *, accept_config: bool = False) -> None:
    """Run one learner in this process, as one of several ranks where torchrun started it; see `LearnRole.run`."""
    ranks: ProcessGroup = SingleProcess()
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        ranks = GlooGroup()
        ranks.start()
    try:
        LearnRole(settings, accept_config=accept_config, ranks=ranks).run()
    finally:
        ranks.close()


def _replayed(start: _Start, rank: int) -> list[Replayed]:
    """What one rank's pipeline does again: the turns that the state contains are left out, offsets that were moved are moved."""
    skip = start.journal.skip[rank] if rank < len(start.journal.skip) else 0
    moves = dict(start.moves)
    replayed: list[Replayed] = []
    for _, record in start.tail:
        if not isinstance(record, Step):
            continue
        part = record.parts[rank]
        if part.cause is not None:
            replayed.append(Replayed(part.polls[skip:], part.cause))
            skip = 0
        if moved := moves.get(record.step):
            replayed.append(Replayed((), None, tuple(moved)))
    return replayed


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
        except (
            Exception
        ) as error:  # whatever the client raises must not stop training: the commit is advisory
            level = logging.WARNING if self._num_failed else logging.INFO
            log.log(
                level, "advisory commit failed", extra={"group": self._group, "error": str(error)}
            )
            self._num_failed += 1
            return
        self._num_failed = 0
        for (topic, partition), offset in version.next_offsets.items():
            self._telemetry.committed_offset.labels(topic, str(partition)).set(offset)


def _checkpoint(newest: Version) -> str:
    """Return the name of the checkpoint that a manifest is or stands on."""
    name = newest.name if newest.kind == manifest.CHECKPOINT else newest.parent
    if name is None:
        raise Unsafe(
            "the model diverged before its first checkpoint; mend the settings (learner.lr) and start with an empty store."
        )
    return name


def _planned(order: commands.Command, kind: type[_P]) -> _P:
    return msgspec.convert(order.plan, kind, strict=False, str_keys=True)


def _off_the_log(offsets: Mapping[TopicPartition, int], admin: KafkaAdmin) -> str | None:
    """What is wrong with going on from these offsets: a partition does not have its one."""
    topics = sorted({topic for topic, _ in offsets})
    begins, ends = admin.beginning_offsets(topics), admin.end_offsets(topics)
    for tp, offset in sorted(offsets.items()):
        if not begins.get(tp, 0) <= offset <= ends.get(tp, -1):
            return f"{tp[0]}[{tp[1]}]: offset {offset} is not between {begins.get(tp)} and {ends.get(tp)}"
    return None


def _watched(
    batches: Iterator[Batch | Signal], watchdog: Watchdog, source: KafkaSource
) -> Iterator[Batch | Signal]:
    """The same batches; a consumer that stands still is replaced between two of them."""
    for batch in batches:
        yield batch
        if watchdog.asks():
            source.rebuild("stall")


def _told(
    batches: Iterator[Batch | Signal],
    pipeline: Pipeline,
    until: Mapping[TopicPartition, int],
    tell: Callable[[float], object],
) -> Iterator[Batch | Signal]:
    """The same batches; how much of a replay is read, of this rank's partitions, is told after each."""

    def left() -> int:
        return sum(
            max(0, until.get(tp, 0) - offset) for tp, offset in pipeline.next_offsets().items()
        )

    total = left()
    for batch in batches:
        yield batch
        tell(1 - left() / total if total else 1)


def _has_read(pipeline: Pipeline, until: Mapping[TopicPartition, int]) -> bool:
    """Whether a replay into a shadow is over."""
    offsets = pipeline.next_offsets()
    return pipeline.live and all(offsets[tp] >= offset for tp, offset in until.items())


def _by_partition(offsets: Mapping[str, Mapping[int, int]]) -> dict[TopicPartition, int]:
    return {(topic, p): offset for topic, parts in offsets.items() for p, offset in parts.items()}


def _inputs(source: KafkaSource) -> dict[str, Input]:
    counts = source.partition_counts()
    ids = source.topic_ids()
    return {
        topic: Input(id=ids.get(topic, ""), num_partitions=count)
        for topic, count in sorted(counts.items())
    }


def _refuse_other_inputs(before: Mapping[str, Input], now: Mapping[str, Input]) -> None:
    """R2: a topic that was created anew, or has other partitions, is another log: what is remembered of the old one does not fit."""
    for topic, was in before.items():
        found = now.get(topic)
        if found is None:
            continue
        if was.id and found.id and was.id != found.id:
            raise Unsafe(
                f"topic {topic}: it was created anew since the newest checkpoint (id {was.id}, now {found.id}). Its offsets mean other "
                "records now. Move to a new store, or restore the topic."
            )
        if was.num_partitions != found.num_partitions:
            raise Unsafe(
                f"topic {topic}: it has {found.num_partitions} partitions, the newest checkpoint knows {was.num_partitions}. Keys live "
                "elsewhere now, so open joins and deduplication would look in the wrong place. Begin with a new store, or go back to "
                f"{was.num_partitions} partitions."
            )
