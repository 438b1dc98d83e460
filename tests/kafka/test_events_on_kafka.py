"""Events sent, looked at, set aside and sent again, on a real broker by the program itself."""

import json
import subprocess
import sys
import uuid
from pathlib import Path

from consumers.dead_letter import DeadLetters
from consumers.errors import Invalid
from consumers.events import encode_click
from consumers.kafka.admin import KafkaAdmin, partition_of
from consumers.kafka.options import KafkaConfig
from consumers.kafka.sink import KafkaSink
from consumers.source import Record
from consumers.telemetry import Telemetry
from deploy.process.observability import new_registry
from tests.kafka.conftest import Cluster
from weighting.provenance import Position

CLICKS = [
    encode_click(client_id=f"c-{number}", object_id="SKU-7", time_us=0) for number in range(20)
]


def steelyard(broker: Cluster, *arguments: str, code: int = 0) -> str:
    command = [
        sys.executable,
        "-c",
        "from deploy.cli.app import main; main()",
        *arguments,
        "--bootstrap-servers",
        broker.bootstrap_servers,
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    return done.stdout


def test_what_is_sent_stands_on_the_partition_of_its_client(
    broker: Cluster, tmp_path: Path
) -> None:
    topic, file = f"sent-{uuid.uuid4()}", tmp_path / "clicks.ndjson"
    with KafkaAdmin(KafkaConfig(bootstrap_servers=broker.bootstrap_servers)) as admin:
        admin.create_topic(topic, 3)
    file.write_bytes(b"\n".join(CLICKS))
    assert json.loads(
        steelyard(broker, "events", "send", str(file), "--topic", topic, "--json")
    ) == {
        "topic": topic,
        "sent": 20,
        "refused": 0,
    }
    shown = [
        json.loads(line)
        for line in steelyard(broker, "events", "tail", topic, "--from", "0").splitlines()
    ]
    assert sorted(line["key"] for line in shown) == sorted(f"c-{number}" for number in range(20))
    for line in shown:
        assert line["position"].startswith(f"{topic}[{partition_of(line['key'].encode(), 3)}]@")


def test_a_dead_letter_is_listed_sent_again_and_gone(broker: Cluster) -> None:
    run = uuid.uuid4().hex[:8]
    clicks, dead = f"clicks-{run}", f"dead-{run}"
    topics = ["--set", f"kafka.topics.clicks={clicks}", "--set", f"kafka.topics.dead_letter={dead}"]
    topics += [
        "--set",
        f"kafka.topics.purchases={clicks}-p",
        "--set",
        "kafka.topics.exposures=null",
        "--set",
        "kafka.topics.items=null",
    ]
    config = KafkaConfig(bootstrap_servers=broker.bootstrap_servers)
    with KafkaAdmin(config) as admin:
        for topic in (clicks, f"{clicks}-p", dead):
            admin.create_topic(topic, 1)
    sink = KafkaSink(config, [dead]).start()
    letters = DeadLetters(sink, dead, Telemetry(new_registry()))
    where = Position(clicks, 0, 41)
    letters.put(
        Record(clicks, 0, 41, 0, b"c-0", CLICKS[0]),
        Invalid(stage="schema", reason="schema", error="wrong", position=where),
    )
    letters.flush()
    sink.close()
    (letter,) = [
        json.loads(line)
        for line in steelyard(broker, "events", "deadletters", *topics).splitlines()
    ]
    assert (letter["position"], letter["reason"], letter["value"]) == (
        f"{clicks}[0]@41",
        "schema",
        json.loads(CLICKS[0]),
    )
    steelyard(broker, "events", "deadletters", "--replay", *topics)
    assert steelyard(broker, "events", "deadletters", *topics) == ""
    (back,) = [
        json.loads(line) for line in steelyard(broker, "events", "tail", clicks).splitlines()
    ]
    assert (back["key"], back["value"]) == ("c-0", json.loads(CLICKS[0]))
