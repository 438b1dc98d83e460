"""Attention of packed texts in bfloat16 on a CPU, in few calls: their lengths are rounded up.

Texts of nearly equal length share a call. To which length a text is rounded depends on it alone,
and so do the bits of its states.

Legend: n texts of a call and t tokens of each, T tokens of all, H heads, d width of a head.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache, partial
from itertools import groupby
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention

from learner.passes.attention_products import by_products
from learner.passes.key_value_prefixes import KeyValuePrefix

_STEP = 16
_LONGEST_BY_PRODUCTS = 256
"""Tokens of a text; torch's kernel is the faster one beyond, and keeps no t^2 scores."""
_LONGEST_THAT_LEARNS = 128
"""The same where gradients are asked for, which keep all scores until the backward pass."""
_SCORES_AT_ONCE = 1 << 19
"""More would be fresh memory from the system each time, which takes longer than the products."""
_KEPT = 8


class Call(NamedTuple):
    """Texts whose attention is taken at once.

    Attributes:
        shape: n H and t.
        rows: int64 (n H t,), rows of their tokens.
        first: the first of n H rows, in those of all first tokens.
        mask: float32 (n H, 1, t), -inf where a text has no such token; None: all are full.
    """

    shape: tuple[int, int]
    rows: Tensor
    first: int
    mask: Tensor | None


class Calls(NamedTuple):
    """Attention of a pass.

    Attributes:
        calls: one after the other.
        back: int64 (T H,), row of each token's head in what the calls return.
    """

    calls: tuple[Call, ...]
    back: Tensor


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    lengths: tuple[int, ...],
    *,
    scale: float = 1.0,
    first: bool = False,
    prefix: KeyValuePrefix | None = None,
) -> Tensor:
    """Return the attention (T, H, d) of each text to itself, or (n, H, d) of its first token.

    It carries a gradient where one is asked for.

    Args:
        query: (T, H, d) in bfloat16, or (n, H, d) of first tokens.
        key: (T, H, d).
        value: (T, H, d).
        lengths: of the n texts; neighbours of nearly equal length share a call.
        scale: of the products.
        first: whether the queries are those of first tokens.
        prefix: what each text sees before its own tokens.
    """
    _, heads, width = key.shape
    if first:
        key, value = _alike(key, value)
    else:
        query, key, value = _alike(query, key, value)
    longest = _LONGEST_THAT_LEARNS if torch.is_grad_enabled() else _LONGEST_BY_PRODUCTS
    calls, back = _calls(lengths, heads, key.stride(0) // width)
    keys, values = _rows(key), _rows(value)
    queries = query.reshape(-1, 1, width) if first else _rows(query)
    found = []
    for (number, length), own, start, mask in calls:
        shape = number, length, width
        k, v = (rows.index_select(0, own).view(shape) for rows in (keys, values))
        if first:
            q = queries[start : start + number]
        else:
            q = queries.index_select(0, own).view(shape)
        if prefix is not None:
            k, v = (_after(*both) for both in ((prefix.keys, k), (prefix.values, v)))
            mask = None if mask is None else pad(mask, (prefix.keys.shape[1], 0))
        by = by_products if first or length <= longest else partial(_fused, heads)
        found.append(by(q, k, v, scale=scale, mask=mask).view(-1, width))
    together = torch.cat(found)
    if not first:  # else texts are in order already
        together = together.index_select(0, back)
    return together.view(-1, heads, width)


def _after(prefix: Tensor, states: Tensor) -> Tensor:
    """Return a prefix (H, N, d) and states (n H, t, d) behind it, for each text and head."""
    own = prefix.to(states.dtype).repeat(len(states) // len(prefix), 1, 1)
    return torch.cat([own, states], dim=1)


def _fused(
    heads: int, q: Tensor, k: Tensor, v: Tensor, *, scale: float, mask: Tensor | None
) -> Tensor:
    """Return what `by_products` does, without all t^2 scores of a head in memory."""
    given = None if mask is None else mask.view(-1, heads, 1, k.shape[1]).to(v.dtype)
    q, k, v = (states.view(-1, heads, *states.shape[1:]) for states in (q, k, v))
    return scaled_dot_product_attention(q, k, v, attn_mask=given, scale=scale)


def _alike(*states: Tensor) -> tuple[Tensor, ...]:
    """Return states (T, H, d), each token's heads side by side, with the same strides."""
    one = states[0]
    width = one.shape[-1]
    beside = one.stride()[1:] == (width, 1) and one.stride(0) % width == 0
    if beside and all(own.stride() == one.stride() for own in states):
        return states
    return tuple(own.contiguous() for own in states)


def _rows(states: Tensor) -> Tensor:
    """Return a view of states (T, H, d) by rows (R, d), with what lies between tokens."""
    tokens, heads, width = states.shape
    if states.is_contiguous():
        return states.view(-1, width)
    number = (tokens - 1) * (states.stride(0) // width) + heads
    return states.as_strided((number, width), (width, 1))


@lru_cache(maxsize=_KEPT)
def _calls(lengths: tuple[int, ...], heads: int, apart: int) -> Calls:
    """Plan the attention of texts whose tokens lie so many rows apart; it is that of all layers."""
    starts = np.cumsum((0, *lengths))
    back = np.empty((int(starts[-1]), heads), dtype=np.int64)
    head = np.arange(heads)
    calls, num_rows = [], 0
    for texts, length in _parts(lengths, heads):
        own = np.array(lengths)[texts]
        place = np.arange(length)
        real = place < own[:, None]
        start = starts[texts][:, None]
        token = np.where(real, start + place, start)
        rows = token[:, None, :] * apart + head[:, None]
        mask = None
        if not real.all():
            mask = torch.from_numpy(np.where(real, 0, -np.inf).astype(np.float32))
            mask = mask.repeat_interleave(heads, dim=0)[:, None]
        number = len(texts) * heads
        shape, first = (number, length), texts[0] * heads
        calls.append(Call(shape, torch.from_numpy(rows.ravel()), first, mask))
        text, at = np.nonzero(real)
        back[token[real]] = num_rows + (text[:, None] * heads + head) * length + at[:, None]
        num_rows += number * length
    return Calls(tuple(calls), torch.from_numpy(back.ravel()))


def _parts(lengths: tuple[int, ...], heads: int) -> Iterator[tuple[list[int], int]]:
    """Yield places of texts for one call, and the length that theirs are rounded up to."""
    for length, same in groupby(range(len(lengths)), lambda text: -(-lengths[text] // _STEP)):
        texts, rounded = list(same), length * _STEP
        few = max(1, _SCORES_AT_ONCE // (heads * rounded**2))
        for start in range(0, len(texts), few):
            yield texts[start : start + few], rounded
