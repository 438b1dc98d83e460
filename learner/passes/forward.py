"""Forward passes of a model over texts of different lengths.

Legend: n texts of a pass, t tokens of one text, D width.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from learner.passes.pooling import Pool

Ids = NDArray[np.int64]
"""Token ids (t,) of a text."""


class Block(NamedTuple):
    """Hidden states of some texts of a pass, as many tokens of each.

    Attributes:
        hidden: (n, t, D).
        mask: (n, t), 1 for real tokens.
        lengths: number of real tokens of each text, which come first.
    """

    hidden: Tensor
    mask: Tensor
    lengths: Sequence[int]


class Passes(Protocol):
    """A way to lay texts of different lengths out in memory."""

    def divide(self, lengths: Sequence[int]) -> Iterable[list[int]]:
        """Yield the places of the texts of each pass."""

    def run(self, model: Any, rows: Sequence[Tensor], *, layer: int = -1) -> list[Block]:
        """Run a model over the texts of one pass.

        Args:
            model: of transformers, or its upper part.
            rows: token ids (t,) of each text, or hidden states (t, D) for the layers of the model.
            layer: index of the hidden states wanted; the last by default.

        Returns:
            Blocks whose texts, one after the other, are in the order of `rows`.
        """

    def vectors(self, model: Any, rows: Sequence[Tensor], pool: Pool) -> Tensor:
        """Return unit vectors (n, D) of the texts of a pass; arguments as of `run`."""


def pooled(blocks: Sequence[Block], pool: Pool) -> Tensor:
    """Return one vector (n, D) per text."""
    return torch.cat([pool(block.hidden, block.mask) for block in blocks])


def texts_of(blocks: Sequence[Block]) -> Iterable[Tensor]:
    """Yield the hidden states (t, D) of each text."""
    for block in blocks:
        for states, length in zip(block.hidden, block.lengths, strict=True):
            yield states[:length]


def hidden_of(output: Any, layer: int) -> Tensor:
    """Return the hidden states of a layer, in single precision, from what a model returned."""
    found: Tensor = output.last_hidden_state if layer == -1 else output.hidden_states[layer]
    return found.float()
