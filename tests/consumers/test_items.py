"""Texts of items: read first, and as of the moment of an exposure."""

from __future__ import annotations

from consumers.pipeline import Topics
from tests.consumers.bench import Bench
from tests.consumers.shop import TOPICS
from tests.consumers.single import buy, click, describe, empty, show, with_items
from tests.fakes.log import Log
from weighting.sample import Signal
from weighting.tasks import PURCHASE


def test_items_are_read_to_their_end_before_any_event() -> None:
    log = empty(items=True)
    show(log, "q", 0)
    for n in range(1200):
        describe(log, f"other-{n}", "x", 0)
    describe(log, "A", "a shoe", 50)
    bench = with_items(log)
    assert next(bench.pipeline.batches()) is Signal.IDLE
    assert {
        tp: offset for tp, offset in bench.pipeline.next_offsets().items() if tp[0] != "items"
    } == {(t, 0): 0 for t in TOPICS}
    samples = with_items(log.reader()).run()
    assert {s.item_id: s.text for s in samples} == {"A": "a shoe", "B": ""}
    assert samples[0].attributes == {"brand": "a"}


def test_an_exposure_has_the_text_of_its_own_moment() -> None:
    log = empty(items=True)
    describe(log, "A", "first", 0)
    describe(log, "A", "second", 15)
    describe(log, "A", None, 25)
    for at in (10, 20, 30):
        show(log, f"q{at}", at, hits=("A",))
    assert [s.text for s in with_items(log).run()] == ["first", "second", ""]


def test_a_missing_text_is_counted_and_the_candidate_kept() -> None:
    log = empty(items=True)
    describe(log, "A", "a shoe", 0)
    show(log, "q", 1, hits=("A", "B", "C"))
    bench = with_items(log)
    assert len(bench.run()) == 3
    assert bench.count("join_missing_texts_total") == 2


def test_a_click_on_a_shown_item_without_a_text_is_not_counted_again() -> None:
    log = empty(items=True)
    show(log, "q", 1, hits=("A",))
    click(log, "q", "A", 2)
    click(log, "another", "A", 3, client="d")
    bench = with_items(log)
    assert len(bench.run()) == 3
    assert bench.count("join_missing_texts_total") == 2


def test_items_that_wait_for_their_time_survive_a_snapshot() -> None:
    log = empty(items=True)
    describe(log, "A", "first", 0)
    describe(log, "A", "second", 15)
    show(log, "q", 10, hits=("A",))
    first = with_items(log.reader())
    for _ in zip(range(2), first.pipeline.batches(), strict=False):
        pass
    second = with_items(log.reader())
    second.pipeline.restore(first.pipeline.snapshot(), first.pipeline.next_offsets())
    show(log, "r", 20, hits=("A",))
    assert [s.text for s in second.run()] == ["first", "second"]


def test_clicks_and_purchases_alone_make_purchase_samples() -> None:
    log = Log([("clicks", 0), ("purchases", 0)])
    click(log, None, "A", 0)
    buy(log, None, "A", 10)
    bench = Bench(log, topics=Topics(exposures=None, items=None))
    (sample,) = bench.run()
    assert (sample.task, sample.label, sample.position, sample.list_size) == (
        PURCHASE,
        1,
        None,
        0,
    )
