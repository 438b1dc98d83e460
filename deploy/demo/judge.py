"""Quality of rankings by the grades: NDCG@10, paired with its opponents', with intervals.

The gain is 2^g - 1, over all judged candidates of a query; intervals are percentile bootstraps over
queries of the paired difference.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from deploy.demo.world import ATTRACTION, BM25, Query, World

Array = NDArray[np.float64]
Rank = Callable[[Query], Array]
"""Scores (n,) of a query's products, largest first."""

PARTS = ("stream", "unseen_products", "unseen_queries")
METHODS = ("random", "bm25", "zero_shot", "click_counts", "served")
OPPONENTS = ("zero_shot", "click_counts")


def ndcg(scores: Array, grades: Array, *, k: int = 10) -> float:
    """NDCG@k of products (n,) by score, ties in input order; 1 where none has a gain."""
    gains = 2.0**grades - 1
    discount = 1 / np.log2(np.arange(2, k + 2))
    best = np.sort(gains)[::-1][:k]
    ideal = float((best * discount[: len(best)]).sum())
    got = gains[np.argsort(-scores, kind="stable")[:k]]
    return float((got * discount[: len(got)]).sum()) / ideal if ideal else 1.0


def interval(difference: Array, *, rounds: int = 5000) -> tuple[float, float, float]:
    """Mean of paired differences (Q,), with its 95 % bootstrap interval over queries."""
    draw = np.random.Generator(np.random.PCG64(0))
    means = difference[draw.integers(0, len(difference), (rounds, len(difference)))].mean(1)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(difference.mean()), float(low), float(high)


class ClickCounts:
    """Position-corrected click counts, shrunk to the zero-shot cosine.

    The ranking that an expert would try first. Per (query, product), over the shown lists:
    s = 15 cos + 10 (ln rate - ln 0.3), rate = (clicks + 0.3 * 2) / (sum of 0.55 / position + 2).
    """

    def __init__(self) -> None:
        """Start with no list."""
        self._clicks: dict[tuple[str, str], float] = {}
        self._exposure: dict[tuple[str, str], float] = {}

    def learn(self, query: str, shown: Sequence[str], clicked: Sequence[bool]) -> None:
        """Count one shown list: product ids in order, and their clicks."""
        for place, (product, click) in enumerate(zip(shown, clicked, strict=True), 1):
            key = (query, product)
            self._exposure[key] = self._exposure.get(key, 0.0) + ATTRACTION / place
            self._clicks[key] = self._clicks.get(key, 0.0) + click

    def scores(self, query: Query, cosine: Array) -> Array:
        """Scores (n,) of a query's products, given their zero-shot cosines (n,)."""
        keys = [(query.text, product.id) for product in query.products]
        clicks = np.array([self._clicks.get(key, 0.0) for key in keys])
        exposure = np.array([self._exposure.get(key, 0.0) for key in keys])
        value: Array = 15 * cosine + 10 * (np.log((clicks + 0.6) / (exposure + 2)) - np.log(0.3))
        return value


def judge(
    world: World, *, served: Rank, zero_shot: Rank, counts: ClickCounts
) -> dict[str, dict[str, Array]]:
    """Return NDCG@10 per query of each method on each part: part -> method -> (Q,)."""
    lexical = BM25([product.text for product in world.products()])
    place = {product.id: i for i, product in enumerate(world.products())}
    draw = np.random.Generator(np.random.PCG64(0))
    found: dict[str, dict[str, list[float]]] = {
        part: {method: [] for method in METHODS} for part in PARTS
    }
    for query in world.queries:
        cosine = zero_shot(query)
        ranks = {
            "bm25": lexical.scores(query.text, [place[product.id] for product in query.products]),
            "zero_shot": cosine,
            "click_counts": counts.scores(query, cosine),
            "served": served(query),
        }
        everything, hidden = np.arange(len(query.products)), np.flatnonzero(~query.shown)
        parts = [("unseen_queries", everything)]
        if query.in_stream:
            parts = [("stream", everything), ("unseen_products", hidden)]
        for part, places in parts:
            if not len(places):
                continue
            for method, scores in ranks.items():
                found[part][method].append(ndcg(scores[places], query.grades[places]))
            chance = [ndcg(draw.random(len(places)), query.grades[places]) for _ in range(20)]
            found[part]["random"].append(float(np.mean(chance)))
    return {
        part: {method: np.array(values) for method, values in methods.items()}
        for part, methods in found.items()
    }


def summary(judged: Mapping[str, Mapping[str, Array]]) -> dict[str, dict[str, float | list[float]]]:
    """Return means per method, and gains over opponents: part -> name -> figure.

    A gain of the served ranking is [value, low, high].
    """
    table: dict[str, dict[str, float | list[float]]] = {}
    for part, methods in judged.items():
        if not len(methods["served"]):
            continue
        row: dict[str, float | list[float]] = {
            method: float(values.mean()) for method, values in methods.items()
        }
        for opponent in OPPONENTS:
            row[f"gain_over_{opponent}"] = list(interval(methods["served"] - methods[opponent]))
        table[part] = row
    return table
