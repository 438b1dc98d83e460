"""Weighted squared error of each sample's probability, under the position-based model."""

from __future__ import annotations

import torch
from torch import Tensor

from learner.losses.loss import Targets


class SquaredError:
    """Weighted squared error of a click's probability (Brier 1950).

    The sum of a_i (1 - f_i)^2 + b_i f_i^2 with f = examination * sigma(logit). Proper as the
    cross-entropy is, so least at the same probabilities; but what is badly wrong, such as an
    accidental click, pulls less instead of more.
    """

    whole_lists = False
    learns_bias = True
    across_lists = False

    def __call__(self, logit: Tensor, targets: Targets) -> Tensor:
        """Return the sum over samples (n,)."""
        f = targets.examination * torch.sigmoid(logit)
        return (targets.a * (1 - f).square() + targets.b * f.square()).sum()
