"""Ends of batches; idle and paused partitions."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime
from itertools import islice
from random import Random

import pytest

from consumers.errors import PartitionsMismatch
from consumers.pipeline import BatchConfig
from consumers.reading.replay import Replayed
from tests.consumers.bench import Bench, expected
from tests.consumers.shop import SECOND, START_US, WINDOWS, shop
from tests.consumers.single import empty, show, tick
from tests.fakes.clock import ManualClock
from tests.fakes.log import Log
from weighting.sample import Batch, Sample, Signal

# --- batches --------------------------------------------------------------------------------------


def test_a_batch_closes_at_the_first_event_boundary_with_enough_samples() -> None:
    log = empty()
    for n in range(5):
        show(log, f"q{n}", n * 100, hits=("A", "B", "C"))
    bench = Bench(log, batch=BatchConfig(size=4, flush_seconds=1e9))
    sizes = [len(batch.samples) for batch in (*bench.live(), *bench.pipeline.drain(2**60))]
    assert sizes == [6, 6, 3]


def backlog(num_lists: int, num_hits: int) -> Log:
    """Lists that are all closed by late events: one poll brings all of their samples."""
    log = empty()
    for n in range(num_lists):
        show(log, f"q{n}", n / 1000, hits=tuple(f"I{i}" for i in range(num_hits)))
    for topic in ("exposures", "clicks", "purchases"):
        tick(log, 1000, topic)
    return log


def test_polls_come_round_in_bounded_work_however_many_samples_one_of_them_brings() -> None:
    log = backlog(num_lists=3000, num_hits=20)
    bench = Bench(log.reader(max_records=3003), batch=BatchConfig(size=320, flush_seconds=1e9))
    most_between = num_samples = since_poll = num_polls = 0
    for item in bench.pipeline.batches():
        if bench.log.num_polls > num_polls:
            num_polls, since_poll = bench.log.num_polls, 0
        if isinstance(item, Batch):
            num_samples += len(item.samples)
            since_poll += len(item.samples)
            most_between = max(most_between, since_poll)
        elif num_samples:
            break
        bench.clock.advance(1)
    assert num_samples >= 3000 * 20 - 320
    assert most_between < 5 * 340


def test_while_batches_wait_few_records_are_read() -> None:
    log = backlog(num_lists=3000, num_hits=20)
    bench = Bench(log.reader(max_records=3003), batch=BatchConfig(size=320, flush_seconds=1e9))
    batches = bench.pipeline.batches()
    while not isinstance(next(batches), Batch):
        pass
    for n in range(10_000):
        show(log, f"new{n}", 1001)
    before = sum(bench.pipeline.next_offsets().values())
    for _ in range(40):
        assert isinstance(next(batches), Batch)
    assert sum(bench.pipeline.next_offsets().values()) - before <= 10


def test_one_list_of_thousands_is_learned_in_several_batches() -> None:
    log = backlog(num_lists=1, num_hits=5000)
    batch, join = (
        BatchConfig(size=320, flush_seconds=1e9),
        dataclasses.replace(WINDOWS, max_hits=5000),
    )
    bench = Bench(log.reader(), batch=batch, join=join)
    batches = list(bench.live())
    assert max(len(batch.samples) for batch in batches) <= 640
    assert sum(len(batch.samples) for batch in batches) > 5000 - 320
    again = Bench(log.reader(), batch=batch, join=join)
    journal = [Replayed(batch.polls, batch.cause) for batch in batches]
    replayed = (b for b in again.pipeline.batches(journal) if isinstance(b, Batch))
    assert list(islice(replayed, len(batches))) == batches


def test_samples_that_wait_are_flushed_by_the_clock() -> None:
    log, clock = empty(), ManualClock()
    show(log, "q", 0)
    bench = Bench(log, clock=clock, batch=BatchConfig(size=100, flush_seconds=2))
    batches = bench.pipeline.batches()
    assert next(batches) is Signal.IDLE
    for topic in ("exposures", "clicks", "purchases"):
        tick(log, 100, topic)
    assert next(batches) is Signal.IDLE
    clock.advance(2)
    batch = next(batches)
    assert isinstance(batch, Batch)
    assert batch.cause == "flush"
    assert len(batch.samples) == 2


def test_drain_closes_only_windows_that_end_by_the_newest_event() -> None:
    log = empty()
    show(log, "old", 0)
    show(log, "new", 25)
    samples = Bench(log).run(until_us=None)
    assert {s.list_id for s in samples} == {"old"}


def test_nothing_ready_is_idle_so_that_the_caller_can_do_other_things() -> None:
    batches = Bench(empty()).pipeline.batches()
    assert [next(batches) for _ in range(3)] == [Signal.IDLE] * 3


def test_partition_counts_that_differ_are_refused_by_name() -> None:
    log = Log([("clicks", 0), ("clicks", 1), ("exposures", 0), ("exposures", 1), ("purchases", 0)])
    with pytest.raises(PartitionsMismatch, match="clicks has 2, exposures has 2, purchases has 1"):
        Bench(log)


# --- idleness and bounds --------------------------------------------------------------------------


def test_a_quiet_partition_holds_samples_back_until_the_idle_timeout_and_no_longer() -> None:
    log, clock = empty(), ManualClock()
    show(log, "q", 0)
    tick(log, 1000, "exposures")
    bench = Bench(log, clock=clock, batch=BatchConfig(size=1))
    batches = bench.pipeline.batches()
    for _ in range(29):
        assert next(batches) is Signal.IDLE
        clock.advance(1)
    clock.advance(1)
    batch = next(batches)
    assert isinstance(batch, Batch)
    assert {s.list_id for s in batch.samples} == {"q"}


def test_a_pause_with_open_lists_is_told_once_with_the_event_that_would_close_them(
    caplog: pytest.LogCaptureFixture,
) -> None:
    log, clock = empty(), ManualClock()
    for at in (0, 3, 50):  # the first two are closed by later events, and the third waits
        show(log, f"q{at}", at)
    tick(log, 50)
    bench = Bench(log, clock=clock, batch=BatchConfig(size=1))
    batches = bench.pipeline.batches()
    caplog.set_level("INFO", "consumers.reporting")

    def pause() -> list[tuple[str, int]]:
        caplog.clear()
        for _ in range(100):
            next(batches)
            clock.advance(1)
        return [
            (vars(record)["later_than"], vars(record)["open_lists"]) for record in caplog.records
        ]

    at_us = START_US + 50 * SECOND + WINDOWS.click_window_us + WINDOWS.grace_us
    ((first, num_lists),) = pause()
    assert (datetime.fromisoformat(first), num_lists) == (
        datetime.fromtimestamp(at_us / 1e6, UTC),
        1,
    )
    assert pause() == []
    tick(log, (at_us - START_US) / SECOND)  # not later
    ((again, num_lists),) = pause()
    assert (again, num_lists) == (first, 1)
    tick(log, (at_us - START_US) / SECOND + 0.001)
    assert pause() == []
    assert bench.pipeline._assembler.join.waiting_lists()[0] == 0


def test_brokers_that_do_not_answer_are_not_mistaken_for_idleness() -> None:
    log, clock = empty(), ManualClock()
    show(log, "q", 0)
    tick(log, 1000, "exposures")
    bench = Bench(log, clock=clock, batch=BatchConfig(size=1))
    batches = bench.pipeline.batches()
    assert next(batches) is Signal.IDLE
    log.available = False
    for _ in range(10):
        clock.advance(60)
        assert next(batches) is Signal.IDLE
    log.available = True
    clock.advance(1)
    assert isinstance(next(batches), Batch)


def test_partitions_that_run_ahead_are_paused_until_the_others_follow() -> None:
    log = shop(3, 2000)
    for tp in list(log.records):
        if tp[0] == "purchases":
            del log.records[tp][:]
    bench = Bench(log.reader(max_records=60), join=dataclasses.replace(WINDOWS, max_pending=1000))
    most = 0
    paused = False
    for batch in bench.pipeline.batches():
        most = max(most, bench.pipeline._assembler.join.num_pending)
        paused = paused or bool(bench.log.paused)
        bench.clock.advance(1)
        if batch is Signal.IDLE and bench.log.exhausted:
            break
    assert paused
    assert most <= 100 + 60


def test_pausing_changes_no_sample() -> None:
    log = shop(4, 400)
    bench = Bench(log.reader(max_records=50, random=Random(1)))
    bench.pipeline._schedule._max_pending = 10
    samples: list[Sample] = []
    for batch in bench.pipeline.batches():
        samples += batch.samples if isinstance(batch, Batch) else ()
        bench.clock.advance(
            1
        )  # a partition that is read to its end must not hold the paused ones for ever
        if batch is Signal.IDLE and bench.log.exhausted:
            break
    samples += [sample for batch in bench.pipeline.drain(2**60) for sample in batch.samples]
    assert {s.sample_id: s for s in samples} == expected(log).samples
