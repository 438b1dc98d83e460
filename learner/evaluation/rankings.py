"""Our order of a list beside that of the shop, as terms of ratios over lists.

Legend: N samples, L lists, F figures that are ratios over lists.

A task whose samples are the shown items is judged list by list (`list_metrics`). A purchase comes
alone, long after its list: it is judged by where the item ranked in the list that showed it, when
that was scored (`clicked_ranks`). Each purchase is there a list with one relevant item, of gain
g = 1 / theta: a purchase too is only seen of what was examined. It counts once, when it comes;
the delay correction of a positive copy is 1, so no purchase counts less for being late.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from learner.evaluation.judged import Judged, runs
from learner.evaluation.list_metrics import gains, list_sums

Array = NDArray[np.float64]
GAINS = ("ndcg_gain", "mrr_gain")
"""Figures that say whether our order is better than the shop's."""
RATIOS = (
    "within_list_auc",
    "ndcg",
    "shown_ndcg",
    "ndcg_gain",
    "mrr",
    "shown_mrr",
    "mrr_gain",
    "position_normalized_entropy",
)
"""Figures with a 95 % interval, ``figure_low`` to ``figure_high``.

`shown_` is of the order in which the shop showed the list, `_gain` ours less the shop's, paired.
"""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Rankings:
    """Terms of L lists.

    Attributes:
        terms: (F - 1, 2, L) numerators and denominators of all ratios but the last.
        rows: (L,) place of a sample of each list among the N.
    """

    terms: Array
    rows: NDArray[np.intp]

    @property
    def num_positive(self) -> int:
        """Number of lists with a positive."""
        return int((self.terms[RATIOS.index("mrr"), 1] > 0).sum())


def rankings(judged: Judged) -> Rankings:
    """Return the terms of the samples' lists, or of purchases, each a list of one item."""
    if judged.details is not None and judged.details.kept[:, 0].any():
        found = _of_purchases(judged.details.kept)
    else:
        found = _of_lists(judged)
    if judged.details is None:
        return found
    return replace(found, terms=found.terms * judged.details.factor[found.rows])


def _of_lists(judged: Judged) -> Rankings:
    """Judge lists; one of one item has no order."""
    places = np.flatnonzero((judged.lists >= 0) & (judged.position > 0))
    run = runs(judged.lists[places])
    places = places[(np.bincount(run) > 1)[run]]
    label = judged.label[places]
    if not label.any():
        return Rankings(terms=np.zeros((len(RATIOS) - 1, 2, 0)), rows=np.zeros(0, dtype=np.intp))
    run, gain = runs(judged.lists[places]), gains(label, judged.examination[places])
    ours = list_sums(run, judged.relevance[places], gain)
    shown = list_sums(run, -judged.position[places].astype(np.float64), gain)
    dcg, reciprocal = ours.dcg_of, ours.reciprocal_rank_of
    terms = {
        "within_list_auc": (ours.auc, ours.auc_of),
        "ndcg": (ours.dcg, dcg),
        "shown_ndcg": (shown.dcg, dcg),
        "ndcg_gain": (ours.dcg - shown.dcg, dcg),
        "mrr": (ours.reciprocal_rank, reciprocal),
        "shown_mrr": (shown.reciprocal_rank, reciprocal),
        "mrr_gain": (ours.reciprocal_rank - shown.reciprocal_rank, reciprocal),
    }
    stacked: Array = np.array([terms[name] for name in RATIOS[:-1]])
    return Rankings(terms=stacked, rows=places[np.flatnonzero(np.diff(run, prepend=-1))])


def _of_purchases(kept: Array) -> Rankings:
    """Judge purchases by what was kept (N, 5) of their lists."""
    rows = np.flatnonzero(kept[:, 0])
    gain, ndcg, shown_ndcg, mrr, shown_mrr = kept[rows].T
    terms = {
        "ndcg": ndcg,
        "shown_ndcg": shown_ndcg,
        "ndcg_gain": ndcg - shown_ndcg,
        "mrr": mrr,
        "shown_mrr": shown_mrr,
        "mrr_gain": mrr - shown_mrr,
    }
    none = np.zeros((2, len(rows)))  # of the AUC: what lies below is not kept
    stacked = [np.stack([gain * terms[n], gain]) if n in terms else none for n in RATIOS[:-1]]
    return Rankings(terms=np.array(stacked), rows=rows)
