"""Ranking metrics within shown lists, from clicks that are corrected for position.

Legend: N samples, L lists.

A click that was examined with probability theta is a gain g = 1 / theta, at most 10: under the
position-based model an unbiased estimate of the relevance (inverse propensity scoring; Joachims,
Swaminathan and Schnabel, WSDM 2017), the same for every ranking. With s the score and k the rank by
it, sums of a list are

    within-list AUC    g_i (1 - g_j) [s_i > s_j]       of    g_i (1 - g_j)      pairs i != j
    NDCG@10            g_i / log2(1 + k_i), k_i <= 10  of the same in the best order of the g
    MRR                g_i / k_i                       of    g_i

and a figure is the sum over lists of the one through that of the other. A mean of NDCGs would
cancel the correction wherever a list has one click. Among equal scores an item has the mean of its
possible ranks' discounts, so no order among ties is better than chance.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
CUTOFF = 10
"""Ranks that NDCG looks at."""
LEAST_EXAMINATION = 0.1
"""Bound of 1 / theta: fewer than one examination in ten is taken for one in ten."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ListSums:
    """Sums (L,) of each list, under one order of its items."""

    auc: Array
    auc_of: Array
    dcg: Array
    dcg_of: Array
    reciprocal_rank: Array
    reciprocal_rank_of: Array


def gains(label: Array, examination: Array) -> Array:
    """Return position-corrected clicks (N,).

    >>> gains(np.array([1.0, 1.0, 0.0]), np.array([1.0, 0.01, 0.5])).tolist()
    [1.0, 10.0, 0.0]
    """
    least: Array = np.maximum(examination, LEAST_EXAMINATION)
    return label / least


def list_sums(number: NDArray[np.intp], score: Array, gain: Array) -> ListSums:
    """Judge the order of N scores in L lists.

    Args:
        number: (N,) list of each sample: 0, ..., L - 1, ascending, each at least once.
        score: (N,) higher is better.
        gain: (N,) of `gains`.

    >>> found = list_sums(np.zeros(3, int), np.array([1.0, 3.0, 2.0]), np.array([1.0, 0, 0]))
    >>> found.auc.tolist(), found.reciprocal_rank.round(3).tolist()
    ([0.0], [0.333])
    """
    start = np.flatnonzero(np.diff(number, prepend=-1))  # of each list
    rank = np.arange(len(number)) - start[number]  # from 0
    discount = np.where(rank < CUTOFF, 1 / np.log2(2 + rank), 0.0)
    order = np.lexsort((-score, number))
    s, g = score[order], gain[order]
    new = np.diff(s, prepend=np.nan) != 0
    new[start] = True
    first_tied = np.flatnonzero(new)
    tie = np.cumsum(new) - 1  # number of each sample's group of equal scores

    def mean_of_tied(values: Array) -> Array:
        sizes = np.diff(first_tied, append=len(values))
        mean: Array = (np.add.reduceat(values, first_tied) / sizes)[tie]
        return mean

    def of_lists(values: Array) -> Array:
        total: Array = np.add.reduceat(values, start)
        return total

    miss = 1 - g
    tied = np.add.reduceat(miss, first_tied)
    misses = of_lists(miss)
    up_to = np.cumsum(tied)  # from the first list on; what is before this list cancels
    before = np.concatenate([[0.0], np.cumsum(misses)[:-1]])
    below = (before + misses)[number] - up_to[tie]
    best = np.lexsort((-gain, number))
    return ListSums(
        auc=of_lists(g * (below + (tied[tie] - miss) / 2)),
        auc_of=of_lists(g * (misses[number] - miss)),
        dcg=of_lists(g * mean_of_tied(discount)),
        dcg_of=of_lists(gain[best] * discount),
        reciprocal_rank=of_lists(g * mean_of_tied(1.0 / (1 + rank))),
        reciprocal_rank_of=of_lists(g),
    )
