"""The start of a term: what the store resumes from, acquired and shared by all ranks.

Everything that may be refused is refused before the store is claimed: a start that fails must not
fence the learner that runs.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec

from consumers.kafka.source import KafkaSource
from consumers.reading.replay import Replayed
from deploy.errors import Unsafe
from learner.artifact import Version
from learner.process_group import ProcessGroup
from learner.publish import Identity
from learner.store.checkpoint import Checkpointer
from learner.store.journal.records import JournalPosition, JournalRecord, Step
from learner.store.journal.writer import Journal
from learner.store.manifest import CheckpointMetadata, Input, Reset, ResumePoint, RunState
from learner.store.recovery.plan import RecoveryPlan
from learner.store.recovery.point import RecoveryPoint
from weighting.provenance import Offsets

log = logging.getLogger("steelyard.learner")


class Start(msgspec.Struct, frozen=True, kw_only=True):
    """Resume point of a term; the first rank acquires it and broadcasts it.

    Attributes:
        epoch: the fencing token of this owner of the store.
        version: whose state is restored, None for an empty store.
        next_offsets: first offsets to read.
        journal: position of the state in the journal.
        tail: journal records to do again.
        resets: next offsets to take, each after its step.
        run_state: as of the start.
        counts: topic -> partitions that the state has read; None for an empty store.
    """

    epoch: int
    version: str | None
    next_offsets: Offsets
    journal: ResumePoint
    tail: list[tuple[JournalPosition, JournalRecord]]
    resets: tuple[Reset, ...]
    run_state: RunState
    counts: dict[str, int] | None = None

    @classmethod
    def of(cls, acquired: RecoveryPoint) -> Start:
        """Return what every rank needs of an acquired store."""
        return cls(
            epoch=acquired.fencing_token,
            version=acquired.version.name if acquired.version else None,
            next_offsets=acquired.next_offsets,
            journal=acquired.journal,
            tail=acquired.tail,
            resets=acquired.resets,
            run_state=acquired.run_state,
            counts=counts_of(acquired.version) if acquired.version else None,
        )

    def replayed(self, rank: int) -> list[Replayed]:
        """Return what one rank's pipeline reads again, without the polls its state contains."""
        skip = self.journal.skip[rank] if rank < len(self.journal.skip) else 0
        moves = {reset.step: reset.moved_to for reset in self.resets}
        replayed: list[Replayed] = []
        for _, record in self.tail:
            if not isinstance(record, Step):
                continue
            part = record.parts[rank]
            if part.cause is not None:
                replayed.append(Replayed(part.polls[skip:], part.cause))
                skip = 0
            if moved := moves.get(record.step):
                offsets = tuple((*tp, offset) for tp, offset in moved.items())
                replayed.append(Replayed((), None, offsets))
        return replayed


def share(start: Start | None, group: ProcessGroup) -> Start:
    """Give every rank what the first one acquired; the others pass None."""
    sent = None if start is None else msgspec.msgpack.encode(start, enc_hook=Offsets.nested)
    received = group.broadcast(sent)
    return msgspec.msgpack.decode(received, type=Start, dec_hook=Offsets.dec_hook)


def acquire(
    checkpointer: Checkpointer,
    journal: Journal,
    identity: Identity,
    recovery_plan: Callable[[Version | None], RecoveryPlan | None],
    *,
    root: Path,
    num_ranks: int,
    accept_config: bool,
    restore: Callable[[Version], None] = lambda version: None,
) -> tuple[RecoveryPoint, RecoveryPoint]:
    """Look at the store, refuse what does not fit, then claim it; return it before and after.

    Args:
        checkpointer: of the store.
        journal: not started yet.
        identity: settings, environment and topics of now.
        recovery_plan: as of `Checkpointer.acquire`.
        root: of the store.
        num_ranks: that learn together.
        accept_config: leave out steps that were journaled under other settings.
        restore: called with the version to go on from, before the claim; what it raises ends the
            start.

    Raises:
        Unsafe: inputs or settings do not fit the newest checkpoint.
    """
    empty = _empty_checkpoint(identity)
    found = checkpointer.look(initial=empty, recovery_plan=recovery_plan, world_size=num_ranks)
    keep_tail = True
    if found.newest is not None:
        refuse_other_inputs(found.metadata.inputs, identity.inputs)
        keep_tail = found.newest.manifest["config_sha256"] == identity.config_sha256
    if not keep_tail:
        if found.tail and not accept_config:
            raise Unsafe(
                f"{root}: {len(found.tail)} journal records follow the newest checkpoint, and they "
                "were made under other settings. Start once with the old settings, or with "
                "--accept-config: these steps' events are then read again and learned under the "
                "new ones, each once."
            )
    if found.version is not None:
        restore(found.version)
    if not keep_tail:
        log.warning(
            "settings differ from the newest checkpoint's: its state goes on under the new ones"
        )
    acquired = checkpointer.acquire(
        journal,
        initial=empty,
        recovery_plan=recovery_plan,
        world_size=num_ranks,
        keep_tail=keep_tail,
    )
    return found, acquired


def recovery_cause(acquired: RecoveryPoint) -> str:
    """Log damaged versions that were passed over; return the cause as telemetry labels it."""
    for skipped in acquired.skipped:
        extra = {"version": skipped.name, "reason": skipped.reason}
        log.error("checkpoint passed over", extra=extra)
    if acquired.skipped:
        return "corrupt"
    if acquired.resumed_by:
        return "order"
    return "crash" if acquired.tail else "restart"


def inputs_of(source: KafkaSource) -> dict[str, Input]:
    """Return id and partition count of every topic that is read."""
    ids = source.topic_ids()
    return {
        topic: Input(id=ids.get(topic, ""), num_partitions=count)
        for topic, count in sorted(source.partition_counts().items())
    }


def counts_of(version: Version) -> dict[str, int] | None:
    """Return topic -> number of its partitions that a version has read; None if it is not said."""
    inputs = version.manifest.get("inputs") or {}
    return {topic: int(found["num_partitions"]) for topic, found in inputs.items()} or None


def refuse_other_inputs(before: Mapping[str, Input], now: Mapping[str, Input]) -> None:
    """Refuse topics created anew or with fewer partitions since the newest checkpoint (R2).

    Partitions that were added are taken over while they are read (`consumers.reading.growth`).

    Raises:
        Unsafe: the state remembers another log than the one that is there.
    """
    for topic, known in before.items():
        found = now.get(topic)
        if found is None:
            continue
        if known.id and found.id and known.id != found.id:
            raise Unsafe(
                f"topic {topic}: it was created anew since the newest checkpoint (id {known.id}, "
                f"now {found.id}). Its offsets mean other records now. Move to a new store, or "
                "restore the topic."
            )
        if found.num_partitions < known.num_partitions:
            raise Unsafe(
                f"topic {topic}: it has {found.num_partitions} partitions, the newest checkpoint "
                f"knows {known.num_partitions}. Kafka never takes partitions away, so this is "
                "another topic. Move to a new store, or restore the topic."
            )


def _empty_checkpoint(identity: Identity) -> CheckpointMetadata:
    return CheckpointMetadata(
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
