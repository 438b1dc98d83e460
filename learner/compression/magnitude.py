"""Magnitude pruning: the smallest weights of each matrix are zero, and stay so.

Han et al., NeurIPS 2015. The zeros are anywhere, so a file packs better, but no product on a CPU
is faster.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from learner.compression.shape import layers_of


def masks(model: Any, share: float) -> dict[Tensor, Tensor]:
    """Return for each matrix of the layers which weights stay: all but a share of the smallest."""
    found = {}
    for module in layers_of(model).modules():
        if isinstance(module, nn.Linear):
            size = module.weight.detach().abs().flatten()
            order = torch.sort(size, stable=True).indices
            mask = torch.ones_like(size)
            mask[order[: int(share * len(size))]] = 0
            found[module.weight] = mask.view_as(module.weight)
    return found


@torch.no_grad()
def apply(masks: Mapping[Tensor, Tensor]) -> None:
    """Set the weights to zero that do not stay."""
    for parameter, mask in masks.items():
        parameter.mul_(mask)
