"""The doctor against a real broker: above all, who put a record on the partition where it is."""

import time
import uuid
import zlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from kafka import KafkaProducer

from consumers.events import encode_click, encode_exposure, encode_purchase
from consumers.kafka.admin import KafkaAdmin
from consumers.pipeline import Topics
from deploy.doctor.check_result import CheckResult
from deploy.doctor.report import examine
from deploy.settings.config import LogConfig, ServingConfig
from deploy.settings.tree import Settings
from learner.config import StoreConfig
from tests.kafka.conftest import Cluster

NUM_CLIENTS = 100
NUM_PARTITIONS = 4


@pytest.fixture
def log(broker: Cluster) -> LogConfig:
    """Topics of this test alone, healthy, with one exposure and one purchase for every client."""
    run = uuid.uuid4().hex[:8]
    topics = Topics(
        exposures=f"exposures-{run}",
        clicks=f"clicks-{run}",
        purchases=f"purchases-{run}",
        items=f"items-{run}",
        dead_letter=f"dead-{run}",
    )
    log = LogConfig(bootstrap_servers=broker.bootstrap_servers, topics=topics)
    with KafkaAdmin(log) as admin:
        for topic in (topics.exposures, topics.clicks, topics.purchases):
            assert topic is not None
            admin.create_topic(topic, NUM_PARTITIONS, config={"retention.ms": str(30 * 86_400_000)})
        for topic in (topics.items, topics.dead_letter):
            assert topic is not None
            admin.create_topic(topic, 1, config={"cleanup.policy": "compact"})
    now_us = int(time.time() * 1e6)
    shown = [
        encode_exposure(
            query_id=f"q-{c}", client_id=c, time_us=now_us, user_query="shoes", hits=["SKU-7"]
        )
        for c in clients()
    ]
    bought = [
        encode_purchase(
            client_id=client,
            object_id="SKU-7",
            time_us=now_us,
            query_id=f"q-{client}",
            event_id=f"p-{client}",
        )
        for client in clients()
    ]
    assert topics.exposures is not None
    write(log, topics.exposures, shown)
    write(log, topics.purchases, bought)
    return log


def clients() -> list[str]:
    return [f"c-{number}" for number in range(NUM_CLIENTS)]


def clicks() -> list[bytes]:
    now_us = int(time.time() * 1e6)
    return [
        encode_click(
            client_id=client,
            object_id="SKU-7",
            time_us=now_us,
            query_id=f"q-{client}",
            event_id=f"e-{client}",
        )
        for client in clients()
    ]


def write(
    log: LogConfig,
    topic: str,
    values: Sequence[bytes],
    partitions: Sequence[int | None] | None = None,
) -> None:
    producer = KafkaProducer(bootstrap_servers=log.bootstrap_servers)
    for client, value, partition in zip(
        clients(), values, partitions or [None] * NUM_CLIENTS, strict=True
    ):
        producer.send(topic, key=client.encode(), value=value, partition=partition)
    producer.flush()
    producer.close()


def troubles(log: LogConfig, root: Path) -> list[CheckResult]:
    settings = replace(
        Settings(), kafka=log, store=StoreConfig(root=root), serving=ServingConfig(port=0)
    )
    return [
        finding
        for finding in examine(settings)
        if finding.area in ("Kafka", "time") and finding.mark != "ok"
    ]


def test_keys_by_murmur2_pass_and_a_healthy_cluster_gets_no_mark(
    log: LogConfig, tmp_path: Path
) -> None:
    write(log, log.topics.clicks, clicks())
    assert troubles(log, tmp_path) == []


def test_the_default_partitioner_of_librdkafka_is_found_on_a_live_topic(
    log: LogConfig, tmp_path: Path
) -> None:
    """Return CRC32 of the key modulo the partition count, as librdkafka's default does."""
    write(log, log.topics.purchases, clicks())  # by murmur2
    write(
        log,
        log.topics.clicks,
        clicks(),
        [zlib.crc32(client.encode()) % NUM_PARTITIONS for client in clients()],
    )
    (found,) = troubles(log, tmp_path)
    assert found.mark == "X"
    assert found.text.startswith(f"{log.topics.clicks}: partitioner: ")
    assert "librdkafka's default, consistent_random" in found.text
    assert "partitioner=murmur2_random" in found.remedy


def test_what_is_wrong_with_the_topics_is_found(log: LogConfig, tmp_path: Path) -> None:
    wrong = replace(
        log,
        topics=replace(
            log.topics, items=log.topics.clicks + "-missing", dead_letter=log.topics.purchases
        ),
    )
    texts = [finding.text for finding in troubles(wrong, tmp_path)]
    assert f"topic {log.topics.clicks}-missing is missing" in texts
    assert f"{log.topics.purchases}: cleanup.policy is delete, expected compact" in texts
