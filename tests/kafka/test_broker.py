"""The broker from packages: it starts, keeps its data, and never outlives its parent."""

import os
import select
import socket
import subprocess
import sys
import uuid
from pathlib import Path

import pytest
from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer, TopicPartition
from kafka.admin import NewTopic

from deploy.broker.node import Broker
from deploy.errors import BrokerFailed, PortTaken
from tests.kafka.conftest import Cluster

pytestmark = pytest.mark.kafka


def create_topic(bootstrap_servers: str, topic: str, partitions: int = 1) -> None:
    admin = KafkaAdminClient(bootstrap_servers=bootstrap_servers)
    admin.create_topics([NewTopic(topic, partitions, 1)])
    admin.close()


def write(bootstrap_servers: str, topic: str, values: list[bytes]) -> None:
    producer = KafkaProducer(bootstrap_servers=bootstrap_servers)
    futures = [producer.send(topic, value, partition=0) for value in values]
    producer.flush()
    assert all(future.succeeded() for future in futures)
    producer.close()


def read(bootstrap_servers: str, topic: str) -> list[bytes]:
    """All values of partition 0 up to its end offset."""
    partition = TopicPartition(topic, 0)
    consumer = KafkaConsumer(
        bootstrap_servers=bootstrap_servers, enable_auto_commit=False, auto_offset_reset="none"
    )
    consumer.assign([partition])
    consumer.seek(partition, 0)
    values: list[bytes] = []
    while len(values) < consumer.end_offsets([partition])[partition]:
        values += [record.value for record in consumer.poll(1000).get(partition, [])]
    consumer.close()
    return values


def test_what_is_written_is_read_back_up_to_the_end_offset(broker: Cluster) -> None:
    topic, values = f"written-{uuid.uuid4()}", [b"%d" % i for i in range(1000)]
    create_topic(broker.bootstrap_servers, topic)
    write(broker.bootstrap_servers, topic, values)
    assert read(broker.bootstrap_servers, topic) == values


def test_a_mistyped_topic_is_not_created_in_silence(broker: Cluster) -> None:
    if not isinstance(broker, Broker):
        pytest.skip("a setting of our own broker")
    consumer = KafkaConsumer(bootstrap_servers=broker.bootstrap_servers)
    consumer.partitions_for_topic("clikcs")
    assert "clikcs" not in consumer.topics()
    consumer.close()


def test_the_broker_is_gone_when_its_parent_is_killed(tmp_path: Path) -> None:
    code = (
        "import pathlib, sys; from deploy.broker.node import Broker; "
        "print(Broker(pathlib.Path(sys.argv[1])).start().pid, flush=True); input()"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert parent.stdout is not None
    assert parent.stdin is not None
    broker_pid = os.pidfd_open(int(parent.stdout.readline()))
    parent.kill()
    parent.wait()
    ended, _, _ = select.select([broker_pid], [], [], 30)
    assert ended, "the broker outlived its parent"
    os.close(broker_pid)
    parent.stdin.close()
    parent.stdout.close()


@pytest.mark.long
def test_a_kept_data_folder_survives_a_kill(tmp_path: Path) -> None:
    values = [b"before", b"the", b"kill"]
    broker = Broker(tmp_path).start()
    try:
        create_topic(broker.bootstrap_servers, "kept")
        write(broker.bootstrap_servers, "kept", values)
        first_address = broker.bootstrap_servers
        broker.kill()
        broker.close()
        broker.start()
        assert broker.bootstrap_servers == first_address
        assert read(broker.bootstrap_servers, "kept") == values
    finally:
        broker.close()


def test_a_port_in_use_is_one_sentence_and_nothing_is_started() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        broker = Broker(port=port)
        with pytest.raises(
            PortTaken,
            match=rf"^cannot listen on 127\.0\.0\.1:{port} \(Address already .*set --port",
        ):
            broker.start()
    assert broker.pid is None


def test_a_broker_that_cannot_start_says_why(tmp_path: Path) -> None:
    (tmp_path / "topics").mkdir()
    (tmp_path / "topics" / "meta.properties").write_text(
        "node.id=7\nversion=1\ncluster.id=x\n"
    )  # another node's
    broker = Broker(tmp_path)
    with pytest.raises(BrokerFailed, match=r"(?s)while starting.*Stored node id 7"):
        broker.start()
    assert broker.pid is None


def test_a_broker_that_cannot_start_leaves_nothing_behind() -> None:
    broker = Broker(classpath=lambda: [])
    with pytest.raises(BrokerFailed, match=r"(?s)formatting ended with exit 1.*StorageTool"):
        broker.start()
    assert broker.pid is None
    assert broker.log_tail() == ""
