"""Events stamped before what they belong to: inside the grace, the order of stamps is no matter."""

from __future__ import annotations

import dataclasses
from random import Random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from consumers.events import encode_click, encode_exposure, encode_purchase
from consumers.joining.join import JoinConfig
from consumers.pipeline import BatchConfig
from tests.consumers.bench import Bench
from tests.consumers.shop import SECOND, START_US, WINDOWS
from tests.consumers.single import buy, click, empty, show, tick
from tests.fakes.log import Log
from weighting.sample import CopyKind, Sample
from weighting.tasks import CLICK, PURCHASE, TaskName

GRACE = WINDOWS.grace_us / SECOND
SLOW = settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def run(log: Log, *, join: JoinConfig = WINDOWS) -> tuple[list[Sample], Bench]:
    bench = Bench(log, join=join)
    return bench.run(), bench


def of(samples: list[Sample], task: TaskName, item: str = "A") -> list[Sample]:
    return [s for s in samples if s.task == task and s.item_id == item]


def results(bench: Bench, event: str) -> dict[str, float]:
    names = ("matched", "inferred", "duplicate", "orphan", "late", "evicted")
    counts = {name: bench.count("join_labels_total", event=event, result=name) for name in names}
    return {name: count for name, count in counts.items() if count}


# --- clicks ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("query_id", ["q", None])
@pytest.mark.parametrize("before", [1, GRACE])
def test_a_click_stamped_before_its_list_is_of_the_first_copy(
    before: float, query_id: str | None
) -> None:
    log = empty()
    show(log, "q", 10)
    click(log, query_id, "A", 10 - before)
    samples, bench = run(log)
    (shown,) = of(samples, CLICK)
    assert (shown.label, shown.copy_kind, shown.delay_us) == (1, CopyKind.FIRST, 0)
    assert shown.event_time_us == START_US + 10 * SECOND
    (clicked,) = of(samples, PURCHASE)
    assert (clicked.list_id, clicked.position, clicked.query) == ("q", 1, "shoes")
    assert results(bench, "click") == {"matched" if query_id else "inferred": 1}


def test_a_click_stamped_more_than_the_grace_before_its_list_is_an_orphan() -> None:
    log = empty(2)
    click(log, "q", "A", 9.999999 - GRACE)
    show(log, "q", 10)
    samples, bench = run(log)
    assert [s.label for s in of(samples, CLICK)] == [0]
    assert results(bench, "click") == {"orphan": 1}


def test_without_a_grace_nothing_waits() -> None:
    log = empty()
    show(log, "q", 10)
    click(log, "q", "A", 9)
    buy(log, "q", "A", 8)
    samples, bench = run(log, join=dataclasses.replace(WINDOWS, grace_us=0))
    assert [s.label for s in of(samples, CLICK)] == [0]
    assert (results(bench, "click"), results(bench, "purchase")) == ({"orphan": 1}, {"orphan": 1})


def test_a_click_with_a_query_id_waits_for_that_list_although_another_showed_the_item() -> None:
    log = empty()
    show(log, "other", 0)
    click(log, "q", "A", 8)
    show(log, "q", 10)
    samples, bench = run(log)
    assert [(s.list_id, s.inferred) for s in of(samples, CLICK) if s.label] == [("q", False)]
    assert results(bench, "click") == {"matched": 1}


def test_a_click_whose_list_never_comes_is_credited_to_another_after_the_grace() -> None:
    log = empty()
    show(log, "other", 0)
    click(log, "lost", "A", 8)
    samples, bench = run(log)
    (positive,) = [s for s in of(samples, CLICK) if s.label]
    assert (positive.list_id, positive.inferred, positive.delay_us) == ("other", True, 8 * SECOND)
    assert results(bench, "click") == {"inferred": 1}


def test_a_click_without_a_query_id_is_credited_to_an_open_list_at_once() -> None:
    log = empty()
    show(log, "open", 0)
    click(log, None, "A", 8)
    show(log, "next", 10)
    samples, _ = run(log)
    assert [s.list_id for s in of(samples, CLICK) if s.label] == ["open"]


def test_the_end_of_a_wait_comes_before_the_first_copies_of_the_same_moment() -> None:
    log = empty()
    show(log, "other", 0)
    at = WINDOWS.click_window_us / SECOND - GRACE
    click(log, "lost", "A", at)
    samples, _ = run(log)
    assert [(s.label, s.copy_kind) for s in of(samples, CLICK)] == [(1, CopyKind.FIRST)]


@pytest.mark.parametrize("query_id", ["q", None])
def test_of_two_clicks_that_wait_the_second_is_a_duplicate(query_id: str | None) -> None:
    log = empty()
    click(log, query_id, "A", 8)
    click(log, query_id, "A", 9)
    show(log, "q", 10)
    samples, bench = run(log)
    assert len(of(samples, CLICK)) == len(of(samples, PURCHASE)) == 1
    assert results(bench, "click") == {"matched" if query_id else "inferred": 1, "duplicate": 1}


def test_of_two_clicks_that_wait_in_vain_the_second_is_a_duplicate() -> None:
    log = empty()
    click(log, "q", "A", 8)
    click(log, "q", "A", 9)
    samples, bench = run(log)
    assert len(of(samples, PURCHASE)) == 1
    assert results(bench, "click") == {"orphan": 1, "duplicate": 1}


# --- purchases ------------------------------------------------------------------------------------


@pytest.mark.parametrize("query_id", ["q", None])
def test_a_purchase_stamped_before_its_click_is_of_the_first_copy(query_id: str | None) -> None:
    log = empty()
    show(log, "q", 0)
    buy(log, query_id, "A", 8)
    click(log, "q", "A", 10)
    samples, bench = run(log)
    (clicked,) = of(samples, PURCHASE)
    assert (clicked.label, clicked.copy_kind, clicked.delay_us) == (1, CopyKind.FIRST, 0)
    assert results(bench, "purchase") == {"matched" if query_id else "inferred": 1}


@pytest.mark.parametrize("query_id", ["q", None])
def test_a_purchase_before_its_click_before_its_list_is_credited_to_both(
    query_id: str | None,
) -> None:
    log = empty()
    buy(log, query_id, "A", 20 - 2 * GRACE)
    click(log, query_id, "A", 20 - GRACE)
    show(log, "q", 20)
    samples, bench = run(log)
    assert [s.label for s in of(samples, CLICK)] == [1]
    assert [(s.label, s.list_id) for s in of(samples, PURCHASE)] == [(1, "q")]
    assert list(results(bench, "purchase").values()) == [1]


def test_a_purchase_waits_for_a_click_whose_own_list_never_comes() -> None:
    log = empty()
    buy(log, "lost", "A", 9)
    click(log, "lost", "A", 10)
    samples, bench = run(log)
    assert [(s.label, s.position) for s in of(samples, PURCHASE)] == [(1, None)]
    assert (results(bench, "click"), results(bench, "purchase")) == ({"orphan": 1}, {"matched": 1})


def test_a_purchase_of_another_query_id_is_inferred_when_its_wait_is_over() -> None:
    log = empty()
    show(log, "q", 0)
    click(log, "q", "A", 4)
    buy(log, "lost", "A", 8)
    samples, bench = run(log)
    assert [(s.label, s.inferred) for s in of(samples, PURCHASE)] == [(1, True)]
    assert results(bench, "purchase") == {"inferred": 1}


def test_of_two_purchases_that_wait_the_second_is_a_duplicate() -> None:
    log = empty()
    show(log, "q", 0)
    buy(log, "q", "A", 7)
    buy(log, "q", "A", 8)
    click(log, "q", "A", 10)
    samples, bench = run(log)
    assert [s.label for s in of(samples, PURCHASE)] == [1]
    assert results(bench, "purchase") == {"matched": 1, "duplicate": 1}


# --- bounds ---------------------------------------------------------------------------------------


def test_events_that_wait_are_part_of_the_bound_and_are_counted_when_they_must_go() -> None:
    log = empty()
    for n in range(10):
        click(log, f"lost-{n}", "A", n / 10)
        buy(log, f"lost-{n}", "B", n / 10)
    samples, bench = run(log, join=dataclasses.replace(WINDOWS, max_pending=14))
    (clicks, purchases) = results(bench, "click"), results(bench, "purchase")
    assert (clicks, purchases) == ({"evicted": 6, "orphan": 4}, {"orphan": 10})
    assert len(of(samples, PURCHASE)) == 4
    assert bench.count("join_waiting_events") == 0


def test_the_number_of_events_that_wait_is_a_series() -> None:
    log = empty()
    click(log, "lost", "A", 0)
    for topic in ("exposures", "clicks", "purchases"):
        tick(log, GRACE + 1, topic)
    bench = Bench(log, batch=BatchConfig(size=1))
    list(bench.live())
    bench.pipeline._reporting.joined()
    assert bench.count("join_waiting_events") == 1


# --- any clocks -----------------------------------------------------------------------------------


def stamped(seed: int, *, shift: float) -> Log:
    """Lists, clicks and purchases in their true order; actions stamped early by up to `shift`."""
    random, log = Random(seed), empty(2)
    written = []
    for n in range(30):
        client, query_id, at = f"c-{n}", f"q-{n}", random.uniform(20, 80)
        hits = [f"{n}-{i}" for i in range(4)]
        exposure = encode_exposure(
            query_id=query_id,
            client_id=client,
            time_us=START_US + int(at * SECOND),
            user_query="shoes",
            hits=hits,
        )
        written.append((at, "exposures", client, exposure))
        for hit in hits:
            named = [query_id if random.random() < 0.5 else None for _ in range(2)]
            errors = [random.uniform(0, 1) * shift for _ in range(2)]
            clicked = at + random.uniform(0, 30)
            bought = clicked + random.uniform(0, 90)
            if random.random() < 0.6:
                value = encode_click(
                    query_id=named[0],
                    client_id=client,
                    object_id=hit,
                    time_us=START_US + int((clicked - errors[0]) * SECOND),
                )
                written.append((clicked, "clicks", client, value))
                if random.random() < 0.6:
                    value = encode_purchase(
                        query_id=named[1],
                        client_id=client,
                        object_id=hit,
                        time_us=START_US + int((bought - errors[1]) * SECOND),
                    )
                    written.append((bought, "purchases", client, value))
    for at, topic, client, value in sorted(written):
        log.append(
            topic,
            int(client[2:]) % 2,
            value,
            key=client.encode(),
            timestamp_us=START_US + int(at * SECOND),
        )
    return log


def positives(log: Log) -> tuple[set[tuple[str, str, str, int | None]], dict[str, float]]:
    samples, bench = run(log)
    found = [(s.task, s.list_id, s.item_id, s.position) for s in samples if s.label]
    assert len(found) == len(set(found)), "no positive twice"
    return set(found), {
        f"{event} {name}": count
        for event in ("click", "purchase")
        for name, count in results(bench, event).items()
    }


@SLOW
@given(seed=st.integers(0, 10_000))
def test_actions_stamped_early_by_up_to_the_grace_give_the_same_labels(seed: int) -> None:
    right, counts = positives(stamped(seed, shift=0))
    assert positives(stamped(seed, shift=GRACE)) == (right, counts)
    assert counts.keys() <= {
        f"{e} {r}" for e in ("click", "purchase") for r in ("matched", "inferred")
    }
