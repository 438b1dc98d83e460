"""Passes of a GPU: texts as one row of tokens, one kernel for the attention of all, few launches.

Legend: n texts and T tokens of a pass, D width.

A small pass is bound by the host, which launches some hundred kernels for it. So it is captured for
each of a few sizes, as one CUDA graph for each direction (`Captures`).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from learner.passes.captures import LONGEST, Captures
from learner.passes.device import device_of, moved
from learner.passes.flat import FlatPass, Size, laid_out
from learner.passes.forward import Block, Ids, Passes, pooled, texts_of
from learner.passes.packing import Packed, agree, gathered, probes
from learner.passes.pooling import SHARES, Pool, Share
from learner.passes.varlen import Kernel, kernel_for

log = logging.getLogger("steelyard.learner")

MAX_TOKENS = 16_384
"""Tokens of a pass, unless one text has more."""
_TOLERANCE = 5e-2
"""Of the largest state: bfloat16 has 8 bits."""
_SPECIAL_POSITIONS = 2
"""Of RoBERTa, before that of a first token."""


def fastest(passes: Passes, model: Any, *, with_captures: bool = True) -> Passes:
    """Return flat passes where the device and the model allow them, else what is given.

    Call under the autocast of the passes to come. Flat passes have no dropout.

    Args:
        passes: any.
        model: on its device.
        with_captures: false where the forward pass is run again in the backward pass.
    """
    kernel = kernel_for(device_of(model))
    if kernel is None or not isinstance(passes, Packed):
        return passes
    ids = probes(model)
    with torch.no_grad():
        try:
            found = list(texts_of(Flat(model, kernel).run(model, ids)))
        except RuntimeError as error:  # of the kernel, such as for a width that it has not
            log.warning("no fused attention of texts", extra={"error": str(error)})
            return passes
        expected = list(texts_of(passes.run(model, ids)))
    if not all(agree(a, b, _TOLERANCE) for a, b in zip(expected, found, strict=True)):
        log.warning("no fused attention of texts: it gave other states")
        return passes
    positions = getattr(model.config, "max_position_embeddings", None)
    room = positions is None or positions >= LONGEST + _SPECIAL_POSITIONS
    return Flat(model, kernel, Captures() if with_captures and room else None)


class Flat(Packed):
    """Passes over texts of any lengths in half precision, of at most `MAX_TOKENS` tokens.

    A vector is, up to rounding, that of the text alone.

    Attributes:
        captures: of small passes, None for none.
    """

    max_tokens = MAX_TOKENS

    def __init__(self, model: Any, kernel: Kernel, captures: Captures | None = None) -> None:
        """Take a model that packs, the attention of a device, and captures, if it has any."""
        super().__init__(model)
        self._kernel = kernel
        self.captures = captures

    def run(self, model: Any, rows: Sequence[Tensor], *, layer: int = -1) -> list[Block]:
        """Run a model over texts of any lengths; see `Passes`."""
        lengths = [len(row) for row in rows]
        flat = self._pass(model, max(lengths))
        return gathered(flat.hidden(*self._inputs(model, rows), layer), lengths)

    def vectors(self, model: Any, rows: Sequence[Tensor], pool: Pool) -> Tensor:
        """Return unit vectors (n, D) of the texts of a pass; see `Passes`."""
        share = SHARES.get(pool)
        if share is None:
            return pooled(self.run(model, rows), pool)
        lengths = [len(row) for row in rows]
        size = None
        if self.captures is not None and self.captures.allowed(model):
            size = self.captures.size_of(lengths)
        longest = max(lengths) if size is None else size.longest
        flat = self._pass(model, longest, share)
        inputs = self._inputs(model, rows, size)
        if self.captures is not None and size is not None:
            return self.captures.run(flat, size, inputs)[: len(rows)]
        found: Tensor = flat(*inputs)
        return found

    def examples(self) -> list[list[Ids]]:
        """Return texts that fill each size of the captures exactly; none without captures."""
        sizes = self.captures.sizes if self.captures is not None else ()
        found = []
        for size in sizes:
            whole, rest = divmod(size.tokens, size.longest)
            lengths = [size.longest] * whole + [rest] * (rest > 0)
            found.append([np.zeros(length, dtype=np.int64) for length in lengths])
        return found

    def _pass(self, model: Any, longest: int, share: Share | None = None) -> FlatPass:
        kernel, first = self._kernel, self._first_position
        return FlatPass(model, kernel, first, longest, share, by_layers=self.by_layers)

    def _inputs(
        self, model: Any, rows: Sequence[Tensor], size: Size | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return a pass's tokens (T, ...) and where they lie, on the device of the model."""
        device = next(model.parameters()).device
        lengths = [len(row) for row in rows]
        places = moved(laid_out(lengths, size, self._first_position), device)
        tokens = torch.cat(list(rows))
        if size is not None and (missing := size.tokens - len(tokens)):
            tokens = torch.cat([tokens, tokens.new_zeros(missing, *tokens.shape[1:])])
        return moved(tokens, device), places
