"""The label policies, one sentence each."""

from __future__ import annotations

import dataclasses

import pytest

from consumers.events import Candidate, encode_click, encode_exposure, encode_purchase
from consumers.joining.join import JoinConfig
from consumers.pipeline import BatchConfig, Topics
from tests.consumers.bench import Bench
from tests.consumers.shop import SECOND, START_US, TOPICS, WINDOWS
from tests.consumers.single import buy, click, empty, show, tick
from tests.fakes.log import Log
from weighting.provenance import Position
from weighting.sample import CopyKind, Sample, Signal
from weighting.tasks import CLICK, PURCHASE, TaskName


def run(log: Log, *, join: JoinConfig = WINDOWS) -> tuple[list[Sample], Bench]:
    bench = Bench(log, join=join)
    return bench.run(), bench


def of(samples: list[Sample], task: TaskName, item: str = "A") -> list[Sample]:
    return [s for s in samples if s.task == task and s.item_id == item]


def result(bench: Bench, event: str, name: str) -> float:
    return bench.count("join_labels_total", event=event, result=name)


# --- click task -----------------------------------------------------------------------------------


def test_every_candidate_becomes_one_sample_with_the_label_so_far() -> None:
    log = empty()
    show(log, "q", 0)
    click(log, "q", "B", 4)
    samples, bench = run(log)
    shown = [s for s in samples if s.task == CLICK]
    assert [(s.item_id, s.position, s.label, s.copy_kind) for s in shown] == [
        ("A", 1, 0, CopyKind.FIRST),
        ("B", 2, 1, CopyKind.FIRST),
    ]
    assert [s.delay_us for s in shown] == [None, 4 * SECOND]
    assert {s.elapsed_us for s in shown} == {20 * SECOND}
    assert {(s.list_id, s.list_size, s.query, s.window_us, s.attribution_us) for s in shown} == {
        ("q", 2, "shoes", WINDOWS.click_window_us, WINDOWS.attribution_window_us)
    }
    assert [s.event_time_us - START_US for s in shown] == [0, 4 * SECOND]
    assert shown[0].positions == (Position("exposures", 0, 0),)
    assert shown[1].positions == (Position("exposures", 0, 0), Position("clicks", 0, 0))
    assert result(bench, "click", "matched") == 1


@pytest.mark.parametrize(("at", "labels"), [(20, [1]), (20.000001, [0, 1])])
def test_the_click_window_is_closed_at_its_end(at: float, labels: list[int]) -> None:
    log = empty()
    show(log, "q", 0)
    click(log, "q", "A", at)
    samples, _ = run(log)
    assert [s.label for s in of(samples, CLICK)] == labels


def test_a_click_after_the_window_is_a_late_positive_with_the_same_features() -> None:
    log = empty()
    show(log, "q", 0)
    click(log, "q", "A", 100)
    first, late = of(run(log)[0], CLICK)
    assert (first.label, late.label, late.copy_kind, late.delay_us) == (
        0,
        1,
        CopyKind.LATE_POSITIVE,
        100 * SECOND,
    )
    same = (
        "list_id",
        "list_size",
        "query",
        "item_id",
        "text",
        "attributes",
        "position",
        "shown_us",
    )
    assert [getattr(first, name) for name in same] == [getattr(late, name) for name in same]
    assert late.elapsed_us == 100 * SECOND


@pytest.mark.parametrize(("at", "name"), [(600, "matched"), (600.000001, "orphan")])
def test_a_click_is_credited_up_to_the_attribution_window_and_not_beyond(
    at: float, name: str
) -> None:
    log = empty()
    show(log, "q", 0)
    click(log, "q", "A", at)
    assert result(run(log)[1], "click", name) == 1


def test_a_second_click_of_the_same_candidate_is_a_duplicate() -> None:
    log = empty()
    show(log, "q", 0)
    click(log, "q", "A", 1)
    click(log, "q", "A", 2)
    samples, bench = run(log)
    assert len(of(samples, CLICK)) == len(of(samples, PURCHASE)) == 1
    assert result(bench, "click", "duplicate") == 1


def test_a_click_that_arrives_before_its_exposure_waits_for_it() -> None:
    log = empty()
    click(log, "q", "A", 1)
    bench = Bench(log, batch=BatchConfig(size=1))
    batches = bench.pipeline.batches()
    assert [next(batches) for _ in range(3)] == [Signal.IDLE] * 3
    show(log, "q", 0)
    samples = bench.run()
    assert [s.label for s in of(samples, CLICK)] == [1]


def test_a_click_without_query_id_is_inferred_from_the_newest_exposure_of_that_client() -> None:
    log = empty()
    show(log, "old", 0)
    show(log, "new", 1)
    show(log, "without", 2, hits=("C",))
    show(log, "stranger", 3, client="other")
    click(log, None, "A", 5)
    samples, bench = run(log)
    assert [(s.list_id, s.inferred) for s in of(samples, CLICK) if s.label] == [("new", True)]
    assert [(s.list_id, s.inferred) for s in of(samples, PURCHASE)] == [("new", True)]
    assert result(bench, "click", "inferred") == 1


def test_a_click_of_an_item_not_in_its_list_is_an_orphan_that_waits_for_a_purchase() -> None:
    log = empty()
    show(log, "q", 0)
    log.append(
        "clicks",
        0,
        encode_click(
            client_id="c",
            query_id="q",
            object_id="Z",
            time_us=START_US,
            text="a boot",
            attributes={"brand": "x"},
            user_query="boots",
        ),
        key=b"c",
        timestamp_us=START_US,
    )
    samples, bench = run(log)
    (sample,) = of(samples, PURCHASE, "Z")
    assert (sample.position, sample.list_size, sample.list_id, sample.inferred) == (
        None,
        0,
        "q",
        False,
    )
    assert (sample.text, sample.attributes, sample.query) == ("a boot", {"brand": "x"}, "boots")
    assert result(bench, "click", "orphan") == 1


def test_the_ordinal_tells_which_of_two_equal_hits_was_clicked() -> None:
    log = empty()
    show(log, "q", 0, hits=("A", "B", "A"))
    value = encode_click(
        client_id="c", query_id="q", object_id="A", time_us=START_US + SECOND, ordinal=3
    )
    log.append("clicks", 0, value, key=b"c", timestamp_us=START_US)
    assert [(s.position, s.label) for s in of(run(log)[0], CLICK)] == [(1, 0), (3, 1)]


# --- purchase task --------------------------------------------------------------------------------


def test_a_purchase_inside_the_observation_window_makes_the_first_copy_positive() -> None:
    log = empty()
    show(log, "q", 0)
    click(log, "q", "A", 4)
    buy(log, "q", "A", 64)
    (sample,) = of(run(log)[0], PURCHASE)
    assert (sample.label, sample.copy_kind, sample.delay_us, sample.elapsed_us) == (
        1,
        CopyKind.FIRST,
        60 * SECOND,
        60 * SECOND,
    )
    assert (sample.shown_us, sample.event_time_us) == (
        START_US + 4 * SECOND,
        START_US + 64 * SECOND,
    )
    assert sample.position == 1
    assert sample.positions == (
        Position("exposures", 0, 0),
        Position("clicks", 0, 0),
        Position("purchases", 0, 0),
    )


def test_a_late_purchase_reaches_the_features_of_its_exposure() -> None:
    log = empty()
    candidates = [Candidate("A", "a shoe", {"brand": "x"})]
    value = encode_exposure(
        query_id="q",
        client_id="c",
        time_us=START_US,
        user_query="shoes",
        hits=("A",),
        candidates=candidates,
        scenario="gifts",
    )
    log.append("exposures", 0, value, key=b"c", timestamp_us=START_US)
    click(log, "q", "A", 4)
    buy(log, "q", "A", 500)
    samples, bench = run(log)
    first, late = of(samples, PURCHASE)
    assert (first.label, late.label, late.copy_kind, late.delay_us) == (
        0,
        1,
        CopyKind.LATE_POSITIVE,
        496 * SECOND,
    )
    assert (late.text, late.attributes, late.query, late.position) == (
        "a shoe",
        {"brand": "x"},
        "shoes",
        1,
    )
    assert {each.scenario for each in samples} == {"gifts"}
    assert late.sample_id != first.sample_id
    assert bench.count("join_delay_seconds_sum", event="purchase") == 496


@pytest.mark.parametrize(
    ("after", "name"), [(600, "matched"), (600.000001, "late"), (1200, "late"), (1300, "orphan")]
)
def test_a_purchase_is_credited_late_or_an_orphan_by_its_distance_from_the_click(
    after: float, name: str
) -> None:
    log = empty()
    show(log, "q", 0)
    click(log, "q", "A", 4)
    buy(log, "q", "A", 4 + after)
    samples, bench = run(log)
    assert result(bench, "purchase", name) == 1
    assert sum(s.label for s in of(samples, PURCHASE)) == (name == "matched")


def test_the_first_purchase_wins_and_later_ones_are_duplicates() -> None:
    log = empty()
    show(log, "q", 0)
    click(log, "q", "A", 4)
    buy(log, "q", "A", 100)
    buy(log, "q", "A", 200)
    samples, bench = run(log)
    assert [s.delay_us for s in of(samples, PURCHASE) if s.label] == [96 * SECOND]
    assert result(bench, "purchase", "duplicate") == 1


def test_a_purchase_without_a_click_is_an_orphan_and_never_a_label() -> None:
    log = empty()
    show(log, "q", 0)
    buy(log, "q", "A", 10)
    samples, bench = run(log)
    assert of(samples, PURCHASE) == []
    assert result(bench, "purchase", "orphan") == 1


def test_a_purchase_without_query_id_is_inferred_from_the_newest_click_of_that_client() -> None:
    log = empty()
    for query_id, at in (("old", 0), ("new", 10)):
        show(log, query_id, at)
        click(log, query_id, "A", at + 1)
    buy(log, None, "A", 30)
    samples, bench = run(log)
    assert [(s.list_id, s.inferred) for s in of(samples, PURCHASE) if s.label] == [("new", True)]
    assert result(bench, "purchase", "inferred") == 1


@pytest.mark.parametrize(("after", "name"), [(1200, "late"), (1200.5, "orphan")])
def test_where_late_ends_does_not_depend_on_when_state_is_let_go(after: float, name: str) -> None:
    log = empty()
    show(log, "q", 0)
    click(log, "q", "A", 4)
    show(log, "r", 1204)
    buy(log, "q", "A", 4 + after)
    assert result(run(log)[1], "purchase", name) == 1


# --- late, expired, evicted -----------------------------------------------------------------------


def test_a_late_event_is_counted_and_still_joined() -> None:
    log = empty()
    show(log, "q", 0)
    tick(log, 50)
    click(log, "q", "A", 10)
    samples, bench = run(log)
    assert [s.label for s in of(samples, CLICK)] == [0, 1], (
        "its key is behind the click window, so the first copy was negative"
    )
    assert of(samples, CLICK)[1].delay_us == 10 * SECOND
    assert bench.count("consumer_events_total", event="click", outcome="late") == 1


def test_what_is_final_stays_final_for_an_event_that_arrives_behind_it() -> None:
    log = empty()
    show(log, "q", 0)
    show(log, "r", 600, hits=("Y",))
    tick(log, 605.5)
    click(log, "q", "A", 590)
    samples, bench = run(log)
    assert sum(s.label for s in of(samples, CLICK)) == 0
    assert result(bench, "click", "orphan") == 1


def test_an_exposure_that_arrives_very_late_is_not_credited_beyond_its_attribution_window() -> None:
    log = empty()
    show(log, "r", 705, hits=("Z",))
    show(log, "q", 0)
    click(log, "q", "A", 700)
    samples, bench = run(log)
    assert sum(s.label for s in of(samples, CLICK)) == 0
    assert result(bench, "click", "orphan") == 1


def test_a_click_that_arrives_very_late_is_not_credited_beyond_its_attribution_window() -> None:
    log = empty()
    click(log, None, "Z", 705)
    click(log, None, "A", 0)
    buy(log, None, "A", 700)
    samples, bench = run(log)
    assert sum(s.label for s in of(samples, PURCHASE)) == 0
    assert result(bench, "purchase", "late") == 1


def test_what_ended_without_a_positive_is_counted_as_expired_and_let_go() -> None:
    log = empty()
    show(log, "q", 0)
    click(log, "q", "A", 4)
    show(log, "r", 5)
    _, bench = run(log)
    assert (result(bench, "exposure", "matched"), result(bench, "exposure", "expired")) == (1, 1)
    assert result(bench, "click", "expired") == 1
    assert bench.count("join_open_exposures") == bench.count("join_open_clicks") == 0


def test_beyond_the_bound_the_observed_go_first_and_are_counted() -> None:
    log = empty()
    for n in range(10):
        show(log, f"q{n}", n * 30, hits=("A",))
    samples, bench = run(log, join=dataclasses.replace(WINDOWS, max_pending=2))
    assert len(samples) == 10, "every exposure was observed before it had to go"
    assert result(bench, "exposure", "evicted") == 8

    log = empty()
    for n in range(10):
        show(log, f"q{n}", n, hits=("A",))
    samples, bench = run(log, join=dataclasses.replace(WINDOWS, max_pending=2))
    assert len(samples) == 2
    assert result(bench, "exposure", "evicted") == 8


def test_events_meet_whatever_the_partitions_that_they_came_from() -> None:
    log = Log([(topic, p) for topic in TOPICS for p in range(3)])
    show(log, "q", 0)
    clicked = encode_click(
        client_id="c", query_id="q", object_id="A", time_us=START_US + 4 * SECOND
    )
    log.append("clicks", 1, clicked, key=b"c", timestamp_us=START_US)
    bought = encode_purchase(client_id="c", object_id="A", time_us=START_US + 9 * SECOND)
    log.append("purchases", 2, bought, key=b"c", timestamp_us=START_US)
    samples, bench = run(log)
    assert [s.label for s in of(samples, CLICK)] == [1]
    assert [(s.label, s.inferred) for s in of(samples, PURCHASE)] == [(1, True)]
    assert result(bench, "click", "matched") == result(bench, "purchase", "inferred") == 1


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"click_window_us": 601 * SECOND},
            r"click_window_us: got 601000000, .* <= attribution_window_us=600000000",
        ),
        (
            {"observation_window_us": -1},
            r"join\.observation_window_us: got -1, expected a whole number >= 0",
        ),
        ({"grace_us": -1}, r"join\.grace_us: got -1, expected a whole number >= 0"),
        ({"max_pending": 0}, r"join\.max_pending: got 0, expected a whole number >= 1"),
    ],
)
def test_windows_that_contradict_each_other_are_refused_by_key_and_value(
    changed: dict[str, int], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(WINDOWS, **changed)


def test_batch_settings_that_never_close_a_batch_are_refused() -> None:
    with pytest.raises(ValueError, match=r"batch\.size: got 0"):
        BatchConfig(size=0)
    with pytest.raises(ValueError, match=r"batch\.flush_seconds: got -1"):
        BatchConfig(flush_seconds=-1)
    assert Topics(exposures=None, items=None).kinds().keys() == {"clicks", "purchases"}
