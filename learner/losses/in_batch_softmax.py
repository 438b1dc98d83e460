"""Softmax of each click over the clicked items of other lists, corrected for how often they come.

In-batch negatives with logQ correction (Yi et al., RecSys 2019), the partition function by
importance sampling (Bengio & Senecal, IEEE Trans. Neural Networks 2008).
"""

from __future__ import annotations

import torch
from torch import Tensor

from learner.losses.loss import Targets

_LEAST_EXAMINATION = 0.1


class InBatchSoftmax:
    """Sum over clicks i of a_i / examination_i times log Z_i - s_ii.

        Z_i = exp(s_ii) + 1/m sum over j of exp(s_ij) / q_j

    s_ij is the logit of i's query with j's item, q_j how often a click is on that item. The
    negatives j are the m clicks of the micro-batch in other lists and under other queries, as what
    was clicked for the same query may be right as well; those on the same item are left out of the
    sum. Z_i estimates the sum over all items that are ever clicked, without bias for any m: in two
    micro-batches, or two processes, are two estimates, each of fewer draws. Yi et al. divide the
    click's own term by its q too, and so do not.

    Clicks count as if examined (Joachims et al., WSDM 2017), tenfold at most. Items that were shown
    and not clicked take no part; a list without a click adds nothing.
    """

    whole_lists = True
    learns_bias = False
    across_lists = True

    def __call__(self, logit: Tensor, targets: Targets) -> Tensor:
        """Return the sum over samples (n,) of logits (n, n), query by item."""
        found = targets.sampled
        assert found is not None
        click = (targets.a > 0)[None, :]
        drawn = click & _differ(targets.list_id) & _differ(found.query_id)
        log_m = torch.log(drawn.sum(1).clamp_min(1))
        s = logit - found.log_frequency - log_m[:, None]
        negatives = s.masked_fill(~(drawn & _differ(found.item_id)), -torch.inf)
        own = torch.eye(len(logit), dtype=torch.bool, device=logit.device)
        log_z = torch.logsumexp(torch.where(own, logit, negatives), dim=1)
        share = targets.a / targets.examination.clamp_min(_LEAST_EXAMINATION)
        return (share * (log_z - logit.diagonal())).sum()


def _differ(column: Tensor) -> Tensor:
    return column[:, None] != column[None, :]
