"""AdamW's step as one kernel of a GPU: each number is read once and written once.

Legend: P parameters; p, g, m, v as in `adamw`.

Torch's kernels of lists take a pass for each operation: 16 numbers of memory per parameter at k = 1
without decay, 26 at k > 1 with it, where 7 will do. Its fused AdamW knows no steps of k samples.
Parameters stay where they are: the kernel is given their addresses, and which piece of which
parameter is each program's.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
import triton
import triton.language as tl

from learner.training import adamw_formula
from learner.training.adamw_formula import Factors, Tensors, contiguous, factors
from learner.transfer import to_device

PIECE = 16_384
"""Numbers of a program; a parameter has programs of its own."""
_BLOCK = 1_024
"""Numbers that a program holds at once."""
_AT_ONCE = 4
"""Numbers that a thread reads at once, from an address that their size divides."""
_PROBES = (1, 5, 64, 20_004)
"""Sizes of parameters that the kernel is tried on."""


@triton.jit  # type: ignore[untyped-decorator]
def move(  # type: ignore[no-untyped-def]
    addresses,
    pieces,
    k,
    gained1,
    gained2,
    apart,
    eps,
    kept,
    rate,
    PIECE: tl.constexpr,
    BLOCK: tl.constexpr,
    ALIGNED: tl.constexpr,
):
    """Move one piece of one parameter.

    Args:
        addresses: int64 (P, 4) of p, g, m and v of each parameter.
        pieces: int64 (programs, 3) parameter, first number of the piece, end of the parameter.
        k: as `Factors` says; so are the six that follow.
        gained1: see there.
        gained2: see there.
        apart: see there.
        eps: see there.
        kept: see there.
        rate: see there.
        PIECE: numbers of a program.
        BLOCK: numbers that it holds at once.
        ALIGNED: whether addresses and sizes allow to read `_AT_ONCE` numbers at once.
    """
    program = tl.program_id(0).to(tl.int64)
    own = addresses + 4 * tl.load(pieces + 3 * program)
    first = tl.load(pieces + 3 * program + 1)
    end = tl.load(pieces + 3 * program + 2)
    p_at = tl.load(own).to(tl.pointer_type(tl.float32))
    g_at = tl.load(own + 1).to(tl.pointer_type(tl.float32))
    m_at = tl.load(own + 2).to(tl.pointer_type(tl.float32))
    v_at = tl.load(own + 3).to(tl.pointer_type(tl.float32))
    if ALIGNED:
        p_at = tl.multiple_of(p_at, 16)
        g_at = tl.multiple_of(g_at, 16)
        m_at = tl.multiple_of(m_at, 16)
        v_at = tl.multiple_of(v_at, 16)
        first = tl.multiple_of(first, 16)
        end = tl.multiple_of(end, 4)
    for start in range(0, PIECE, BLOCK):
        at = first + start + tl.arange(0, BLOCK)
        inside = at < end
        g = tl.load(g_at + at, mask=inside, other=0.0)
        m = tl.load(m_at + at, mask=inside, other=0.0)
        v = tl.load(v_at + at, mask=inside, other=0.0)
        p = tl.load(p_at + at, mask=inside, other=0.0)
        m += gained1 * (g - m)
        square = g * g
        s = k * square + apart * m * m
        s = tl.where(k > 1, tl.maximum(s, square), s)
        v += gained2 * (s - v)
        p = kept * p - rate * m / (tl.sqrt(v) + eps)
        tl.store(m_at + at, m, mask=inside)
        tl.store(v_at + at, v, mask=inside)
        tl.store(p_at + at, p, mask=inside)


class Fused:
    """Moves parameters of a GPU by one launch; those that do not lie in a row by torch's kernels.

    The interpreter of Triton runs the same kernel on a CPU, for tests.
    """

    def __init__(self, kernel: Any = move) -> None:
        """Take the kernel, or what runs it in another way."""
        self._kernel = kernel
        self._pieces: dict[tuple[torch.device, tuple[int, ...]], torch.Tensor] = {}

    def __call__(self, tensors: Sequence[Tensors], given: Factors) -> None:
        """Move parameters of one age; see `Move`."""
        fitting = [own for own in tensors if _fits(own)]
        others = [own for own in tensors if not _fits(own)]
        if others:
            adamw_formula.move(others, given)
        if not fitting:
            return
        device = fitting[0][0].device
        sizes = tuple(own[0].numel() for own in fitting)
        addresses = [tensor.data_ptr() for own in fitting for tensor in own]
        aligned = not any(number % (4 * _AT_ONCE) for number in addresses)
        aligned = aligned and not any(size % _AT_ONCE for size in sizes)
        (sent,) = to_device([torch.tensor(addresses, dtype=torch.int64)], device)
        pieces = self._pieces_of(sizes, device)
        with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
            self._kernel[(len(pieces),)](
                sent, pieces, *given, PIECE=PIECE, BLOCK=_BLOCK, ALIGNED=aligned
            )

    def difference(self, device: torch.device) -> float:
        """Return the largest difference from torch's kernels, as a share of a step; reads it."""
        draw, worst = torch.Generator().manual_seed(0), 0.0
        for k, t in ((0.25, 0.25), (1.0, 7.0), (3.0, 40.0)):
            given = factors(k, t, lr=0.01, decay=0.1)
            both: list[list[Tensors]] = [[], []]
            for size in _PROBES:
                p, g, m, v = torch.randn(4, size, generator=draw)
                for tensors in both:
                    copies = [own.clone().to(device) for own in (0.1 * p, g, m, v.square())]
                    tensors.append((copies[0], copies[1], copies[2], copies[3]))
            self(both[0], given)
            adamw_formula.move(both[1], given)
            for ours, theirs in zip(*both, strict=True):
                p, g, m, v = (float((a - b).abs().max()) for a, b in zip(ours, theirs, strict=True))
                worst = max(worst, p / given.rate, g, m, v)
        return worst

    def _pieces_of(self, sizes: tuple[int, ...], device: torch.device) -> torch.Tensor:
        """Return what each program works on, (programs, 3); kept for the next step."""
        if (device, sizes) not in self._pieces:
            rows = [
                (place, first, size)
                for place, size in enumerate(sizes)
                for first in range(0, size, PIECE)
            ]
            table = torch.from_numpy(np.array(rows, dtype=np.int64))
            (self._pieces[device, sizes],) = to_device([table], device)
        return self._pieces[device, sizes]


def _fits(tensors: Tensors) -> bool:
    return contiguous(tensors) and all(tensor.dtype == torch.float32 for tensor in tensors)
