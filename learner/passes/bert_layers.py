"""Layers built as BERT's are: those of RoBERTa, XLM-R and ELECTRA too."""

from __future__ import annotations

from functools import cache
from itertools import islice
from typing import Any

from torch import Tensor

from learner.passes.forward import hidden_of

FAMILIES = ("bert", "camembert", "electra", "roberta", "xlm-roberta")
"""Whose attention is ``attention.self``, with maps ``query``, ``key`` and ``value``."""
_PARTS = (
    "attention.self.query",
    "attention.self.key",
    "attention.self.value",
    "attention.output.dense",
    "attention.output.LayerNorm",
    "intermediate.dense",
    "output.dense",
    "output.LayerNorm",
)


def bert_layers(model: Any) -> list[Any]:
    """Return the layers of a model; none where one is of another kind, or has more parts."""
    layers = list(getattr(getattr(model, "encoder", None), "layer", ()))
    return layers if all(map(_is_known, layers)) else []


def hidden_states(
    model: Any, tokens: Tensor, positions: Tensor, packed: object, *, layer: int, by_layers: bool
) -> Tensor:
    """Return the hidden states (T, D) of a layer, in single precision.

    Args:
        model: of transformers, or its upper part.
        tokens: ids (T,), or hidden states (T, D).
        positions: of the tokens (T,).
        packed: where the texts lie, for the attention.
        layer: index of the hidden states; -1 for the last.
        by_layers: whether to run embeddings and layers of BERT's kind one by one, and none of the
            layers above. What transformers does around them takes longer than a layer does for one
            short text.
    """
    name = "inputs_embeds" if tokens.is_floating_point() else "input_ids"
    inputs = {name: tokens[None], "position_ids": positions[None]}
    if not by_layers:
        output = model(**inputs, packed=packed, output_hidden_states=layer != -1)
        return hidden_of(output, layer)[0]
    states = model.embeddings(**inputs)
    project = getattr(model, "embeddings_project", None)  # of ELECTRA
    if project is not None:
        states = project(states)
    layers = model.encoder.layer
    number = range(len(layers) + 1)[layer]
    for own in islice(layers, number):
        states = own(states, packed=packed)
    found: Tensor = states[0].float()
    return found


def add_methods(layer: Any, methods: type) -> None:
    """Put the methods of a class before those of a layer, once, in place."""
    kind: Any = type(layer)
    if not issubclass(kind, methods):
        layer.__class__ = _both(methods, kind)


@cache  # a class refers to itself: one for each model would wait for the garbage collector
def _both(methods: type, kind: type) -> type:
    return type(kind.__name__, (methods, kind), {})


def _is_known(layer: Any) -> bool:
    for path in _PARTS:
        try:
            layer.get_submodule(path)
        except AttributeError:
            return False
    places = ("attention.self.", *(f"{path}." for path in _PARTS))
    has_others = any(not name.startswith(places) for name, _ in layer.named_parameters())
    return not (has_others or getattr(layer, "is_decoder", False))
