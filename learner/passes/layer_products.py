"""What is made of the parameters of a layer of BERT's kind, and a pass through such a layer.

Legend: T tokens of a pass, D width, K outputs of a product.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self, TypeAlias

from torch import Tensor

from learner.passes.first_tokens import LastLayer
from learner.passes.packing import Layout

Product: TypeAlias = Callable[[Tensor], Tensor]
"""Maps rows (T, D) to (T, K)."""
State: TypeAlias = tuple[tuple[int, int, int], ...]
"""Identity, version and memory of each parameter."""


class LayerProducts:
    """What is made of a layer's parameters; looked up in a table by their `state_of`.

    Copies of a model share it: a layer with other parameters makes its own.
    """

    def __init__(self, layer: Any) -> None:
        """Keep the parameters, so that their state stays their own."""
        # What is alive shares neither its identity nor its memory with anything that comes later
        self._kept = [(p, p.detach()) for p in layer.parameters()]

    def __deepcopy__(self, _: Any) -> Self:
        """Return the same: it is never written to."""
        return self


def through(
    layer: Any,
    states: Tensor,
    packed: Layout,
    attention: Product,
    after_attention: Product,
    feed_forward: Product,
    *,
    scale: float,
) -> Tensor:
    """Return the states (T, D) behind a layer, or of first tokens as `Layout.first_rows` asks.

    Args:
        layer: of BERT's kind.
        states: (T, D) in float32.
        packed: where the texts lie.
        attention: (T, D) to queries, keys and values (T, 3 D).
        after_attention: (T, D) to (T, D).
        feed_forward: (T, D) to (T, D), its activation included.
        scale: of the products of queries and keys.
    """
    heads = layer.attention.self.num_attention_heads
    projected = attention(states).view(len(states), 3, heads, -1)
    query, key, value = projected.permute(1, 2, 0, 3)
    first = isinstance(layer, LastLayer) and packed.first_rows is not None
    if first:
        of_first = packed.first_of(projected[:, 0])[: packed.num_texts]
        query = of_first.transpose(0, 1)
    mixed = packed.attend(
        query, key, value, causal=False, scale=scale, dropout=0.0, first=first
    ).flatten(1)
    if first:
        states, mixed = packed.first_of(states), packed.filled(mixed)
    states = layer.attention.output.LayerNorm(after_attention(mixed) + states)
    found: Tensor = layer.output.LayerNorm(feed_forward(states) + states)
    return found


def state_of(layer: Any) -> State:
    """Return what tells a layer's parameters, as they are now, from all others alive."""
    return tuple((id(p), p._version, p.data_ptr()) for p in layer.parameters())
