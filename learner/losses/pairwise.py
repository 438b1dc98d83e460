"""Weighted logistic loss of clicked against not clicked items within a list.

RankNet's cross-entropy of pairs (Burges et al., ICML 2005, eq. 3), with the weight of the click and
the examination probability of both places.

Legend: n samples, K of the longest list.
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
    across_lists = False

    def __call__(self, logit: Tensor, targets: Targets) -> Tensor:
        """Return the sum over samples (n,)."""
        n, order = len(logit), torch.argsort(targets.list_id, stable=True)
        a, of, left = targets.a[order], targets.list_id[order], (targets.b > 0)[order].to(logit)
        remaining = (targets.discount * targets.examination).clamp_min(1e-12)
        s = (logit + torch.log(remaining)).index_select(0, order)
        others = logit.new_zeros(targets.num_lists).index_add(0, of, left)[of] - left
        share = a / others.clamp_min(1)
        # Lists lie together: each sample meets the K - 1 after it, both ways, (n, K - 1)
        after = torch.arange(1, max(targets.longest_list, 1), device=logit.device)
        place = torch.arange(n, device=logit.device)[:, None] + after
        after = place.clamp_max(n - 1)
        pair = (place < n) & (of[:, None] == of[after])
        # Not by indexing: its backward pass adds up in any order
        margin = s[:, None] - s.index_select(0, after.flatten()).view(after.shape)
        earlier = share[:, None] * left[after] * softplus(-margin)
        later = share[after] * left[:, None] * softplus(margin)
        return (pair * (earlier + later)).sum()
