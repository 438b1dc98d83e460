"""Importance of feed-forward units: how much the ranking loss would change without them.

A unit has a factor m = 1 at its output; its importance is the mean over lists x of |dL(x)/dm|, the
first term of the loss without it (Michel et al., NeurIPS 2019, eq. 2, there for heads; Molchanov et
al., CVPR 2019). L is the cross-entropy of the right items in the softmax of the list's cosines.

Legend: F units of a layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from learner.compression.lists import LabelledList, columns_of, cosines, log_shares
from learner.compression.shape import layers_of
from learner.encoder.encoder import Encoder
from learner.encoder.tokens import Texts


def unit_importance(
    encoder: Encoder, tokens: Texts, lists: Sequence[LabelledList], *, scale: float
) -> list[Tensor]:
    """Return the importance (F,) of the units of each layer.

    Args:
        encoder: whole; no parameter of it moves.
        tokens: of its texts.
        lists: with right and wrong items.
        scale: of the cosine in a logit.
    """
    layers = layers_of(encoder.model)
    factors = [torch.ones(layer.intermediate.dense.out_features) for layer in layers]  # type: ignore[union-attr, arg-type]
    total = [torch.zeros_like(own) for own in factors]
    hooks = [
        layer.intermediate.register_forward_hook(partial(_times, own.requires_grad_()))  # type: ignore[union-attr]
        for layer, own in zip(layers, factors, strict=True)
    ]
    try:
        for own in lists:
            columns = columns_of([own])
            vectors = encoder([tokens.ids(text) for text in columns.texts])
            logs = log_shares(scale * cosines(vectors, columns), columns)
            loss = -(columns.label * logs).sum() / columns.label.sum()
            for sum_, gradient in zip(total, torch.autograd.grad(loss, factors), strict=True):
                sum_ += gradient.abs()
    finally:
        for hook in hooks:
            hook.remove()
    return [own / len(lists) for own in total]


def most_important(importance: Tensor, number: int) -> Tensor:
    """Return the places of the units that count most, in order; of equals the first."""
    order = torch.sort(importance, descending=True, stable=True).indices
    return order[:number].sort().values


def _times(factor: Tensor, _module: Any, _given: Any, output: Tensor) -> Tensor:
    return output * factor
