"""Memory of the lists that wait for late clicks."""

from __future__ import annotations

import sys
import tracemalloc

from consumers.events import Exposure
from consumers.joining.entries import OpenExposure, ShownList
from consumers.joining.items import NOTHING, Described, Items
from consumers.joining.join import Join
from tests.consumers.shop import WINDOWS
from weighting.provenance import Position


def exposure(num_hits: int) -> OpenExposure:
    hits = tuple(f"SKU-{n}" for n in range(num_hits))
    at = Position("exposures", 0, 1)
    described: tuple[Described, ...] = (NOTHING,) * num_hits
    return OpenExposure(
        at, 5, 9, True, "query", "client", "shoes", hits, num_hits, described, 5, {}
    )


def test_a_packed_list_is_held_without_room_to_grow() -> None:
    for num_hits in range(1, 40):
        opened = exposure(num_hits)
        shown = ShownList(0, False, opened)
        tracemalloc.start()
        try:
            shown.keep(opened)
            held, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert isinstance(shown.held, bytes)
        assert held <= sys.getsizeof(shown.held), num_hits


def test_an_observed_list_of_one_hit_takes_at_most_400_bytes() -> None:
    num_lists = 680  # two thirds of 1,024: dictionaries are nearly full
    join = Join(WINDOWS, Items())
    events = [
        Exposure(
            f"{n:032x}",
            f"c-{n:016x}",
            f"red running shoes {n}",
            (f"SKU-{n:07d}",),
            {},
            n,
            Position("exposures", 0, n),
            None,
        )
        for n in range(num_lists)
    ]
    for event in events:
        join.push(event.time_us, event)
    tracemalloc.start()
    try:
        join.advance(WINDOWS.click_window_us + num_lists, 2 * num_lists)
        join.samples.clear()
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert join.num_open_exposures == num_lists
    assert held / num_lists <= 400
