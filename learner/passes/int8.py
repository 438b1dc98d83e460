"""Layers of BERT's kind with matrix products of 8-bit integers, for serving on a CPU.

What enters a product is rounded to 8 bits by a scale that is fixed once, and its weights by one
scale per row; sums are exact. Before that, columns in which states are large trade a factor with
their weights (SmoothQuant, Xiao et al., ICML 2023). The few units of a feed-forward whose values
are largest stay in bfloat16 (as in LLM.int8(), Dettmers et al., NeurIPS 2022), and so do the map
that ends the attention, and the attention itself; the residual stream is in float32.

A layer fixes its scales at its first pass, which `quantize` makes over invented texts. So they are
a function of the parameters alone, and a text's bits depend on nothing that is packed with it.

Legend: T tokens of a pass, D width, F units of the feed-forward, K outputs of a product.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple
from weakref import WeakValueDictionary

import torch
from torch import Tensor, nn
from torch.nn import functional

from learner.arithmetic import linear
from learner.errors import ModelUnsupported
from learner.passes.bert_layers import add_methods, bert_layers
from learner.passes.forward import Passes, texts_of
from learner.passes.key_value_prefixes import prefixes_of
from learner.passes.layer_products import LayerProducts, State, state_of, through
from learner.passes.packing import Layout, Packed

LEAST_COSINE = 0.95
"""Of the last states of the invented texts, averaged, in int8 and in float32."""
_LEVELS, _MIDDLE = 127, 128
_LARGEST = 255
_SMOOTHING = 0.7
"""Share of a column's factor that states bear; the weights bear the rest."""
_SPARED_UNITS = 16
_MARGIN = 1.2
"""Real texts reach further than invented ones."""
_LEAST_UNIT = -0.17
"""Least value of GELU."""
_TINY = 1e-5
_NUM_TEXTS, _LONGEST = 128, 48
_GELUS = {"gelu": "none", "gelu_new": "tanh", "gelu_pytorch_tanh": "tanh", "gelu_fast": "tanh"}
"""Activation, as configurations of transformers name it -> oneDNN's algorithm."""


class Scale(NamedTuple):
    """8-bit integers q stand for (q - zero) * step."""

    step: float
    zero: int


class Product:
    """x W^T + b, x (T, D) and W (K, D) in 8 bits."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        """Round the weights, row by row."""
        self._steps = weight.abs().amax(1).clamp_min(_TINY) / _LEVELS
        rounded = (weight / self._steps[:, None]).round().to(torch.int8)
        self._weight = torch.ops.onednn.qlinear_prepack(rounded, None)
        self._zeros = torch.zeros(len(weight), dtype=torch.int64)
        self._bias = bias.contiguous()

    def __call__(
        self, rows: Tensor, scale: Scale, *, gelu: str = "", to: Scale | None = None
    ) -> Tensor:
        """Return (T, K) in bfloat16, or in 8 bits of the scale `to`.

        Args:
            rows: uint8 (T, D).
            scale: of the rows.
            gelu: algorithm of GELU of the result; empty for none.
            to: scale of the result.
        """
        step, zero = to or Scale(1.0, 0)
        found: Tensor = torch.ops.onednn.qlinear_pointwise(
            rows,
            scale.step,
            scale.zero,
            self._weight,
            self._steps,
            self._zeros,
            self._bias,
            step,
            zero,
            torch.uint8 if to else torch.bfloat16,
            "gelu" if gelu else "none",
            [],
            gelu,
        )
        return found


class Smoothed:
    """A product of states, each column of which has a factor of its own."""

    _scale = Scale(1.0, _MIDDLE)

    def __init__(self, weight: Tensor, bias: Tensor, states: Tensor) -> None:
        """Choose the factors by states (T, D) such as those to come."""
        largest = states.abs().amax(0).clamp_min(_TINY)
        share = weight.abs() / weight.abs().amax(1, keepdim=True).clamp_min(_TINY)
        column = share.amax(0).clamp_min(_TINY)
        factor = largest**_SMOOTHING / column ** (1 - _SMOOTHING)
        step = factor * (largest / factor).max() / _LEVELS
        self._inverse = 1 / step
        self._middle = torch.full_like(step, _MIDDLE + 0.5)  # what follows rounds down
        self._product = Product(weight * step, bias)

    def __call__(self, states: Tensor, *, gelu: str = "", to: Scale | None = None) -> Tensor:
        """Return the product of states (T, D) in float32; see `Product`."""
        rows = torch.addcmul(self._middle, states, self._inverse)
        rows = rows.clamp_(0, _LARGEST).to(torch.int32).to(torch.uint8)  # at once is slower
        return self._product(rows, self._scale, gelu=gelu, to=to)


class Linear(NamedTuple):
    """Weight (K, D) and bias (K,) of a linear map, whatever adapters are in it."""

    weight: Tensor
    bias: Tensor

    @classmethod
    def of(cls, module: Any) -> Linear:
        """Read a map by what it gives for the unit vectors."""
        if isinstance(module, nn.Linear):
            return cls(module.weight.detach().float(), module.bias.detach().float())
        width = int(module.in_features)
        bias = module(torch.zeros(1, width)).float()
        return cls((module(torch.eye(width)).float() - bias).T.contiguous(), bias[0])

    def in_bfloat16(self) -> Linear:
        """Return it rounded."""
        return Linear(self.weight.bfloat16(), self.bias.bfloat16())


class FeedForward:
    """Two products with GELU between them, F units; some units of it in bfloat16."""

    def __init__(self, up: Linear, down: Linear, gelu: str, states: Tensor) -> None:
        """Choose scales and spared units by states (T, D) such as those to come."""
        units = functional.gelu(functional.linear(states, *up), approximate=gelu).amax(0)
        order = units.argsort()
        number = len(order) - min(_SPARED_UNITS, len(order) // 4)
        kept, spared = (places.sort().values for places in (order[:number], order[number:]))
        largest = max(float(units[kept].max()), -_LEAST_UNIT) * _MARGIN
        step = (largest - _LEAST_UNIT) / _LARGEST
        self._scale = Scale(step, round(-_LEAST_UNIT / step))
        self._gelu = gelu
        self._up = Smoothed(up.weight[kept], up.bias[kept], states)
        self._down = Product(down.weight[:, kept], down.bias)
        self._spared_up = Linear(up.weight[spared], up.bias[spared]).in_bfloat16()
        self._spared_down = down.weight[:, spared].bfloat16()

    def __call__(self, states: Tensor) -> Tensor:
        """Return (T, D) of states (T, D), in bfloat16."""
        units = self._up(states, gelu=self._gelu, to=self._scale)
        spared = linear(states.bfloat16(), *self._spared_up)
        spared = functional.gelu(spared, approximate=self._gelu)
        return self._down(units, self._scale) + linear(spared, self._spared_down)


class _Products(LayerProducts):
    """The products of a layer."""

    def __init__(self, layer: Any, states: Tensor) -> None:
        super().__init__(layer)
        own = layer.attention.self
        query, key, value = (Linear.of(m) for m in (own.query, own.key, own.value))
        scaling = own.attention_head_size**-0.5
        weight = torch.cat([query.weight * scaling, key.weight, value.weight])
        bias = torch.cat([query.bias * scaling, key.bias, value.bias])
        self.attention = Smoothed(weight, bias, states)
        output = Linear.of(layer.attention.output.dense).in_bfloat16()
        self.after_attention = partial(linear, weight=output.weight, bias=output.bias)
        self.feed_forward: FeedForward | None = None


_made: WeakValueDictionary[State, _Products] = WeakValueDictionary()
"""By the parameters that they were made of, once their scales are fixed and checked."""


class _Layer:
    """A layer whose products are of integers; mixed into the layer's own class."""

    int8_gelu: str
    int8_products: _Products | None = None
    int8_active = True

    def forward(self, hidden_states: Tensor, *given: Any, packed: Layout, **others: Any) -> Tensor:
        """Return the states (1, T, D) of packed texts."""
        layer: Any = self
        if not self.int8_active:
            exact: Tensor = super().forward(hidden_states, *given, packed=packed, **others)  # type: ignore[misc]
            return exact
        states = hidden_states[0].float()
        if self.int8_products is None:
            self.int8_products = _Products(layer, states)
        products = self.int8_products

        def feed_forward(states: Tensor) -> Tensor:
            if products.feed_forward is None:
                up, down = Linear.of(layer.intermediate.dense), Linear.of(layer.output.dense)
                products.feed_forward = FeedForward(up, down, self.int8_gelu, states)
            return products.feed_forward(states)

        return through(
            layer,
            states,
            packed,
            products.attention,
            products.after_attention,
            feed_forward,
            scale=1.0,
        )[None]


def quantize(model: Any, passes: Passes) -> None:
    """Let the layers of a model multiply integers from here on; nothing can learn then.

    Layers whose parameters have been through this, in this model or another, keep what was made.

    Raises:
        ModelUnsupported: the processor has no such instructions, the model is of another kind, or
            its states become others.
    """
    check_processor()
    layers, gelu = _layers(model, passes), _GELUS[model.config.hidden_act]
    for layer in layers:
        add_methods(layer, _Layer)
        layer.int8_gelu = gelu
        layer.int8_products = _made.get(state_of(layer))
    if all(layer.int8_products is not None for layer in layers):
        return
    texts = _invented(int(model.config.vocab_size))
    with torch.no_grad():
        found = _means(model, passes, texts)  # fixes what is not fixed yet
        for layer in layers:
            layer.int8_active = False
        expected = _means(model, passes, texts)
        for layer in layers:
            layer.int8_active = True
    _check(found, expected)
    for layer in layers:
        _made[state_of(layer)] = layer.int8_products


def check_processor() -> None:
    """Refuse a processor without products of 8-bit integers.

    Raises:
        ModelUnsupported: says so.
    """
    if not torch.cpu._is_vnni_supported():
        raise ModelUnsupported(
            "serving.precision: int8 needs a processor with AVX512-VNNI (`lscpu` names "
            "avx512_vnni); use learned"
        )


def _check(found: Tensor, expected: Tensor) -> None:
    cosine = float(functional.cosine_similarity(found, expected).min())
    if not cosine >= LEAST_COSINE:
        raise ModelUnsupported(
            f"serving.precision: int8 gives other vectors than float32, a cosine of {cosine:.3f}; "
            f"expected at least {LEAST_COSINE}. Use learned."
        )


def _layers(model: Any, passes: Passes) -> list[Any]:
    """Return the layers of a model of BERT's kind.

    Raises:
        ModelUnsupported: it is of another.
    """
    if prefixes_of(model):
        raise ModelUnsupported("serving.precision: int8 has no prefixes; use learned")
    as_bert = isinstance(passes, Packed) and passes.first_alone  # calculated by BERT's formulas
    layers = bert_layers(model) if as_bert else []
    if not (layers and getattr(model.config, "hidden_act", None) in _GELUS):
        raise ModelUnsupported(
            "serving.precision: int8 needs layers such as those of BERT, RoBERTa, XLM-R and "
            f"ELECTRA, with GELU; {type(model).__name__} has others. Use learned."
        )
    return layers


def _invented(vocabulary: int) -> list[Tensor]:
    """Return token ids of invented texts, always the same."""
    draw = torch.Generator().manual_seed(0)
    lengths = torch.randint(2, _LONGEST + 1, (_NUM_TEXTS,), generator=draw).tolist()
    return [torch.randint(0, vocabulary, (length,), generator=draw) for length in lengths]


def _means(model: Any, passes: Passes, texts: list[Tensor]) -> Tensor:
    """Return the mean state (n, D) of each text, in one pass."""
    texts = sorted(texts, key=len)
    return torch.stack([own.mean(0) for own in texts_of(passes.run(model, texts))])
