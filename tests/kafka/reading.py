"""A shop's log on real brokers, read by source and pipeline, and the samples to expect of it."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from random import Random
from typing import Any

from prometheus_client import CollectorRegistry

from consumers.dead_letter import DeadLetters
from consumers.kafka.admin import KafkaAdmin, partition_of
from consumers.kafka.options import KafkaConfig
from consumers.kafka.sink import KafkaSink
from consumers.kafka.source import KafkaSource
from consumers.pipeline import BatchConfig, Pipeline, Topics
from consumers.source import Record, Source
from consumers.telemetry import Telemetry
from tests.consumers.oracle import Outcome, oracle
from tests.consumers.shop import TOPICS, WINDOWS, writes
from tests.fakes.log import Log, Shelf
from weighting.provenance import TopicPartition
from weighting.sample import Batch, Sample, Signal

DEADLINE_SECONDS = 240.0  # fails a hang, measures nothing
NUM_PARTITIONS = 2


def nothing(num_polls: int) -> None:
    """Let it be."""


@dataclass(frozen=True)
class Shop:
    """Topics of one test alone, what was written to them, and what must come out."""

    topics: Topics
    records: Mapping[TopicPartition, list[Record]]  # as they must stand in the log
    wanted: Outcome

    @property
    def ends(self) -> dict[TopicPartition, int]:
        return {tp: len(records) for tp, records in self.records.items()}


def shop_on(
    bootstrap_servers: str, num_events: int, *, seed: int = 5, replication: int = -1
) -> Shop:
    """Write the events of an invented shop, all acknowledged."""
    tag = uuid.uuid4()
    topics = Topics(
        exposures=f"exposures-{tag}",
        clicks=f"clicks-{tag}",
        purchases=f"purchases-{tag}",
        items=None,
    )
    config = KafkaConfig(bootstrap_servers=bootstrap_servers)
    with KafkaAdmin(config) as admin:
        for topic in topics.kinds():
            admin.create_topic(topic, NUM_PARTITIONS, replication=replication)
    named = {topic.split("-")[0]: topic for topic in topics.kinds()}
    log = Log([(named[topic], p) for topic in TOPICS for p in range(NUM_PARTITIONS)])
    sink = KafkaSink(config, list(named.values())).start()
    for _, topic, client, value in sorted(
        writes(Random(seed), num_events), key=lambda write: write[0]
    ):
        log.append(
            named[topic], partition_of(client.encode(), NUM_PARTITIONS), value, key=client.encode()
        )
        sink.send(named[topic], client.encode(), value)
    sink.flush()
    sink.close()
    short = {(tp[0].split("-")[0], tp[1]): records for tp, records in log.records.items()}
    assert len(short) == len(log.records)
    windows = {
        "click_window_us": WINDOWS.click_window_us,
        "observation_window_us": WINDOWS.observation_window_us,
        "attribution_window_us": WINDOWS.attribution_window_us,
        "grace_us": WINDOWS.grace_us,
    }
    return Shop(topics, log.records, oracle(log.records, **windows))


def source_of(config: KafkaConfig, shop: Shop, **options: Any) -> KafkaSource:
    """Start a source of the shop's topics; polls are small, so that faults fall amid them."""
    return KafkaSource(config, list(shop.topics.kinds()), **options).start()


def small(bootstrap_servers: str, **options: Any) -> KafkaConfig:
    """Settings under which a few thousand records take many polls and many fetches."""
    return KafkaConfig(
        bootstrap_servers=bootstrap_servers,
        options={
            "max_poll_records": 60,
            "max_partition_fetch_bytes": 20_000,
            "fetch_max_bytes": 60_000,
            "fetch_min_bytes": 1,
            **options,
        },
    )


def all_samples(source: Source, shop: Shop, at: Callable[[int], None] = nothing) -> list[Sample]:
    """Read everything through a pipeline and close every window.

    `at` is called with the number of records read, and may do harm.
    """
    telemetry = Telemetry(CollectorRegistry())
    letters = DeadLetters(Shelf(), "dead", telemetry)
    pipeline = Pipeline(
        source,
        topics=shop.topics,
        join=WINDOWS,
        batch=BatchConfig(size=64),
        clock=time.time,
        dead_letters=letters,
        telemetry=telemetry,
    )
    samples: list[Sample] = []
    deadline = time.monotonic() + DEADLINE_SECONDS
    for batch in pipeline.batches():
        assert time.monotonic() < deadline, (
            f"reading stands at {pipeline.next_offsets()} of {shop.ends}"
        )
        samples += batch.samples if isinstance(batch, Batch) else ()
        offsets = pipeline.next_offsets()
        at(sum(offsets.values()))
        if batch is Signal.IDLE and offsets == shop.ends:
            break
    return samples + [sample for batch in pipeline.drain(2**60) for sample in batch.samples]


def assert_each_once(samples: list[Sample], shop: Shop) -> None:
    """0 lost, 0 doubled."""
    ids = [sample.sample_id for sample in samples]
    assert len(ids) == len(set(ids)), "doubled"
    assert {s.sample_id: s for s in samples} == shop.wanted.samples
