"""Entries under one key, and that no key makes the join slow."""

from __future__ import annotations

import sys
from random import Random
from types import FrameType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consumers.events import Click, Exposure, Purchase
from consumers.joining.items import Items
from consumers.joining.join import Join, JoinConfig
from consumers.joining.multimap import Multimap
from consumers.joining.pending import JoinedEvent
from weighting.provenance import Position

SECOND = 1_000_000
MAX_HITS = 10


class Entry:
    """An entry, equal to itself only."""


@given(seed=st.integers(0, 10_000), most=st.integers(1, 60))
def test_entries_of_a_key_stay_in_order_whatever_is_added_and_removed(seed: int, most: int) -> None:
    random, multimap = Random(seed), Multimap[str, Entry]()
    wanted: dict[str, list[Entry]] = {"a": [], "b": []}
    for _ in range(300):
        key = random.choice("ab")
        if len(wanted[key]) < random.randrange(most + 1):
            wanted[key].append(Entry())
            multimap.add(key, wanted[key][-1])
        elif wanted[key]:
            multimap.remove(key, wanted[key].pop(random.randrange(len(wanted[key]))))
        for each, entries in wanted.items():
            assert list(multimap.newest_first(each)) == entries[::-1]
            assert list(multimap.oldest_first(each)) == entries
            assert multimap.newest(each) is (entries[-1] if entries else None)
    assert bool(multimap) == any(wanted.values())


def same_query(n: int) -> list[JoinedEvent]:
    """Lists of one query id, each of them clicked, and clicks on items that none showed."""
    events: list[JoinedEvent] = []
    for i in range(n):
        at, item = i * SECOND, f"item-{i}"
        shown = Position("exposures", 0, i)
        events.append(Exposure("q", f"c-{i}", "shoes", (item,), {}, at, shown, None))
        for offset, clicked in ((2 * i, item), (2 * i + 1, "elsewhere")):
            clicks = Position("clicks", 0, offset)
            events.append(Click("q", f"c-{i}", clicked, None, "", None, None, at, clicks, None))
    return events


def same_client(n: int) -> list[JoinedEvent]:
    """Lists, clicks and purchases of one client and one item, without a query id."""
    events: list[JoinedEvent] = []
    for i in range(n):
        at = i * SECOND
        exposures, clicks, purchases = (
            Position(topic, 0, i) for topic in ("exposures", "clicks", "purchases")
        )
        events += [
            Exposure(f"q-{i}", "anonymous", "shoes", ("A", f"B-{i}"), {}, at, exposures, None),
            Click(None, "anonymous", "A", None, "", None, None, at, clicks, None),
            Purchase(None, "anonymous", "A", at, purchases, None),
        ]
    return events


def unlisted(n: int) -> list[JoinedEvent]:
    """Lists of one client, and clicks on an item that none of them showed."""
    return [
        event
        for i, event in enumerate(same_client(n))
        if i % 3 != 1  # the lists, and the purchases, which find no click
    ] + [
        Click(
            None, "anonymous", "Z", None, "", None, None, n * SECOND,
            Position("clicks", 0, i), None,
        )
        for i in range(n)
    ]  # fmt: skip


def cut(n: int) -> list[JoinedEvent]:
    """Clicks that wait, then lists beyond the cap, all of one query id."""
    hits = tuple(f"hit-{i}" for i in range(MAX_HITS + 1))
    events: list[JoinedEvent] = []
    for i in range(n):
        clicks, lists = Position("clicks", 0, i), Position("exposures", 0, i)
        events += [
            Click("undefined", f"c-{i}", f"x-{i}", 1, "", None, None, i, clicks, None),
            Exposure("undefined", f"d-{i}", "shoes", hits, {}, n + i, lists, None),
        ]
    return events


def waiting_items(n: int) -> list[JoinedEvent]:
    """Clicks of one client on some items that wait, then lists of all of these."""
    items = tuple(f"item-{i}" for i in range(MAX_HITS))
    events: list[JoinedEvent] = []
    for i in range(n):
        clicks, lists = Position("clicks", 0, i), Position("exposures", 0, i)
        item = items[i % MAX_HITS]
        events += [
            Click(None, "anonymous", item, None, "", None, None, i, clicks, None),
            Exposure(f"q-{i}", "anonymous", "shoes", items, {}, n + i, lists, None),
        ]
    return events


def num_calls(events: list[JoinedEvent], *, most: int) -> int:
    """Calls and returns, of Python and of C, while all is joined and forgotten again."""
    window = JoinConfig(
        click_window_us=SECOND,
        observation_window_us=SECOND,
        attribution_window_us=10**6 * SECOND,
        max_pending=most,
        max_hits=MAX_HITS,
    )
    join = Join(window, Items())
    calls = 0

    def count(frame: FrameType, event: str, argument: Any) -> None:
        nonlocal calls
        calls += 1

    before = sys.getprofile()
    sys.setprofile(count)
    try:
        for event in events:
            join.push(event.time_us, event)
        join.advance(2**60, 2**60)
        join.forget(2**60)
    finally:
        sys.setprofile(before)
    assert join.num_open_exposures == join.num_open_clicks == 0
    return calls


@pytest.mark.parametrize("traffic", [same_query, same_client, unlisted, cut, waiting_items])
@pytest.mark.parametrize("most", [10**6, 600])
def test_twice_the_events_of_one_key_are_twice_the_work(traffic: Any, most: int) -> None:
    n = 500
    once, twice = (num_calls(traffic(size), most=most) for size in (n, 2 * n))
    assert twice < 2.3 * once
