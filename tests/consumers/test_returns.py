"""Returns: they take the label of a purchase back as long as no positive copy was emitted."""

from __future__ import annotations

import pytest

from tests.consumers.bench import Bench
from tests.consumers.shop import TOPICS, WINDOWS
from tests.consumers.single import buy, click, empty, give_back, show, tick
from tests.fakes.log import Log
from weighting.sample import CopyKind, Sample
from weighting.tasks import PURCHASE

#: Of a click at 4 s: its first copy comes at 64 s.
IN_WINDOW, AFTER_WINDOW = 30, 100


def run(log: Log) -> tuple[list[Sample], Bench]:
    bench = Bench(log)
    return [s for s in bench.run() if s.task == PURCHASE], bench


def returns(bench: Bench) -> dict[str, float]:
    names = ("matched", "inferred", "after_training", "orphan", "late", "evicted")
    counts = {name: bench.count("join_labels_total", event="return", result=name) for name in names}
    return {name: count for name, count in counts.items() if count}


def bought(at: float = 20) -> Log:
    log = empty()
    show(log, "q", 0)
    click(log, "q", "A", 4)
    buy(log, "q", "A", at)
    return log


@pytest.mark.parametrize(("query_id", "name"), [("q", "matched"), (None, "inferred")])
def test_a_return_before_the_first_copy_takes_the_label_back(
    query_id: str | None, name: str
) -> None:
    log = bought()
    give_back(log, query_id, "A", IN_WINDOW)
    samples, bench = run(log)
    assert [(s.label, s.copy_kind, s.delay_us) for s in samples] == [(0, CopyKind.FIRST, None)]
    assert returns(bench) == {name: 1}


def test_a_return_is_never_a_positive_label() -> None:
    log = empty()
    show(log, "q", 0)
    click(log, "q", "A", 4)
    give_back(log, "q", "A", IN_WINDOW)
    samples, bench = run(log)
    assert [s.label for s in samples] == [0]
    assert returns(bench) == {"orphan": 1}
    assert bench.count("join_labels_total", event="purchase") == 0


@pytest.mark.parametrize("at", [20, 90])
def test_a_return_after_a_positive_copy_is_counted_and_changes_no_sample(at: float) -> None:
    kept, _ = run(bought(at))
    log = bought(at)
    give_back(log, "q", "A", AFTER_WINDOW)
    samples, bench = run(log)
    assert samples == kept
    assert sum(s.label for s in samples) == 1
    assert returns(bench) == {"after_training": 1}


def test_what_is_bought_again_before_the_first_copy_is_a_purchase_again() -> None:
    log = bought()
    give_back(log, "q", "A", IN_WINDOW)
    buy(log, "q", "A", IN_WINDOW + 5)
    samples, bench = run(log)
    assert [(s.label, s.copy_kind) for s in samples] == [(1, CopyKind.FIRST)]
    assert bench.count("join_labels_total", event="purchase", result="matched") == 2


def test_what_is_bought_again_after_a_positive_copy_is_no_second_one() -> None:
    log = bought()
    give_back(log, "q", "A", AFTER_WINDOW)
    buy(log, "q", "A", AFTER_WINDOW + 5)
    samples, bench = run(log)
    assert [s.label for s in samples] == [1]
    assert bench.count("join_labels_total", event="purchase", result="duplicate") == 1


def test_a_second_return_finds_nothing_to_take_back() -> None:
    log = bought()
    give_back(log, "q", "A", AFTER_WINDOW)
    give_back(log, "q", "A", AFTER_WINDOW + 1)
    assert returns(run(log)[1]) == {"after_training": 1, "orphan": 1}


def test_a_return_after_the_attribution_window_is_late() -> None:
    log = bought()
    give_back(log, "q", "A", 4 + WINDOWS.attribution_window_us / 1e6 + 1)
    assert returns(run(log)[1]) == {"late": 1}


def test_a_return_whose_purchase_waits_for_its_click_waits_with_it() -> None:
    log = empty()
    show(log, "q", 0)
    buy(log, "q", "A", 1)
    give_back(log, "q", "A", 2)
    click(log, "q", "A", 4)
    samples, bench = run(log)
    assert [s.label for s in samples] == [0]
    assert returns(bench) == {"matched": 1}


def test_a_return_takes_no_later_purchase_back() -> None:
    log = empty()
    show(log, "q", 0)
    click(log, "q", "A", 4)
    give_back(log, None, "A", 10)
    buy(log, None, "A", 15)
    samples, bench = run(log)
    assert [s.label for s in samples] == [1]
    assert returns(bench) == {"orphan": 1}


def read_late(log: Log, *, bought_at: float, event_time: float) -> None:
    """A return at 76 s is read before its purchase."""
    give_back(log, "q", "A", 76)
    for topic in TOPICS:
        tick(log, event_time, topic)
    buy(log, "q", "A", bought_at)


@pytest.mark.parametrize("clicked_at", [4, 18])
def test_a_return_that_waits_takes_its_purchase_back_when_that_is_read(clicked_at: float) -> None:
    log = empty()
    show(log, "q", 0)
    click(log, "q", "A", clicked_at)
    read_late(log, bought_at=71, event_time=77.5 + WINDOWS.grace_us / 1e6)
    samples, bench = run(log)
    assert [(s.label, s.copy_kind) for s in samples if s.item_id == "A"] == [(0, CopyKind.FIRST)]
    assert returns(bench) == {"matched": 1}
    assert bench.count("join_labels_total", event="purchase", result="matched") == 1
    assert bench.count("join_waiting_events") == 0


def test_a_return_that_waits_is_not_of_what_was_bought_after_it() -> None:
    log = empty()
    show(log, "q", 0)
    click(log, "q", "A", 4)
    read_late(log, bought_at=76.5, event_time=77.5 + WINDOWS.grace_us / 1e6)
    samples, bench = run(log)
    assert [s.label for s in samples if s.item_id == "A"] == [0, 1]
    assert returns(bench) == {"orphan": 1}


def test_one_return_that_waits_takes_one_of_two_purchases_back() -> None:
    log = empty()
    show(log, "q", 0)
    click(log, "q", "A", 4)
    read_late(log, bought_at=71, event_time=77.5 + WINDOWS.grace_us / 1e6)
    buy(log, "q", "A", 72)
    samples, bench = run(log)
    assert [s.label for s in samples if s.item_id == "A"] == [0, 1]
    assert returns(bench) == {"matched": 1}
