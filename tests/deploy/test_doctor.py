"""The doctor: each trouble is one line with its mark and a remedy; so are brokers that are down."""

import importlib.metadata
import socket
import sys
import zlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from importlib.machinery import ModuleSpec
from pathlib import Path
from threading import Thread
from types import ModuleType
from typing import cast

import pytest
from prometheus_client import CollectorRegistry, Counter

from consumers.errors import BatchUnreadable, SourceUnavailable
from consumers.events import encode_click, encode_exposure, encode_item, encode_purchase
from consumers.joining.join import JoinConfig
from consumers.kafka.admin import partition_of
from consumers.kafka.options import KafkaConfig
from consumers.pipeline import Topics
from consumers.source import Record
from deploy.doctor.check_result import CheckResult, Mark
from deploy.doctor.extras import ASKING, examine_extras, examine_products
from deploy.doctor.kafka import Admin, examine_kafka
from deploy.doctor.machine import (
    SAFE,
    examine_machine,
    examine_metrics_port,
    examine_model,
    examine_port,
)
from deploy.doctor.report import examine, render
from deploy.doctor.store import examine_store, steady_bytes
from deploy.process.observability import ObservabilityConfig, start_metrics
from deploy.roles.serve import ServingRole
from deploy.settings.config import LogConfig, ServingConfig
from deploy.settings.load import load
from deploy.settings.tree import Settings
from learner.artifact import Store
from learner.config import LearnerConfig, StoreConfig
from learner.extras import EXTRA_OF
from learner.store.blobs import Disk
from learner.store.checkpoint import Checkpointer
from learner.store.journal.writer import Journal
from learner.store.manifest import CheckpointMetadata
from tests.learner.families import bert, saved
from weighting.provenance import TopicPartition

NOW_US = 1_795_000_000_000_000
WEEKS_MS = str(30 * 86_400_000)

Place = Callable[[bytes, int], int]


def by_murmur2(key: bytes, n: int) -> int:
    return partition_of(key, n)


def by_crc32(key: bytes, n: int) -> int:
    return zlib.crc32(key) % n


def click(
    client: str, *, query_id: str | None = "q", event_id: str | None = "e", time_us: int = NOW_US
) -> bytes:
    return encode_click(
        client_id=client,
        object_id="SKU-7",
        time_us=time_us,
        query_id=query_id,
        event_id=event_id and f"{event_id}-{client}",
    )


class Cluster:
    """Brokers in memory: topics with records, each a value with its key."""

    def __init__(self, *, partitions: Mapping[str, int] | None = None) -> None:
        self.counts = dict(
            partitions
            or {"exposures": 4, "clicks": 4, "purchases": 4, "items": 1, "steelyard.deadletter": 1}
        )
        self.configs: dict[str, dict[str, str]] = {
            topic: {"cleanup.policy": "delete", "retention.ms": WEEKS_MS} for topic in self.counts
        }
        for topic in ("items", "steelyard.deadletter"):
            if topic in self.configs:
                self.configs[topic]["cleanup.policy"] = "compact"
        self.records: dict[str, list[Record]] = {topic: [] for topic in self.counts}

    def write(
        self,
        topic: str,
        value: bytes | None,
        key: bytes | None,
        *,
        place: Place = by_murmur2,
        time_us: int = NOW_US,
    ) -> None:
        partition = place(key, self.counts[topic]) if key else 0
        self.records[topic].append(
            Record(topic, partition, len(self.records[topic]), time_us, key, value)
        )

    def healthy(self) -> "Cluster":
        for number in range(50):
            client = f"c-{number}"
            shown = encode_exposure(
                query_id=f"q{number}",
                client_id=client,
                time_us=NOW_US,
                user_query="shoes",
                hits=["SKU-7"],
            )
            self.write("exposures", shown, client.encode())
            self.write("clicks", click(client), client.encode())
            bought = encode_purchase(
                client_id=client,
                object_id="SKU-7",
                time_us=NOW_US,
                query_id="q",
                event_id=f"p{number}",
            )
            self.write("purchases", bought, client.encode())
        self.write("items", encode_item(object_id="SKU-7", text="Red shoe"), b"SKU-7")
        return self

    def brokers(self) -> list[str]:
        return ["broker-1:9092"]

    def broker_version(self) -> str:
        return "4.2"

    def topics(self) -> dict[str, int]:
        return self.counts

    def topic_config(self, topic: str) -> dict[str, str]:
        return self.configs[topic]

    def beginning_offsets(self, topics: Sequence[str]) -> dict[TopicPartition, int]:
        return {
            (topic, partition): 100 for topic in topics for partition in range(self.counts[topic])
        }

    def end_offsets(self, topics: Sequence[str]) -> dict[TopicPartition, int]:
        return {
            (topic, partition): 200 for topic in topics for partition in range(self.counts[topic])
        }

    def sample(self, topic: str, num_records: int) -> list[Record]:
        return self.records[topic]


def look(
    cluster: Cluster,
    log: LogConfig | None = None,
    *,
    next_offsets: Mapping[TopicPartition, int] | None = None,
    now_us: int = NOW_US,
    reach: Callable[[str], str | None] = lambda _: None,
) -> list[CheckResult]:
    log = log or LogConfig(bootstrap_servers="broker-1:9092")
    return list(
        examine_kafka(
            log,
            JoinConfig(),
            cluster,
            next_offsets=next_offsets or {},
            now_seconds=now_us / 1e6,
            reach=reach,
        )
    )


def troubles(results: Sequence[CheckResult]) -> list[tuple[str, str]]:
    return [(result.mark, result.text) for result in results if result.mark != "ok"]


def remedy_of(results: Sequence[CheckResult]) -> str:
    (result,) = [result for result in results if result.mark != "ok"]
    return result.remedy


def test_a_healthy_cluster_gets_no_cross_and_no_mark() -> None:
    results = look(Cluster().healthy(), next_offsets={("clicks", 3): 150})
    assert troubles(results) == []
    text = render(results)
    for part in (
        "ok reachable: 1 broker at broker-1:9092, protocol of Kafka 4.2",
        "ok advertised address broker-1:9092 can be connected to from here",
        "ok topics exist: exposures (4), clicks (4), purchases (4), items (1), "
        "steelyard.deadletter (1)",
        "ok partitions agree: 4 each",
        "ok items is compacted",
        "ok clicks: records are kept 30 d, 7.01 d are needed",
        "ok the offsets of the newest checkpoint are retained",
        "ok purchases: partitioner: 50 of 50 sampled keys are on their murmur2 partition",
        "ok clicks: 50 of 50 sampled events have a query_id",
        "all is well",
    ):
        assert part in text


def test_librdkafkas_default_partitioner_is_found_and_named() -> None:
    cluster = Cluster().healthy()
    cluster.records["clicks"].clear()
    for number in range(200):
        cluster.write("clicks", click(f"c-{number}"), f"c-{number}".encode(), place=by_crc32)
    results = look(cluster)
    keys = [f"c-{number}".encode() for number in range(200)]
    num_off = sum(by_crc32(key, 4) != by_murmur2(key, 4) for key in keys)
    assert 120 < num_off < 180
    what = f"clicks: partitioner: {num_off} of 200 sampled keys are not on their murmur2 partition"
    assert troubles(results) == [
        (
            "X",
            f"{what}; {num_off} of these are where librdkafka's default, consistent_random, puts "
            "them (CRC32)",
        )
    ]
    assert "set partitioner=murmur2_random in that producer" in remedy_of(results)


def placed(place: Place, *topics: str) -> Cluster:
    """A healthy shop, with all records of some topics placed in another way."""
    cluster = Cluster().healthy()
    for topic in topics:
        written = list(cluster.records[topic])
        cluster.records[topic].clear()
        for record in written:
            cluster.write(topic, record.value, record.key, place=place)
    return cluster


EVENTS = ("exposures", "clicks", "purchases")


def test_a_shop_that_uses_librdkafkas_partitioner_on_all_topics_is_well_and_told_to_keep_it() -> (
    None
):
    results = look(placed(by_crc32, *EVENTS))
    assert troubles(results) == []
    (text,) = [each.text for each in results if each.text.startswith("partitioner:")]
    assert "librdkafka's default" in text
    assert "Do not switch a live shop" in text


def test_a_partitioner_of_ones_own_is_well_where_the_topics_agree() -> None:
    results = look(placed(lambda key, n: sum(key) % n, *EVENTS))
    assert troubles(results) == []
    assert any("50 keys sampled in several of" in each.text for each in results)


@pytest.mark.parametrize("num_topics", [1, 2])
def test_topics_that_differ_are_crosses_whichever_of_them_is_foreign(num_topics: int) -> None:
    marks = [mark for mark, _ in troubles(look(placed(by_crc32, *EVENTS[:num_topics])))]
    assert marks == ["X"] * num_topics


def test_another_partitioner_is_found_without_a_wrong_name() -> None:
    cluster = Cluster().healthy()
    cluster.records["clicks"].clear()
    for number in range(200):
        cluster.write(
            "clicks", click(f"c-{number}"), f"c-{number}".encode(), place=lambda key, n: key[-1] % n
        )
    results = look(cluster)
    ((mark, text),) = troubles(results)
    assert mark == "X"
    assert "not on their murmur2 partition" in text
    assert "librdkafka" not in text


def test_a_key_that_is_not_the_client_id_is_found() -> None:
    cluster = Cluster().healthy()
    cluster.write("clicks", click("c-1"), b"session-9")
    cluster.write("clicks", click("c-1"), None)
    results = look(cluster)
    assert troubles(results) == [
        ("X", "clicks: of 52 sampled events 1 have no key, 1 another than their client_id")
    ]


def test_unreadable_records_are_told_with_their_reasons() -> None:
    cluster = Cluster().healthy()
    for value in (b"\x00\x00\x00\x00\x01avro", b"\x00\x00\x00\x00\x01avro", b"{"):
        cluster.write("clicks", value, b"c-1")
    results = look(cluster)
    what = (
        "clicks: 50 of 53 sampled records can be read; the others: confluent_wire_format 2, "
        "not_json 1"
    )
    assert troubles(results) == [("X", what)]
    assert "steelyard events tail clicks" in remedy_of(results)


def test_missing_identities_are_marked_and_do_not_fail() -> None:
    cluster = Cluster().healthy()
    cluster.write("clicks", click("c-1", event_id=None), b"c-1")
    cluster.write("clicks", click("c-1", query_id=None), b"c-1")
    assert troubles(look(cluster)) == [
        ("!", "clicks: 51 of 52 sampled events have an event id"),
        ("!", "clicks: 51 of 52 sampled events have a query_id"),
    ]


def test_missing_topics_are_crosses_with_the_command_that_makes_them() -> None:
    results = look(Cluster(partitions={"exposures": 6, "clicks": 6, "purchases": 6}))
    assert troubles(results) == [
        ("X", "topic items is missing"),
        ("X", "topic steelyard.deadletter is missing"),
    ]
    assert {result.remedy for result in results if result.failed} == {
        "steelyard topics create --bootstrap-servers broker-1:9092"
    }


def test_a_batch_that_cannot_be_read_is_a_cross_and_the_other_topics_are_examined() -> None:
    class Compressed(Cluster):
        def sample(self, topic: str, num_records: int) -> list[Record]:
            if topic == "clicks":
                cause = "Libraries for lz4 compression codec not found"
                raise BatchUnreadable(topic, 3, 17, cause, "pip install lz4")
            return super().sample(topic, num_records)

    results = look(Compressed().healthy())
    assert troubles(results) == [
        ("X", "clicks[3]@17: Libraries for lz4 compression codec not found")
    ]
    assert remedy_of(results) == "pip install lz4"
    assert any(result.text.startswith("purchases: 50 of 50") for result in results)


def test_partition_counts_that_differ_are_a_cross() -> None:
    results = look(
        Cluster(
            partitions={
                "exposures": 12,
                "clicks": 12,
                "purchases": 6,
                "items": 1,
                "steelyard.deadletter": 1,
            }
        )
    )
    assert troubles(results) == [("X", "partitions differ: exposures 12, clicks 12, purchases 6")]
    assert "--alter --topic purchases --partitions 12" in remedy_of(results)


def test_a_topic_that_is_not_compacted_is_a_cross() -> None:
    cluster = Cluster()
    cluster.configs["items"]["cleanup.policy"] = "delete"
    results = look(cluster)
    assert troubles(results) == [("X", "items: cleanup.policy is delete, expected compact")]
    expected = (
        "kafka-configs.sh --bootstrap-server broker-1:9092 --alter --topic items "
        "--add-config cleanup.policy=compact"
    )
    assert remedy_of(results) == expected


def test_retention_shorter_than_the_attribution_window_with_grace_is_a_cross() -> None:
    cluster = Cluster()
    cluster.configs["clicks"]["retention.ms"] = str(7 * 86_400_000)
    results = look(cluster)
    assert troubles(results) == [
        ("X", "clicks: records are kept 7 d, the attribution window with its grace needs 7.01 d")
    ]
    assert "retention.ms=605400000" in remedy_of(results)


def test_retention_for_ever_is_well() -> None:
    cluster = Cluster()
    cluster.configs["clicks"]["retention.ms"] = "-1"
    assert troubles(look(cluster)) == []


@pytest.mark.parametrize("offset", [99, 201])
def test_a_checkpoint_outside_of_what_is_retained_is_a_cross(offset: int) -> None:
    results = look(Cluster(), next_offsets={("clicks", 3): offset, ("gone", 0): 5})
    assert troubles(results) == [
        ("X", f"the newest checkpoint goes on at clicks[3]@{offset}, retained is [100, 200)")
    ]


def test_without_exposures_the_consequence_is_told() -> None:
    log = LogConfig(bootstrap_servers="broker-1:9092", topics=Topics(exposures=None))
    ((mark, text),) = troubles(look(Cluster(), log))
    assert (mark, text) == (
        "!",
        "no topic of exposures: without them there are no negatives and no candidates",
    )


def test_an_advertised_address_that_cannot_be_reached_is_a_cross() -> None:
    results = look(Cluster(), reach=lambda address: f"{address} does not resolve")
    assert troubles(results) == [
        ("X", "advertised address broker-1:9092: broker-1:9092 does not resolve")
    ]
    assert "advertised.listeners" in remedy_of(results)


def test_a_clock_behind_the_log_is_a_cross() -> None:
    results = look(Cluster().healthy(), now_us=NOW_US - 120_000_000)
    assert {mark for mark, _ in troubles(results)} == {"X"}
    assert ("X", "clicks: the newest record is 120 s ahead of this machine's clock") in troubles(
        results
    )


def test_clocks_that_the_events_around_them_contradict_are_marked_with_the_worst_record() -> None:
    cluster = Cluster().healthy()
    cluster.write("clicks", click("c-1", time_us=NOW_US - 3_600_000_000), b"c-1")
    for _ in range(4):
        cluster.write("clicks", click("c-7", time_us=NOW_US + 86_400_000_000), b"c-7")
    offset = cluster.records["clicks"][-4].offset
    partition = by_murmur2(b"c-7", 4)
    assert troubles(look(cluster)) == [
        (
            "!",
            "clicks: of 55 sampled events 4 are more than a minute ahead of the clients around "
            f"them, 1 behind; most, by +86,400 s, clicks[{partition}]@{offset}",
        )
    ]
    assert "stamp events on one clock" in remedy_of(look(cluster))


def test_a_clock_ahead_is_told_from_a_quiet_night_by_the_events_after_it() -> None:
    """All are in the past: no wall clock says which is wrong."""
    cluster = Cluster()
    night_us, morning_us = NOW_US - 40_000_000_000, NOW_US - 8_000_000_000
    for number, time_us in enumerate([night_us] * 9 + [morning_us] * 9):
        cluster.write("clicks", click(f"c-{number}", time_us=time_us), b"one partition")
    for client, time_us in [
        ("fast", morning_us + 120_000_000),
        *[(f"d-{n}", morning_us) for n in range(9)],
    ]:
        cluster.write("clicks", click(client, time_us=time_us), b"one partition")
    (text,) = [text for _, text in troubles(look(cluster)) if "minute" in text]
    assert "1 are more than a minute ahead of the clients around them, 0 behind" in text
    assert "+120 s" in text


# --- the whole ---


def down(config: KafkaConfig) -> AbstractContextManager[Admin]:
    raise SourceUnavailable(config.bootstrap_servers, 10, "Connection refused")


def settings(root: Path) -> Settings:
    return replace(Settings(), store=StoreConfig(root=root), serving=ServingConfig(port=0))


def test_brokers_that_are_down_are_one_clear_line_and_the_rest_is_still_looked_at(
    tmp_path: Path,
) -> None:
    results = examine(settings(tmp_path), connect=down)
    (kafka,) = [result for result in results if result.area == "Kafka"]
    assert (kafka.mark, kafka.text) == (
        "X",
        "no Kafka broker answered at localhost:9092 within 10 s (Connection refused)",
    )
    assert "Start the broker" in kafka.remedy
    assert {result.area for result in results} == {"Kafka", "store", "model", "machine"}


def test_brokers_that_refuse_are_one_clear_line(tmp_path: Path) -> None:
    def refusing(config: KafkaConfig) -> AbstractContextManager[Admin]:
        raise RuntimeError("[Error 29] TopicAuthorizationFailedError")

    (kafka,) = [
        result for result in examine(settings(tmp_path), connect=refusing) if result.area == "Kafka"
    ]
    assert kafka.text == "localhost:9092: [Error 29] TopicAuthorizationFailedError"


def test_everything_is_looked_at_in_one_order(tmp_path: Path) -> None:
    results = examine(
        settings(tmp_path),
        connect=lambda _: nullcontext(Cluster().healthy()),
        clock=lambda: NOW_US / 1e6,
    )
    areas = list(dict.fromkeys(result.area for result in results))
    assert areas == ["Kafka", "time", "store", "model", "machine"]


# --- store, model, machine ---


CUT = CheckpointMetadata(
    step=1,
    samples=1,
    offsets={"clicks": {0: 150}},
    event_time=None,
    watermark_us=None,
    weighting={},
    evaluation={},
    fresh_events=(),
    config_sha256="",
    fingerprint={},
)


def checkpoint(root: Path) -> Checkpointer:
    checkpointer = Checkpointer(root, Disk(), lambda: NOW_US / 1e6)
    checkpointer.acquire(Journal(root, Disk()), initial=CUT)
    checkpointer.save({"model.safetensors": b"the model"}, CUT)
    return checkpointer


def test_a_store_that_works_says_so_and_nothing_is_left_in_it(tmp_path: Path) -> None:
    results = list(examine_store(StoreConfig(root=tmp_path)))
    assert results[0] == CheckResult(
        area="store", mark="ok", text=f"{tmp_path}: writable, link and fsync work"
    )
    assert list(tmp_path.iterdir()) == []


def test_a_store_whose_newest_version_is_whole_says_so(tmp_path: Path) -> None:
    checkpoint(tmp_path)
    results = list(examine_store(StoreConfig(root=tmp_path)))
    assert [result.mark for result in results] == ["ok", "ok", "ok"]
    assert results[-1].text == "v000002: every file has its digest"


def test_the_size_of_a_store_counts_what_versions_share_twice_and_the_rest_once_each(
    tmp_path: Path,
) -> None:
    large, small = bytes(1 << 20), 5000
    checkpointer = checkpoint(tmp_path)
    for step in range(4):
        moving = bytes([step]) * small
        checkpointer.save({"frozen.bin": large, "moving.bin": moving}, CUT)
    versions = Store(tmp_path).versions()
    own = small * (20 + 60 + 1)  # kept, retired within a minute at one a second, being made
    assert steady_bytes(versions, keep=20) == own + 2 * len(large)
    _, space, _ = examine_store(StoreConfig(root=tmp_path))
    assert "the store has 2.1 MB and will have about 2.5 MB with 20 versions" in space.text


def test_a_flipped_byte_in_the_newest_version_is_a_cross(tmp_path: Path) -> None:
    checkpoint(tmp_path)
    (file,) = (tmp_path / "blobs").rglob("model.safetensors")
    file.write_bytes(b"the Model")
    *_, last = examine_store(StoreConfig(root=tmp_path))
    assert last.failed
    assert "model.safetensors" in last.text


def test_a_store_that_is_not_there_is_marked_where_it_can_be_made_and_a_cross_where_not(
    tmp_path: Path,
) -> None:
    (result,) = examine_store(StoreConfig(root=tmp_path / "store"))
    assert (result.mark, result.remedy) == (
        "!",
        f"mkdir {tmp_path / 'store'}, or let the learner do it",
    )
    (result,) = examine_store(StoreConfig(root=tmp_path / "no" / "store"))
    assert result.failed


def test_a_store_that_cannot_be_written_is_a_cross() -> None:
    first, *_ = examine_store(StoreConfig(root=Path("/proc")))
    assert first.failed
    assert "making a folder failed" in first.text


def test_the_packaged_encoder_and_a_whole_folder_are_well(tmp_path: Path) -> None:
    saved(tmp_path, bert())
    assert examine_model(LearnerConfig(model="minilm-l6:2")).mark == "ok"
    assert examine_model(LearnerConfig(model="random:2x128")).mark == "ok"
    assert examine_model(LearnerConfig(model=str(tmp_path))).mark == "ok"


def test_a_model_or_device_that_the_learner_would_refuse_is_a_cross(tmp_path: Path) -> None:
    folder = str(saved(tmp_path, bert(max_position_embeddings=40)))
    for config, named in (
        (LearnerConfig(device="cuda:99"), "learner.device: got 'cuda:99'"),
        (LearnerConfig(model=folder, max_tokens=48), "learner.max_tokens: got 48"),
        (LearnerConfig(model="minilm-l6:2", tuning="top:3"), "learner.tuning: got top:3"),
    ):
        result = examine_model(config)
        assert result.failed
        assert result.text.startswith(named)
        assert "\n" not in result.text


def test_a_folder_without_a_model_is_a_cross_that_names_the_files(tmp_path: Path) -> None:
    (tmp_path / "config.json").touch()
    result = examine_model(LearnerConfig(model=str(tmp_path)))
    assert result.failed
    assert result.text == f"{tmp_path}: {tmp_path} has no model.safetensors and no tokenizer.json"


def test_a_library_older_than_the_least_safe_version_is_a_cross() -> None:
    versions = {library: least for library, (least, _) in SAFE.items()} | {
        "torch": "2.9.1+cpu",
        "kafka-python": "3.0.9",
    }
    failed = [
        result
        for result in examine_machine(installed=versions.__getitem__, open_files=4096)
        if result.failed
    ]
    assert [result.remedy for result in failed] == [
        'pip install "kafka-python>=3.0.12"',
        'pip install "torch>=2.11"',
    ]
    assert "CVE-2026-24747" in failed[1].text


def test_a_missing_checksum_library_is_a_cross_and_a_missing_extra_is_not() -> None:
    def installed(library: str) -> str:
        if library in ("crc32c", "torch"):
            raise importlib.metadata.PackageNotFoundError(library)
        return "999"

    (failed,) = [
        result for result in examine_machine(installed=installed, open_files=4096) if result.failed
    ]
    why = "without it every batch of records is checked in Python, silently"
    assert failed.text == f"crc32c is not installed: {why}"


@pytest.mark.parametrize(
    ("key", "value", "package", "extra"),
    [
        ("learner.tuning", "lora:8", "peft", "adapters"),
        ("learner.tuning", "ia3@top:1", "peft", "adapters"),
        ("learner.privacy.noise_multiplier", "1.5", "opacus", "privacy"),
        ("tracking.to", "tensorboard", "tensorboard", "tensorboard"),
        ("tracking.to", "wandb", "wandb", "wandb"),
        ("serving.engine", "openvino", "openvino", "openvino"),
    ],
)
def test_a_package_that_a_setting_needs_and_that_is_not_there_is_a_cross_with_its_extra(
    monkeypatch: pytest.MonkeyPatch, key: str, value: str, package: str, extra: str
) -> None:
    asked = load(None, {}, {key: value})
    monkeypatch.setitem(sys.modules, package, None)
    (result,) = examine_extras(asked)
    assert result.failed
    assert result.text == f"{key}: {value} needs {package}, which is not installed"
    assert result.remedy == f'pip install "steelyard[{extra}]"'
    monkeypatch.setitem(sys.modules, package, ModuleType(package))
    sys.modules[package].__spec__ = ModuleSpec(package, None)
    assert [result.mark for result in examine_extras(asked)] == ["ok"]


def test_an_engine_that_is_not_installed_is_one_cross(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    assert list(examine_products(ServingConfig(engine="openvino"))) == []


def test_settings_that_need_no_extra_have_no_line_for_one() -> None:
    assert list(examine_extras(Settings())) == []
    assert list(examine_extras(load(None, {}, {"learner.tuning": "prefix:4"}))) == []


def test_each_extra_of_a_setting_is_looked_for() -> None:
    """What is left is of commands, of roles, or of `learner.model`."""
    checked = {EXTRA_OF[package] for _, _, package in ASKING}
    others = {"learn", "serve", "kafka", "parquet", "onnx", "minilm"}
    assert set(EXTRA_OF.values()) - checked == others


def test_what_the_server_would_refuse_is_a_cross() -> None:
    (result,) = examine_products(ServingConfig(device="cuda:97"))
    assert result.failed
    assert result.text.startswith("serving.device: got 'cuda:97'")
    (result,) = examine_products(ServingConfig())
    assert result.mark == "ok"


def test_few_open_files_are_marked() -> None:
    *_, last = examine_machine(installed=lambda _: "999", open_files=256)
    assert (last.mark, last.remedy) == ("!", "ulimit -n 4096")


def test_a_port_in_use_by_another_is_a_cross() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        result = examine_port(ServingConfig(port=taken.getsockname()[1]), timeout_seconds=0.01)
    assert result.failed
    assert "set serving.port" in result.remedy


def test_a_port_on_which_steelyard_answers_is_well(tmp_path: Path) -> None:
    role = ServingRole(settings(tmp_path))
    thread = Thread(target=role.run)
    thread.start()
    try:
        result = examine_port(
            ServingConfig(port=int(role.url.rpartition(":")[2])), timeout_seconds=30
        )
    finally:
        role.stop()
        thread.join(30)
    assert (result.mark, result.text.partition(": ")[2]) == (
        "ok",
        "Steelyard answers there already",
    )


def test_a_report_is_one_line_a_result_with_its_remedy_below() -> None:
    results = [
        CheckResult(area="Kafka", mark="ok", text="a"),
        CheckResult(area="Kafka", mark="X", text="b", remedy="do c"),
    ]
    assert render(results) == "Kafka\n  ok a\n  X  b\n     Fix: do c\n1 to be put right"


@pytest.mark.parametrize(
    ("marks", "last"),
    [
        ("ok ok", "all is well"),
        ("ok !", "1 to look at"),
        ("X ok", "1 to be put right"),
        ("X ! ! X", "2 to be put right, 2 to look at"),
    ],
)
def test_the_last_line_of_a_report_counts_what_is_marked(marks: str, last: str) -> None:
    report = render(
        [CheckResult(area="Kafka", mark=cast(Mark, mark), text="a") for mark in marks.split()]
    )
    assert report.splitlines()[-1] == last


def test_a_metrics_port_in_use_by_another_is_a_cross() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        thread = Thread(target=lambda: taken.accept()[0].close())
        thread.start()
        result = examine_metrics_port(ObservabilityConfig(metrics_port=taken.getsockname()[1]))
        thread.join()
    assert result.failed
    assert "set observability.metrics_port" in result.remedy


def test_a_metrics_port_on_which_a_learner_answers_is_well() -> None:
    registry = CollectorRegistry()
    Counter("steelyard_something", "A series of ours.", registry=registry)
    server = start_metrics(registry, 0)
    try:
        result = examine_metrics_port(ObservabilityConfig(metrics_port=server.port))
    finally:
        server.close()
    assert not result.failed


def test_partitions_that_the_newest_checkpoint_does_not_read_are_marked() -> None:
    known = {(topic, p): 150 for topic in ("exposures", "clicks", "purchases") for p in range(2)}
    results = look(Cluster().healthy(), next_offsets=known)
    assert troubles(results) == [
        ("!", f"{topic}: it has 4 partitions, the newest checkpoint reads 2")
        for topic in ("clicks", "exposures", "purchases")
    ]
