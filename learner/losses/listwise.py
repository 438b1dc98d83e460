"""Weighted cross-entropy of the candidates of a list against each other.

Cross-entropy of the top-one probability of a ranking (Cao et al., ICML 2007, eq. 4), with the
weight of each positive.
"""

from __future__ import annotations

import torch
from torch import Tensor

from learner.losses.loss import Targets


class Listwise:
    """Sum of a_i (-log softmax_i), each softmax over the samples of one list.

    A sample's share of its softmax is discount * examination * exp(logit): a positive counts for
    its discount, as if its click had been left out else, and the softmax is of the clicks that
    remain. A list without a positive adds nothing, nor does a list of one.
    """

    whole_lists = True
    learns_bias = False
    across_lists = False

    def __call__(self, logit: Tensor, targets: Targets) -> Tensor:
        """Return the sum over samples (n,)."""
        of = targets.list_id
        remaining = (targets.discount * targets.examination).clamp_min(1e-12)
        logit = logit + torch.log(remaining)
        lowest = logit.new_full((targets.num_lists,), -torch.inf)
        largest = lowest.scatter_reduce(0, of, logit.detach(), "amax")
        exp = torch.exp(logit - largest[of])
        total = exp.new_zeros(targets.num_lists).index_add(0, of, exp)
        return -(targets.a * (logit - largest[of] - torch.log(total)[of])).sum()
