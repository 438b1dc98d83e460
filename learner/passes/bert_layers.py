"""Layers built as BERT's are: those of RoBERTa, XLM-R and ELECTRA too."""

from __future__ import annotations

from functools import cache
from typing import Any

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
