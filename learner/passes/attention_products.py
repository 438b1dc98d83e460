"""Attention by two matrix products, with a softmax in float32 between them.

Legend: q queries of a head and t keys of it, d width of a head.
"""

from __future__ import annotations

from torch import Tensor


def by_products(
    query: Tensor, key: Tensor, value: Tensor, *, scale: float, mask: Tensor | None = None
) -> Tensor:
    """Return softmax(q k^T scale + mask) v, (..., q, d), with a gradient where one is asked for.

    In bfloat16 on a CPU torch's own kernel takes twice as long, and its backward pass four times;
    but here q t numbers of a head are in memory at once.

    Args:
        query: (..., q, d).
        key: (..., t, d).
        value: as `key`.
        scale: of the products of queries and keys.
        mask: float32, added to them; -inf hides a key.
    """
    scores = (query @ key.transpose(-1, -2)).float()
    if scale != 1:
        scores *= scale
    if mask is not None:
        scores += mask
    return scores.softmax(-1).to(value.dtype) @ value
