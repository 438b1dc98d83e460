"""Models cut off above the hidden states that are asked for: no layer runs in vain.

Those of BERT's build; others, such as decoders, whose last states are normalised, run whole.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn


class LowerLayers:
    """Gives hidden states of a layer by the layers below alone, where they are the same bits."""

    def __init__(self) -> None:
        """Know no model."""
        self._known: WeakKeyDictionary[nn.Module, dict[int, Any]] = WeakKeyDictionary()

    def states(self, model: Any, layer: int, run: Callable[[Any, int], Tensor]) -> Tensor:
        """Return the hidden states of a layer.

        The first pass of a model is run whole as well, to compare.

        Args:
            model: of transformers.
            layer: index of the hidden states; -1 for the last.
            run: returns them of a model and such an index.
        """
        if layer == -1:
            return run(model, -1)
        known = self._known.setdefault(model, {})
        if layer in known:
            return run(model, layer) if known[layer] is None else run(known[layer], -1)
        found, lower = run(model, layer), _lower(model, layer)
        known[layer] = lower if _gives(lower, found, run) else None
        return found


def _gives(lower: Any, found: Tensor, run: Callable[[Any, int], Tensor]) -> bool:
    """Return whether the lower layers, if any, give the states that the whole model gives."""
    if lower is None:
        return False
    try:
        return torch.equal(run(lower, -1), found)
    except Exception:  # of any kind, where a model expects all of its layers
        return False


def shallow(module: nn.Module) -> nn.Module:
    """Return a module of its own with the same children."""
    twin = copy.copy(module)
    twin._modules = dict(module._modules)
    return twin


def _lower(model: Any, layer: int) -> Any:
    """Return a model of BERT's build without the layers above hidden states, None of another."""
    layers = getattr(getattr(model, "encoder", None), "layer", None)
    if not isinstance(layers, nn.ModuleList):
        return None
    lower, encoder = shallow(model), shallow(model.encoder)
    encoder._modules["layer"] = layers[: layer + 1]
    lower._modules["encoder"] = encoder
    return lower
