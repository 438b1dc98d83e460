"""Learned keys and values that each text's attention sees before its own.

Prefix tuning (Li & Liang, ACL 2021), in every layer of an encoder as in P-tuning v2 (Liu et al.,
ACL 2022). One softmax goes over the prefix and the text:

    attention(q) = softmax(q [P_K; K]^T / sqrt(d)) [P_V; V]

A prefix is no text: it has no position, no query, and no state that goes on to the next layer.

Legend: N positions of a prefix, n texts, T tokens of all, H heads, d width of a head.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

NAME = "key_value_prefix"
"""Of the module in the attention that has it."""


class KeyValuePrefix(nn.Module):
    """Keys and values (H, N, d) before those of each text.

    Attributes:
        active: whether attention sees them.
    """

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        """Take their first values."""
        super().__init__()
        self.keys = nn.Parameter(keys)
        self.values = nn.Parameter(values)
        self.active = True


def prefix_of(module: Any) -> KeyValuePrefix | None:
    """Return the prefix that an attention is to see, None for none."""
    found = getattr(module, NAME, None)
    return found if isinstance(found, KeyValuePrefix) and found.active else None


def prefixes_of(model: Any) -> list[KeyValuePrefix]:
    """Return the prefixes of a model, the lowest layer's first."""
    return [module for module in model.modules() if isinstance(module, KeyValuePrefix)]


@contextmanager
def without_prefixes(model: Any) -> Iterator[None]:
    """Run a model without its prefixes."""
    own = [prefix for prefix in prefixes_of(model) if prefix.active]
    for prefix in own:
        prefix.active = False
    try:
        yield
    finally:
        for prefix in own:
            prefix.active = True


def before_each(states: Tensor, prefix: Tensor) -> Tensor:
    """Return (n, H, N + t, d) of keys or values (n, H, t, d) and of a prefix (H, N, d)."""
    return torch.cat([prefix.to(states.dtype).expand(len(states), -1, -1, -1), states], dim=2)


def between(states: Tensor, prefix: Tensor, offsets: Tensor) -> Tensor:
    """Return (T + n N, H, d): the prefix before each text; no read of the device.

    Args:
        states: keys or values (T, H, d) of texts, one after the other.
        prefix: (H, N, d).
        offsets: (n + 1,), first token of each text, and T.
    """
    num_texts, number = len(offsets) - 1, prefix.shape[1]
    each = torch.arange(num_texts, device=offsets.device)
    token = torch.arange(len(states), device=offsets.device)
    text = torch.searchsorted(offsets[1:].contiguous(), token, right=True)
    first = offsets[:-1] + number * each
    own = prefix.to(states.dtype).transpose(0, 1)
    longer = states.new_empty(len(states) + num_texts * number, *states.shape[1:])
    places = first[:, None] + torch.arange(number, device=offsets.device)
    longer = longer.index_copy(0, places.flatten().long(), own.repeat(num_texts, 1, 1))
    return longer.index_copy(0, (token + number * (text + 1)).long(), states)
