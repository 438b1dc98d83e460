"""Layers of BERT's kind as a server runs them: few calls, weights laid out for oneDNN.

Queries, keys and values are one product; what transformers does around the products of a layer, and
laying a weight out anew in each of them, takes longer than they do for one short text. States have
the bits of the layers' own passes. Weights are in memory twice, as parameters and laid out.

Legend: T tokens of a pass, D width, K outputs of a product.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Self, TypeAlias

import torch
from torch import Tensor, nn

from learner import arithmetic
from learner.passes.bert_layers import add_methods, bert_layers
from learner.passes.first_tokens import LastLayer
from learner.passes.key_value_prefixes import prefixes_of
from learner.passes.packing import Layout, Packed
from learner.passes.passes import Passes

Product: TypeAlias = Callable[[Tensor], Tensor]
"""Maps rows (T, D) to (T, K)."""
_NUM_ROWS = (8, 40)
"""Of the comparison with the plain product."""
_LAID_OUT_FOR = 64
"""Rows; a hint that changes no bits."""


class LayerProducts:
    """What is made of a layer's parameters.

    Copies of a model share it: a layer with other parameters makes its own.
    """

    def __init__(self, layer: Any) -> None:
        """Note the parameters as they are."""
        self._made_of = [(p, p._version) for p in layer.parameters()]

    def __deepcopy__(self, _: Any) -> Self:
        """Return the same: it is never written to."""
        return self

    def fit(self, layer: Any) -> bool:
        """Return whether the layer has the parameters that this was made of, unchanged."""
        pairs = zip(layer.parameters(), self._made_of, strict=True)
        return all(p is own and p._version == version for p, (own, version) in pairs)


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


class _Products(LayerProducts):
    """The products of a layer in the precision of its weights."""

    def __init__(self, layer: Any) -> None:
        super().__init__(layer)
        own = layer.attention.self
        maps = (own.query, own.key, own.value)
        weight = torch.cat([one.weight for one in maps])
        self.attention = _laid_out(weight, torch.cat([one.bias for one in maps]))
        self.after_attention = _of(layer.attention.output.dense)
        self._up, self._down = _of(layer.intermediate.dense), _of(layer.output.dense)
        self._activation = layer.intermediate.intermediate_act_fn

    def feed_forward(self, states: Tensor) -> Tensor:
        """Return (T, D) of states (T, D)."""
        return self._down(self._activation(self._up(states)))


class _Layer:
    """A layer that goes by its products; mixed into the layer's own class."""

    served_products: _Products | None = None

    def forward(self, hidden_states: Tensor, *given: Any, **others: Any) -> Tensor:
        """Return the states (1, T, D) of packed texts."""
        layer: Any = self
        products, packed = self.served_products, others.get("packed")
        learns = layer.training or torch.is_grad_enabled()
        if products is None or learns or not isinstance(packed, Layout):
            states: Tensor = super().forward(hidden_states, *given, **others)  # type: ignore[misc]
            return states
        return through(
            layer,
            hidden_states[0],
            packed,
            products.attention,
            products.after_attention,
            products.feed_forward,
            scale=layer.attention.self.scaling,
        )[None]


def lay_out(model: Any, passes: Passes) -> None:
    """Let those layers of a model that can go by products laid out; call again when they change."""
    as_bert = isinstance(passes, Packed) and passes.first_alone  # calculated by BERT's formulas
    if not as_bert or prefixes_of(model) or next(model.parameters()).is_cuda:
        return
    for layer in bert_layers(model):
        if not all(map(_is_plain, _maps(layer))):
            continue
        add_methods(layer, _Layer)
        if layer.served_products is None or not layer.served_products.fit(layer):
            layer.served_products = _Products(layer)


def _maps(layer: Any) -> list[Any]:
    """Return the linear maps of a layer of BERT's kind."""
    own = layer.attention.self
    others = (layer.attention.output, layer.intermediate, layer.output)
    return [own.query, own.key, own.value, *(part.dense for part in others)]


def _is_plain(module: Any) -> bool:
    return isinstance(module, nn.Linear) and module.bias is not None


def _of(module: Any) -> Product:
    return _laid_out(module.weight, module.bias)


def _laid_out(weight: Tensor, bias: Tensor) -> Product:
    """Return rows -> rows W^T + b; W (K, D) is laid out for oneDNN if that changes no bit."""
    weight, bias = weight.detach(), bias.detach()
    plain = partial(_plain, weight, bias)
    try:
        own = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), _LAID_OUT_FOR)
        faster = partial(_by_layout, own, bias, weight.dtype)
        draw = torch.Generator().manual_seed(0)
        rows = [torch.randn(number, weight.shape[1], generator=draw) for number in _NUM_ROWS]
        return faster if all(torch.equal(faster(own), plain(own)) for own in rows) else plain
    except (AttributeError, NotImplementedError, RuntimeError):  # torch has no such operation here
        return plain


def _plain(weight: Tensor, bias: Tensor, rows: Tensor) -> Tensor:
    return arithmetic.linear(rows.to(weight.dtype), weight, bias)


def _by_layout(weight: Tensor, bias: Tensor, dtype: torch.dtype, rows: Tensor) -> Tensor:
    found: Tensor = torch.ops.mkldnn._linear_pointwise(rows.to(dtype), weight, bias, "none", [], "")
    return found
