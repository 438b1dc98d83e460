"""Backlog: samples that wait, rates, time to catch up, and lag while a step takes long."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from threading import Event

import pytest
from prometheus_client import CollectorRegistry

from consumers.errors import SourceUnavailable
from consumers.pipeline import BatchConfig
from deploy.roles.backlog import Backlog, Monitor
from learner.store.journal.records import JournalPosition, Part, Step
from learner.telemetry import Telemetry
from tests.consumers.bench import Bench
from tests.consumers.single import empty, show
from tests.consumers.test_schedule import backlog as written
from tests.fakes.brokers import Brokers
from tests.fakes.clock import ManualClock
from tests.fakes.log import Log
from weighting.provenance import Offsets, Poll, Slice, TopicPartition
from weighting.sample import Batch, Signal

A: TopicPartition = ("clicks", 0)
BEHIND = JournalPosition("000001-0000", 9)


class Reading:
    """A pipeline that has read so much."""

    def __init__(self, next_offset: int = 0, *, num_ready: int = 0) -> None:
        self.next_offset = next_offset
        self.ready = num_ready

    def event_offsets(self) -> Offsets:
        return Offsets({A: self.next_offset})

    def num_records(self) -> int:
        return self.next_offset

    def num_ready(self) -> int:
        return self.ready

    def report_offsets(self, ends: Mapping[TopicPartition, int], now: float) -> None:
        pass


def batch(num_samples: int) -> Batch:
    return Batch(samples=(None,) * num_samples, polls=(), cause="full", watermark_us=0)  # type: ignore[arg-type]


class Driven:
    """A backlog whose learner is driven by hand."""

    def __init__(self, reading: Reading, num_samples: int = 0) -> None:
        self.clock, self.reading, self.num_samples = ManualClock(), reading, num_samples
        self.backlog = Backlog(reading, lambda: self.num_samples, clock=self.clock)

    def learn(self, sizes: list[int], seconds: float) -> Iterator[None]:
        for item in self.backlog.pulled(iter([batch(size) for size in sizes])):
            yield
            self.clock.advance(seconds)
            self.num_samples += len(item.samples)
            self.backlog.stepped()


def test_what_waits_is_in_the_journal_read_or_unread_and_nothing_twice() -> None:
    """Two steps are journaled, of 100 records; 50 more were never read."""
    bench = Driven(Reading(200), num_samples=1000)
    steps = [
        Step(n, (Part((Poll((Slice(*A, 150 + 50 * n, 200 + 50 * n, 50, 0),)),), "full", 320),))
        for n in (1, 2)
    ]
    bench.backlog.begin([(BEHIND, step) for step in steps])
    bench.backlog.arrived({A: 350})
    per_record = 1000 / 200
    assert bench.backlog.waiting() == {"journal": 640, "read": 0, "unread": 50 * per_record}
    bench.num_samples, bench.reading.next_offset = 1320, 250
    assert bench.backlog.waiting()["journal"] == 320
    assert bench.backlog.waiting()["unread"] == round(50 * 1320 / 250)
    bench.num_samples, bench.reading.next_offset, bench.reading.ready = 1640, 300, 70
    waiting = bench.backlog.waiting()
    assert (waiting["journal"], waiting["read"], waiting["unread"]) == (
        0,
        70,
        round(50 * 1640 / 300),
    )


def test_a_batch_waits_until_its_step_is_over() -> None:
    bench = Driven(Reading(10, num_ready=5))
    steps = bench.learn([320], 3.0)
    next(steps)
    assert bench.backlog.waiting()["read"] == 325
    assert next(steps, None) is None
    assert bench.backlog.waiting()["read"] == 5


def test_a_batch_that_was_pulled_ahead_waits_beside_the_one_that_is_learned() -> None:
    bench = Driven(Reading(10))
    items = bench.backlog.pulled(iter([batch(320), batch(300), Signal.IDLE]))
    waiting = []
    next(items)
    for num_learned in (320, 300):
        next(items)  # in another thread, while the step runs
        waiting.append(bench.backlog.waiting()["read"])
        bench.clock.advance(2.0)
        bench.num_samples += num_learned
        bench.backlog.stepped()
        waiting.append(bench.backlog.waiting()["read"])
    assert waiting == [620, 300, 300, 0]
    assert bench.backlog.samples_per_second == pytest.approx(620 / 4, rel=0.01)


def test_the_rate_is_of_time_with_something_to_learn() -> None:
    bench = Driven(Reading(10))
    for _ in bench.learn([300] * 10, 3.0):
        pass
    assert bench.backlog.samples_per_second == pytest.approx(100)
    for _ in bench.backlog.pulled(iter([Signal.IDLE] * 50)):
        bench.clock.advance(10)
        bench.backlog.stepped()
    assert bench.backlog.samples_per_second == pytest.approx(100)


def test_time_to_catch_up_is_by_the_rate_of_learning_less_that_of_arrival() -> None:
    bench = Driven(Reading(100), num_samples=0)
    assert bench.backlog.catch_up_seconds() == 0
    for _ in bench.learn([100] * 10, 1.0):  # 100 samples/s; ten of each record
        pass
    bench.backlog.arrived({A: 400})
    assert bench.backlog.catch_up_seconds() == pytest.approx(300 * 10 / 100)
    bench.clock.advance(10)
    bench.backlog.arrived({A: 450})  # five records/s, half of what is learned
    assert bench.backlog.catch_up_seconds() == pytest.approx(350 * 10 / 50)
    bench.clock.advance(10)
    bench.backlog.arrived({A: 1000})
    assert bench.backlog.catch_up_seconds() == math.inf


def test_without_a_measured_rate_the_time_to_catch_up_is_not_known() -> None:
    bench = Driven(Reading(0))
    bench.backlog.arrived({A: 101})
    assert math.isnan(bench.backlog.catch_up_seconds())
    assert bench.backlog.facts()["catch_up_seconds"] is None


def test_a_replay_moves_with_samples_and_ends_only_when_it_is_over() -> None:
    bench = Driven(Reading(100), num_samples=500)
    ratios = []
    for _ in range(11):
        ratios.append(bench.backlog.replayed_ratio(500, 1000, over=False))
        bench.num_samples += 100
    assert ratios == pytest.approx([n / 10 for n in range(10)] + [0.999])
    assert bench.backlog.replayed_ratio(500, 1000, over=True) == 1
    assert bench.backlog.replayed_ratio(500, 0, over=False) == 0


def monitored(bench: Bench, brokers: Brokers) -> tuple[Monitor, Backlog]:
    learned = Telemetry(CollectorRegistry())
    backlog = Backlog(bench.pipeline, lambda: 0, clock=bench.clock)
    topics = ["exposures", "clicks", "purchases"]
    return Monitor(
        backlog,
        bench.pipeline,
        brokers,
        topics,
        learned,
        clock=bench.clock,
        ticks=bench.clock,
    ), backlog


def ends_of(log: Log) -> dict[TopicPartition, int]:
    return {tp: len(records) for tp, records in log.records.items()}


def test_lag_and_samples_are_true_while_one_step_takes_long() -> None:
    log = written(num_lists=200, num_hits=10)
    bench = Bench(log, batch=BatchConfig(size=320, flush_seconds=1e9))
    brokers = Brokers(ends_of(log))
    monitor, backlog = monitored(bench, brokers)
    for item in backlog.pulled(bench.pipeline.batches()):
        monitor.refresh()
        if isinstance(item, Batch):
            break  # the loop is in its step from here on
    assert bench.count("consumer_lag_records") == 0
    for n in range(265):
        show(log, f"later{n}", 2000)
    brokers.ends = ends_of(log)
    bench.clock.advance(10_000)
    monitor.refresh()
    assert bench.count("consumer_lag_records") == 265
    assert bench.count("consumer_lag_seconds", topic="exposures") > 0
    assert bench.count("join_open_exposures") > 0
    read = backlog.waiting()["read"]
    assert 200 * 10 - 340 <= read <= 200 * 10


def test_lag_is_true_before_anything_was_read() -> None:
    log = empty()
    for n in range(40):
        show(log, f"q{n}", n)
    bench = Bench(log)
    monitor, _ = monitored(bench, Brokers(ends_of(log)))
    monitor.refresh()
    assert bench.count("consumer_lag_records") == 40


def test_brokers_that_do_not_answer_leave_what_was_known(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    log = empty()
    show(log, "q", 0)

    class Silent(Brokers):
        def end_offsets(self, topics: object) -> dict[TopicPartition, int]:
            if self.silent:
                raise SourceUnavailable("h:1", 1.0, "timed out")
            return dict(self.ends)

    bench, brokers = Bench(log), Silent(ends_of(log))
    monitor, _ = monitored(bench, brokers)
    monitor.refresh()
    brokers.silent = True
    monitor.refresh()
    assert bench.count("consumer_lag_records") == 1


def test_brokers_that_do_not_answer_hold_no_end_up() -> None:
    class Silent(Brokers):
        asked, answers = Event(), Event()

        def end_offsets(self, topics: object) -> dict[TopicPartition, int]:
            self.asked.set()
            self.answers.wait()
            return {}

    monitor, _ = monitored(Bench(empty()), brokers := Silent({}))
    monitor.start()
    brokers.asked.wait()
    monitor.close(timeout_seconds=0.0)
    assert monitor._thread.is_alive()
    brokers.answers.set()
    monitor.close(timeout_seconds=120.0)
    assert not monitor._thread.is_alive()


def test_a_long_backlog_is_logged_twice_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    clock, reading = ManualClock(), Reading(10)
    num = [0]
    backlog = Backlog(reading, lambda: num[0], clock=clock)
    for _ in backlog.pulled(iter([batch(100)])):
        num[0] += 100
        clock.advance(1)
        backlog.stepped()
    monitor = Monitor(
        backlog,
        reading,
        Brokers({A: 10_000}),
        ["clicks"],
        Telemetry(CollectorRegistry()),
        clock=clock,
        ticks=clock,
    )
    with caplog.at_level("INFO", "steelyard.learner"):
        for _ in range(60):
            clock.advance(2)
            monitor.refresh()
    assert 3 <= len(caplog.records) <= 4
    record = vars(caplog.records[0])
    assert record["samples_waiting"] == 9990 * 10
    assert record["catch_up_seconds"] == 999


def test_the_thread_reports_by_itself_and_ends_with_close() -> None:
    log = empty()
    show(log, "q", 0)
    bench = Bench(log)
    monitor, _ = monitored(bench, Brokers(ends_of(log)))
    monitor.start().close()
    monitor.close()
    assert bench.count("consumer_lag_records") == 1
