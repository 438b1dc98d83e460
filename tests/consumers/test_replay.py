"""Replay of a journal: the same polls give the same batches and bytes, whatever the clock."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consumers.audit import Hasher
from consumers.errors import LogTruncated, OffsetLost
from consumers.exclusion import ExclusionList, Exclusions, keyed
from consumers.pipeline import BatchConfig
from consumers.reading.reader import RECORD
from consumers.reading.replay import Replayed
from consumers.source import Record
from tests.consumers.bench import Bench
from tests.consumers.shop import shop
from tests.fakes.clock import ManualClock
from tests.fakes.log import Log
from weighting.sample import Batch

SLOW = settings(max_examples=25, deadline=None)


def wild(log: Log, seed: int, batch: BatchConfig) -> Bench:
    """A pipeline with a jumping clock and shuffled polls: idle partitions, flushed batches."""
    return Bench(log.reader(max_records=25, random=Random(seed)), batch=batch, clock=ManualClock())


def live(bench: Bench, random: Random, num: int) -> list[Batch]:
    """Batches of `num` answers of the pipeline."""
    batches = []
    for _, batch in zip(range(num), bench.pipeline.batches(), strict=False):
        batches += [batch] if isinstance(batch, Batch) else []
        bench.clock.advance(random.choice([0, 0.1, 3, 40]))
    return batches


def again(bench: Bench, batches: list[Batch], skip: int = 0) -> list[Batch]:
    """The batches that the journal of these gives."""
    tail = [Replayed(batch.polls, batch.cause) for batch in batches]
    if tail and skip:
        tail[0] = Replayed(tail[0].polls[skip:], tail[0].cause)
    replayed: list[Batch] = []
    for batch in bench.pipeline.batches(tail):
        replayed += [batch] if isinstance(batch, Batch) else []
        if len(replayed) >= len(batches):
            break
    return replayed


@SLOW
@given(
    seed=st.integers(0, 10_000),
    polls=st.integers(0, 10_000),
    cut=st.integers(0, 80),
    size=st.integers(1, 40),
)
def test_a_journal_read_again_gives_the_same_batches_and_the_same_bytes(
    seed: int, polls: int, cut: int, size: int
) -> None:
    log = shop(seed, 200)
    batch = BatchConfig(size=size, flush_seconds=5)
    first = wild(log, polls, batch)
    before = live(first, Random(polls), cut)
    parts, offsets, skip = (
        first.pipeline.snapshot(),
        first.pipeline.next_offsets(),
        first.pipeline.num_polls(),
    )
    stream = first.pipeline.batches()
    after, random = [], Random(polls + 1)
    for _ in range(80):
        batch_ = next(stream)
        after += [batch_] if isinstance(batch_, Batch) else []
        first.clock.advance(random.choice([0, 0.1, 3, 40]))
    if not after:
        return

    second = wild(log, polls + 2, batch)
    second.pipeline.restore(parts, offsets)
    replayed = again(second, after, skip)
    assert [b.samples for b in replayed] == [b.samples for b in after]
    assert [b.polls for b in replayed] == [b.polls for b in after]

    third = wild(log, polls + 3, batch)
    from_nothing = again(third, before + after)
    assert from_nothing == before + after
    assert third.pipeline.snapshot() == second.pipeline.snapshot()


@SLOW
@given(
    seed=st.integers(0, 10_000),
    one=st.integers(0, 10_000),
    other=st.integers(0, 10_000),
    cut=st.integers(0, 40),
)
def test_the_canonical_order_depends_on_the_log_alone(
    seed: int, one: int, other: int, cut: int
) -> None:
    log = shop(seed, 150)
    until = {tp: len(records) * 3 // 4 for tp, records in log.records.items()}
    state = wild(log, seed, BatchConfig(size=9))
    live(state, Random(seed), cut)
    parts, offsets = state.pipeline.snapshot(), state.pipeline.next_offsets()
    until = {tp: max(offset, until[tp]) for tp, offset in offsets.items()}
    ends = []
    for polls in (one, other):
        bench = Bench(
            log.reader(max_records=10, random=Random(polls)),
            batch=BatchConfig(size=9, flush_seconds=1e-9),
        )
        bench.pipeline.restore(parts, offsets)
        batches, parts_then = [], parts
        for batch in bench.pipeline.batches(until=until):
            if bench.pipeline.live:
                break
            batches += [batch] if isinstance(batch, Batch) else []
            parts_then = bench.pipeline.snapshot()
        ends.append(
            (
                [b.samples for b in batches],
                {name: part for name, part in parts_then.items() if name != "rank-0"},
            )
        )
    assert ends[0] == ends[1]


def test_a_slice_says_what_was_in_it_so_that_a_rewritten_log_shows() -> None:
    log = shop(3, 60)
    bench = Bench(log.reader(max_records=20))
    polls = [poll for batch in bench.live() for poll in batch.polls]
    for part in (part for poll in polls for part in poll.slices):
        hasher = Hasher(part.topic, part.partition)
        records = log.records[part.topic, part.partition][part.start : part.end]
        assert part.num_records == len(records)
        assert part.sum64 == sum(map(hasher, records)) % 2**64


def test_every_record_has_one_outcome_and_the_audit_is_that_of_the_raw_bytes() -> None:
    log = shop(5, 120)
    log.append("clicks", 0, b"not an event")
    bench = Bench(log.reader(max_records=20))
    bench.run()
    for tp, audit in bench.pipeline.audits().items():
        hasher = Hasher(*tp)
        assert audit.num_records == len(log.records[tp])
        assert audit.sum64 == sum(map(hasher, log.records[tp])) % 2**64
        assert audit.num_unaccounted == 0
        assert audit.last == (log.records[tp][-1].offset, hasher(log.records[tp][-1]))


@pytest.mark.parametrize("change", ["offset", "value", "topic", "partition", "null"])
def test_the_hash_of_a_record_covers_its_place_and_its_bytes(change: str) -> None:
    record = Record("clicks", 1, 7, 0, b"k", b"value")
    other = {
        "offset": Record("clicks", 1, 8, 0, b"k", b"value"),
        "value": Record("clicks", 1, 7, 0, b"k", b"valuf"),
        "topic": Record("click", 1, 7, 0, b"k", b"value"),
        "partition": Record("clicks", 2, 7, 0, b"k", b"value"),
        "null": Record("clicks", 1, 7, 0, b"k", None),
    }[change]
    assert Hasher("clicks", 1)(record) != Hasher(other.topic, other.partition)(other)


def test_excluding_a_client_gives_what_the_log_without_its_events_gives() -> None:
    log = shop(2, 200)
    victim = next(r.key for r in log.records["clicks", 0] if r.key).decode()
    without = Log(log.records)
    for tp, records in log.records.items():
        for record in records:
            if record.key != victim.encode():
                without.append(
                    *tp,
                    record.value,
                    key=record.key,
                    timestamp_us=record.timestamp_us,
                    headers=record.headers,
                )
    listed = ExclusionList(client_ids=(keyed(b"secret", victim),))
    bench = Bench(log.reader(), excluded=Exclusions(listed, b"secret"))
    kept = [without_positions(s) for s in bench.run()]
    assert kept == [without_positions(s) for s in Bench(without.reader()).run()]
    assert bench.count("consumer_events_total", outcome="excluded") > 0


def without_positions(sample: object) -> tuple[object, ...]:
    """A sample without positions, which differ between the two logs."""
    return tuple(
        getattr(sample, name)
        for name in (
            "task",
            "copy_kind",
            "label",
            "list_id",
            "item_id",
            "text",
            "event_time_us",
            "delay_us",
        )
    )


def test_records_that_retention_took_stop_us_or_are_recorded_for_good() -> None:
    log = shop(4, 100)
    reader = log.reader()
    stopped = Bench(log.reader())
    parts, offsets = stopped.pipeline.snapshot(), stopped.pipeline.next_offsets()
    reader.beginnings["clicks", 0] = 5
    going_on = Bench(reader, on_gap=RECORD)
    going_on.pipeline.restore(parts, offsets)
    next(going_on.pipeline.batches())
    (gap,) = going_on.pipeline.gaps
    assert (gap.topic, gap.partition, gap.start, gap.end) == ("clicks", 0, 0, 5)
    refused = Bench(log.reader())
    refused.log.beginnings["clicks", 0] = 5
    refused.pipeline.restore(parts, offsets)
    with pytest.raises(OffsetLost):
        refused.pipeline.open()


def test_a_log_that_lost_the_record_consumed_last_is_refused_before_anything_is_learned() -> None:
    """An unclean election can give another record the same offset.

    Then no offset is out of range, and no slice is read again.
    """
    log = shop(4, 100)
    first = Bench(log.reader(max_records=25))
    live(first, Random(1), 10)
    parts, offsets = first.pipeline.snapshot(), first.pipeline.next_offsets()

    def start(reader: Log) -> Bench:
        bench = Bench(reader)
        bench.pipeline.restore(parts, offsets)
        next(bench.pipeline.batches())
        return bench

    start(log.reader())
    records = log.records["clicks", 1]
    next_offset = offsets["clicks", 1]
    was = records[next_offset - 1]
    records[next_offset - 1] = Record(
        was.topic, was.partition, was.offset, was.timestamp_us, was.key, b"{}", ()
    )
    message = rf"at or before offset {next_offset - 1}, and we have read up to {next_offset}"
    with pytest.raises(LogTruncated, match=rf"clicks\[1\]: .* {message}"):
        start(log.reader())
    retained = log.reader()
    retained.beginnings["clicks", 1] = next_offset
    start(retained)  # nobody can say any more
