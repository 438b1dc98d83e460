"""Partitions that are added to topics: taken over at one place in the polls, each record once."""

from __future__ import annotations

import dataclasses
import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import product
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consumers.errors import PartitionsAdded, SnapshotRefused
from consumers.events import encode_click
from consumers.pipeline import BatchConfig, Topics
from consumers.reading.growth import CARRY, HALT
from deploy.cli.exit_codes import UNSAFE, exit_code
from tests.consumers.bench import Bench
from tests.consumers.oracle import Outcome, oracle
from tests.consumers.shop import SECOND, START_US, TOPICS, WINDOWS, Write, partition_of, writes
from tests.consumers.test_replay import again, without_positions
from tests.fakes.clock import ManualClock
from tests.fakes.log import Log
from weighting.sample import Batch

SLOW = settings(max_examples=25, deadline=None)
#: Nothing is late, so that the oracle need not know what was read when.
PATIENT = dataclasses.replace(WINDOWS, grace_us=150 * SECOND)
CLICKS = Topics(exposures=None, items=None)


def written(seed: int, num_events: int) -> list[Write]:
    return sorted(writes(Random(seed), num_events), key=lambda write: write[0])


class Grower:
    """A log to which a shop writes, and to whose topics partitions are added meanwhile."""

    def __init__(self, seed: int, num_events: int = 200, before: int = 2, after: int = 4) -> None:
        self.log = Log([(topic, p) for topic in TOPICS for p in range(before)], max_records=30)
        self.left = written(seed, num_events)
        self.counts = dict.fromkeys(TOPICS, before)
        self.after = after
        self.one = Log([(topic, 0) for topic in TOPICS])  # the same without any partitions

    def write(self, num: int) -> None:
        now, self.left = self.left[:num], self.left[num:]
        for place, topic, client, value in now:
            partition = partition_of(client, self.counts[topic])
            at_us = int(place) + SECOND
            record = self.log.append(
                topic, partition, value, key=client.encode(), timestamp_us=at_us
            )
            self.one.records[topic, 0].append(record)

    def grow(self, topic: str) -> None:
        self.counts[topic] = self.after
        self.log.grow(topic, self.after)

    @property
    def wanted(self) -> Outcome:
        return oracle(
            self.one.records,
            click_window_us=PATIENT.click_window_us,
            observation_window_us=PATIENT.observation_window_us,
            attribution_window_us=PATIENT.attribution_window_us,
            grace_us=PATIENT.grace_us,
        )


def some(bench: Bench, num: int, random: Random) -> Iterator[Batch]:
    """Batches of `num` answers of a pipeline whose clock goes on."""
    for _, batch in zip(range(num), bench.pipeline.batches(), strict=False):
        if isinstance(batch, Batch):
            yield batch
        bench.clock.advance(random.choice([0.1, 1, 2]))


def benched(grower: Grower, polls: int, size: int = 7, **given: object) -> Bench:
    reader = grower.log.reader(max_records=25, random=Random(polls))
    batch = BatchConfig(size=size, flush_seconds=1e9)
    return Bench(reader, join=PATIENT, batch=batch, **given)  # type: ignore[arg-type]


@SLOW
@given(
    seed=st.integers(0, 10_000),
    polls=st.integers(0, 10_000),
    share=st.floats(0, 1),
    order=st.permutations(TOPICS),
    between=st.integers(0, 6),
    pace=st.integers(0, 8),
    before=st.integers(1, 3),
    more=st.integers(1, 4),
)
def test_every_record_counts_once_wherever_and_whenever_topics_grow(
    seed: int,
    polls: int,
    share: float,
    order: Sequence[str],
    between: int,
    pace: int,
    before: int,
    more: int,
) -> None:
    grower, random = Grower(seed, before=before, after=before + more), Random(polls)
    bench = benched(grower, polls)
    grower.write(int(len(grower.left) * share))
    samples = [s for batch in some(bench, pace, random) for s in batch.samples]
    for topic in order:
        grower.grow(topic)
        grower.write(3)
        samples += [s for batch in some(bench, between, random) for s in batch.samples]
    samples += [s for batch in some(bench, 4, random) for s in batch.samples]
    grower.write(len(grower.left))
    samples += bench.run()
    assert len({sample.sample_id for sample in samples}) == len(samples), "doubled"
    wanted = Counter(without_positions(sample) for sample in grower.wanted.samples.values())
    # Of an event that was sent again, the copy that is read first counts.
    assert Counter(without_positions(sample) for sample in samples) == wanted
    assert bench.pipeline.counts() == dict.fromkeys(TOPICS, before + more)
    audits = bench.pipeline.audits()
    assert {tp: audit.num_records for tp, audit in audits.items()} == {
        tp: len(records) for tp, records in grower.log.records.items()
    }


@SLOW
@given(
    seed=st.integers(0, 10_000),
    polls=st.integers(0, 10_000),
    cut=st.integers(0, 30),
    size=st.integers(1, 40),
)
def test_a_journal_that_topics_grow_in_gives_the_same_batches_and_the_same_bytes(
    seed: int, polls: int, cut: int, size: int
) -> None:
    grower, random = Grower(seed), Random(polls)
    first = benched(grower, polls, size)
    grower.write(150)
    before = list(some(first, cut, random))
    parts, offsets = first.pipeline.snapshot(), first.pipeline.next_offsets()
    skip, batches = first.pipeline.num_polls(), list[Batch]()
    for topic in TOPICS:
        grower.grow(topic)
    grower.write(len(grower.left))
    for batch in some(first, 60, random):
        batches.append(batch)
    if not batches:
        return
    second = benched(grower, polls + 1, size, counts=dict.fromkeys(TOPICS, 2))
    second.pipeline.restore(parts, offsets)
    assert second.pipeline.snapshot() == parts
    assert again(second, batches, skip) == batches
    third = benched(grower, polls + 2, size, counts=dict.fromkeys(TOPICS, 2))
    assert again(third, before + batches) == before + batches
    assert third.pipeline.snapshot() == second.pipeline.snapshot()


def test_a_state_of_before_is_restored_and_what_was_added_is_read_from_its_beginning() -> None:
    grower, random = Grower(3), Random(3)
    first = benched(grower, 1)
    grower.write(150)
    samples = [s for batch in some(first, 20, random) for s in batch.samples]
    parts, offsets = first.pipeline.snapshot(), first.pipeline.next_offsets()
    for topic in TOPICS:
        grower.grow(topic)
    grower.write(len(grower.left))
    second = benched(grower, 2, counts=dict.fromkeys(TOPICS, 2))
    second.pipeline.restore(parts, offsets)
    samples += second.run()
    wanted = Counter(without_positions(sample) for sample in grower.wanted.samples.values())
    assert Counter(without_positions(sample) for sample in samples) == wanted
    third = benched(grower, 3, counts=second.pipeline.counts())
    third.pipeline.restore(second.pipeline.snapshot(), second.pipeline.next_offsets())
    assert third.pipeline.snapshot() == second.pipeline.snapshot()


# --- noticing -------------------------------------------------------------------------------------


def polled(bench: Bench, seconds: float) -> None:
    """Read for so long by the injected clock."""
    for _ in bench.pipeline.batches():
        bench.clock.advance(0.5)
        seconds -= 0.5
        if seconds <= 0:
            return


def test_topics_that_grow_are_noticed_and_named_while_others_lack_partitions(
    caplog: pytest.LogCaptureFixture,
) -> None:
    grower = Grower(5)
    bench = benched(grower, 1)
    grower.write(50)
    polled(bench, 5)
    grower.grow("exposures")
    value = next(value for _, topic, _, value in grower.left if topic == "exposures")
    grower.log.append("exposures", 3, value, key=b"c-1")
    with caplog.at_level(logging.WARNING, "consumers.reading.growth"):
        polled(bench, 60)
        assert [(r.message, r.lacking) for r in caplog.records] == [  # type: ignore[attr-defined]
            (
                "partitions were added to some topics only; they are read once all topics of "
                "events have as many",
                ["clicks", "purchases"],
            )
        ]
        assert bench.count("consumer_added_partitions", topic="exposures") == 2
        assert bench.count("consumer_lag_records", topic="exposures", partition="3") == 1
        assert bench.count("consumer_lag_records", topic="exposures", partition="0") == 0
        assert bench.pipeline.counts() == dict.fromkeys(TOPICS, 2)
        for topic in ("clicks", "purchases"):
            grower.grow(topic)
        polled(bench, 5)
    assert caplog.records[-1].message == "partitions were added; reading them, too, from here on"
    assert len(caplog.records) == 2
    assert bench.count("consumer_added_partitions") == 0
    assert bench.count("consumer_lag_records", topic="exposures", partition="3") == 0
    assert bench.count("consumer_assigned_partitions", topic="exposures") == 4
    assert bench.pipeline.counts() == dict.fromkeys(TOPICS, 4)


def test_the_items_topic_grows_by_itself() -> None:
    topics = Topics(exposures=None)
    log = Log([("clicks", 0), ("purchases", 0), ("items", 0)])
    bench = Bench(log, topics=topics)
    polled(bench, 2)
    log.grow("items", 2)
    polled(bench, 5)
    assert bench.pipeline.counts() == {"clicks": 1, "purchases": 1, "items": 2}
    assert ("items", 1) in bench.pipeline.next_offsets()


@pytest.mark.parametrize(
    ("policy", "world", "said"),
    [
        (HALT, 1, "kafka.on_new_partitions is stop. Set it to carry"),
        (CARRY, 2, "2 ranks share them.*Start one rank alone"),
    ],
)
def test_where_nothing_is_carried_over_reading_stops_by_name(
    policy: str, world: int, said: str
) -> None:
    grower = Grower(5)
    bench = benched(grower, 1, on_new_partitions=policy, world=world)
    polled(bench, 5)
    grower.grow("exposures")
    with pytest.raises(PartitionsAdded, match=rf"exposures has 4 and 2 are read.*{said}") as raised:
        polled(bench, 60)
    assert exit_code(raised.value) == UNSAFE


def test_other_ranks_may_share_what_has_grown_once_nothing_of_before_is_open() -> None:
    log = Log([(topic, p) for topic in ("clicks", "purchases") for p in range(2)])
    one = Bench(log, topics=CLICKS)
    log.append("clicks", 0, click("e-1", START_US), key=b"c-1")
    polled(one, 3)
    for topic in ("clicks", "purchases"):
        log.grow(topic, 3)
    polled(one, 5)
    three = {"counts": one.pipeline.counts(), "world": 3, "topics": CLICKS}
    refused = Bench(log.reader(), **three)  # type: ignore[arg-type]
    with pytest.raises(SnapshotRefused, match="3 ranks do not divide both"):
        refused.pipeline.restore(
            one.pipeline.snapshot(), one.pipeline.next_offsets(), same_ranks=False
        )
    much_later_us = START_US + 3 * WINDOWS.attribution_window_us
    for topic in ("clicks", "purchases"):
        for p, client in product(range(3), ("c-1", "c-2")):
            value = click(f"{topic}-{p}-{client}", much_later_us, client)
            log.append(topic, p, value, key=client.encode())
    polled(one, 5)
    Bench(log.reader(), **three).pipeline.restore(  # type: ignore[arg-type]
        one.pipeline.snapshot(), one.pipeline.next_offsets(), same_ranks=False
    )


# --- what is carried over -------------------------------------------------------------------------


def click(event_id: str, time_us: int, client: str = "c-1") -> bytes:
    return encode_click(
        client_id=client, object_id="SKU-1", query_id="q", time_us=time_us, event_id=event_id
    )


def test_an_event_that_is_sent_again_into_another_partition_is_a_duplicate_within_the_window() -> (
    None
):
    log = Log([(topic, p) for topic in ("clicks", "purchases") for p in range(2)])
    bench = Bench(log, topics=CLICKS)
    log.append("clicks", 1, click("e-1", START_US), key=b"c-1")
    polled(bench, 3)
    for topic in ("clicks", "purchases"):
        log.grow(topic, 4)
    log.append("clicks", 3, click("e-1", START_US), key=b"c-1")
    log.append("clicks", 1, click("e-1", START_US), key=b"c-1")
    log.append("clicks", 3, click("e-2", START_US), key=b"c-1")
    polled(bench, 3)
    assert bench.count("consumer_events_total", topic="clicks", outcome="duplicate") == 2
    assert bench.count("consumer_events_total", topic="clicks", outcome="accepted") == 2


def test_new_partitions_hold_time_until_they_were_quiet_and_not_for_ever() -> None:
    clock = ManualClock()
    log = Log([(topic, p) for topic in ("clicks", "purchases") for p in range(1)])
    bench = Bench(log, topics=CLICKS, clock=clock)
    polled(bench, WINDOWS.idle_timeout_us / 1e6 + 5)  # purchases are quiet
    log.append("clicks", 0, click("e-1", START_US), key=b"c-1")
    polled(bench, 2)
    at_us = bench.pipeline.watermark_us()
    assert at_us == START_US - WINDOWS.grace_us
    for topic in ("clicks", "purchases"):
        log.grow(topic, 2)
    polled(bench, 2)
    log.append("clicks", 0, click("e-2", START_US + 60 * SECOND), key=b"c-1")
    polled(bench, 5)
    assert bench.pipeline.watermark_us() == at_us, "they may have earlier ones"
    polled(bench, WINDOWS.idle_timeout_us / 1e6)
    watermark_us = bench.pipeline.watermark_us()
    assert watermark_us == START_US + 60 * SECOND - WINDOWS.grace_us
