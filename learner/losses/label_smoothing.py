"""Label smoothing: a share of each label is what would be expected without knowing the item.

Szegedy et al., CVPR 2016, section 7, with the prior of the labels in place of the uniform
distribution.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from learner.losses.loss import Loss, Targets


class LabelSmoothing:
    """(1 - e) loss(labels) + e loss(expected labels), e the share.

    Expected is, of a loss that learns the level, a positive with the task's prior times the
    examination probability; of one that compares the items of a list, a click that falls on
    each by discount * examination. So logits are drawn towards those of the prior, or of each
    other, whatever the places. Samples keep their weights; a list without a click still adds
    nothing.
    """

    def __init__(self, loss: Loss, share: float) -> None:
        """Take the loss, not one across lists; `share` is e in [0, 1)."""
        self.whole_lists = loss.whole_lists
        self.learns_bias = loss.learns_bias
        self.across_lists: bool = loss.across_lists
        self._loss = loss
        self._share = share

    def __call__(self, logit: Tensor, targets: Targets) -> Tensor:
        """Return the sum over samples (n,)."""
        expected = _expected_label(targets) if self.learns_bias else _expected_click(targets)
        hard, soft = self._loss(logit, targets), self._loss(logit, expected)
        return (1 - self._share) * hard + self._share * soft


def _expected_label(targets: Targets) -> Targets:
    weight, positive = targets.a + targets.b, targets.prior * targets.examination
    return replace(targets, a=weight * positive, b=weight * (1 - positive))


def _expected_click(targets: Targets) -> Targets:
    of, counts = targets.list_id, (targets.a + targets.b > 0).to(targets.a)
    chance = counts * targets.discount * targets.examination
    zeros = torch.zeros(targets.num_lists, dtype=chance.dtype, device=chance.device)
    clicks = zeros.index_add(0, of, targets.a)[of]
    total = zeros.index_add(0, of, chance)[of].clamp_min(1e-12)
    return replace(targets, a=clicks * chance / total, b=counts)
