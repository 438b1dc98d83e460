"""Facts of kafka-python that our code respects; an upgrade that changes one fails here.

Each is as it was measured. Two more are in `test_consumers_on_kafka.py` (offset policies,
checksums), one in `test_faults_on_kafka.py` (name lookups).
"""

from __future__ import annotations

import inspect
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from typing import Any

import kafka
import pytest
from kafka import ConsumerRebalanceListener, KafkaConsumer, KafkaProducer, TopicPartition
from kafka.errors import KafkaTimeoutError
from kafka.net.sasl.scram import SaslMechanismScram
from kafka.net.transport import KafkaSSLTransport
from kafka.producer.transaction_manager import EndTxnHandler
from kafka.structs import OffsetAndMetadata

from consumers.kafka.admin import KafkaAdmin
from consumers.kafka.options import KafkaConfig
from tests.kafka.conftest import Cluster, Harmed


@pytest.fixture
def topic(broker: Cluster) -> str:
    """A topic of one partition with twenty records."""
    return filled(broker.bootstrap_servers)


def filled(bootstrap_servers: str, num_records: int = 20) -> str:
    name = f"t-{uuid.uuid4()}"
    with KafkaAdmin(KafkaConfig(bootstrap_servers=bootstrap_servers)) as admin:
        admin.create_topic(name, 1)
    write(bootstrap_servers, name, num_records)
    return name


def write(bootstrap_servers: str, topic: str, num_records: int) -> None:
    producer = KafkaProducer(bootstrap_servers=bootstrap_servers)
    for n in range(num_records):
        producer.send(topic, b"%d" % n)
        producer.flush()  # each record is a batch of its own
    producer.close()


def consumer_of(bootstrap_servers: str, topic: str, offset: int = 0, **options: Any) -> Any:
    settings = {"auto_offset_reset": "none", "enable_auto_commit": False, **options}
    consumer = KafkaConsumer(bootstrap_servers=bootstrap_servers, **settings)
    consumer.assign([TopicPartition(topic, 0)])
    consumer.seek(TopicPartition(topic, 0), offset)
    return consumer


def polled(consumer: Any, num_records: int) -> list[Any]:
    deadline, records = time.monotonic() + 60, list[Any]()
    while len(records) < num_records:
        assert time.monotonic() < deadline
        records += [record for part in consumer.poll(timeout_ms=200).values() for record in part]
    return records


# --- without a broker ---


def test_fact_the_version_has_the_fixes_that_we_count_on() -> None:
    assert tuple(map(int, kafka.__version__.split(".")[:3])) >= (3, 0, 9)


def test_fact_there_is_no_timeout_for_all_calls_so_each_must_be_given_one() -> None:
    assert "default_api_timeout_ms" not in KafkaConsumer.DEFAULT_CONFIG


def test_fact_the_transactional_calls_take_no_timeout() -> None:
    for name in (
        "init_transactions",
        "send_offsets_to_transaction",
        "commit_transaction",
        "abort_transaction",
    ):
        assert "timeout_ms" not in inspect.signature(getattr(KafkaProducer, name)).parameters


def test_fact_transactions_end_without_kip_890() -> None:
    assert "max_version=3" in inspect.getsource(EndTxnHandler)


def test_fact_a_revocation_list_cannot_be_given_but_through_a_context_of_our_own() -> None:
    with pytest.raises(TypeError, match="crl"):
        KafkaSSLTransport._build_ssl_context(
            {**KafkaSSLTransport.DEFAULT_CONFIG, "ssl_crlfile": "revoked.pem"}
        )


def test_fact_missing_credentials_are_not_refused() -> None:
    SaslMechanismScram(
        sasl_mechanism="SCRAM-SHA-512", sasl_plain_username="", sasl_plain_password=""
    )


# --- with one ---

SPIN = """
import sys
from threading import Thread
from kafka import KafkaConsumer, TopicPartition

servers, topic = sys.argv[1:]
partition = TopicPartition(topic, 0)

def value(data):
    if data == b"7":
        raise ValueError("poison")
    return data

def consumer():
    options = {"auto_offset_reset": "none", "enable_auto_commit": False}
    made = KafkaConsumer(bootstrap_servers=servers, value_deserializer=value, **options)
    made.assign([partition])
    made.seek(partition, 0)
    offsets = []
    try:
        while True:
            offsets += [r.offset for part in made.poll(200).values() for r in part]
    except ValueError:
        print("raised after", offsets, flush=True)
    return made

spinning = consumer()
thread = Thread(target=spinning.poll, args=(200,), daemon=True)
thread.start()
thread.join(5)
print("returned" if not thread.is_alive() else "never returned", flush=True)
freed = consumer()
freed.seek(partition, freed.position(partition) + 1)
print("after seek", [r.offset for part in freed.poll(5000).values() for r in part][:1], flush=True)
import os
os._exit(0)
"""


def test_fact_after_an_exception_in_a_deserializer_the_next_poll_never_returns_unless_we_seek(
    broker: Cluster, topic: str
) -> None:
    command = [sys.executable, "-c", SPIN, broker.bootstrap_servers, topic]
    printed = subprocess.run(
        command, capture_output=True, text=True, timeout=120, check=True
    ).stdout.splitlines()
    raised = f"raised after {list(range(7))}"
    assert printed == [raised, "never returned", raised, "after seek [8]"]


def test_fact_a_position_cannot_be_restored_with_its_leader_epoch(
    broker: Cluster, topic: str
) -> None:
    consumer = consumer_of(broker.bootstrap_servers, topic)
    with pytest.raises(ValueError, match="int"):
        consumer.seek(TopicPartition(topic, 0), OffsetAndMetadata(3, "", 0))
    assert polled(consumer, 1)[0].leader_epoch == 0
    consumer.close()


def test_fact_the_policy_earliest_reads_history_again_without_a_word(
    broker: Cluster, topic: str
) -> None:
    consumer = consumer_of(broker.bootstrap_servers, topic, 1000, auto_offset_reset="earliest")
    assert polled(consumer, 1)[0].offset == 0
    consumer.close()


def test_fact_a_client_that_knows_the_version_is_made_without_asking_anybody(
    broker: Cluster, topic: str
) -> None:
    first = consumer_of(broker.bootstrap_servers, topic)
    version = first.config["api_version"]
    first.close()
    nowhere = KafkaConsumer(bootstrap_servers="127.0.0.1:1", api_version=version)
    assert nowhere.poll(timeout_ms=100) == {}
    nowhere.close(autocommit=False, timeout_ms=1000)
    second = consumer_of(broker.bootstrap_servers, topic, 5, api_version=version)
    assert [record.offset for record in polled(second, 15)] == list(range(5, 20))
    second.close()


def test_fact_a_topic_that_was_made_again_is_read_on_by_name_until_somebody_compares_its_id(
    broker: Cluster, topic: str
) -> None:
    consumer = consumer_of(broker.bootstrap_servers, topic)
    polled(consumer, 20)
    first_id = consumer._cluster.topic_id(topic)
    with KafkaAdmin(KafkaConfig(bootstrap_servers=broker.bootstrap_servers)) as admin:
        admin.delete_topic(topic)
        assert any(admin.create_topic(topic, 1) for _ in range(200))
        second_id = admin.topic_ids()[topic]
    write(broker.bootstrap_servers, topic, 30)
    assert polled(consumer, 1)[0].offset == 20, "it goes on at the old offset in the new topic"
    consumer.topics()  # refreshes metadata; the client does so once in metadata_max_age_ms
    assert str(first_id) != second_id == str(consumer._cluster.topic_id(topic))
    consumer.close()


class CommitsWhereItMustNot(ConsumerRebalanceListener):  # type: ignore[misc]
    """Does what looks natural: commits when partitions are taken away or given."""

    def __init__(self) -> None:
        self.consumer: Any = None
        self.raised: list[BaseException] = []

    def on_partitions_revoked(self, revoked: Any) -> None:
        pass

    def on_partitions_assigned(self, assigned: Any) -> None:
        try:
            self.consumer.commit(
                {partition: OffsetAndMetadata(0, "", -1) for partition in assigned}, timeout_ms=2000
            )
        except RuntimeError as error:
            self.raised.append(error)


def test_fact_a_synchronous_rebalance_listener_must_not_commit(broker: Cluster, topic: str) -> None:
    listener = CommitsWhereItMustNot()
    consumer = KafkaConsumer(
        bootstrap_servers=broker.bootstrap_servers,
        group_id=f"g-{uuid.uuid4()}",
        enable_auto_commit=False,
    )
    listener.consumer = consumer
    consumer.subscribe([topic], listener=listener)
    deadline = time.monotonic() + 90
    while not listener.raised:
        assert time.monotonic() < deadline
        consumer.poll(timeout_ms=200)
    assert "Cannot block" in str(listener.raised[0])
    consumer.close(autocommit=False)


@pytest.fixture
def hung(harmed: Harmed) -> Iterator[tuple[Any, str]]:
    """A consumer with a group, of a topic that was read to its end, and whose broker then hangs."""
    topic = filled(harmed.bootstrap_servers)
    consumer = consumer_of(harmed.bootstrap_servers, topic, group_id=f"g-{uuid.uuid4()}")
    polled(consumer, 20)
    deadline = time.monotonic() + 60
    while True:
        try:
            consumer.commit(
                {TopicPartition(topic, 0): OffsetAndMetadata(20, "", -1)}, timeout_ms=5000
            )
            break
        except KafkaTimeoutError:  # the first commit of a cluster makes the topic for it
            assert time.monotonic() < deadline
    harmed.node.pause()
    yield consumer, topic
    harmed.node.resume()
    consumer.close(autocommit=False, timeout_ms=1000)


def test_fact_a_broker_that_hangs_lets_poll_and_commit_return_and_all_heals_by_itself(
    hung: tuple[Any, str], harmed: Harmed
) -> None:
    consumer, topic = hung
    assert consumer.poll(timeout_ms=500) == {}
    with pytest.raises(KafkaTimeoutError):
        consumer.commit({TopicPartition(topic, 0): OffsetAndMetadata(20, "", -1)}, timeout_ms=1000)
    harmed.node.resume()
    write(harmed.bootstrap_servers, topic, 5)
    assert [record.offset for record in polled(consumer, 5)] == list(range(20, 25))
