"""Layers built as BERT's are: those of RoBERTa, XLM-R and ELECTRA too."""

from __future__ import annotations

from typing import Any

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
    """Return the layers of a model; none where one is of another kind."""
    layers = list(getattr(getattr(model, "encoder", None), "layer", ()))
    return layers if all(map(_is_known, layers)) else []


def _is_known(layer: Any) -> bool:
    for path in _PARTS:
        try:
            layer.get_submodule(path)
        except AttributeError:
            return False
    return not getattr(layer, "is_decoder", False)
