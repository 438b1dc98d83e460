"""Topics as other producers compress them: read with what is installed, or refused by name."""

from __future__ import annotations

import json
import uuid

import pytest
from kafka import KafkaProducer, codec

from consumers.errors import BatchUnreadable
from consumers.kafka.admin import KafkaAdmin
from consumers.kafka.options import KafkaConfig
from deploy.admin import records
from deploy.cli.exit_codes import UNSAFE, exit_code
from tests.fakes.paper import Paper
from tests.kafka.conftest import Cluster

CODECS = ("gzip", "lz4", "snappy", "zstd")


def written(broker: Cluster, *codecs: str) -> str:
    """A topic of one partition with 100 records of each codec, in batches of their own."""
    topic = f"codecs-{uuid.uuid4()}"
    with KafkaAdmin(KafkaConfig(bootstrap_servers=broker.bootstrap_servers)) as admin:
        admin.create_topic(topic, 1)
    for name in codecs:
        producer = KafkaProducer(
            bootstrap_servers=broker.bootstrap_servers, compression_type=name, linger_ms=50
        )
        for n in range(100):
            producer.send(topic, key=b"key", value=f"{name} {n} ".encode() * 50)
        producer.flush()
        producer.close()
    return topic


def test_every_codec_is_read(broker: Cluster) -> None:
    topic = written(broker, *CODECS)
    config, paper = KafkaConfig(bootstrap_servers=broker.bootstrap_servers), Paper()
    with records.reading(config, topic) as source:
        records.tail(source, paper.output(), start=0)
    values = [json.loads(line)["value"] for line in paper.written]
    assert values == [f"{name} {n} " * 50 for name in CODECS for n in range(100)]
    with KafkaAdmin(config) as admin:
        assert len(admin.sample(topic, 250)) == 250


@pytest.mark.parametrize(
    ("name", "package"), [("lz4", "lz4"), ("snappy", "python-snappy"), ("zstd", "zstandard")]
)
def test_a_codec_that_is_not_installed_is_one_sentence_for_whoever_reads(
    broker: Cluster, name: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    topic = written(broker, "gzip", name)
    config, paper = KafkaConfig(bootstrap_servers=broker.bootstrap_servers), Paper()
    monkeypatch.setattr(codec, f"has_{name}", lambda: False)
    said = rf"^{topic}\[0\]@100: .*{name}.*pip install {package},.*steelyard offsets reset"
    with (
        records.reading(config, topic) as source,
        pytest.raises(BatchUnreadable, match=said) as raised,
    ):
        records.tail(source, paper.output(), start=0)
    assert len(paper.written) == 100
    assert exit_code(raised.value) == UNSAFE
    with KafkaAdmin(config) as admin, pytest.raises(BatchUnreadable, match=said):
        admin.sample(topic, 200)
