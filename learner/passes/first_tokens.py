"""A last layer that is calculated for the first token of each text alone.

A head of a cross-encoder, or a pooling that takes ``[CLS]``, reads nothing else of what that layer
gives. The other tokens of a text still have keys and values there, but no query, no map after the
attention and no feed-forward, which are five sixths of the products of the layer.

Legend: n texts, T tokens of all, D width.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from learner.passes.bert_layers import add_methods, bert_layers
from learner.passes.key_value_prefixes import prefix_of


class LastLayer:
    """Mixed into the class of the last layer of a model of BERT's kind."""

    def forward(self, hidden_states: Tensor, *given: Any, **others: Any) -> Tensor:
        """Return states (1, T, D), or of first tokens alone as `Layout.first_rows` asks."""
        layer: Any = self
        packed: Any = others.get("packed")
        if getattr(packed, "first_rows", None) is None:
            states: Tensor = super().forward(hidden_states, *given, **others)  # type: ignore[misc]
            return states
        mixed, _ = layer.attention.self(hidden_states, packed=packed)
        between = layer.attention.output(mixed, packed.first_of(hidden_states[0])[None])
        found: Tensor = layer.feed_forward_chunk(between)
        return found


class LastAttention:
    """Mixed into the class of the attention of that layer, whose hooks see its output so too."""

    def forward(self, hidden_states: Tensor, *given: Any, **others: Any) -> Any:
        """Return what the heads give, side by side, (1, T, D) or of first tokens; no weights."""
        own: Any = self
        packed: Any = others.get("packed")
        if getattr(packed, "first_rows", None) is None:
            return super().forward(hidden_states, *given, **others)  # type: ignore[misc]
        rows = hidden_states[0]
        query, key, value = (
            projected.view(len(projected), -1, own.attention_head_size).transpose(0, 1)
            for projected in (own.query(packed.first_of(rows)), own.key(rows), own.value(rows))
        )
        mixed = packed.attend(
            query[:, : packed.num_texts],
            key,
            value,
            causal=False,
            scale=own.scaling,
            dropout=own.dropout.p if own.training else 0.0,
            prefix=prefix_of(own),
            first=True,
        )
        return packed.filled(mixed.flatten(1))[None], None


def prepare(model: Any) -> bool:
    """Let the last layer of a model calculate first tokens alone where it is asked to.

    Returns:
        Whether the model is of the kind.
    """
    layers = bert_layers(model)
    if layers:
        add_methods(layers[-1], LastLayer)
        add_methods(layers[-1].attention.self, LastAttention)
    return bool(layers)
