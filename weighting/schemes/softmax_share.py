"""Shares of a click in its list: `softmax_share` by p(y|x), `attribute_share` by attributes.

For positives, w = p_ij / sum of p_ij' over the list's candidates.

The chance that item j of K is the one chosen for query i, under the multinomial choice model
(McFadden 1974) with the utilities b log p_ij: softmax_j(b log p_ij) = p_ij^b / sum_j' p_ij'^b. It
says how much a click tells this item from what stood beside it. Times K it has mean 1 over every
list, whatever b. A negative counts 1: the share of an item that was passed over would make the
hardest negatives the heaviest.

p_ij is p(y=1|x) as if shown first, from the online estimator; or, of the attribute share, the
chance that the item is chosen from the list by its attributes
(`weighting.estimators.attribute_choice`), which sums to 1 over the list, so that with b = 1 the
weight is K p_ij itself.

Legend: N samples.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from weighting.checks import check_probability
from weighting.context import Context, Places
from weighting.schemes.ratio import check_exponent

Array = NDArray[np.float64]


def share(p_positive: Array, lists: Places, *, exponent: float = 1.0) -> Array:
    """K times each sample's share (N,) of p^b in its list of K.

    >>> share(np.array([0.3, 0.1, 0.2]), np.array([0, 0, 4])).round(9).tolist()
    [1.5, 0.5, 1.0]
    """
    check_probability("p(y|x)", p_positive)
    _, own, number = np.unique(lists, return_inverse=True, return_counts=True)
    power = p_positive**exponent
    mean = np.bincount(own, power, len(number)) / number
    shares: Array = power / mean[own]
    return shares


@dataclass(frozen=True, slots=True)
class SoftmaxShare:
    """The softmax share as a weighting scheme.

    A model trained under it has the logit log p/(1-p) + log(K share): within a list it orders as p
    does, and how much a list adds depends on its other items. So there is nothing to undo item by
    item, and a score's level is left to the stacker.

    Attributes:
        strength: b > 0, the inverse of the softmax's temperature.
        by_attributes: whether p_ij is the choice by attributes.
    """

    strength: float
    by_attributes: bool = False

    def __post_init__(self) -> None:
        """Check the strength."""
        check_exponent(self.strength)

    @property
    def exponent(self) -> float:
        """Logits are taken as they are."""
        return 0.0

    def weigh(self, context: Context) -> Array:
        """K times the share (N,) of positives; 1 for negatives."""
        p = context.p_positive
        if self.by_attributes:
            p = context.choice
            check_probability("choice", p)
        shares = share(p, context.lists, exponent=self.strength)
        return np.where(context.label > 0, shares, 1.0)

    def invert(self, logit: Array, prior: float) -> Array:
        """Return the logits as they are."""
        return logit

    def description(self) -> Mapping[str, str | float]:
        """Name and strength, for a version's manifest."""
        name = "attribute_share" if self.by_attributes else "softmax_share"
        return {"scheme": name, "exponent": self.strength}
