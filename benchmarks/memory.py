"""State of what is remembered per query: cost of a list and of a cut, and collisions.

    python -m benchmarks.memory [--num-queries N] [--num-never-seen N]

Every query is shown in two lists of ten items of its own, so that the residual learns all of them.
Seconds are CPU seconds of this one thread. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np

from learner.item_counts import ItemCounts
from learner.residual import QueryResidual, ResidualConfig
from weighting.estimators.conditional import Conditional, ConditionalConfig
from weighting.sample import Attribute, CopyKind, Sample
from weighting.tasks import CLICK

_WIDTH = 384
_LIST = 10
_HALF_LIFE_US = 30 * 86_400 * 1e6
_WINDOW_US = 900 * 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """A document to score."""

    id: str
    text: str = "an item"
    attributes: dict[str, Attribute] = field(default_factory=dict)


def seconds(run: Callable[[], object]) -> float:
    """CPU seconds of one call."""
    started = time.process_time()
    run()
    return time.process_time() - started


def cut(num_queries: int) -> dict[str, float]:
    """Seconds of the main thread for a cut: all queries new, a hundred changed, and encoding."""
    residual, draw = QueryResidual(_WIDTH, ResidualConfig()), np.random.default_rng(0)
    vectors = draw.normal(size=(_LIST, _WIDTH)).astype(np.float32)
    items = [f"SKU-{i}" for i in range(_LIST)]
    base, clicks = np.full(_LIST, -2.0), [1.0] + [0.0] * (_LIST - 1)

    def show(query: int, name: str) -> None:
        exposure = [1.0 / place for place in range(1, _LIST + 1)]
        text = f"query {query}"
        residual.learn(
            text, items, vectors, base, clicks, exposure, lists=[f"{text} {name}"], time_us=0
        )

    def show_all() -> None:
        for query in range(num_queries):
            show(query, "a")
            show(query, "b")

    shown = seconds(show_all)
    first = seconds(residual.copy)
    for query in range(100):
        show(num_queries - 1 - query, "c")
    later = seconds(residual.copy)
    state = residual.copy()
    return {
        "residual_us_per_list": round(1e6 * shown / (2 * num_queries), 1),
        "cut_all_new_s": round(first, 3),
        "cut_100_changed_s": round(later, 4),
        "encode_in_writer_s": round(seconds(lambda: (state.vectors(), state.encoded())), 3),
        "counts_mb": round(len(state.encoded()) / 1e6, 1),
        "vectors_mb": round(state.vectors().nbytes / 1e6, 1),
    }


def list_costs() -> dict[str, float]:
    """Microseconds to count a list of ten items under a query with so many items."""
    return {f"count_us_at_{known}_items": _list_cost(known) for known in (100, 1_000, 8_885)}


def _list_cost(known: int) -> float:
    counts, names = ItemCounts(), [f"SKU-{i}" for i in range(known)]

    def add(number: int, repeats: int) -> None:
        rows = [(0.0, 1.0)] * number
        for _ in range(repeats):
            counts.add(names[:number], rows, time_us=0, half_life_us=_HALF_LIFE_US, most=10_000)

    add(known, 1)
    return round(1e3 * seconds(lambda: add(_LIST, 1_000)), 1)


def never_seen(num_queries: int, num_asked: int) -> dict[str, float]:
    """Share of lists of queries never seen that the pair memory reorders."""
    memory = Conditional(ConditionalConfig(), initial=0.1, with_position=True)
    for samples in _lists(num_queries):
        labels = [float(s.label) for s in samples]
        memory.learn(memory.predict(samples), labels, [1.0] * len(samples))
    asked = [
        memory.predict_first(f"new {n}", [Item(id=f"new {n}-{i}") for i in range(_LIST)])
        for n in range(num_asked)
    ]
    return {"never_seen_lists_reordered": float(np.mean([np.ptp(m) > 0 for m in asked]))}


def _lists(number: int) -> Iterator[list[Sample]]:
    draw = np.random.default_rng(0)
    for n in range(number):
        clicked = int(draw.integers(_LIST))
        yield [_sample(n, place, int(place == clicked)) for place in range(_LIST)]


def _sample(query: int, place: int, label: int) -> Sample:
    return Sample(
        sample_id=f"{query}-{place}",
        task=CLICK,
        copy_kind=CopyKind.FIRST,
        label=label,
        list_id=f"list {query}",
        list_size=_LIST,
        client=0,
        query=f"query {query}",
        item_id=f"{query}-{place}",
        text="an item",
        attributes={},
        position=place + 1,
        shown_us=query * 1_000_000,
        event_time_us=query * 1_000_000,
        elapsed_us=_WINDOW_US,
        delay_us=None,
        window_us=_WINDOW_US,
        attribution_us=_WINDOW_US,
        inferred=False,
        positions=(),
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--num-queries", type=int, default=50_000)
    parser.add_argument("--num-never-seen", type=int, default=2_000)
    arguments = parser.parse_args()
    result: dict[str, object] = {"benchmark": "memory", "num_queries": arguments.num_queries}
    result |= cut(arguments.num_queries)
    result |= list_costs()
    result |= never_seen(arguments.num_queries, arguments.num_never_seen)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
