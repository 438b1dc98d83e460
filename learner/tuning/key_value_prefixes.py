"""Prefix tuning of an encoder: the prefixes added to it, and what they start from.

At the start each position of a prefix is a token of an invented text: its key and its value as the
encoder makes them, which is a better start than noise (Li & Liang, ACL 2021, section 7.4). To leave
the encoder nearly as it is, its keys are lowered by one vector per head, found by least squares, so
that queries give them about `_LOWERED` less in the exponent.

Legend: N positions of a prefix, M invented tokens, H heads, d width of a head.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from learner.errors import TuningUnsupported
from learner.passes.bert_layers import FAMILIES
from learner.passes.device import device_of
from learner.passes.forward import Passes
from learner.passes.key_value_prefixes import NAME, KeyValuePrefix, without_prefixes
from learner.passes.packing import Packed
from learner.tuning.tuning import frozen

KIND = "STEELYARD_KEY_VALUE_PREFIX"
"""In the configuration of an adapter; peft has no such kind."""
_ATTENTION = "attention.self"
_LOWERED = 6.0
"""Of a logit: a share of e^-6 beside a token of the text."""
_RIDGE = 1e-2
"""Of the least squares, as a share of the mean square of a query's numbers."""
_NUM_TEXTS, _LENGTH = 16, 16
_STATES = ("query", "key", "value")


def add(model: Any, name: str, number: int, layers: Sequence[str]) -> None:
    """Add prefixes of zeros in place.

    Args:
        model: an encoder that has none yet.
        name: of the tuning, for errors.
        number: N.
        layers: paths of the layers that get one.

    Raises:
        TuningUnsupported: the encoder's attention cannot have one.
    """
    kind, family = type(model).__name__, model.config.model_type
    if family not in FAMILIES:
        raise TuningUnsupported(
            f"learner.tuning: {name}: Steelyard does not know the attention of {kind} ({family}), "
            f"but that of {', '.join(FAMILIES)}; use full, frozen, top:N, lora:R or ia3"
        )
    if getattr(model.config, "is_decoder", False):
        raise TuningUnsupported(
            f"learner.tuning: {name}: {kind} is a decoder, whose tokens see those before them "
            "alone; expected an encoder; use full, frozen, top:N, lora:R or ia3"
        )
    for path in layers:
        attention: Any = model.get_submodule(f"{path}.{_ATTENTION}")
        weight = attention.query.weight
        shape = (int(attention.num_attention_heads), number, int(attention.attention_head_size))
        keys, values = (weight.new_zeros(shape, dtype=torch.float32) for _ in range(2))
        attention.add_module(NAME, KeyValuePrefix(keys, values))


def check_passes(model: Any, name: str, passes: Passes) -> None:
    """Refuse passes whose attention sees no prefix; a model without values has none yet.

    Raises:
        TuningUnsupported: the encoder's texts cannot be packed.
    """
    if not isinstance(passes, Packed) and device_of(model).type != "meta":
        raise TuningUnsupported(
            f"learner.tuning: {name}: the attention of this {type(model).__name__} "
            f"({model.config._attn_implementation}) is not one that Steelyard can run text by "
            "text; use full, frozen, top:N, lora:R or ia3"
        )


def start(model: Any, passes: Passes, *, seed: int) -> None:
    """Give prefixes their first values, which depend on the encoder and the seed."""
    if device_of(model).type == "meta":
        return
    draw = torch.Generator().manual_seed(seed)
    vocabulary = int(model.config.vocab_size)
    ids = torch.randint(0, vocabulary, (_NUM_TEXTS, _LENGTH), generator=draw)
    found: dict[tuple[nn.Module, str], Tensor] = {}
    owners = [module for module in model.modules() if hasattr(module, NAME)]
    hooks = [
        getattr(owner, kind).register_forward_hook(_keep(found, (owner, kind)))
        for owner in owners
        for kind in _STATES
    ]
    try:
        with frozen(model), without_prefixes(model):
            passes.run(model, list(ids))
    finally:
        for hook in hooks:
            hook.remove()
    with torch.no_grad():
        for owner in owners:
            _start(owner, [found[owner, kind] for kind in _STATES], draw)


def _start(owner: Any, states: Sequence[Tensor], draw: torch.Generator) -> None:
    """Start a prefix from queries, keys and values of the invented tokens, one row of them."""
    own: KeyValuePrefix = getattr(owner, NAME)
    heads, number, width = own.keys.shape
    q, k, v = (
        each.float().reshape(-1, heads, width).transpose(0, 1)[:, : _NUM_TEXTS * _LENGTH]
        for each in states
    )
    tokens = torch.randint(0, q.shape[1], (number,), generator=draw).to(q.device)
    lower = _LOWERED / owner.scaling * _level(q)
    own.keys.copy_(k[:, tokens] - lower[:, None])
    own.values.copy_(v[:, tokens])


def _level(queries: Tensor) -> Tensor:
    """Return the vectors (H, d) whose products with queries (H, M, d) are nearly 1."""
    square = queries.transpose(1, 2) @ queries
    ridge = _RIDGE * square.diagonal(dim1=1, dim2=2).mean(1)
    eye = torch.eye(queries.shape[2], device=queries.device)
    found: Tensor = torch.linalg.solve(square + ridge[:, None, None] * eye, queries.sum(1))
    return found


def _keep(found: dict[tuple[nn.Module, str], Tensor], key: tuple[nn.Module, str]) -> Any:
    """Return a hook that keeps what a map makes."""

    def hook(_module: Any, _given: Any, output: Tensor) -> None:
        found[key] = output

    return hook
