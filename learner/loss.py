"""L = 1/N sum w_i loss(M(x_i), y_i): weighted cross-entropy, of each sample or of the candidates of a list.

Legend: N samples of a step. A sample's label and weight arrive as a pair (a, b): a is the factor of -log f, b of -log(1 - f);
(w y, w (1 - y)) for a hard label y with weight w.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid


def pointwise(logit: Tensor, a: Tensor, b: Tensor, seen: Tensor) -> Tensor:
    """Sum over samples (N,) of a_i (-log f_i) + b_i (-log(1 - f_i)); divide by N of the whole step for the mean.

    f = seen * sigma(logit), the position-based model: a sample that was shown where only one in ten looks has seen = 0.1.
    """
    unseen = torch.log((1 - seen).clamp_min(1e-12))
    not_chosen = torch.logaddexp(
        logsigmoid(-logit), unseen + logsigmoid(logit)
    )  # log(1 - seen sigma) = log(sigma(-z) + (1 - seen) sigma(z))
    return -(a * (torch.log(seen) + logsigmoid(logit)) + b * not_chosen).sum()


def listwise(logit: Tensor, a: Tensor, seen: Tensor, lists: Sequence[str]) -> Tensor:
    """Sum over lists of sum_i a_i (-log softmax_i), the softmax over the samples of one list; a list without a positive adds nothing.

    A sample's part of its softmax is seen * exp(logit).

    Cross-entropy of the top-one probability of a ranking (Cao et al., ICML 2007, eq. 4), with the pair's weight of each positive.
    """
    logit = logit + torch.log(seen)
    names = {name: i for i, name in enumerate(dict.fromkeys(lists))}
    index = torch.tensor([names[name] for name in lists], dtype=torch.long)
    largest = torch.full((len(names),), -torch.inf).scatter_reduce(0, index, logit.detach(), "amax")
    total = torch.zeros(len(names)).index_add(0, index, torch.exp(logit - largest[index]))
    return -(a * (logit - largest[index] - torch.log(total)[index])).sum()
