"""Smaller shape of an encoder: some of its layers, of their feed-forward units and of their heads.

Each layer keeps as many units as the others, so that the configuration of transformers says all
about the result. It cannot say it of heads (`learner.encoder.kept_heads`).

Legend: F units of a layer.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor, nn

from learner.encoder.kept_heads import KEY, narrow
from learner.encoder.load import built
from learner.errors import ModelUnsupported
from learner.passes.bert_layers import FAMILIES

_LAYER = re.compile(r"encoder\.layer\.(\d+)\.(.+)")
_ROWS = ("intermediate.dense.weight", "intermediate.dense.bias")
_COLUMNS = "output.dense.weight"
STEP = 32
"""Numbers of units are multiples of it, as whole vectors of a processor."""


def layers_of(model: Any) -> nn.ModuleList:
    """Return the layers of an encoder.

    Raises:
        ModelUnsupported: they are not those of BERT's family.
    """
    layers = getattr(getattr(model, "encoder", None), "layer", None)
    if isinstance(layers, nn.ModuleList) and all(
        isinstance(getattr(getattr(layer, part, None), "dense", None), nn.Linear)
        for layer in layers
        for part in ("intermediate", "output")
    ):
        return layers
    raise ModelUnsupported(
        f"{type(model).__name__} cannot be compressed: expected layers as BERT's under "
        "encoder.layer (BERT, RoBERTa, XLM-RoBERTa, ELECTRA, MPNet, DeBERTa)"
    )


def attentions_of(model: Any) -> list[nn.Module]:
    """Return the modules of a model whose outputs are those of its heads, side by side.

    Raises:
        ModelUnsupported: its attention is not that of BERT's family.
    """
    if (family := model.config.model_type) not in FAMILIES:
        raise ModelUnsupported(
            f"{type(model).__name__} ({family}) cannot have heads taken out: expected attention as "
            f"that of {', '.join(FAMILIES)}"
        )
    return [layer.attention.self for layer in layers_of(model)]  # type: ignore[union-attr, misc]


def spaced(number: int, keep: int) -> list[int]:
    """Return `keep` places of `number`, evenly spaced, first and last among them.

    As Sanh et al. 2019 (DistilBERT) begin a student.

    >>> spaced(12, 6), spaced(6, 3), spaced(6, 1)
    ([0, 2, 4, 7, 9, 11], [0, 2, 5], [0])
    """
    return [int(place) for place in np.linspace(0, number - 1, keep).round()]


def num_units(number: int, share: float) -> int:
    """Return how many of a layer's units stay, if `share` of them goes: a multiple of `STEP`.

    >>> num_units(1536, 0.25), num_units(256, 0.3), num_units(16, 0.5)
    (1152, 192, 16)
    """
    return min(number, max(1, -(-round(number * (1 - share)) // STEP)) * STEP)


def num_heads(number: int, share: float) -> int:
    """Return how many of a layer's heads stay, if `share` of them goes.

    >>> num_heads(12, 0.5), num_heads(12, 0.99), num_heads(12, 0.2)
    (6, 1, 10)
    """
    return max(1, round(number * (1 - share)))


def reduced(
    model: Any,
    *,
    layers: Sequence[int],
    units: Sequence[Tensor] | None = None,
    heads: Sequence[Tensor] | None = None,
) -> Any:
    """Return a smaller model with copies of a model's parameters.

    Args:
        model: stays as it is.
        layers: places of those that stay, in order.
        units: for each layer of the model, places of the units that stay, equally many; all by
            default.
        heads: for each layer of the model, places among those that it has of the heads that stay;
            all by default.
    """
    config = copy.deepcopy(model.config)
    config._attn_implementation = "sdpa"
    config.num_hidden_layers = len(layers)
    if units is not None:
        config.intermediate_size = len(units[0])
    if before := getattr(config, KEY, None):
        setattr(config, KEY, [before[place] for place in layers])
    number = {place: n for n, place in enumerate(layers)}
    tensors = {}
    for name, tensor in model.state_dict().items():
        found = _LAYER.fullmatch(name)
        if found is None:
            tensors[name] = tensor.clone()
            continue
        place, part = int(found[1]), found[2]
        if place in number:
            kept = tensor if units is None else _kept(part, tensor, units[place])
            tensors[f"encoder.layer.{number[place]}.{part}"] = kept.clone()
    smaller = built(config, tensors)
    if heads is not None:
        narrow(smaller, [heads[place].tolist() for place in layers])
    return smaller


def _kept(part: str, tensor: Tensor, units: Tensor) -> Tensor:
    if part in _ROWS:
        return tensor.index_select(0, units)
    return tensor.index_select(1, units) if part == _COLUMNS else tensor
