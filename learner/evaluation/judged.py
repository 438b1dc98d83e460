"""Samples of one task as they were predicted, for the evaluation.

Legend: N samples.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
NUM_KEPT = 5
"""Columns of `Details.kept`."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Details:
    """What figures are told apart by, of N samples.

    Attributes:
        scenario: (N,) texts, what their lists were shown for; "" where nothing says.
        num_earlier: (N,) lists of the same query before; negative where unknown.
        importance: (N,) weights in the loss.
        factor: (N,) by which their lists count in ratios.
        time_us: (N,) event times.
        kept: (N, 5) rows of `clicked_ranks.ClickedRanks`: where a positive ranked in the list that
            showed it; 0 for samples that are judged by their own list, or not at all.
    """

    scenario: NDArray[np.object_]
    num_earlier: NDArray[np.intp]
    importance: Array
    factor: Array
    time_us: NDArray[np.int64]
    kept: Array

    def __getitem__(self, which: slice | NDArray[np.bool_]) -> Details:
        """Return those of some of the samples."""
        return Details(**{each.name: getattr(self, each.name)[which] for each in fields(self)})


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Judged:
    """N samples of one task, as they were predicted before anything learned them.

    Attributes:
        logit: (N,) logits where each was shown.
        relevance: (N,) logits as if each were shown first.
        label: (N,) labels, 0 or 1.
        weight: (N,) correction weights; a sample of weight 0 is not counted.
        examination: (N,) theta in (0, 1], examination probabilities.
        position: (N,) 1-based positions, 0 where unknown.
        lists: (N,) number of the list of each, samples of a list one after another; negative for
            none, also for copies that come without the others of their list.
        details: what figures are told apart by; None where nothing is known of it.
    """

    logit: Array
    relevance: Array
    label: Array
    weight: Array
    examination: Array
    position: NDArray[np.intp]
    lists: NDArray[np.intp]
    details: Details | None = None

    def __getitem__(self, which: slice | NDArray[np.bool_]) -> Judged:
        """Return some of the samples."""
        details = self.details
        columns = {f.name: getattr(self, f.name)[which] for f in fields(self)[:-1]}
        return Judged(**columns, details=None if details is None else details[which])


def runs(lists: NDArray[np.intp]) -> NDArray[np.intp]:
    """Return ascending numbers (N,), one for each list and each sample without a list.

    >>> runs(np.array([4, 4, -1, -1, 2])).tolist()
    [0, 0, 1, 2, 3]
    """
    new = (np.diff(lists, prepend=-1) != 0) | (lists < 0)
    return np.cumsum(new) - 1
