"""Importance of feed-forward units and of attention heads: the ranking loss without them.

Each has a factor m = 1 at its output; its importance is the mean over lists x of |dL(x)/dm|, the
first term of the loss without it (heads: Michel et al., NeurIPS 2019, eq. 2; units: Molchanov et
al., CVPR 2019). L is the cross-entropy of the right items in the softmax of the list's cosines.

Legend: F units or heads of a layer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from learner.compression.lists import LabelledList, columns_of, cosines, log_shares
from learner.compression.shape import attentions_of, layers_of
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
    modules: list[Any] = [layer.intermediate for layer in layers_of(encoder.model)]
    numbers = [int(own.dense.out_features) for own in modules]
    return _importance(encoder, tokens, lists, scale, dict(zip(modules, numbers, strict=True)))


def head_importance(
    encoder: Encoder, tokens: Texts, lists: Sequence[LabelledList], *, scale: float
) -> list[Tensor]:
    """Return the importance (F,) of the heads of each layer; arguments as of `unit_importance`.

    Raises:
        ModelUnsupported: its attention is not that of BERT's family.
    """
    modules: list[Any] = attentions_of(encoder.model)
    numbers = [int(own.num_attention_heads) for own in modules]
    return _importance(encoder, tokens, lists, scale, dict(zip(modules, numbers, strict=True)))


def _importance(
    encoder: Encoder,
    tokens: Texts,
    lists: Sequence[LabelledList],
    scale: float,
    parts: Mapping[Any, int],
) -> list[Tensor]:
    """Return the importance of the equal parts that the output of each module is made of."""
    factors = [torch.ones(number) for number in parts.values()]
    total = [torch.zeros_like(own) for own in factors]
    hooks = [
        module.register_forward_hook(partial(_times, own.requires_grad_()))
        for module, own in zip(parts, factors, strict=True)
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
    """Return the places of those that count most, in order; of equals the first."""
    order = torch.sort(importance, descending=True, stable=True).indices
    return order[:number].sort().values


def _times(factor: Tensor, _module: Any, _given: Any, output: Any) -> Any:
    if isinstance(output, tuple):  # of attention, beside its weights
        return (_times(factor, None, None, output[0]), *output[1:])
    return (output.unflatten(-1, (len(factor), -1)) * factor[:, None]).flatten(-2)
