"""The cap on hits: what is beyond it becomes no sample, and costs nothing."""

from __future__ import annotations

import dataclasses
import sys

import pytest

from consumers.events import Candidate, Exposure, encode_click
from consumers.joining.items import Items
from consumers.joining.join import Join
from tests.consumers.bench import Bench
from tests.consumers.shop import SECOND, START_US, WINDOWS
from tests.consumers.single import buy, click, empty, show
from tests.fakes.log import Log
from weighting.provenance import Position
from weighting.sample import Sample
from weighting.tasks import CLICK, PURCHASE

CAPPED = dataclasses.replace(WINDOWS, max_hits=2)
HITS = ("A", "B", "C", "D")


def run(log: Log) -> tuple[list[Sample], Bench]:
    bench = Bench(log, join=CAPPED)
    return bench.run(), bench


def clicked_at(log: Log, item: str, ordinal: int) -> None:
    value = encode_click(
        client_id="c", query_id="q", object_id=item, time_us=START_US + SECOND, ordinal=ordinal
    )
    log.append("clicks", 0, value, key=b"c", timestamp_us=START_US)


def test_hits_beyond_the_cap_become_no_samples_and_are_counted() -> None:
    log = empty()
    show(log, "q", 0, hits=HITS)
    samples, bench = run(log)
    assert [(s.item_id, s.position, s.list_size) for s in samples] == [("A", 1, 4), ("B", 2, 4)]
    assert bench.count("join_cut_hits_total") == 2


@pytest.mark.parametrize("ordinal", [None, 4])
def test_a_click_beyond_the_cap_waits_for_its_purchase_and_is_no_click_sample(
    ordinal: int | None,
) -> None:
    log = empty()
    show(log, "q", 0, hits=HITS)
    if ordinal is None:
        click(log, "q", "D", 1)
    else:
        clicked_at(log, "D", ordinal)
    buy(log, "q", "D", 9)
    samples, bench = run(log)
    assert [s.label for s in samples if s.task == CLICK] == [0, 0]
    (bought,) = [s for s in samples if s.task == PURCHASE]
    assert (bought.label, bought.list_id, bought.list_size, bought.query, bought.position) == (
        1,
        "q",
        4,
        "shoes",
        ordinal,
    )
    assert bench.count("join_labels_total", event="click", result="beyond_cap") == 1


def test_a_second_click_beyond_the_cap_is_a_duplicate() -> None:
    log = empty()
    show(log, "q", 0, hits=HITS)
    click(log, "q", "D", 1)
    click(log, "q", "D", 2)
    samples, bench = run(log)
    assert len([s for s in samples if s.task == PURCHASE]) == 1
    assert bench.count("join_labels_total", event="click", result="duplicate") == 1


@pytest.mark.parametrize("ordinal", [1, 5])
def test_a_click_on_no_hit_that_was_cut_is_an_orphan(ordinal: int) -> None:
    log = empty()
    show(log, "q", 0, hits=HITS)
    clicked_at(log, "Z", ordinal)
    assert run(log)[1].count("join_labels_total", event="click", result="orphan") == 1


def test_a_click_beyond_the_cap_before_its_list_waits_for_it() -> None:
    log = empty()
    click(log, "q", "D", 1)
    show(log, "q", 3, hits=HITS)
    assert run(log)[1].count("join_labels_total", event="click", result="beyond_cap") == 1


def test_what_waits_for_a_batch_counts_every_hit_of_a_list() -> None:
    join = Join(WINDOWS, Items())
    for n in range(5):
        shown = Position("exposures", 0, n)
        join.push(n, Exposure(f"q-{n}", "c", "shoes", HITS, {}, n, shown, None))
    join.advance(5, 1)
    before = WINDOWS.click_window_us + 3
    assert join.num_ready(before) == 3 * len(HITS)
    join.advance(before, 1)
    assert join.num_ready(before) == 3 * len(HITS)


def test_a_list_of_any_length_costs_what_the_cap_costs() -> None:
    most = CAPPED.max_hits

    def kept(num_hits: int) -> tuple[int, int]:
        join, hits = Join(CAPPED, Items()), tuple(f"item-{n}" for n in range(num_hits))
        candidates = {hit: Candidate(hit, "text") for hit in hits}
        at = Position("exposures", 0, 0)
        join.push(0, Exposure("q", "c", "shoes", hits, candidates, 0, at, None))
        ((_, waiting),) = join.snapshot(0).pending.exposures
        join.advance(1, 2**60)
        (exposure,) = join.snapshot(0).exposures
        assert waiting.hits == exposure.hits == hits[:most]
        assert len(waiting.candidates) == len(exposure.described) == most
        return exposure.list_size, sum(map(sys.getsizeof, (waiting.hits, exposure.hits)))

    assert kept(100_000) == (100_000, kept(most)[1])
