from __future__ import annotations

from prometheus_client import CollectorRegistry, generate_latest

from consumers.codec import REASONS
from consumers.telemetry import OUTCOMES, RESULTS, Telemetry
from tests.consumers.bench import Bench
from tests.consumers.shop import shop


def test_every_counter_has_all_its_labels_before_anything_happens() -> None:
    text = generate_latest(Bench(shop(1, 0)).registry).decode()
    for outcome in OUTCOMES:
        for event in ("exposure", "click", "purchase"):
            labels = f'event="{event}",outcome="{outcome}",topic="{event}s"'
            assert f"steelyard_consumer_events_total{{{labels}}} 0.0" in text
    for reason in REASONS:
        assert f'steelyard_deadletter_events_total{{reason="{reason}",topic="clicks"}} 0.0' in text
    for event, results in RESULTS.items():
        for result in results:
            assert f'steelyard_join_labels_total{{event="{event}",result="{result}"}} 0.0' in text


def test_there_are_no_created_series() -> None:
    bench = Bench(shop(1, 50))
    bench.run()
    assert "_created" not in generate_latest(bench.registry).decode()


def test_labels_are_bounded_whatever_the_events_say() -> None:
    small, large = Bench(shop(1, 50)), Bench(shop(1, 500))
    for bench in (small, large):
        bench.run()
    lines = [
        [line.split(" ")[0] for line in generate_latest(bench.registry).decode().splitlines()]
        for bench in (small, large)
    ]
    assert sorted(lines[0]) == sorted(lines[1])


def test_lag_is_zero_when_caught_up_and_counts_what_waits() -> None:
    bench = Bench(shop(1, 400).reader(max_records=60))
    batches = bench.pipeline.batches()
    next(batches)
    bench.clock.advance(10_000)
    next(batches)
    ends = bench.log.end_offsets()
    offsets = bench.pipeline.next_offsets()
    assert bench.count("consumer_lag_records") == sum(ends.values()) - sum(offsets.values()) > 0
    assert bench.count("consumer_lag_seconds", topic="exposures", partition="0") > 0
    while not bench.log.exhausted:
        next(batches)
    bench.clock.advance(1)
    next(batches)
    assert bench.count("consumer_lag_records") == bench.count("consumer_lag_seconds") == 0
    assert bench.count("consumer_assigned_partitions", topic="clicks") == 2


def test_headroom_is_retention_less_how_far_we_are_behind_and_every_record_is_accounted_for() -> (
    None
):
    bench = Bench(shop(1, 400).reader(max_records=60), retention_seconds={"exposures": 604_800.0})
    batches = bench.pipeline.batches()
    next(batches)
    bench.clock.advance(10_000)
    next(batches)
    where = {"topic": "exposures", "partition": "0"}
    behind = bench.count("consumer_lag_seconds", **where)
    assert behind > 0
    assert bench.count("consumer_retention_headroom_seconds", **where) == 604_800 - behind
    assert bench.count("consumer_retention_headroom_seconds", topic="clicks") == 0, (
        "nothing is said of a topic that is kept for ever"
    )
    assert bench.count("records_unaccounted") == 0
    reader = bench.pipeline.audits()["clicks", 0]
    reader.num_records += 3
    while not bench.log.exhausted:
        next(batches)
    bench.clock.advance(10)
    next(batches)
    assert bench.count("records_unaccounted") == 3


def test_every_series_has_the_prefix_and_a_sentence() -> None:
    registry = CollectorRegistry()
    Telemetry(registry)
    for family in registry.collect():
        assert family.name.startswith("steelyard_")
        assert family.documentation.endswith(".")
