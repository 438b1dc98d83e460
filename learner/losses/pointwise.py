"""Weighted cross-entropy of each sample by itself, under the position-based model."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from learner.losses.loss import Targets


class Pointwise:
    """Weighted cross-entropy of each sample.

    The sum of a_i (-log f_i) + b_i (-log(1 - f_i)) with f = examination * sigma(logit). A sample
    shown where only one in ten looks has examination 0.1.
    """

    whole_lists = False
    learns_bias = True
    across_lists = False

    def __call__(self, logit: Tensor, targets: Targets) -> Tensor:
        """Return the sum over samples (n,)."""
        # log(1 - examination sigma(z)) = log(sigma(-z) + (1 - examination) sigma(z))
        unexamined = torch.log((1 - targets.examination).clamp_min(1e-12))
        log_not_f = torch.logaddexp(logsigmoid(-logit), unexamined + logsigmoid(logit))
        log_f = torch.log(targets.examination) + logsigmoid(logit)
        return -(targets.a * log_f + targets.b * log_not_f).sum()
