"""Records behind a transaction that a producer leaves open, on a real broker."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from kafka import KafkaProducer

from consumers.events import encode_click
from deploy.admin import kafka_commands
from deploy.process.terminal import Output
from tests.consumers.shop import SECOND
from tests.kafka.conftest import Cluster
from tests.kafka.learning import LONG_AFTER_US, Learner, open_shop, trained
from weighting.provenance import TopicPartition

WAITING = "steelyard_consumer_waiting_for_transaction_records"
LAG = "steelyard_consumer_lag_records"


def value(learner: Learner, name: str, tp: TopicPartition) -> float | None:
    labels = {"topic": tp[0], "partition": str(tp[1])}
    return learner.role.registry.get_sample_value(name, labels)


def send(producer: Any, tp: TopicPartition, first: int, number: int) -> None:
    """Write clicks of nobody's list, in the time of the log's last events."""
    for n in range(first, first + number):
        click = encode_click(
            client_id=f"buyer-{n}",
            query_id=f"unknown-{n}",
            time_us=LONG_AFTER_US + n * SECOND,
            object_id="SKU-1",
        )
        producer.send(tp[0], click, partition=tp[1])
    producer.flush()


def test_what_waits_behind_an_open_transaction_is_lag_and_said_to_wait(
    broker: Cluster, tmp_path: Path
) -> None:
    shop = open_shop(broker, num_events=200)
    shop.end()
    settings = shop.at(tmp_path / "store")
    clicks = (settings.kafka.topics.clicks, 0)
    servers = broker.bootstrap_servers
    inside = KafkaProducer(bootstrap_servers=servers, transactional_id=clicks[0])
    outside = KafkaProducer(bootstrap_servers=servers)
    try:
        inside.init_transactions()
        with Learner(settings) as learner:
            wanted = shop.trained()
            learner.version(lambda version: trained(version).num >= wanted.num)
            learner.until(lambda: True if value(learner, LAG, clicks) == 0 else None)
            inside.begin_transaction()
            send(inside, clicks, 0, 5)
            send(outside, clicks, 5, 2)  # readable only when the transaction has ended
            learner.until(lambda: True if value(learner, WAITING, clicks) == 7 else None)
            learner.until(lambda: True if value(learner, LAG, clicks) == 7 else None)
            written: list[str] = []
            out = Output(write=written.append, report=lambda line: None, as_json=True)
            assert kafka_commands.describe(settings, out, None, watch=False) == 0
            rows = [
                row
                for row in json.loads(written[0])["partitions"]
                if (row["topic"], row["partition"]) == clicks
            ]
            assert [(row["lag"], row["waiting_for_transaction"]) for row in rows] == [(7, 7)]
            inside.commit_transaction()
            learner.until(lambda: True if value(learner, WAITING, clicks) == 0 else None)
            learner.until(lambda: True if value(learner, LAG, clicks) == 0 else None)
    finally:
        inside.close()
        outside.close()
