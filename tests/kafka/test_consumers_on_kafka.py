"""Consumers on a real broker: samples, dead letters, outages, and facts of the client."""

from __future__ import annotations

import gc
import socket
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from kafka import KafkaConsumer
from kafka import TopicPartition as KafkaTopicPartition
from kafka.errors import OffsetOutOfRangeError
from prometheus_client import CollectorRegistry

from consumers.dead_letter import DeadLetters
from consumers.errors import (
    CommitFailed,
    OffsetLost,
    OptionRefused,
    SinkUnavailable,
    SourceUnavailable,
    TopicMissing,
)
from consumers.kafka.admin import KafkaAdmin, partition_of
from consumers.kafka.options import GUARDED, KafkaConfig
from consumers.kafka.sink import KafkaSink
from consumers.kafka.source import KafkaSource
from consumers.pipeline import BatchConfig, Pipeline, Topics
from consumers.source import Record, Source
from consumers.telemetry import Telemetry
from deploy.broker.node import Broker
from tests.consumers.oracle import oracle
from tests.consumers.shop import WINDOWS, shop
from tests.kafka.conftest import Cluster, GivenCluster
from weighting.sample import Batch, Sample, Signal

NUM_PARTITIONS = 4


@pytest.fixture
def config(broker: Cluster) -> KafkaConfig:
    return KafkaConfig(bootstrap_servers=broker.bootstrap_servers)


@pytest.fixture
def admin(config: KafkaConfig) -> Iterator[KafkaAdmin]:
    with KafkaAdmin(config) as admin:
        yield admin


@pytest.fixture
def topic(admin: KafkaAdmin) -> str:
    """A topic of two partitions of this test alone."""
    name = f"t-{uuid.uuid4()}"
    admin.create_topic(name, 2)
    return name


def names() -> Topics:
    """Topics of one test alone."""
    tag = uuid.uuid4()
    return Topics(
        exposures=f"exposures-{tag}",
        clicks=f"clicks-{tag}",
        purchases=f"purchases-{tag}",
        items=None,
        dead_letter=f"dead-{tag}",
    )


def until(
    source: Source, done: Callable[[list[Record]], bool], *, seconds: float = 60
) -> list[Record]:
    """Poll until enough was read; a deadline fails a hang."""
    deadline, records = time.monotonic() + seconds, list[Record]()
    while not done(records):
        assert time.monotonic() < deadline, f"only {len(records)} records came within {seconds} s"
        records += source.poll(0.1)
    return records


def sockets() -> list[socket.socket]:
    return [
        found for found in gc.get_objects() if issubclass(type(found), socket.socket)
    ]  # isinstance would wake deprecated proxies


def fill(config: KafkaConfig, topic: str, num_records: int) -> None:
    sink = KafkaSink(config, [topic]).start()
    for n in range(num_records):
        sink.send(topic, b"key", str(n).encode())
    sink.flush()
    sink.close()


@pytest.mark.parametrize("num_events", [30_000, pytest.param(100_000, marks=pytest.mark.long)])
def test_many_events_come_out_as_exactly_the_samples_of_the_oracle(
    config: KafkaConfig, admin: KafkaAdmin, num_events: int
) -> None:
    topics = names()
    log = shop(11, num_events, num_partitions=NUM_PARTITIONS, seconds_between=0.05)
    for name in (topics.exposures, topics.clicks, topics.purchases):
        assert name is not None
        admin.create_topic(name, NUM_PARTITIONS)
    admin.create_topic(topics.dead_letter, 1, config={"cleanup.policy": "compact"})
    written = [name for name in topics.kinds()]
    sink = KafkaSink(config, [*written, topics.dead_letter]).start()
    named = {name.split("-")[0]: name for name in written}
    for (name, _), records in log.records.items():
        for record in records:
            sink.send(named[name], record.key, record.value)
    sink.flush()

    source = KafkaSource(config, written).start()
    telemetry = Telemetry(CollectorRegistry())
    dead_letters = DeadLetters(sink, topics.dead_letter, telemetry)
    pipeline = Pipeline(
        source,
        topics=topics,
        join=WINDOWS,
        batch=BatchConfig(size=512),
        clock=time.time,
        dead_letters=dead_letters,
        telemetry=telemetry,
    )
    ends = source.end_offsets()
    assert sum(ends.values()) > num_events
    samples: list[Sample] = []
    deadline = time.monotonic() + 300
    for batch in pipeline.batches():
        assert time.monotonic() < deadline
        samples += batch.samples if isinstance(batch, Batch) else ()
        if batch is Signal.IDLE and pipeline.next_offsets() == ends:
            break
    samples += [sample for batch in pipeline.drain(2**60) for sample in batch.samples]
    dead_letters.flush()

    reader = KafkaSource(config, written).start()
    for tp, offset in reader.beginning_offsets().items():
        reader.seek(*tp, offset)
    stored: dict[tuple[str, int], list[Record]] = {tp: [] for tp in reader.assignment()}
    for record in until(reader, lambda records: len(records) == sum(ends.values()), seconds=120):
        stored[record.topic, record.partition].append(record)
    wanted = oracle(
        stored,
        click_window_us=WINDOWS.click_window_us,
        observation_window_us=WINDOWS.observation_window_us,
        attribution_window_us=WINDOWS.attribution_window_us,
        grace_us=WINDOWS.grace_us,
    )
    assert len(samples) == len(wanted.samples)
    assert {s.sample_id: s for s in samples} == wanted.samples
    assert wanted.num_late > num_events * 0.01
    assert wanted.num_duplicates > num_events * 0.05

    letters = KafkaSource(config, [topics.dead_letter]).start()
    letters.seek(topics.dead_letter, 0, 0)
    set_aside = until(letters, lambda records: len(records) >= len(wanted.unreadable))
    assert {r.key for r in set_aside} == {
        f"{t}-{p}-{offset}".encode() for t, p, offset in wanted.unreadable
    }
    for letter in set_aside:
        headers = dict(letter.headers)
        assert headers["steelyard-reason"]
        name, place = headers["steelyard-position"].decode().split("[")
        partition, at = place.split("]@")
        assert letter.value == (stored[name, int(partition)][int(at)].value or b"")
    for connection in (source, reader, letters, sink):
        connection.close()


def test_a_stopped_pipeline_resumes_from_its_snapshot_where_it_was(
    config: KafkaConfig, admin: KafkaAdmin
) -> None:
    topics = names()
    log = shop(12, 2000, num_partitions=2)
    for name in topics.kinds():
        admin.create_topic(name, 2)
    sink = KafkaSink(config, list(topics.kinds())).start()
    for (name, _), records in log.records.items():
        topic = next(kept for kept in topics.kinds() if kept.startswith(name))
        for record in records:
            value = record.value or b""
            if value[:1] == b"{" and 10 < len(value) < 10_000:
                sink.send(topic, record.key, value)
    sink.flush()

    def fresh() -> tuple[KafkaSource, Pipeline]:
        source = KafkaSource(config, list(topics.kinds())).start()
        telemetry = Telemetry(CollectorRegistry())
        letters = DeadLetters(sink, topics.dead_letter, telemetry)
        return source, Pipeline(
            source,
            topics=topics,
            join=WINDOWS,
            batch=BatchConfig(size=64),
            clock=time.time,
            dead_letters=letters,
            telemetry=telemetry,
        )

    def run(
        source: KafkaSource, pipeline: Pipeline, num_batches: int | None = None
    ) -> list[Sample]:
        samples: list[Sample] = []
        ends = source.end_offsets()
        for batch in pipeline.batches():
            if isinstance(batch, Batch) and batch.cause == "full":
                samples += batch.samples
                num_batches = None if num_batches is None else num_batches - 1
            elif isinstance(batch, Batch):
                samples += batch.samples
            if num_batches == 0:
                return samples
            if batch is Signal.IDLE and pipeline.next_offsets() == ends:
                return samples + [
                    sample for batch in pipeline.drain(2**60) for sample in batch.samples
                ]
        raise AssertionError

    source, pipeline = fresh()
    whole = run(source, pipeline)
    source.close()
    source, pipeline = fresh()
    first = run(source, pipeline, 10)
    parts, offsets = pipeline.snapshot(), pipeline.next_offsets()
    source.close()
    source, pipeline = fresh()
    pipeline.restore(parts, offsets)
    assert first + run(source, pipeline) == whole
    source.close()
    sink.close()


# --- what is missing or down ---


def test_a_missing_topic_is_named_with_its_remedy_and_not_created(
    config: KafkaConfig, admin: KafkaAdmin
) -> None:
    name = f"missing-{uuid.uuid4()}"
    with pytest.raises(
        TopicMissing,
        match=rf"topic '{name}' does not exist at .*Create it .*steelyard topics create",
    ):
        KafkaSource(config, [name]).start()
    with pytest.raises(TopicMissing, match=name):
        KafkaSink(config, [name]).start()
    for ask in (admin.topic_config, admin.delete_topic, lambda topic: admin.end_offsets([topic])):
        with pytest.raises(TopicMissing, match=name):
            ask(name)
    assert name not in admin.topics()


@pytest.mark.parametrize("kind", [KafkaSource, KafkaSink])
def test_a_broker_that_is_down_is_named_with_its_remedy_before_the_deadline(
    kind: type[KafkaSource] | type[KafkaSink],
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening: refused
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        config = KafkaConfig(bootstrap_servers=address, connect_timeout_seconds=5)
        with pytest.raises(
            SourceUnavailable,
            match=rf"no Kafka broker answered at {address} within 5 s .*Start the broker",
        ) as raised:
            kind(config, ["clicks"]).start()
        with pytest.raises(SourceUnavailable, match=address):
            KafkaAdmin(config).start()
    assert raised.value.retriable


def test_a_broker_that_goes_away_gives_nothing_until_it_is_back_and_then_everything_once(
    broker: Cluster, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    if isinstance(broker, GivenCluster):
        pytest.skip(
            "this test must kill a broker, and KAFKA_BOOTSTRAP_SERVERS names one that is not ours"
        )
    known = set(sockets())
    own = Broker(tmp_path / "data")
    own.start()
    try:
        config = KafkaConfig(bootstrap_servers=own.bootstrap_servers)
        with KafkaAdmin(config) as admin:
            admin.create_topic("t", 1)
        fill(config, "t", 10)
        caplog.set_level("INFO", "consumers.kafka.source")
        source = KafkaSource(config, ["t"]).start()
        source.seek("t", 0, 0)
        before = until(source, lambda records: len(records) == 10)
        own.kill()
        own.close()
        assert [source.poll(0.2) for _ in range(5)] == [[]] * 5
        assert [source.end_offsets() for _ in range(3)] == [{}] * 3
        own.port = int(config.bootstrap_servers.rpartition(":")[2])
        own.start()
        fill(config, "t", 10)
        after = until(source, lambda records: len(records) == 10)
        assert [r.offset for r in before + after] == list(range(20))
        assert [source.end_offsets() for _ in range(2)] == [{("t", 0): 20}] * 2
        ours = [
            (record.levelname, record.message)
            for record in caplog.records
            if record.name == "consumers.kafka.source"
        ]
        assert ours == [("WARNING", "broker unreachable"), ("INFO", "broker back")]
        source.close()
    finally:
        own.close()
        for forgotten in (
            set(sockets()) - known
        ):  # the client leaves each refused attempt to the collector
            forgotten.close()


# --- offsets ---


def test_an_offset_below_the_retained_range_is_lost_by_name(
    config: KafkaConfig, admin: KafkaAdmin, topic: str
) -> None:
    fill(config, topic, 20)
    partition = partition_of(b"key", 2)
    admin.delete_records({(topic, partition): 12})
    source = KafkaSource(config, [topic]).start()
    source.seek(topic, 1 - partition, 0)
    source.seek(topic, partition, 3)
    with pytest.raises(
        OffsetLost,
        match=rf"{topic}\[{partition}\]: next offset 3 is outside of the retained range "
        r"\[12, 20\); 9 records",
    ):
        until(source, lambda records: False)
    source.close()


def test_an_offset_beyond_the_end_is_lost_by_name(config: KafkaConfig, topic: str) -> None:
    fill(config, topic, 5)
    partition = partition_of(b"key", 2)
    source = KafkaSource(config, [topic]).start()
    source.seek(topic, 1 - partition, 0)
    source.seek(topic, partition, 9)
    with pytest.raises(
        OffsetLost,
        match=r"next offset 9 is outside of the retained range \[0, 5\); the log was truncated",
    ):
        until(source, lambda records: False)
    source.close()


def test_positions_pauses_and_records_are_those_of_the_log(
    config: KafkaConfig, admin: KafkaAdmin, topic: str
) -> None:
    fill(config, topic, 10)
    partition = partition_of(b"key", 2)
    source = KafkaSource(config, [topic]).start()
    assert source.assignment() == [(topic, 0), (topic, 1)]
    assert source.beginning_offsets() == {(topic, 0): 0, (topic, 1): 0}
    assert source.end_offsets()[topic, partition] == 10
    assert admin.end_offsets([topic]) == source.end_offsets()
    for p in range(2):
        source.seek(topic, p, 0)
    source.pause([(topic, partition)])
    assert source.poll(0.2) == []
    source.resume([(topic, partition)])
    records = until(source, lambda records: len(records) == 10)
    assert [(r.partition, r.offset, r.key, r.value) for r in records] == [
        (partition, n, b"key", str(n).encode()) for n in range(10)
    ]
    assert all(abs(r.timestamp_us / 1e6 - time.time()) < 600 for r in records)
    assert source.position(topic, partition) == 10
    assert [r.value for r in admin.sample(topic, 3)] == [b"7", b"8", b"9"]
    source.close()


def test_advisory_commits_can_be_read_by_lag_tools(admin: KafkaAdmin, topic: str) -> None:
    group = f"g-{uuid.uuid4()}"
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            admin.commit(group, {(topic, 0): 7, (topic, 1): 9})
        except CommitFailed:  # retriable: the first commit of a new cluster makes the offsets topic
            continue
        break
    admin.commit(group, {(topic, 0): 8})
    assert admin.committed(group) == {(topic, 0): 8, (topic, 1): 9}


def test_a_topic_has_an_id_that_changes_when_it_is_made_again(
    admin: KafkaAdmin, topic: str
) -> None:
    first = admin.topic_ids()[topic]
    assert not admin.create_topic(topic, 2)
    assert admin.topics()[topic] == 2
    assert admin.topic_config(topic)["cleanup.policy"] == "delete"
    admin.delete_topic(topic)
    again = False
    for _ in range(100):  # deletion is asynchronous; the loop ends as soon as the name is free
        if again := admin.create_topic(topic, 1):
            break
    assert again
    assert admin.topic_ids()[topic] != first


def test_how_long_records_are_kept_is_told_of_topics_that_do_not_keep_them_for_ever(
    admin: KafkaAdmin, topic: str
) -> None:
    configs = {
        "hour": {"retention.ms": "3600000"},
        "ever": {"retention.ms": "-1"},
        "compacted": {"cleanup.policy": "compact"},
    }
    for name, config in configs.items():
        admin.create_topic(f"{topic}-{name}", 1, config=config)
    assert admin.retention_seconds(f"{topic}-{name}" for name in [*configs, "nowhere"]) == {
        f"{topic}-hour": 3600
    }


# --- the sink ---


def test_flush_raises_when_something_was_not_acknowledged(
    config: KafkaConfig, admin: KafkaAdmin
) -> None:
    name = f"t-{uuid.uuid4()}"
    admin.create_topic(name, 1, config={"max.message.bytes": "1000"})
    sink = KafkaSink(config, [name]).start()
    sink.send(name, b"k", b"x" * 100_000)
    with pytest.raises(SinkUnavailable, match=rf"{name}: 1 records were not acknowledged"):
        sink.flush()
    sink.send(name, b"k", b"x")
    sink.flush()
    sink.close()


# --- facts of the client that we rely on ---


def test_fact_without_an_offset_policy_the_client_raises_and_with_one_it_jumps_silently(
    config: KafkaConfig, topic: str
) -> None:
    fill(config, topic, 5)
    tp = KafkaTopicPartition(topic, partition_of(b"key", 2))
    common = {
        "bootstrap_servers": config.bootstrap_servers,
        "enable_auto_commit": False,
        "group_id": None,
    }
    strict = KafkaConsumer(auto_offset_reset="none", **common)
    strict.assign([tp])
    strict.seek(tp, 1000)

    def poll_for_long() -> None:
        for _ in range(100):
            strict.poll(timeout_ms=200)

    with pytest.raises(OffsetOutOfRangeError) as raised:
        poll_for_long()
    assert raised.value.args[0] == {tp: 1000}
    strict.close()
    lax = KafkaConsumer(auto_offset_reset="latest", **common)
    lax.assign([tp])
    lax.seek(tp, 1000)
    for _ in range(100):
        lax.poll(timeout_ms=200)
        if lax.position(tp) == 5:
            break
    assert lax.position(tp) == 5
    lax.close()


def test_fact_checksums_are_verified_by_the_fast_package() -> None:
    from kafka.record import util

    assert util.crc32c_c is not None
    assert util._crc32c is util.crc32c_c


def test_what_the_guarantee_depends_on_cannot_be_overridden() -> None:
    for key in GUARDED:
        with pytest.raises(OptionRefused, match=rf"kafka\.options\.{key}: "):
            KafkaConfig(options={key: "x"})


def test_secrets_in_options_are_not_printed() -> None:
    assert "hunter2" not in repr(KafkaConfig(options={"sasl_plain_password": "hunter2"}))
