"""Wiring of a learner's parts from settings, and of their state from a version.

Learning and checking share it: the parts decide the bytes of a version, so whoever wires them
another way learns something else.
"""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, replace
from importlib.metadata import version as installed

from consumers.dead_letter import DeadLetters
from consumers.exclusion import Exclusions
from consumers.pipeline import BatchConfig, Pipeline
from consumers.source import Sink, Source
from consumers.telemetry import Telemetry
from deploy.admin import exclusions
from deploy.settings.tree import Settings
from learner import version_layout as layout
from learner.artifact import Version
from learner.fingerprint import fingerprint as of_arithmetic
from learner.process_group import ProcessGroup
from learner.publish import IngestState
from learner.store.blobs import Disk
from learner.store.manifest import RunState
from learner.trainer import Trainer
from learner.tuning import adapters
from weighting.provenance import Offsets, TopicPartition

_Observe = Callable[
    [Mapping[TopicPartition, int], Mapping[TopicPartition, int], Collection[TopicPartition]],
    object,
]


def new_pipeline(
    settings: Settings,
    source: Source,
    sink: Sink,
    telemetry: Telemetry,
    *,
    clock: Callable[[], float],
    rank: int = 0,
    world: int = 1,
    counts: Mapping[str, int] | None = None,
    excluded: Exclusions | None = None,
    retention_seconds: Mapping[str, float] = {},
    observe: _Observe = lambda *_: None,
) -> tuple[Pipeline, DeadLetters]:
    """Return the pipeline of these settings and its dead letters; arguments as of `Pipeline`.

    Raises:
        PartitionsMismatch: topics that are joined have different partition counts.
    """
    topics, learner = settings.kafka.topics, settings.learner
    dead_letters = DeadLetters(sink, topics.dead_letter, telemetry, settings.kafka.dead_letters)
    pipeline = Pipeline(
        source,
        topics=topics,
        join=settings.join,
        batch=BatchConfig(size=learner.batch_size, flush_seconds=learner.flush_seconds),
        clock=clock,
        dead_letters=dead_letters,
        telemetry=telemetry,
        rank=rank,
        world=world,
        counts=counts,
        on_new_partitions=settings.kafka.on_new_partitions,
        excluded=excluded,
        on_gap=settings.kafka.on_gap,
        retention_seconds=retention_seconds,
        observe=observe,
    )
    return pipeline, dead_letters


def restore(
    version: Version,
    read: Callable[[Version, str], bytes],
    trainer: Trainer,
    pipeline: Pipeline,
    next_offsets: Mapping[TopicPartition, int],
    *,
    num_ranks: int = 1,
) -> None:
    """Restore model, estimators, joins and next offsets from one version.

    Args:
        version: the version to restore.
        read: returns a file of a version by its path, or raises `Corrupt`.
        trainer: made from the same settings.
        pipeline: one that has read nothing yet.
        next_offsets: those of the version, or those that an operator moved them to. Where it
            has none, the log is read from its beginning.
        num_ranks: number of ranks that share the partitions now.

    Raises:
        SnapshotRefused: the state is of another format or of other partitions.
    """
    trainer.restore(lambda path: read(version, path))
    restore_pipeline(version, read, pipeline, next_offsets, num_ranks=num_ranks)


def restore_pipeline(
    version: Version,
    read: Callable[[Version, str], bytes],
    pipeline: Pipeline,
    next_offsets: Mapping[TopicPartition, int],
    *,
    num_ranks: int = 1,
) -> None:
    """Restore joins and next offsets alone; arguments and errors as of `restore`."""
    paths = layout.ingest_paths(version.files)
    parts = {name: read(version, path) for name, path in paths.items()}
    if not parts:  # fit on a file (`deploy.fitting`): the log is read as by a new learner
        pipeline.begin(next_offsets)
        return
    num_saved = sum(name.startswith("rank-") for name in parts)
    pipeline.restore(parts, next_offsets, same_ranks=num_saved == num_ranks)


def ingest_state(pipeline: Pipeline, dead_letters: DeadLetters) -> IngestState:
    """Return ingest's part of a checkpoint; every dead letter below it is acknowledged first."""
    dead_letters.flush()
    offsets, audits = Offsets(pipeline.next_offsets()), pipeline.audits()
    return IngestState(
        parts=pipeline.snapshot(),
        offsets=offsets,
        watermark_us=pipeline.watermark_us(),
        num_polls=pipeline.num_polls(),
        audit={partition: audits[partition].copy() for partition in offsets},
        gaps=tuple(pipeline.gaps),
        live=pipeline.live,
        counts=pipeline.counts(),
    )


def excluded(settings: Settings, run_state: RunState) -> Exclusions | None:
    """Return the exclusions in force, None where nothing is left out."""
    named = run_state.exclusions
    if named is None:
        return None
    root, disk = settings.store.root, Disk()
    return Exclusions(exclusions.load(root, disk, named.sha256), exclusions.key_of(root, disk))


def config_sha256(settings: Settings) -> str:
    """Return the digest of every setting that changes what is learned, by its name on disk."""
    learner = replace(
        settings.learner, publish_every_seconds=30.0, flush_seconds=1.0, download=False
    )
    parts = learner.on_disk(), asdict(settings.join), settings.weighting.on_disk()
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def fingerprint(
    settings: Settings, group: ProcessGroup
) -> dict[str, str | int | float | bool | None]:
    """Return everything that bit-identical recovery depends on, in the thread that trains."""
    adapter = adapters.recipe(settings.learner.tuning)
    of_adapters = ("peft",) if adapter is not None and adapter.needs_peft else ()
    libraries = {
        name: installed(name)
        for name in (
            *("torch", "numpy", "river", "transformers", "kafka-python", "msgspec"),
            *of_adapters,
        )
    }
    return {
        **libraries,
        "python": platform.python_version(),
        **of_arithmetic(settings.learner.precision),
        "device": settings.learner.device,
        "world_size": group.world,
    }
