"""A pass over one row of tokens as a function of two tensors, with no read of the device.

Legend: n texts, D width; T tokens and S texts of a pass, n <= S.

A pass may be larger than its texts (`Size`), so that texts of other lengths fit the same shapes.
Tokens that fill it up belong to texts of their own, which no vector is made of.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from learner.passes.bert_layers import hidden_states
from learner.passes.pooling import Share
from learner.passes.varlen import Bounds, Kernel


class Size(NamedTuple):
    """Number of tokens and of texts of a pass, and tokens of its longest text, at most."""

    tokens: int
    texts: int
    longest: int


class FlatPass(nn.Module):
    """One forward pass: tokens, and where they lie, to unit vectors; no read of the device."""

    def __init__(
        self,
        model: Any,
        kernel: Kernel,
        first_position: int,
        longest: int,
        share: Share | None = None,
        *,
        by_layers: bool = False,
    ) -> None:
        """Take a model that packs.

        Args:
            model: of transformers, or its upper part.
            kernel: the attention.
            first_position: position of a first token.
            longest: no text has more tokens.
            share: of a token in its text's vector.
            by_layers: as of `hidden_states`.
        """
        super().__init__()
        self.model = model
        self.longest = longest
        self._kernel = kernel
        self.first_position = first_position
        self._share = share
        self._by_layers = by_layers

    def forward(self, tokens: Tensor, places: Tensor) -> Tensor:
        """Return unit vectors (S, D); zeros where there is no text.

        Args:
            tokens: ids (T,), or hidden states (T, D).
            places: as `laid_out` returns them.
        """
        hidden = self.hidden(tokens, places, -1)
        positions, text, offsets = _split(places, len(tokens))
        lengths = offsets.diff()
        assert self._share is not None
        share = self._share(
            positions - self.first_position, lengths[text.clamp_max(len(lengths) - 1)]
        )
        own = text[None, :] == torch.arange(len(lengths), device=text.device)[:, None]
        with torch.autocast(hidden.device.type, enabled=False):
            return normalize((own * share) @ hidden, dim=-1)

    def hidden(self, tokens: Tensor, places: Tensor, layer: int) -> Tensor:
        """Return the hidden states (T, D) of a layer."""
        positions, _, offsets = _split(places, len(tokens))
        packed = Bounds(offsets.int(), self.longest, self._kernel)
        return hidden_states(
            self.model, tokens, positions, packed, layer=layer, by_layers=self._by_layers
        )


def laid_out(lengths: Sequence[int], size: Size | None, first_position: int) -> Tensor:
    """Return where the tokens of n texts lie: int64 (2 T + S + 1,), on the host.

    Positions (T,) begin anew in each text; the number of the text of each token (T,), S for those
    that fill up; the offset of each text, and T (S + 1,).

    Args:
        lengths: of the texts.
        size: of the pass, which the texts fit (`fits`); as large as they are by default.
        first_position: position of a first token.
    """
    num_tokens = sum(lengths)
    if size is None:
        size = Size(num_tokens, len(lengths), max(lengths))
    filling = _filling(size.tokens - num_tokens, size.longest)
    all_lengths = np.array([*lengths, *filling], dtype=np.int64)
    ends = all_lengths.cumsum()
    starts = ends - all_lengths
    positions = np.arange(size.tokens) - np.repeat(starts, all_lengths) + first_position
    text = np.repeat(np.arange(len(all_lengths)), all_lengths)
    text[num_tokens:] = size.texts
    offsets = np.full(size.texts + 1, size.tokens, dtype=np.int64)
    offsets[: len(starts)] = starts
    return torch.from_numpy(np.concatenate([positions, text, offsets]))


def fits(lengths: Sequence[int], size: Size) -> bool:
    """Return whether a pass of this size has room for texts of these lengths."""
    missing = size.tokens - sum(lengths)
    if missing < 0 or max(lengths) > size.longest:
        return False
    return len(lengths) + len(_filling(missing, size.longest)) <= size.texts


def _filling(num_tokens: int, longest: int) -> list[int]:
    """Return the lengths of the texts that tokens to fill up are divided into."""
    whole, rest = divmod(num_tokens, longest)
    return [longest] * whole + [rest] * (rest > 0)


def _split(places: Tensor, num_tokens: int) -> tuple[Tensor, Tensor, Tensor]:
    sizes = [num_tokens, num_tokens, len(places) - 2 * num_tokens]
    positions, text, offsets = torch.split(places, sizes)
    return positions, text, offsets
