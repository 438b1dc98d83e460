"""Formula of AdamW's step over lists of tensors, by torch's kernels.

Legend: p, g, m, v, k, b1, b2 as in `adamw`; t steps of the reference size so far.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch.optim.adamw import adamw

_BETA1, _BETA2 = 0.9, 0.999
_EPSILON = 1e-8
_PIECE = 1 << 17
"""Numbers of a parameter that are moved at once on a CPU, so that its tensors stay in a cache."""

Tensors: TypeAlias = tuple[Tensor, Tensor, Tensor, Tensor]
"""p, g, m and v of a parameter."""


class Factors(NamedTuple):
    """All that the formula takes beside its tensors.

    Attributes:
        k: samples of the step over those of a reference step.
        gained1: 1 - b1^k.
        gained2: 1 - b2^k.
        apart: (1 - k) / (1 - b1^t)^2, by which m^2 counts in s.
        eps: times sqrt(1 - b2^t), as v is not corrected.
        kept: (1 - lr decay)^k.
        rate: k lr sqrt(1 - b2^t) / (1 - b1^t).
    """

    k: float
    gained1: float
    gained2: float
    apart: float
    eps: float
    kept: float
    rate: float


Move: TypeAlias = Callable[[Sequence[Tensors], Factors], None]
"""Moves parameters of one age, in place."""


def factors(k: float, t: float, *, lr: float, decay: float) -> Factors:
    """Return the factors of a step of k after which t steps were taken."""
    start1, start2 = 1 - _BETA1**t, 1 - _BETA2**t
    return Factors(
        k=k,
        gained1=1 - _BETA1**k,
        gained2=1 - _BETA2**k,
        apart=(1 - k) / start1**2,
        eps=_EPSILON * math.sqrt(start2),
        kept=(1 - lr * decay) ** k if decay else 1.0,
        rate=k * lr * math.sqrt(start2) / start1,
    )


def move(tensors: Sequence[Tensors], given: Factors) -> None:
    """Move parameters by the formula of `AdamW`.

    At k = 1 that is torch's AdamW, whose kernel for a CPU takes each number up once.
    """
    fused = [own for own in tensors if given.k == 1 and _is_fused(own)]
    if fused:
        _move_fused(fused, given)
    for together in _together([own for own in tensors if given.k != 1 or not _is_fused(own)]):
        _move(together, given)


def _is_fused(tensors: Tensors) -> bool:
    p = tensors[0]
    return p.device.type == "cpu" and p.dtype == torch.float32 and contiguous(tensors)


def _move_fused(tensors: Sequence[Tensors], given: Factors) -> None:
    p, g, m, v = _columns(tensors)
    if given.kept != 1:
        torch._foreach_mul_(p, given.kept)
    adamw(
        p,
        g,
        m,
        v,
        [],
        [torch.tensor(math.inf) for _ in p],  # the corrections are in rate and eps already
        fused=True,
        amsgrad=False,
        beta1=_BETA1,
        beta2=_BETA2,
        lr=given.rate,
        weight_decay=0.0,
        eps=given.eps,
        maximize=False,
    )


def _columns(tensors: Sequence[Tensors]) -> list[list[Tensor]]:
    return [list(column) for column in zip(*tensors, strict=True)]


def _move(tensors: Sequence[Tensors], given: Factors) -> None:
    p, g, m, v = _columns(tensors)
    torch._foreach_lerp_(m, g, given.gained1)
    s = torch._foreach_mul(g, g)
    if given.k != 1:
        squares = s
        s = torch._foreach_mul(squares, given.k)
        torch._foreach_addcmul_(s, m, m, value=given.apart)
        if given.k > 1:
            torch._foreach_maximum_(s, list(squares))
    torch._foreach_lerp_(v, s, given.gained2)
    scale = torch._foreach_sqrt(v)  # of v before its correction, so that eps is as much smaller
    torch._foreach_add_(scale, given.eps)
    if given.kept != 1:
        torch._foreach_mul_(p, given.kept)
    torch._foreach_addcdiv_(p, m, scale, value=-given.rate)


def _together(tensors: Sequence[Tensors]) -> Iterable[Sequence[Tensors]]:
    """Yield what to calculate with at once: on a device all, on a CPU what fits its cache."""
    whole = [own for own in tensors if own[0].device.type != "cpu" or not contiguous(own)]
    if whole:
        yield whole
    for own in tensors:
        if own[0].device.type == "cpu" and contiguous(own):
            pieces = (torch.split(tensor.view(-1), _PIECE) for tensor in own)
            for p, g, m, v in zip(*pieces, strict=True):
                yield [(p, g, m, v)]


def contiguous(tensors: Tensors) -> bool:
    """Return whether all tensors of a parameter lie in a row."""
    return all(tensor.is_contiguous() for tensor in tensors)
