"""The real learner over a log in memory and a disk that may die at any call; no Kafka."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from hashlib import blake2b
from pathlib import Path
from random import Random

from prometheus_client import CollectorRegistry

from consumers.events import encode_click, encode_exposure, encode_purchase
from consumers.joining.partition_clock import NUM_CLIENTS
from consumers.pipeline import BatchConfig, Topics
from consumers.reading.replay import Replayed
from deploy.roles.start import counts_of
from deploy.roles.wiring import config_sha256, fingerprint, ingest_state, restore
from deploy.settings.config import LogConfig
from deploy.settings.tree import Settings
from learner.artifact import Store, Version
from learner.config import LearnerConfig
from learner.loop import train
from learner.process_group import SingleProcess
from learner.publish import Identity, Publisher
from learner.store.blobs import Disk
from learner.store.checkpoint import Checkpointer
from learner.store.journal.records import Step
from learner.store.journal.writer import Journal
from learner.store.manifest import Input
from learner.store.writer import BackgroundWriter, Saved
from learner.telemetry import Telemetry
from learner.trainer import Trainer
from tests.consumers.bench import Bench
from tests.consumers.oracle import oracle
from tests.consumers.shop import SECOND, START_US, WINDOWS, shop
from tests.fakes.clock import ManualClock
from tests.fakes.disk import FaultyDisk
from tests.fakes.log import Log
from tests.learner.saving import cut
from weighting.sample import Batch, Signal
from weighting.weigher import Weigher

SETTINGS = replace(
    Settings(),
    kafka=LogConfig(topics=Topics(items=None)),
    join=WINDOWS,
    learner=LearnerConfig(
        model="random:1x32",
        tuning="full",
        dropout=0.1,
        batch_size=24,
        flush_seconds=5,
        publish_every_seconds=4,
        max_tokens=16,
        lr=1e-3,
    ),
)


@dataclass(frozen=True)
class Shop:
    """A log whose windows all close, and the samples that it holds."""

    log: Log
    trained: tuple[int, int]  #: number, and sum of the hashes of their ids

    @classmethod
    def invented(cls, seed: int, num_events: int) -> Shop:
        log = shop(seed, num_events)
        windows = {
            name: getattr(WINDOWS, name)
            for name in (
                "click_window_us",
                "observation_window_us",
                "attribution_window_us",
                "grace_us",
            )
        }
        names = oracle(log.records, **windows).samples
        total = sum(
            int.from_bytes(blake2b(name.encode(), digest_size=8).digest(), "little")
            for name in names
        )
        partitions = [p for topic, p in log.records if topic == "clicks"]
        for partition, n in itertools.product(partitions, range(NUM_CLIENTS)):
            client = f"end-{partition}-{n}"
            last = {"client_id": client, "query_id": client, "time_us": START_US + 86_400 * SECOND}
            exposure = encode_exposure(**last, user_query="end", hits=["SKU-1"])  # type: ignore[arg-type]
            click = encode_click(**last, object_id="SKU-1")  # type: ignore[arg-type]
            purchase = encode_purchase(**last, object_id="SKU-1")  # type: ignore[arg-type]
            for topic, value in (
                ("exposures", exposure),
                ("clicks", click),
                ("purchases", purchase),
            ):
                log.append(topic, partition, value, key=client.encode())
        return cls(log, (len(names), total % (1 << 64)))


class _WaitedFor(BackgroundWriter):
    """A writer whose poll waits, so that the disk's calls alone decide where it dies."""

    def poll(self, *, timeout_seconds: float | None = 0.0) -> Saved | None:
        return super().poll(timeout_seconds=None)


def live(
    root: Path,
    log: Log,
    disk: FaultyDisk,
    seed: int = 0,
    *,
    settings: Settings = SETTINGS,
    named: Settings = SETTINGS,
    checkpointer: Callable[[Path, Disk, Callable[[], float]], Checkpointer] = Checkpointer,
    keep_tail: bool = True,
    each: Callable[[Log], None] = lambda log: None,
) -> None:
    """Run one life of it, to the end of the log.

    `seed` decides what the polls give and how the clock moves; manifests say `named`. `each` is
    called with the reader's log between two polls, and may write.
    """
    random, clock = Random(seed), ManualClock()
    own, journal = checkpointer(root, disk, clock), Journal(root, disk)
    trainer = Trainer(settings.learner, Weigher(settings.weighting))
    batches_of = BatchConfig(
        size=settings.learner.batch_size, flush_seconds=settings.learner.flush_seconds
    )
    identity = Identity(
        config_sha256=config_sha256(named),
        fingerprint=fingerprint(named, SingleProcess()),
        inputs={
            topic: Input(id="", num_partitions=count)
            for topic, count in log.partition_counts().items()
        },
    )
    new = cut(
        0, offsets={}, config_sha256=identity.config_sha256, fingerprint=dict(identity.fingerprint)
    )
    try:
        acquired = own.acquire(journal, initial=new, keep_tail=keep_tail)
        bench = Bench(
            log.reader(max_records=25, random=random),
            batch=batches_of,
            clock=clock,
            counts=counts_of(acquired.version) if acquired.version else None,
        )
        writer = _WaitedFor(own, keep=1000)
        telemetry = Telemetry(CollectorRegistry())
        publisher = Publisher(
            trainer,
            writer,
            lambda: ingest_state(bench.pipeline, bench.dead_letters),
            telemetry,
            clock=clock,
            identity=identity,
            journal=acquired.journal,
            counts=bench.pipeline.counts,
        )
        if acquired.version is not None:
            version = acquired.version
            restore(version, own.read, trainer, bench.pipeline, acquired.next_offsets)
            publisher.restore(version)
        skip = sum(acquired.journal.skip)
        tail = []
        for _, record in acquired.tail:
            assert isinstance(record, Step)
            tail.append(Replayed(record.parts[0].polls[skip:], record.parts[0].cause))
            skip = 0

        def batches() -> Iterator[Batch | Signal]:
            until = None  # the last samples are flushed by then
            for batch in bench.pipeline.batches(tail):
                yield batch
                each(bench.log)
                clock.advance(random.choice([0.1, 0.5, 1]))
                if until is None and bench.pipeline.live and bench.log.exhausted:
                    until = clock() + 20 * settings.learner.flush_seconds
                if until is not None and clock() > until:
                    return

        for _ in train(batches(), trainer, publisher, telemetry, journal, tail=acquired.tail):
            pass
        publisher.close()
    finally:
        journal.close()


def versions(root: Path) -> list[Version]:
    return Store(root).versions()


def trained(root: Path) -> tuple[int, int]:
    """Return number and sum of the samples that the newest version was trained on."""
    samples = versions(root)[-1].manifest["trained"]
    return samples["num"], samples["sum64"]
