"""Models cut off above the hidden states that are asked for: no layer runs in vain.

Those of BERT's build; others, such as decoders, whose last states are normalised, run whole.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

log = logging.getLogger("steelyard.learner")

_OTHER_BUILD = (AttributeError, LookupError, NameError, RuntimeError, TypeError, ValueError)
"""Of a model that expects all of its layers; RuntimeError is torch's, of shapes that do not fit."""
_OF_THE_DEVICE = (torch.OutOfMemoryError, torch.AcceleratorError)
"""Classes of RuntimeError that say nothing of the model."""
_NO_HOST_MEMORY = "DefaultCPUAllocator"
"""In the message of a RuntimeError, which torch has no class of its own for."""


class LowerLayers:
    """Gives hidden states of a layer by the layers below alone, where they are the same bits."""

    def __init__(self) -> None:
        """Know no model."""
        self._known: WeakKeyDictionary[nn.Module, dict[int, Any]] = WeakKeyDictionary()
        self._said: set[tuple[str, int, str]] = set()

    def states(self, model: Any, layer: int, run: Callable[[Any, int], Tensor]) -> Tensor:
        """Return the hidden states of a layer.

        The first pass of a model is run whole as well, to compare. If that ends in an error of the
        device, such as no memory, the next pass compares again.

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
        reason = _objection(lower, found, run)
        known[layer] = None if reason else lower
        if reason:
            self._say(model, layer, reason)
        return found

    def _say(self, model: Any, layer: int, reason: str) -> None:
        """Log that a model runs whole; once for all copies of it."""
        line = type(model).__name__, layer, reason
        if line not in self._said:
            self._said.add(line)
            facts = {"model": line[0], "layer": layer, "reason": reason}
            log.info("all layers run for hidden states below the last", extra=facts)


def _objection(lower: Any, found: Tensor, run: Callable[[Any, int], Tensor]) -> str:
    """Return why lower layers do not stand for the whole model; empty where they do.

    Raises:
        RuntimeError: of the device or the host, such as no memory.
    """
    if lower is None:
        return "its layers are not built as BERT's"
    try:
        same = torch.equal(run(lower, -1), found)
    except _OTHER_BUILD as error:
        if isinstance(error, _OF_THE_DEVICE) or _NO_HOST_MEMORY in str(error):
            raise
        return f"without those above it ends in {type(error).__name__}: {error}"
    return "" if same else "without those above it gives other states"


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
