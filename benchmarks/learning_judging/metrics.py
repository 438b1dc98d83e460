"""NDCG@10 per judged query, and the paired gain over the best baseline of a part."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from deploy.demo.judge import interval, ndcg

Array = NDArray[np.float64]

BASELINES = ("random", "bm25", "zero_shot", "linear_baseline")
METHODS = (*BASELINES, "encoder", "served")

__all__ = ["BASELINES", "METHODS", "expected_ndcg", "ndcg", "part_row"]


def expected_ndcg(grades: Array, *, k: int = 10) -> float:
    """Return the mean NDCG@k of all orders of n candidates.

    Each place holds the mean gain.
    """
    gains = 2.0**grades - 1
    discount = 1 / np.log2(np.arange(2, min(k, len(grades)) + 2))
    ideal = float((np.sort(gains)[::-1][:k] * discount).sum())
    return float(gains.mean() * discount.sum()) / ideal if ideal else 1.0


def part_row(figures: Mapping[str, Sequence[float]]) -> dict[str, float | list[float]]:
    """Return the row of one part: a mean per method, and the gain of the served score.

    Args:
        figures: method -> NDCG@10 per query (Q,), the queries in one order.

    The gain is that over the baseline with the largest mean: [mean, low, high], with the 95 %
    percentile bootstrap over queries of the paired difference.
    """
    values = {method: np.array(figures[method], dtype=np.float64) for method in METHODS}
    row: dict[str, float | list[float]] = {
        method: round(float(own.mean()), 4) for method, own in values.items()
    }
    best = max(BASELINES, key=lambda method: float(values[method].mean()))
    gain = interval(values["served"] - values[best])
    row["gain_over_best_baseline"] = [round(figure, 4) for figure in gain]
    return row
