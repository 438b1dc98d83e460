"""The source over a client that fails: what it does, without a broker."""

from __future__ import annotations

import logging
from collections.abc import Callable
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kafka import TopicPartition
from kafka.errors import LogTruncationError, OffsetOutOfRangeError
from kafka.structs import OffsetAndMetadata

from consumers.errors import BatchUnreadable, LogTruncated, OffsetLost, TopicRecreated
from consumers.kafka.options import KafkaConfig
from consumers.kafka.source import KafkaSource, everything, own
from consumers.source import Record
from tests.fakes.clock import ManualClock

Fault = Callable[["Client"], None]


class Cluster:
    """State that clients share: `num` records in each of two partitions, the id of the topic."""

    def __init__(
        self, num: int = 100, parse: Callable[[Any], object] = lambda completed: None
    ) -> None:
        self.num = num
        self.num_partitions = 2
        self.uncommitted = 0
        self.parse = parse
        self.topic_id = "one"
        self.clients: list[Client] = []
        self.faults: list[Fault | None] = []  # one per poll, all clients together

    def client(self, **settings: Any) -> Client:
        self.clients.append(Client(self, settings))
        return self.clients[-1]


class Client:
    """Enough of a KafkaConsumer; it moves its position before it raises, as the real one may."""

    def __init__(self, cluster: Cluster, settings: dict[str, Any]) -> None:
        self.cluster = cluster
        self.settings = settings
        self.config = {"api_version": (4, 2)}
        self._cluster = SimpleNamespace(
            topic_id=lambda topic: cluster.topic_id,
            partitions_for_topic=lambda topic: set(range(cluster.num_partitions)),
        )
        self._fetcher = SimpleNamespace(_parse_fetched_data=cluster.parse)
        self._subscription = SimpleNamespace(
            seek=lambda tp, position: self.seek(tp, position.offset)
        )
        self.positions: dict[Any, int | None] = {}
        self.stopped: set[Any] = set()
        self.closed = False

    def topics(self) -> set[str]:
        return {"t"}

    def partitions_for_topic(self, topic: str) -> set[int]:
        return set(range(self.cluster.num_partitions))

    def assign(self, partitions: list[Any]) -> None:
        self.positions = {tp: self.positions.get(tp) for tp in partitions}

    def seek(self, tp: Any, offset: int) -> None:
        self.positions[tp] = offset

    def pause(self, *partitions: Any) -> None:
        self.stopped.update(partitions)

    def resume(self, *partitions: Any) -> None:
        self.stopped.difference_update(partitions)

    def position(self, tp: Any, timeout_ms: int) -> int | None:
        return self.positions[tp]

    def beginning_offsets(self, partitions: list[Any], timeout_ms: int) -> dict[Any, int]:
        return dict.fromkeys(partitions, 7)

    def end_offsets(self, partitions: list[Any], timeout_ms: int) -> dict[Any, int]:
        return dict.fromkeys(partitions, self.cluster.num)

    def highwater(self, tp: Any) -> int | None:
        return self.cluster.num + self.cluster.uncommitted if self.positions[tp] else None

    def poll(self, timeout_ms: int, max_records: int) -> dict[Any, list[Any]]:
        assert not self.closed
        polled: dict[Any, list[Any]] = {}
        for tp, start in self.positions.items():
            assert start is not None
            end = min(start + 3, self.cluster.num)
            if tp not in self.stopped and end > start:
                polled[tp] = [
                    SimpleNamespace(
                        offset=n, leader_epoch=0, timestamp=n, key=None, value=b"%d" % n, headers=[]
                    )
                    for n in range(start, end)
                ]
                self.positions[tp] = end
        if self.cluster.faults and (fault := self.cluster.faults.pop(0)) is not None:
            fault(self)
        return polled

    def close(self, autocommit: bool, timeout_ms: int) -> None:
        self.closed = True


class Reach(KafkaConfig):
    """Nothing listens, and nobody minds."""

    def reach(self) -> None:
        pass


def started(cluster: Cluster, clock: ManualClock | None = None, **options: Any) -> KafkaSource:
    clock = clock or ManualClock()
    source = KafkaSource(
        Reach(), ["t"], client=cluster.client, clock=clock, sleep=clock.advance, **options
    ).start()
    for tp in source.assignment():
        source.seek(*tp, 0)
    return source


def raising(error: BaseException) -> Fault:
    def fault(client: Client) -> None:
        raise error

    return fault


def without_position(client: Client) -> None:
    raise AttributeError("'NoneType' object has no attribute 'offset'")


def read(source: KafkaSource, num_polls: int = 400) -> list[Record]:
    return [record for _ in range(num_polls) for record in source.poll(1.0)]


@settings(deadline=None, max_examples=30)
@given(faulty=st.lists(st.booleans(), max_size=60))
def test_whatever_poll_raises_every_record_comes_once_and_in_order(faulty: list[bool]) -> None:
    cluster, causes = Cluster(), list[str]()
    cluster.faults = [without_position if bad else None for bad in faulty]
    source = started(cluster, rebuilt=causes.append)
    for p in range(2):
        source.seek("t", p, 10)
    records = read(source)
    for p in range(2):
        assert [r.offset for r in records if r.partition == p] == list(range(10, 100))
        assert source.position("t", p) == 100
    assert causes == ["poll"] * sum(faulty)
    assert sum(not client.closed for client in cluster.clients) == 1
    assert cluster.clients[-1].settings.get("api_version") == ((4, 2) if any(faulty) else None)


def test_an_outage_is_logged_once_and_backs_off_to_five_seconds(
    caplog: pytest.LogCaptureFixture,
) -> None:
    cluster, clock = Cluster(), ManualClock()
    source = started(cluster, clock)
    cluster.faults = [without_position] * 10
    begun, times = clock.seconds, list[float]()
    with caplog.at_level(logging.WARNING):
        while cluster.faults:
            before = len(cluster.faults)
            source.poll(0.1)
            if len(cluster.faults) < before:
                times.append(clock.seconds - begun)
        read(source, 100)
    waits = [later - earlier for earlier, later in pairwise(times)]
    assert waits == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0, 5.0], abs=1e-3)
    assert [r.message.split(";")[0] for r in caplog.records] == [
        "poll failed",
        "reading goes on after 10 new consumers",
    ]


def test_a_new_client_keeps_what_was_paused_and_what_was_sought() -> None:
    cluster = Cluster()
    source = started(cluster)
    source.pause([("t", 0)])
    source.poll(0.1)
    source.rebuild("stall")
    source.seek("t", 1, 50)
    assert {(r.partition, r.offset) for r in source.poll(0.1)} == {(1, 50), (1, 51), (1, 52)}
    source.rebuild("stall")
    source.resume([("t", 0)])
    assert [(r.partition, r.offset) for r in source.poll(0.1)] == [
        (0, 0),
        (0, 1),
        (0, 2),
        (1, 53),
        (1, 54),
        (1, 55),
    ]


def test_whoever_asks_for_a_new_client_gets_one_and_is_counted() -> None:
    cluster, causes = Cluster(), list[str]()
    source = started(cluster, rebuilt=causes.append)
    first = source.poll(0.1)
    source.rebuild("stall")
    assert cluster.clients[0].closed
    assert causes == ["stall"]
    assert [r.offset for r in first + read(source) if r.partition == 0] == list(range(100))


# --- what stays an error --------------------------------------------------------------------------

TP = TopicPartition("t", 1)


def test_what_would_lose_records_is_an_error_that_stops() -> None:
    cluster = Cluster()
    source = started(cluster)
    cluster.faults = [raising(OffsetOutOfRangeError({TP: 0}))]
    message = r"next offset 0 is outside of the retained range \[7, 100\); 7 records were deleted"
    with pytest.raises(OffsetLost, match=rf"t\[1\]: {message}") as lost:
        source.poll(0.1)
    assert lost.value.expired
    assert [r.offset for r in source.poll(0.1) if r.partition == 1] == [0, 1, 2], (
        "what the client had read meanwhile is not lost"
    )
    cluster.faults = [
        raising(LogTruncationError({TP: OffsetAndMetadata(2, "", 1)})),
        raising(LogTruncationError({TP: None})),
    ]
    with pytest.raises(
        LogTruncated,
        match=r"t\[1\]: the log was truncated at or before offset 2, and we have read up to 3\.",
    ):
        source.poll(0.1)
    with pytest.raises(LogTruncated, match=r"truncated at an unknown offset"):
        source.poll(0.1)
    cluster.faults = [raising(BatchUnreadable("t", 1, 3, "failed crc check", "Look"))] * 3
    for _ in range(3):
        with pytest.raises(BatchUnreadable, match=r"t\[1\]@3"):
            source.poll(0.1)
    assert [r.offset for r in read(source) if r.partition == 1] == list(range(3, 100)), (
        "whoever goes on anyway has lost nothing"
    )


def test_records_of_a_topic_that_was_made_again_are_not_returned() -> None:
    cluster = Cluster()
    source = started(cluster)
    assert source.topic_ids() == {"t": "one"}
    source.poll(0.1)
    cluster.topic_id = "two"
    for _ in range(2):
        with pytest.raises(
            TopicRecreated, match=r"topic 't' was deleted and made again: its id was one and is two"
        ):
            source.poll(0.1)
    assert source.position("t", 0) == 3


# --- shares ---------------------------------------------------------------------------------------


def test_every_partition_has_one_owner_and_every_rank_reads_all_of_what_is_whole() -> None:
    for world in range(1, 6):
        choices = [own(rank, world, whole=("items",)) for rank in range(world)]
        assert all(choice("items", p) for choice in choices for p in range(7))
        assert all(sum(choice("clicks", p) for choice in choices) == 1 for p in range(7))
        assert all(choices[p % world]("clicks", p) for p in range(7))
    assert everything("clicks", 3)


def test_a_rank_reads_its_own_partitions_and_knows_how_many_there_are() -> None:
    source = started(Cluster(), partitions=own(1, 2))
    assert source.assignment() == [("t", 1)]
    assert source.partition_counts() == {"t": 2}
    assert {r.partition for r in read(source)} == {1}
    assert source.end_offsets() == {("t", 1): 100}


# --- partitions that are added, transactions that are open ----------------------------------------


def test_partitions_that_are_added_are_taken_paused_at_their_beginning() -> None:
    cluster = Cluster()
    source = started(cluster)
    assert source.partition_counts() == {"t": 2}
    source.poll(0.1)
    cluster.num_partitions = 4
    source.poll(0.1)
    assert source.partition_counts() == {"t": 4}
    assert source.assignment() == [("t", p) for p in range(4)]
    assert {r.partition for r in read(source)} == {0, 1}
    assert [source.position("t", p) for p in range(4)] == [100, 100, 0, 0]
    assert source.end_offsets()["t", 3] == 100
    source.rebuild("stall")
    source.resume([("t", 2), ("t", 3)])
    records = read(source)
    for p in (2, 3):
        assert [r.offset for r in records if r.partition == p] == list(range(100))
    assert {r.partition for r in records} == {2, 3}


def test_a_rank_takes_its_own_of_the_partitions_that_are_added() -> None:
    cluster = Cluster()
    source = started(cluster, partitions=own(1, 2))
    cluster.num_partitions = 5
    source.poll(0.1)
    assert source.assignment() == [("t", 1), ("t", 3)]
    assert source.partition_counts() == {"t": 5}


def test_a_topic_that_seems_smaller_for_a_moment_stays_as_it_was() -> None:
    cluster = Cluster()
    source = started(cluster)
    cluster.num_partitions = 0
    source.poll(0.1)
    assert source.partition_counts() == {"t": 2}


def test_the_end_of_the_log_is_behind_open_transactions() -> None:
    cluster = Cluster()
    source = started(cluster)
    cluster.uncommitted = 30
    assert source.log_ends({("t", 0): 100}) == {("t", 0): 100}, "no answer said more so far"
    read(source)
    assert source.end_offsets() == {("t", p): 100 for p in range(2)}
    assert source.log_ends({("t", 0): 100}) == {("t", 0): 130}
    source.rebuild("stall")
    assert source.log_ends({("t", 0): 100}) == {("t", 0): 100}
