"""Rows of one shape from texts of different lengths.

Legend: n texts, T tokens, D width.

Invariant: the padded length of a text depends on its own number of tokens alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from learner.passes.device import moved
from learner.passes.forward import Block, hidden_of, pooled
from learner.passes.lower_layers import LowerLayers
from learner.passes.pooling import Pool

LENGTH_STEP = 8
"""Texts are padded to a multiple of this."""
MAX_ROWS = 64
"""Texts in one forward pass."""


class Padded:
    """Passes over texts that pad to one length; any model allows them."""

    def __init__(self, *, step: int = LENGTH_STEP) -> None:
        """Pad texts to a multiple of `step`."""
        self._step = step
        self._lower = LowerLayers()

    def divide(self, lengths: Sequence[int]) -> Iterable[list[int]]:
        """Yield the places of texts that pad to one length, at most `MAX_ROWS` together."""
        groups: dict[int, list[int]] = {}
        for place, length in enumerate(lengths):
            groups.setdefault(padded_length(length, self._step), []).append(place)
        for _, places in sorted(groups.items()):
            for start in range(0, len(places), MAX_ROWS):
                yield places[start : start + MAX_ROWS]

    def run(self, model: Any, rows: Sequence[Tensor], *, layer: int = -1) -> list[Block]:
        """Run a model over texts that pad to one length; see `Passes`."""
        device = next(model.parameters()).device
        from_states = rows[0].is_floating_point()
        padding = 0 if from_states else int(model.config.pad_token_id or 0)
        padded, mask = pad(rows, value=padding, step=self._step)
        padded, mask = moved(padded, device), moved(mask, device)
        given = arguments(model, padded, mask, from_states=from_states)

        def run(model: Any, layer: int) -> Tensor:
            return hidden_of(model(**given, output_hidden_states=layer != -1), layer)

        hidden = self._lower.states(model, layer, run)
        return [Block(hidden, mask, [len(row) for row in rows])]

    def vectors(self, model: Any, rows: Sequence[Tensor], pool: Pool) -> Tensor:
        """Return unit vectors (n, D) of the texts of a pass; see `Passes`."""
        return pooled(self.run(model, rows), pool)


def arguments(model: Any, padded: Tensor, mask: Tensor, *, from_states: bool) -> dict[str, Tensor]:
    """Return what a model is given: rows (n, T, ...) of ids or of hidden states, and their mask."""
    if from_states:
        return {"inputs_embeds": padded, "attention_mask": _of_layers(model, mask)}
    return {"input_ids": padded, "attention_mask": mask}


def _of_layers(model: Any, mask: Tensor) -> Tensor:
    """Return a mask (n, T) as the layers take it."""
    if getattr(model, "makes_masks", False):
        return mask
    fused = getattr(model.config, "_attn_implementation", None) == "sdpa"
    if fused and not getattr(model.config, "is_decoder", False):
        return mask[:, None, None, :].bool()  # given a mask of positions, it would read its values
    return mask


def pad(
    rows: Sequence[Tensor], *, value: int = 0, step: int = LENGTH_STEP
) -> tuple[Tensor, Tensor]:
    """Stack rows (T, ...) that pad to one length, with their mask.

    Returns:
        The rows (n, T, ...) and the mask (n, T) of real tokens, where the rows lie.
    """
    stacked = nn.utils.rnn.pad_sequence(list(rows), batch_first=True, padding_value=value)
    length = padded_length(stacked.shape[1], step)
    shape = (stacked.shape[0], length - stacked.shape[1], *stacked.shape[2:])
    padded = torch.cat([stacked, stacked.new_full(shape, value)], dim=1)
    lengths = torch.tensor([len(row) for row in rows])
    mask = torch.arange(length)[None, :] < lengths[:, None]
    return padded, moved(mask.long(), stacked.device)


def padded_length(length: int, step: int = LENGTH_STEP) -> int:
    """Return the number of tokens that a text of this length is padded to."""
    return -(-length // step) * step
