"""Weighted logistic loss of clicked against not clicked items within a list.

RankNet's cross-entropy of pairs (Burges et al., ICML 2005, eq. 3), with the weight of the click and
the examination probability of both places.

Legend: n samples, P pairs.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import softplus

from learner.losses.loss import Targets


class Pairwise:
    """Sum over clicks i of a_i times the mean over j of -log sigma(s_i - s_j).

    j are the items of the click's list that were not clicked, s = logit + log(discount *
    examination). So exp(-loss) is the chance of the click if it was i or j: the softmax of the
    listwise loss over two of the candidates. A click counts the same however long its list is. A
    sample of weight 0 is in no pair; a list in which nothing or everything was clicked adds
    nothing.
    """

    whole_lists = True
    learns_bias = False

    def __call__(self, logit: Tensor, targets: Targets) -> Tensor:
        """Return the sum over samples (n,)."""
        remaining = (targets.discount * targets.examination).clamp_min(1e-12)
        logit = logit + torch.log(remaining)
        clicked = torch.nonzero(targets.a > 0).flatten()
        same_list = targets.list_id[clicked, None] == targets.list_id
        against = same_list & (targets.b > 0)
        against[torch.arange(len(clicked), device=logit.device), clicked] = False
        click, other = torch.nonzero(against, as_tuple=True)  # (P,) each
        first = clicked.index_select(0, click)
        # Not by indexing: its backward pass adds up in any order
        margin = logit.index_select(0, first) - logit.index_select(0, other)
        share = targets.a[first] / against.sum(1)[click]
        return (share * softplus(-margin)).sum()
