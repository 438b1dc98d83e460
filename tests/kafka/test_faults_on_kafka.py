"""Faults of brokers and networks while we read: nothing lost, nothing twice, else an error."""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Callable
from threading import Event, Thread
from typing import Any

import pytest
from kafka import KafkaAdminClient
from kafka.net.inet import KafkaNetSocket
from prometheus_client import CollectorRegistry

from consumers.dead_letter import DeadLetters
from consumers.errors import BatchUnreadable, LogTruncated, OffsetLost, TopicRecreated
from consumers.kafka.admin import KafkaAdmin
from consumers.kafka.options import KafkaConfig
from consumers.kafka.sink import KafkaSink
from consumers.kafka.source import KafkaSource
from consumers.pipeline import BatchConfig, Pipeline, Topics
from consumers.source import Record, Source
from consumers.telemetry import Telemetry
from deploy.broker.cluster import BrokerCluster
from deploy.process.lifecycle import STALLED, Progress, Watchdog
from tests.consumers.shop import WINDOWS
from tests.consumers.test_faults import POISON, poisoned
from tests.fakes.clock import ManualClock
from tests.fakes.proxy import Fault
from tests.kafka.conftest import Cluster, Harmed
from tests.kafka.reading import all_samples, assert_each_once, shop_on, small, source_of
from weighting.sample import Signal


def until(
    source: Source, done: Callable[[list[Record]], bool], *, seconds: float = 120
) -> list[Record]:
    """Poll until enough was read; a deadline fails a hang."""
    deadline, records = time.monotonic() + seconds, list[Record]()
    while not done(records):
        assert time.monotonic() < deadline, f"only {len(records)} records came within {seconds} s"
        records += source.poll(0.1)
    return records


def fill(bootstrap_servers: str, topic: str, num_records: int, start: int = 0) -> None:
    sink = KafkaSink(KafkaConfig(bootstrap_servers=bootstrap_servers), [topic]).start()
    for n in range(start, start + num_records):
        sink.send(topic, b"key", str(n).encode())
        if n % 50 == 49:
            sink.flush()  # many stored batches, so many fetches
    sink.flush()
    sink.close()


def one_partition(bootstrap_servers: str, num_records: int, **config: str) -> str:
    """A topic of its own with so many records."""
    topic = f"t-{uuid.uuid4()}"
    with KafkaAdmin(KafkaConfig(bootstrap_servers=bootstrap_servers)) as admin:
        admin.create_topic(topic, 1, config=config)
    fill(bootstrap_servers, topic, num_records)
    return topic


class Plan:
    """Harm at given places of the log, each once."""

    def __init__(self, harms: list[tuple[int, Callable[[], object]]]) -> None:
        self.harms = harms

    def __call__(self, num_records: int) -> None:
        while self.harms and num_records >= self.harms[0][0]:
            self.harms.pop(0)[1]()


# --- the broker ---


@pytest.mark.parametrize("num_kills", [1, pytest.param(3, marks=pytest.mark.long)])
def test_a_broker_that_is_killed_costs_no_sample_and_doubles_none(
    harmed: Harmed, num_kills: int
) -> None:
    shop = shop_on(harmed.bootstrap_servers, 3000)
    total = sum(shop.ends.values())
    source = source_of(small(harmed.bootstrap_servers), shop)
    ids = source.topic_ids()

    def power_cut() -> None:
        harmed.node.kill()
        source.end_offsets()
        harmed.node.start()

    plan = Plan([(total * n // (num_kills + 1), power_cut) for n in range(1, num_kills + 1)])
    assert_each_once(all_samples(source, shop, plan), shop)
    assert not plan.harms
    assert source.topic_ids() == ids
    source.close()


def test_a_broker_that_is_down_keeps_nobody_busy(harmed: Harmed) -> None:
    topic = one_partition(harmed.bootstrap_servers, 50)
    source = KafkaSource(small(harmed.bootstrap_servers), [topic]).start()
    source.seek(topic, 0, 0)
    read = until(source, lambda records: len(records) >= 20)
    harmed.node.kill()
    read += source.poll(0.5)
    begun, spent = time.monotonic(), time.process_time()
    while time.monotonic() - begun < 3:
        read += source.poll(0.1)
    assert time.process_time() - spent < 0.5 * (time.monotonic() - begun), "a busy loop"
    harmed.node.start()
    read += until(source, lambda records: len(read) + len(records) == 50)
    assert [r.offset for r in read] == list(range(50))
    source.close()


def test_a_broker_that_hangs_lets_nothing_escape_and_a_new_consumer_goes_on_where_we_stand(
    harmed: Harmed,
) -> None:
    topic = one_partition(harmed.bootstrap_servers, 2000)
    clock, ended, causes = ManualClock(), list[int](), list[str]()
    progress = Progress(clock)
    watchdog = Watchdog(progress, 60, end=ended.append)
    source = KafkaSource(small(harmed.bootstrap_servers), [topic], rebuilt=causes.append).start()
    source.seek(topic, 0, 0)
    read = until(source, lambda records: len(records) >= 300)
    ends = dict(source.end_offsets())
    harmed.node.pause()
    try:
        for _ in range(60):
            read += source.poll(0.1)
            clock.advance(2)
            progress.observe({(topic, 0): source.position(topic, 0)}, ends)
            watchdog.look()
            if watchdog.asks():
                source.rebuild("stall")
                break
        assert source.poll(0.5) == []
        assert source.end_offsets() == {}
    finally:
        harmed.node.resume()
    assert causes == ["stall"]
    read += until(source, lambda records: len(read) + len(records) == 2000)
    assert [r.offset for r in read] == list(range(2000))
    progress.observe({(topic, 0): source.position(topic, 0)}, ends)
    clock.advance(1000)
    watchdog.look()
    assert not ended
    source.close()


@pytest.mark.long
def test_leaders_that_move_cost_no_sample_and_double_none(three: BrokerCluster) -> None:
    shop = shop_on(three.bootstrap_servers, 6000)
    total = sum(shop.ends.values())
    source = source_of(small(three.bootstrap_servers), shop)
    fallen: list[Any] = []

    def fall(n: int) -> Callable[[], None]:
        def harm() -> None:
            for node in fallen:
                node.start()
            fallen[:] = [three.nodes[n]]
            three.nodes[n].kill()

        return harm

    plan = Plan([(total * (n + 1) // 4, fall(n)) for n in range(3)])
    try:
        assert_each_once(all_samples(source, shop, plan), shop)
        assert not plan.harms
    finally:
        for node in fallen:
            node.start()
    source.close()


# --- the network ---


@pytest.mark.parametrize("fault", ["slow", "reset", "half-close", "silence"])
def test_a_bad_network_makes_it_slower_and_still_right(harmed: Harmed, fault: Any) -> None:
    topic = one_partition(harmed.bootstrap_servers, 1500)
    proxy = harmed.proxy
    known: list[Fault] = ["reset", "half-close", "silence"]
    if fault in known:
        proxy.fault, proxy.fault_after_bytes, proxy.num_faults_left = (
            fault,
            4_000,
            2 if fault == "silence" else 4,
        )
    else:
        proxy.delay_seconds, proxy.chunk_bytes = 0.01, 700
    # A request that nobody answers is given up after two seconds instead of thirty.
    config = small(
        f"127.0.0.1:{proxy.port}", request_timeout_ms=2000, max_partition_fetch_bytes=4_000
    )
    try:
        source = KafkaSource(config, [topic]).start()
        source.seek(topic, 0, 0)
        records = until(source, lambda records: len(records) >= 1500)
        assert [r.offset for r in records] == list(range(1500))
        assert [r.value for r in records] == [str(n).encode() for n in range(1500)]
        assert proxy.num_faults_left == 0
        assert source.poll(0.2) == []
        source.close()
    finally:
        proxy.clear()


class Resolver(KafkaNetSocket):  # type: ignore[misc]
    """Name lookups that can be held; the client library takes it for the scheme of a proxy."""

    SCHEMES = ("stalling",)
    free = Event()
    asked = Event()

    def __init__(self, proxy_url: str) -> None:
        pass

    def dns_lookup(self, host: str, port: int, raise_error: bool = False) -> Any:
        self.asked.set()
        assert self.free.wait(120)
        return super().dns_lookup(host, port, raise_error)


def test_a_name_lookup_that_stalls_holds_the_loop_but_not_the_watchdog(
    harmed: Harmed, caplog: pytest.LogCaptureFixture
) -> None:
    """The loop is this thread; another moves the clock and releases broker and resolver."""
    topic = one_partition(harmed.bootstrap_servers, 100)
    Resolver.free.set()
    source = KafkaSource(
        small(f"127.0.0.1:{harmed.proxy.port}", proxy_url="stalling://x"), [topic]
    ).start()
    source.seek(topic, 0, 0)
    read = until(source, lambda records: len(records) >= 60)
    clock, ended = ManualClock(), list[int]()
    progress = Progress(clock)
    progress.observe({(topic, 0): source.position(topic, 0)}, {(topic, 0): 100})
    watchdog = Watchdog(progress, 60, end=ended.append)
    Resolver.free.clear()
    Resolver.asked.clear()
    source.rebuild("test")  # the new client has to look the name up
    polling, acted = Event(), list[tuple[bool, bool, list[int]]]()

    def world() -> None:
        try:
            assert polling.wait(60)
            assert Resolver.asked.wait(60)
            for _ in range(2):
                clock.advance(61)
                watchdog.look()
                acted.append((watchdog.asks(), returned.is_set(), list(ended)))
        finally:
            Resolver.free.set()

    returned = Event()
    thread = Thread(target=world)
    thread.start()
    polling.set()
    with caplog.at_level(logging.CRITICAL):
        read += source.poll(0.1)  # comes back only when the lookup does
        held = Resolver.free.is_set()
        returned.set()
        thread.join(60)
    read += until(source, lambda records: len(read) + len(records) == 100)
    assert [r.offset for r in read] == list(range(100))
    assert held, "the client's timeout is hard now: section 9 of the design no longer holds"
    assert acted == [(True, False, []), (False, False, [STALLED])]
    source.close()


# --- the log ---


def test_records_deleted_under_the_next_offset_are_named_and_an_operator_can_go_on_behind_them(
    broker: Cluster,
) -> None:
    topic = one_partition(broker.bootstrap_servers, 500)
    source = KafkaSource(
        small(broker.bootstrap_servers, max_partition_fetch_bytes=1000), [topic]
    ).start()
    source.seek(topic, 0, 0)
    read = until(source, lambda records: len(records) >= 60)
    with KafkaAdmin(KafkaConfig(bootstrap_servers=broker.bootstrap_servers)) as admin:
        admin.delete_records({(topic, 0): 400})

    with pytest.raises(
        OffsetLost,
        match=rf"{topic}\[0\]: next offset \d+ is outside of the retained range \[400, 500\)",
    ) as lost:
        until(source, lambda records: False)
    assert lost.value.expired
    assert len(read) <= lost.value.next_offset < 400
    assert source.position(topic, 0) == lost.value.next_offset
    source.seek(topic, 0, 400)
    assert [r.offset for r in until(source, lambda records: len(records) == 100)] == list(
        range(400, 500)
    )
    source.close()


def test_a_topic_that_is_made_again_while_we_read_stops_us(broker: Cluster) -> None:
    topic = one_partition(broker.bootstrap_servers, 30)
    source = KafkaSource(small(broker.bootstrap_servers), [topic]).start()
    source.seek(topic, 0, 0)
    until(source, lambda records: len(records) == 30)
    config = KafkaConfig(bootstrap_servers=broker.bootstrap_servers)
    with KafkaAdmin(config) as admin:
        admin.delete_topic(topic)
        assert any(admin.create_topic(topic, 1) for _ in range(200))  # deletion is asynchronous
        new_id = admin.topic_ids()[topic]
    fill(
        broker.bootstrap_servers, topic, 60
    )  # more than before: the next offset exists, and means another record
    old_id = source.topic_ids()[topic]
    assert old_id != new_id
    with pytest.raises(TopicRecreated, match=rf"its id was {old_id} and is {new_id}"):
        until(source, lambda records: False)  # a refresh of the client's metadata may pass first
    with pytest.raises(TopicRecreated):
        source.poll(0.1)
    source.close()
    again = KafkaSource(config, [topic]).start()
    assert again.topic_ids() == {topic: new_id}
    again.close()


def test_an_offset_past_the_end_is_no_gap_of_retention(broker: Cluster) -> None:
    topic = one_partition(broker.bootstrap_servers, 5)
    source = KafkaSource(small(broker.bootstrap_servers), [topic]).start()
    source.seek(topic, 0, 9)
    with pytest.raises(
        OffsetLost,
        match=r"next offset 9 is outside of the retained range \[0, 5\); the log was truncated",
    ) as lost:
        until(source, bool)
    assert not lost.value.expired
    source.close()


def test_a_batch_that_rotted_on_the_brokers_disk_stops_us_and_an_operator_can_go_on_behind_it(
    harmed: Harmed,
) -> None:
    topic = one_partition(harmed.bootstrap_servers, 200)
    segment = harmed.data / "topics" / f"{topic}-0" / f"{0:020}.log"
    with segment.open("r+b") as file:
        at = segment.read_bytes().index(b"key\x06120")  # in the batch of the offsets 100 to 149
        file.seek(at)
        file.write(b"kez")
    source = KafkaSource(small(harmed.bootstrap_servers), [topic]).start()
    source.seek(topic, 0, 0)
    with pytest.raises(
        BatchUnreadable, match=rf"{topic}\[0\]@100: .*offset 100 failed crc check.*disk"
    ):
        until(source, lambda records: False)
    with pytest.raises(BatchUnreadable):  # and again, rather than a poll that never returns
        until(source, lambda records: False)
    assert source.position(topic, 0) == 100
    source.seek(topic, 0, 150)
    assert [r.offset for r in until(source, lambda records: len(records) == 50)] == list(
        range(150, 200)
    )
    source.close()


def test_poison_is_set_aside_on_kafka_with_its_stage_and_the_rest_is_trained(
    broker: Cluster,
) -> None:
    tag = uuid.uuid4()
    topics = Topics(
        exposures=None,
        clicks=f"clicks-{tag}",
        purchases=f"purchases-{tag}",
        items=None,
        dead_letter=f"dead-{tag}",
    )
    config = KafkaConfig(bootstrap_servers=broker.bootstrap_servers)
    with KafkaAdmin(config) as admin:
        for topic in (*topics.kinds(), topics.dead_letter):
            admin.create_topic(topic, 1)
    sink = KafkaSink(config, [*topics.kinds(), topics.dead_letter]).start()
    for record in poisoned().records["clicks", 0]:
        sink.send(topics.clicks, record.key, record.value)
    sink.flush()
    source = KafkaSource(config, list(topics.kinds())).start()
    telemetry = Telemetry(CollectorRegistry())
    letters = DeadLetters(sink, topics.dead_letter, telemetry)
    pipeline = Pipeline(
        source,
        topics=topics,
        join=WINDOWS,
        batch=BatchConfig(),
        clock=time.time,
        dead_letters=letters,
        telemetry=telemetry,
    )
    deadline = time.monotonic() + 60
    for batch in pipeline.batches():
        assert time.monotonic() < deadline
        if batch is Signal.IDLE and pipeline.next_offsets() == source.end_offsets():
            break
    samples = [sample for batch in pipeline.drain(2**60) for sample in batch.samples]
    letters.flush()
    assert {sample.list_id for sample in samples} == {f"q-{n}" for n in range(60)}
    reader = KafkaSource(config, [topics.dead_letter]).start()
    reader.seek(topics.dead_letter, 0, 0)
    aside = [dict(r.headers) for r in until(reader, lambda records: len(records) >= len(POISON))]
    found = [
        (headers["steelyard-stage"].decode(), headers["steelyard-reason"].decode())
        for headers in aside
    ]
    assert found == [(stage, reason) for _, stage, reason in POISON.values()]
    for connection in (source, reader, sink):
        connection.close()


@pytest.mark.long
def test_a_log_that_an_unclean_election_truncated_stops_us_though_it_has_grown_again(
    three: BrokerCluster,
) -> None:
    topic = f"t-{uuid.uuid4()}"
    first, second, _ = three.nodes
    admin = KafkaAdminClient(bootstrap_servers=three.bootstrap_servers)
    unclean = {"unclean.leader.election.enable": "true", "min.insync.replicas": "1"}
    admin.create_topics(
        {topic: {"assignments": {0: [1, 2]}, "configs": unclean}}, wait_for_metadata=True
    )
    admin.close()
    fill(three.bootstrap_servers, topic, 100)
    second.kill()
    fill(three.bootstrap_servers, topic, 50)
    sources = [KafkaSource(small(three.bootstrap_servers), [topic]).start() for _ in range(2)]
    for source in sources:
        source.seek(topic, 0, 0)
        assert len(until(source, lambda records: len(records) >= 150)) == 150
    first.kill()
    second.start()  # it knows nothing of the last 50
    try:
        fill(three.bootstrap_servers, topic, 80)
        sources[1].rebuild("stall")  # a new client must see it as well
        for source in sources:
            with pytest.raises(
                LogTruncated,
                match=rf"{topic}\[0\]: .* truncated at or before offset 100, and we have read up",
            ):
                until(source, lambda records: False)
            assert source.position(topic, 0) == 150
    finally:
        for source in sources:
            source.close()
        first.start()
