"""Cross-entropy of a purchase over all shown items, those that were not clicked among them.

The entire-space model of post-click conversion (ESMM: Ma et al., SIGIR 2018), under the
position-based model: p(click & purchase | x) = p(click | x) p(purchase | click, x).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid


class Outcomes(NamedTuple):
    """Columns (n,) of outcomes of shown items: not clicked, clicked only, or bought.

    Attributes:
        bought: weight if the item was bought, else 0.
        not_bought: weight if it was not, else 0. A click whose purchase is still awaited has
            neither.
        examination: probability that the place where the item was shown is examined.
    """

    bought: Tensor
    not_bought: Tensor
    examination: Tensor


class PurchaseOverAll:
    """Sum of bought_i (-log f_i) + not_bought_i (-log(1 - f_i)).

    f = examination * sigma(z_click) * sigma(z_purchase). In the mean a shown item adds to
    it once: as a sample of the click task if it was not clicked, else as its purchase samples.
    """

    def __call__(self, click: Tensor, purchase: Tensor, outcomes: Outcomes) -> Tensor:
        """Return the sum over n outcomes of the logits (n,) of both tasks."""
        # 1 - e s(c) s(p) = s(-c) + s(c) (s(-p) + (1 - e) s(p)), without cancellation
        unexamined = torch.log((1 - outcomes.examination).clamp_min(1e-12))
        not_bought = torch.logaddexp(logsigmoid(-purchase), unexamined + logsigmoid(purchase))
        log_not_f = torch.logaddexp(logsigmoid(-click), logsigmoid(click) + not_bought)
        log_f = torch.log(outcomes.examination) + logsigmoid(click) + logsigmoid(purchase)
        return -(outcomes.bought * log_f + outcomes.not_bought * log_not_f).sum()
