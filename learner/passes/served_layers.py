"""Layers of BERT's kind as a server runs them: few calls, weights laid out for oneDNN.

Queries, keys and values are one product; what transformers does around the products of a layer, and
laying a weight out anew in each of them, takes longer than they do for one short text. States have
the bits of the layers' own passes. Weights are in memory twice, as parameters and laid out.

Legend: T tokens of a pass, D width, K outputs of a product.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache, partial
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor, nn

from learner import arithmetic, row_counts
from learner.passes.bert_layers import add_methods, bert_layers
from learner.passes.forward import Passes
from learner.passes.key_value_prefixes import prefixes_of
from learner.passes.layer_products import LayerProducts, Product, State, state_of, through
from learner.passes.packing import Layout, Packed
from learner.row_counts import RowCounts, is_joined_alike

_NUM_ROWS = (8, 40)
"""Of the comparison with the plain product."""
_LAID_OUT_FOR = 64
"""Rows; a hint that changes no bits."""


class _Products(LayerProducts):
    """The products of a layer in the precision of its weights."""

    def __init__(self, layer: Any) -> None:
        super().__init__(layer)
        own = layer.attention.self
        maps = (own.query, own.key, own.value)
        self.attention = _joined(maps)
        self.after_attention = _of(layer.attention.output.dense)
        self._up, self._down = _of(layer.intermediate.dense), _of(layer.output.dense)
        self._activation = layer.intermediate.intermediate_act_fn

    def feed_forward(self, states: Tensor) -> Tensor:
        """Return (T, D) of states (T, D)."""
        return self._down(self._activation(self._up(states)))


_made: WeakValueDictionary[State, _Products] = WeakValueDictionary()
"""By the parameters that they were made of: copies of a model share what is frozen."""


class _Layer:
    """A layer that goes by its products; mixed into the layer's own class.

    It does not see that parameters were written to: `lay_out` is called again.
    """

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
        state = state_of(layer)
        products = _made.get(state)
        if products is None:
            products = _made[state] = _Products(layer)
        layer.served_products = products


def _maps(layer: Any) -> list[Any]:
    """Return the linear maps of a layer of BERT's kind."""
    own = layer.attention.self
    others = (layer.attention.output, layer.intermediate, layer.output)
    return [own.query, own.key, own.value, *(part.dense for part in others)]


def _is_plain(module: Any) -> bool:
    return isinstance(module, nn.Linear) and module.bias is not None


def _joined(maps: Sequence[Any]) -> Product:
    """Return the outputs of maps of the same shape side by side, in one product if it is alike."""
    weight = torch.cat([one.weight for one in maps])
    shape, threads = maps[0].weight.shape, torch.get_num_threads()
    if weight.dtype == torch.bfloat16 and not is_joined_alike(len(maps), *shape, threads):
        products = [_of(one) for one in maps]
        return lambda rows: torch.cat([product(rows) for product in products], dim=1)
    return _laid_out(weight, torch.cat([one.bias for one in maps]))


def _of(module: Any) -> Product:
    return _laid_out(module.weight, module.bias)


def _laid_out(weight: Tensor, bias: Tensor) -> Product:
    """Return rows -> rows W^T + b; W (K, D) is laid out for oneDNN if that changes no bit."""
    weight, bias = weight.detach(), bias.detach()
    plain = partial(_plain, weight, bias)
    try:
        faster = partial(_by_layout, _lay_out(weight), bias, weight.dtype)
        if weight.dtype == torch.bfloat16:
            counts = _of_layout(*weight.shape, torch.get_num_threads())
            return plain if counts is None else partial(_in_parts, counts, faster)
        draw = torch.Generator().manual_seed(0)
        rows = [torch.randn(number, weight.shape[1], generator=draw) for number in _NUM_ROWS]
        return faster if all(torch.equal(faster(own), plain(own)) for own in rows) else plain
    except (AttributeError, NotImplementedError, RuntimeError):  # torch has no such operation here
        return plain


def _lay_out(weight: Tensor) -> Tensor:
    found: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), _LAID_OUT_FOR)
    return found


@lru_cache(maxsize=64)
def _of_layout(outputs: int, inputs: int, threads: int) -> RowCounts | None:
    """Return the numbers of rows for a weight (K, D) that is laid out; None where it is of no use.

    A row has the bits that it has in the plain product.
    """
    rows, weight, bias = row_counts.probe(outputs, inputs)
    product = partial(_by_layout, _lay_out(weight), bias, weight.dtype)
    plain = row_counts.of_linear(outputs, inputs, True, threads)
    found = RowCounts(product, rows, plain.expected)
    return found if found.is_steady(row_counts.MANY) else None


def _plain(weight: Tensor, bias: Tensor, rows: Tensor) -> Tensor:
    return arithmetic.linear(rows.to(weight.dtype), weight, bias)


def _in_parts(counts: RowCounts, product: Product, rows: Tensor) -> Tensor:
    return counts.through(product, rows)


def _by_layout(weight: Tensor, bias: Tensor, dtype: torch.dtype, rows: Tensor) -> Tensor:
    found: Tensor = torch.ops.mkldnn._linear_pointwise(rows.to(dtype), weight, bias, "none", [], "")
    return found
