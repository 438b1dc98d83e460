"""Input of a weighting scheme: labels and probabilities, before any learning."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Places = NDArray[np.intp]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Context:
    """N samples of one task as a weighting scheme sees them.

    Attributes:
        label: (N,) observed labels, 0 or 1.
        p_positive: (N,) calibrated p(y=1|x), in (0, 1).
        p_y_given_x: (N,) probability of the observed label.
        p_y: (N,) prior of the observed label.
        prior: (N,) p(y=1).
        choice: (N,) chance that each is the one chosen from its list, by its attributes.
        lists: (N,) number of the shown list of each.
    """

    label: Array
    p_positive: Array
    p_y_given_x: Array
    p_y: Array
    prior: Array
    choice: Array
    lists: Places

    @classmethod
    def observed(
        cls,
        label: Array,
        p_positive: Array,
        prior: Array | float,
        lists: Places | None = None,
        choice: Array | None = None,
    ) -> Context:
        """Build the context of labels (N,) from p(y=1|x) (N,) and p(y=1), one or (N,).

        Without the numbers of their lists (N,), each sample is a list of its own. Without chances
        of the choice (N,), all items of a list have the same.
        """
        positive = label > 0
        return cls(
            prior=np.broadcast_to(np.asarray(prior, dtype=np.float64), label.shape),
            choice=np.full(label.shape, 0.5) if choice is None else choice,
            lists=np.arange(len(label)) if lists is None else lists,
            label=label,
            p_positive=p_positive,
            p_y_given_x=np.where(positive, p_positive, 1 - p_positive),
            p_y=np.where(positive, prior, 1 - prior),
        )
