"""Samples of a whole log, also across a resume: those of the oracle, each once."""

from __future__ import annotations

import dataclasses
from random import Random

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from consumers.errors import OffsetLost, SnapshotRefused
from consumers.pipeline import BatchConfig
from consumers.telemetry import RESULTS
from tests.consumers.bench import Bench, expected
from tests.consumers.shop import WINDOWS, shop
from tests.consumers.single import empty
from weighting.sample import Batch, Sample

SLOW = settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])
OUTCOMES = ("accepted", "duplicate", "ignored", "invalid", "late", "miskeyed")


# --- exactly the samples of the log ---------------------------------------------------------------


@SLOW
@given(
    seed=st.integers(0, 10_000),
    pace=st.sampled_from([1.0, 20.0]),
    polls=st.integers(0, 10_000),
    most=st.integers(1, 200),
    size=st.integers(1, 100),
    parts=st.integers(1, 3),
)
def test_any_interleaving_of_polls_and_any_batch_size_gives_the_samples_of_the_oracle(
    seed: int, pace: float, polls: int, most: int, size: int, parts: int
) -> None:
    log = shop(seed, 250, num_partitions=parts, seconds_between=pace)
    bench = Bench(
        log.reader(max_records=most, random=Random(polls)),
        batch=BatchConfig(size=size, flush_seconds=1e9),
    )
    samples = bench.run()
    wanted = expected(log)
    assert len(samples) == len(wanted.samples)
    assert {s.sample_id: s for s in samples} == wanted.samples
    aside = [headers["steelyard-position"].decode() for _, _, _, headers in bench.shelf.sent]
    assert sorted(aside) == sorted(
        f"{topic}[{p}]@{offset}" for topic, p, offset in wanted.unreadable
    )
    assert bench.count("consumer_events_total", outcome="invalid") == len(wanted.unreadable)
    assert bench.count("consumer_events_total", outcome="duplicate") == wanted.num_duplicates
    assert bench.count("consumer_events_total", outcome="late") == wanted.num_late


@SLOW
@given(seed=st.integers(0, 10_000), first=st.integers(0, 10_000), second=st.integers(0, 10_000))
def test_the_order_of_samples_does_not_depend_on_the_order_of_polls(
    seed: int, first: int, second: int
) -> None:
    log = shop(seed, 150)
    runs = [
        Bench(log.reader(max_records=40, random=Random(order))).run() for order in (first, second)
    ]
    assert runs[0] == runs[1]


def test_the_invented_log_has_what_it_is_meant_to_have() -> None:
    log = shop(1, 3000)
    wanted = expected(log)
    num_records = sum(map(len, log.records.values()))
    assert 0.005 < len(wanted.unreadable) / num_records < 0.02
    assert 0.05 < wanted.num_duplicates / num_records < 0.15
    assert 0.01 < wanted.num_late / num_records < 0.06
    kinds = {(s.task, s.copy_kind, s.label, s.inferred) for s in wanted.samples.values()}
    assert len(kinds) == 11, "first negative, first positive, late positive; inferred or not"
    values = [s.value for s in wanted.samples.values() if s.task == "purchase" and s.label]
    assert None in values
    assert len(set(values)) > 50


@SLOW
@given(seed=st.integers(0, 10_000), most=st.integers(1, 100))
def test_every_record_has_exactly_one_outcome(seed: int, most: int) -> None:
    log = shop(seed, 150)
    bench = Bench(log.reader(max_records=most))
    bench.run()
    assert sum(
        bench.count("consumer_events_total", outcome=outcome) for outcome in OUTCOMES
    ) == sum(map(len, log.records.values()))


# --- resume ---------------------------------------------------------------------------------------


@SLOW
@given(
    seed=st.integers(0, 10_000),
    pace=st.sampled_from([1.0, 20.0]),
    most=st.sampled_from([40, 60, 1_000_000]),
    cut=st.integers(0, 60),
    before=st.integers(0, 10_000),
    after=st.integers(0, 10_000),
    size=st.integers(1, 40),
)
def test_a_snapshot_resumed_in_a_fresh_pipeline_gives_the_identical_remaining_samples(
    seed: int, pace: float, most: int, cut: int, before: int, after: int, size: int
) -> None:
    log = shop(seed, 200, seconds_between=pace)
    batch, join = (
        BatchConfig(size=size, flush_seconds=1e9),
        dataclasses.replace(WINDOWS, max_pending=most),
    )
    unbroken = Bench(log.reader(max_records=30, random=Random(before)), batch=batch, join=join)
    whole = unbroken.run()

    first = Bench(log.reader(max_records=30, random=Random(before)), batch=batch, join=join)
    done: list[Sample] = []
    for _, yielded in zip(range(cut), first.pipeline.batches(), strict=False):
        done += yielded.samples if isinstance(yielded, Batch) else ()
    parts, offsets = first.pipeline.snapshot(), first.pipeline.next_offsets()

    second = Bench(log.reader(max_records=30, random=Random(after)), batch=batch, join=join)
    second.pipeline.restore(parts, offsets)
    assert second.pipeline.snapshot() == parts, "equal state gives equal bytes"
    assert done + second.run() == whole
    first.pipeline._reporting.joined()
    for event, results in RESULTS.items():
        for result in results:
            counts = [
                bench.count("join_labels_total", event=event, result=result)
                for bench in (unbroken, first, second)
            ]
            assert counts[0] == counts[1] + counts[2], (event, result)


@SLOW
@given(seed=st.integers(0, 10_000), cut=st.integers(1, 40))
def test_slices_cover_every_record_once_across_a_resume(seed: int, cut: int) -> None:
    log = shop(seed, 150)
    first = Bench(log.reader(max_records=30))
    batches: list[Batch] = []
    for _, yielded in zip(range(cut), first.pipeline.batches(), strict=False):
        batches += [yielded] if isinstance(yielded, Batch) else []
    second = Bench(log.reader(max_records=30))
    second.pipeline.restore(first.pipeline.snapshot(), first.pipeline.next_offsets())
    batches += list(second.live())
    batches += list(second.pipeline.drain(2**60))
    reached = dict.fromkeys(log.records, 0)
    for batch in batches:
        for part in (part for poll in batch.polls for part in poll.slices):
            assert part.start == reached[part.topic, part.partition]
            assert part.num_records == part.end - part.start
            reached[part.topic, part.partition] = part.end
    assert reached == {tp: len(records) for tp, records in log.records.items()}


def test_a_snapshot_of_other_partitions_is_refused() -> None:
    one, two = Bench(shop(1, 20, num_partitions=1)), Bench(shop(1, 20, num_partitions=2))
    with pytest.raises(SnapshotRefused, match="partition counts must be those of the checkpoint"):
        two.pipeline.restore(one.pipeline.snapshot(), one.pipeline.next_offsets())


def test_a_snapshot_that_is_not_one_is_refused() -> None:
    bench = Bench(shop(1, 20))
    parts = dict.fromkeys(bench.pipeline.snapshot(), b"\x01")
    with pytest.raises(SnapshotRefused, match="cannot be read"):
        Bench(shop(1, 20)).pipeline.restore(parts, bench.pipeline.next_offsets())


@pytest.mark.parametrize("part", ["rank-0", "part-1"])
def test_a_snapshot_of_another_format_is_refused_whatever_its_fields(part: str) -> None:
    bench = Bench(shop(1, 20))
    parts = bench.pipeline.snapshot()
    parts[part] = msgspec.msgpack.encode([2, "fields", "of that", "format"])
    with pytest.raises(
        SnapshotRefused,
        match=r"has the format 2, and this release reads 5\. Begin with a new store",
    ):
        Bench(shop(1, 20)).pipeline.restore(parts, bench.pipeline.next_offsets())


def test_resuming_where_records_were_deleted_names_partition_offset_and_retained_range() -> None:
    log = shop(1, 100)
    first = Bench(log.reader())
    parts, offsets = first.pipeline.snapshot(), first.pipeline.next_offsets()
    reader = log.reader()
    reader.beginnings["clicks", 1] = 7
    second = Bench(reader)
    second.pipeline.restore(parts, offsets)
    retained = rf"\[7, {len(log.records['clicks', 1])}\)"
    message = rf"next offset 0 is outside of the retained range {retained}; 7 records were deleted"
    with pytest.raises(OffsetLost, match=rf"clicks\[1\]: {message}"):
        next(second.pipeline.batches())
    assert second.count("consumer_lost_records_total", topic="clicks") == 7


def test_resuming_beyond_the_end_of_the_log_is_refused() -> None:
    bench = Bench(shop(1, 100))
    bench.run()
    parts, offsets = bench.pipeline.snapshot(), bench.pipeline.next_offsets()
    recreated = Bench(empty(2))
    recreated.pipeline.restore(parts, offsets)
    with pytest.raises(OffsetLost, match="truncated or the topic was recreated"):
        next(recreated.pipeline.batches())
