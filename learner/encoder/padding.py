"""Rows of one shape from texts of different lengths.

Legend: n texts, T tokens, D width.

Invariant: the padded length of a text depends on its own number of tokens alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

LENGTH_STEP = 8
"""Texts are padded to a multiple of this."""
MAX_ROWS = 64
"""Texts in one forward pass."""


def same_padded_length(lengths: Sequence[int]) -> Iterable[list[int]]:
    """Yield the places of texts that pad to one length, at most `MAX_ROWS` together."""
    groups: dict[int, list[int]] = {}
    for place, length in enumerate(lengths):
        groups.setdefault(padded_length(length), []).append(place)
    for _, places in sorted(groups.items()):
        for start in range(0, len(places), MAX_ROWS):
            yield places[start : start + MAX_ROWS]


def pad(rows: Sequence[Tensor], *, value: int = 0) -> tuple[Tensor, Tensor]:
    """Stack rows (T, ...) that pad to one length, with their mask.

    Returns:
        The rows (n, T, ...) and the mask (n, T) of real tokens, where the rows lie.
    """
    stacked = nn.utils.rnn.pad_sequence(list(rows), batch_first=True, padding_value=value)
    length = padded_length(stacked.shape[1])
    shape = (stacked.shape[0], length - stacked.shape[1], *stacked.shape[2:])
    padded = torch.cat([stacked, stacked.new_full(shape, value)], dim=1)
    lengths = torch.tensor([len(row) for row in rows], device=stacked.device)
    mask = torch.arange(length, device=stacked.device)[None, :] < lengths[:, None]
    return padded, mask.long()


def padded_length(length: int) -> int:
    """Return the number of tokens that a text of this length is padded to."""
    return -(-length // LENGTH_STEP) * LENGTH_STEP
