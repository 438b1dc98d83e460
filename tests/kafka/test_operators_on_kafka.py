"""Offsets moved, planned and verified on a real broker, by the program itself."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import uuid
from pathlib import Path
from typing import Any

import pytest

from consumers.errors import SourceUnavailable
from consumers.events import encode_click
from consumers.kafka.admin import KafkaAdmin
from consumers.kafka.options import KafkaConfig
from consumers.kafka.sink import KafkaSink
from consumers.kafka.source import KafkaSource
from deploy.verification.reread import between
from learner.store import commands
from tests.deploy.stores import consumed
from tests.fakes.log import Log
from tests.kafka.conftest import Cluster

NUM_CLICKS = 60


class Shop:
    """A topic of clicks on two partitions, and the program that is asked about it."""

    def __init__(self, broker: Cluster, root: Path) -> None:
        self.run = uuid.uuid4().hex[:8]
        self.topic, self.root = f"clicks-{self.run}", root
        self.config = KafkaConfig(bootstrap_servers=broker.bootstrap_servers)
        with KafkaAdmin(self.config) as admin:
            for topic in (self.topic, f"purchases-{self.run}"):
                admin.create_topic(topic, 2)
        sink = KafkaSink(self.config, [self.topic]).start()
        for number in range(NUM_CLICKS):
            value = encode_click(
                client_id=f"c-{number}",
                object_id="SKU-7",
                time_us=int(time.time() * 1e6),
                event_id=f"e-{number}",
            )
            sink.send(self.topic, f"c-{number}".encode(), value)
        sink.flush()
        sink.close()
        deadline = time.monotonic() + 60
        with KafkaAdmin(self.config) as admin:
            self.ends = admin.end_offsets([self.topic])
            while (
                True
            ):  # a broker that has just started makes its coordinator at the first question
                try:
                    admin.group_state(f"ours-{self.run}")
                    break
                except SourceUnavailable:
                    assert time.monotonic() < deadline

    def steelyard(self, *arguments: str, code: int = 0) -> str:
        given = {
            "store.root": str(self.root),
            "kafka.group_id": f"ours-{self.run}",
            "kafka.topics.clicks": self.topic,
        }
        given |= {
            "kafka.topics.purchases": f"purchases-{self.run}",
            "kafka.topics.exposures": "null",
            "kafka.topics.items": "null",
        }
        sets = [word for key, value in given.items() for word in ("--set", f"{key}={value}")]
        command = [
            sys.executable,
            "-c",
            "from deploy.cli.app import main; main()",
            *arguments,
            *sets,
        ]
        command += ["--bootstrap-servers", self.config.bootstrap_servers]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == code, done.stderr + done.stdout
        return done.stdout + (done.stderr if code else "")

    def json(self, *arguments: str, code: int = 0) -> Any:
        return json.loads(self.steelyard(*arguments, "--json", code=code).splitlines()[0])

    def read(self) -> Log:
        """The topic as a log in memory."""
        log = Log(self.ends)
        source = KafkaSource(self.config, [self.topic]).start()
        for record in between(source, dict.fromkeys(self.ends, 0), self.ends):
            log.records[record.topic, record.partition].append(record)
        source.close()
        return log


@pytest.fixture
def shop(broker: Cluster, tmp_path: Path) -> Shop:
    return Shop(broker, tmp_path / "store")


def test_a_foreign_group_is_moved_exactly_as_planned_and_read_back(shop: Shop) -> None:
    group = f"foreign-{shop.run}"
    scope = ["--group", group, "--topic", shop.topic]
    assert shop.json("offsets", "describe", "--group", group, code=1)["state"] == "Dead"
    shop.steelyard("offsets", "reset", *scope, "--to-latest", "--execute", "--yes")
    described = shop.json("offsets", "describe", "--group", group)
    assert {
        (shop.topic, row["partition"]): row["committed"] for row in described["partitions"]
    } == shop.ends
    plan = shop.steelyard("offsets", "reset", *scope, "--shift-by", "-3", "--export")
    assert [
        row["lag"] for row in shop.json("offsets", "describe", "--group", group)["partitions"]
    ] == [0, 0], "a plan writes nothing"
    file = shop.root.with_name("plan.csv")
    file.write_text(plan)
    done = shop.json(
        "offsets", "reset", "--group", group, "--from-file", str(file), "--execute", "--yes"
    )
    assert (done["ok"], [row["delta"] for row in done["partitions"]]) == (True, [-3, -3])
    assert [
        row["lag"] for row in shop.json("offsets", "describe", "--group", group)["partitions"]
    ] == [3, 3]


def test_a_group_with_members_is_refused(shop: Shop) -> None:
    from kafka import KafkaConsumer

    group = f"busy-{shop.run}"
    consumer = KafkaConsumer(
        shop.topic,
        bootstrap_servers=shop.config.bootstrap_servers,
        group_id=group,
        auto_offset_reset="earliest",
    )
    try:
        deadline = time.monotonic() + 30
        while not consumer.poll(timeout_ms=500) and time.monotonic() < deadline:
            pass
        message = shop.steelyard(
            "offsets",
            "reset",
            "--group",
            group,
            "--topic",
            shop.topic,
            "--to-latest",
            "--execute",
            "--yes",
            code=3,
        )
        assert "Stop them first" in message
    finally:
        consumer.close(autocommit=False)


def test_a_time_is_an_offset_or_a_refusal(shop: Shop) -> None:
    scope = ["--group", f"timed-{shop.run}", "--topic", shop.topic]
    back = shop.json("offsets", "reset", *scope, "--by-duration", "P1D")
    assert [row["proposed"] for row in back["partitions"]] == [0, 0]
    assert all(row["at"] for row in back["partitions"])
    with KafkaAdmin(shop.config) as admin:
        later = int(time.time() * 1e6) + 3_600_000_000
        assert admin.offsets_for_times(dict.fromkeys(shop.ends, later)) == dict.fromkeys(
            sorted(shop.ends)
        ), "no record is no offset"
    empty = ["--group", f"timed-{shop.run}", "--topic", f"purchases-{shop.run}"]
    assert "no record at or after" in shop.steelyard(
        "offsets", "reset", *empty, "--by-duration", "P1D", "--execute", "--yes", code=3
    )


def test_a_replay_is_planned_executed_and_refused_below_retention(shop: Shop) -> None:
    a, b = sorted(shop.ends)
    consumed(shop.root, shop.read(), [{a: 0, b: 0}, {a: 5, b: 5}, {a: 9, b: 9}])
    plan = shop.json("replay", "--from-checkpoint", "v000003")
    assert [(row["restart"], row["end"]) for row in plan["partitions"]] == [
        (5, shop.ends[a]),
        (5, shop.ends[b]),
    ]
    assert (
        shop.json("replay", "--from-checkpoint", "v000003", "--execute", "--yes")["digest"]
        == plan["digest"]
    )
    command = commands.pending(shop.root, 0)
    assert command is not None
    assert command.digest == plan["digest"]
    with KafkaAdmin(shop.config) as admin:
        admin.delete_records({a: 7})
    message = shop.steelyard("replay", "--from-checkpoint", "v000003", code=3)
    assert "retained from 7" in message
    assert "--from-checkpoint v000004" in message


def test_what_was_consumed_is_verified_from_kafka(shop: Shop) -> None:
    a, b = sorted(shop.ends)
    log = shop.read()
    consumed(shop.root, log, [{a: 0, b: 0}, {a: 5, b: 5}, shop.ends])
    assert shop.json("verify")["result"] == "equal"
    with KafkaAdmin(shop.config) as admin:
        admin.delete_records({a: 3})
    assert shop.json("verify")["since"] == "v000003"
    assert shop.json("verify", "--since", "v000002", code=3)["result"] == "undecided"
    log.records[b][7] = log.records[b][8]
    other = shop.root.with_name("other")
    shop.root = other
    consumed(other, log, [{a: 4, b: 0}, {a: 5, b: 5}, shop.ends])
    checks = {check["step"]: check for check in shop.json("verify", code=1)["checks"]}
    assert checks["log"]["offsets"] == [5, shop.ends[b]]
