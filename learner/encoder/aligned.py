"""Attention of packed texts on a CPU, in few calls: their lengths are rounded up.

Texts of nearly equal length share a call. To which length a text is rounded depends on it alone,
and so do the bits of its states.

Legend: n texts of a call and t tokens of each, T tokens of all, H heads, d width of a head.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from itertools import groupby
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from learner.encoder.packing import Layout

_STEP = 16
_SCORES_AT_ONCE = 1 << 19
"""More would be fresh memory from the system each time, which takes longer than the products."""
_KEPT = 8


class Call(NamedTuple):
    """Texts whose attention is taken at once.

    Attributes:
        shape: n H and t.
        rows: int64 (3 n H t,), rows of queries, keys and values in (T 3 H, d).
        mask: float32 (n H, 1, t), -inf where a text has no such token; None: all are full.
    """

    shape: tuple[int, int]
    rows: Tensor
    mask: Tensor | None


class Calls(NamedTuple):
    """Attention of a pass.

    Attributes:
        calls: one after the other.
        back: int64 (T H,), row of each token's head in what the calls return.
    """

    calls: tuple[Call, ...]
    back: Tensor


def attend(projected: Tensor, layout: Layout, heads: int, *, first: bool = False) -> Tensor:
    """Return the attention (T, H d) of each text to itself, or (n, H d) of its first token.

    Args:
        projected: (T, 3 H d) in bfloat16: queries, already scaled, keys and values.
        layout: where the texts lie.
        heads: H.
        first: whether nothing else is asked for.
    """
    num_tokens = len(projected)
    width = projected.shape[1] // (3 * heads)
    rows, found = projected.view(-1, width), []
    calls, back = _calls(tuple(run.length for run in layout.runs for _ in range(run.number)), heads)
    for (number, length), own, mask in calls:
        query, key, value = rows.index_select(0, own).view(3, number, length, width).unbind()
        query = query[:, :1] if first else query
        scores = (query @ key.transpose(1, 2)).float()
        if mask is not None:
            scores += mask
        found.append((scores.softmax(-1).to(value.dtype) @ value).view(-1, width))
    together = torch.cat(found)
    if first:  # texts are in order already
        return together.view(layout.num_texts, -1)
    return together.index_select(0, back).view(num_tokens, -1)


@lru_cache(maxsize=_KEPT)
def _calls(lengths: tuple[int, ...], heads: int) -> Calls:
    """Plan the attention of texts of these lengths; all layers of a pass have the same."""
    starts = np.cumsum((0, *lengths))
    back = np.empty((int(starts[-1]), heads), dtype=np.int64)
    head = np.arange(heads)
    calls, num_rows = [], 0
    for texts, length in _parts(lengths, heads):
        own = np.array(lengths)[texts]
        place = np.arange(length)
        real = place < own[:, None]
        first = starts[texts][:, None]
        token = np.where(real, first + place, first)
        part = np.arange(3)[:, None, None, None]
        rows = (token[:, None, :] * 3 + part) * heads + head[:, None]
        mask = None
        if not real.all():
            mask = torch.from_numpy(np.where(real, 0, -np.inf).astype(np.float32))
            mask = mask.repeat_interleave(heads, dim=0)[:, None]
        number = len(texts) * heads
        calls.append(Call((number, length), torch.from_numpy(rows.ravel()), mask))
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
