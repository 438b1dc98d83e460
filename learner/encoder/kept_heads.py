"""Attention heads taken out of a layer: smaller matrices in memory, zeros in a folder.

transformers takes the width of a head to be ``hidden_size / num_attention_heads``, so none of its
configurations describes fewer heads of that width. A folder for other tools therefore has all
heads, with zeros for those taken out, which changes no vector; ``kept_heads`` in its
``config.json`` says which ones stay. Once such a folder is loaded here, the others leave memory.

Legend: H heads of a layer as transformers builds it, d width of a head, D width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from learner.errors import ModelUnsupported
from learner.passes.bert_layers import FAMILIES

KEY = "kept_heads"
"""In a configuration: the places of the heads that stay, for each layer."""
_MAPS = ("query", "key", "value")


def narrow(model: Any, places: Sequence[Sequence[int]]) -> None:
    """Keep some of the heads of an encoder, in place.

    Args:
        model: of one of `FAMILIES`.
        places: of those that stay, among the heads that each layer has, in order.
    """
    before = getattr(model.config, KEY, None)
    all_of_it = list(range(int(model.config.num_attention_heads)))
    named = before or [all_of_it for _ in places]
    _take_out(model, places)
    kept = [[own[place] for place in some] for own, some in zip(named, places, strict=True)]
    if any(own != all_of_it for own in kept):
        setattr(model.config, KEY, kept)


def _take_out(model: Any, kept: Sequence[Sequence[int]]) -> None:
    for own, places in zip(_attentions(model), kept, strict=True):
        rows = _rows(own.self, places, own.self.query.weight.device)
        for name in _MAPS:
            _narrow(getattr(own.self, name), rows, 0)
        _narrow(own.output.dense, rows, 1)
        own.self.num_attention_heads = len(places)
        own.self.all_head_size = len(rows)


def as_configured(model: Any, name: str, *, full: bool) -> None:
    """Take those heads out that a model's configuration leaves out, if it leaves any out.

    Args:
        model: as transformers built it, with all heads.
        name: of the model, for errors.
        full: whether it has values; those of heads that go are zeros.

    Raises:
        ModelUnsupported: the configuration names other heads than there are, or they are no zeros.
    """
    kept = getattr(model.config, KEY, None)
    if kept is None:
        return
    _check(model, name, kept)
    if full:
        for number, (own, places) in enumerate(zip(_attentions(model), kept, strict=True)):
            heads = range(own.self.num_attention_heads)
            gone = [place for place in heads if place not in set(places)]
            columns = own.output.dense.weight[:, _rows(own.self, gone, None)]
            if columns.any():
                raise ModelUnsupported(
                    f"learner.model: {name!r}: config.json says that layer {number} keeps heads "
                    f"{places} ({KEY}), but others have weights that are not 0. Remove {KEY} from "
                    "config.json to load all heads"
                )
    _take_out(model, kept)


def _check(model: Any, name: str, kept: Any) -> None:
    number, family = int(model.config.num_attention_heads), model.config.model_type
    layers = list(_attentions(model)) if family in FAMILIES else []
    if (
        isinstance(kept, list)
        and len(kept) == len(layers)
        and all(isinstance(own, list) and own and _ascending(own, number) for own in kept)
    ):
        return
    raise ModelUnsupported(
        f"learner.model: {name!r}: config.json: {KEY}: got {str(kept)[:80]}, expected for each of "
        f"the {len(layers)} layers of {type(model).__name__} the places of some of its {number} "
        "heads, in order"
    )


def _ascending(places: list[Any], number: int) -> bool:
    if not all(type(place) is int and 0 <= place < number for place in places):
        return False
    return places == sorted(set(places))


def mean_number(model: Any) -> float:
    """Return the mean number of heads of a layer."""
    kept = getattr(model.config, KEY, None)
    whole = float(getattr(model.config, "num_attention_heads", 0))
    return whole if kept is None else sum(map(len, kept)) / len(kept)


def all_heads(model: Any) -> dict[str, Tensor]:
    """Return the tensors of a model with all heads: zeros for those taken out."""
    tensors: dict[str, Tensor] = model.state_dict()
    kept = getattr(model.config, KEY, None)
    if kept is None:
        return tensors
    whole = int(model.config.num_attention_heads)
    for number, (own, places) in enumerate(zip(_attentions(model), kept, strict=True)):
        size = whole * own.self.attention_head_size
        rows = _rows(own.self, places, None)
        path = f"encoder.layer.{number}.attention"
        for name in _MAPS:
            for part in ("weight", "bias"):
                key = f"{path}.self.{name}.{part}"
                tensors[key] = _widened(tensors[key], rows, size, 0)
        key = f"{path}.output.dense.weight"
        tensors[key] = _widened(tensors[key], rows, size, 1)
    return tensors


def _attentions(model: Any) -> Iterator[Any]:
    for layer in model.encoder.layer:
        yield layer.attention


def _rows(attention: Any, places: Sequence[int], device: torch.device | None) -> Tensor:
    """Return the rows of a map that heads at these places have."""
    width = int(attention.attention_head_size)
    heads = torch.tensor(list(places), dtype=torch.long, device=device)
    return (heads[:, None] * width + torch.arange(width, device=device)).flatten()


def _narrow(linear: nn.Linear, places: Tensor, dim: int) -> None:
    moves = linear.weight.requires_grad
    own = linear.weight.detach().index_select(dim, places)
    linear.weight = nn.Parameter(own, requires_grad=moves)
    if dim == 1:
        linear.in_features = len(places)
        return
    linear.out_features = len(places)
    linear.bias = nn.Parameter(linear.bias.detach().index_select(0, places), requires_grad=moves)


def _widened(tensor: Tensor, places: Tensor, size: int, dim: int) -> Tensor:
    shape = list(tensor.shape)
    shape[dim] = size
    whole: Tensor = tensor.new_zeros(shape)
    return whole.index_copy(dim, places.to(tensor.device), tensor)
