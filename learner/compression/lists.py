"""Lists of texts under a query, and what an encoder makes of them.

Legend: L lists, N rows of all lists, n distinct texts, D width.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from learner.encoder.encoder import Encoder
from learner.encoder.tokens import Texts

_TEXTS_AT_ONCE = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelledList:
    """Items under one query.

    Attributes:
        query: its text.
        texts: of the items.
        labels: 1 for the right ones, else 0.
    """

    query: str
    texts: Sequence[str]
    labels: Sequence[int]

    @property
    def compares(self) -> bool:
        """Whether some items are right and others are not."""
        return len(set(self.labels)) > 1


class Columns(NamedTuple):
    """Rows of L lists.

    Attributes:
        texts: n distinct ones.
        query: (N,) place of each row's query among the texts.
        item: (N,) likewise of its item.
        list_id: (N,) number of its list, from 0.
        label: (N,) 0 or 1.
        num_lists: L.
    """

    texts: list[str]
    query: Tensor
    item: Tensor
    list_id: Tensor
    label: Tensor
    num_lists: int


def columns_of(lists: Sequence[LabelledList]) -> Columns:
    """Return the rows of lists, each distinct text once."""
    rows = [
        (own.query, text, number, label)
        for number, own in enumerate(lists)
        for text, label in zip(own.texts, own.labels, strict=True)
    ]
    texts = list(dict.fromkeys(text for query, item, _, _ in rows for text in (query, item)))
    place = {text: number for number, text in enumerate(texts)}
    return Columns(
        texts=texts,
        query=torch.tensor([place[query] for query, _, _, _ in rows]),
        item=torch.tensor([place[item] for _, item, _, _ in rows]),
        list_id=torch.tensor([number for _, _, number, _ in rows]),
        label=torch.tensor([float(label) for _, _, _, label in rows]),
        num_lists=len(lists),
    )


def cosines(vectors: Tensor, columns: Columns) -> Tensor:
    """Return the cosine (N,) of each row's query and item, from the texts' unit vectors (n, D)."""
    return (vectors.index_select(0, columns.query) * vectors.index_select(0, columns.item)).sum(-1)


def log_shares(logit: Tensor, columns: Columns) -> Tensor:
    """Return log softmax (N,) of logits (N,), each over the rows of its list."""
    of = columns.list_id
    lowest = logit.new_full((columns.num_lists,), -torch.inf)
    shifted = logit - lowest.scatter_reduce(0, of, logit.detach(), "amax")[of]
    total = shifted.new_zeros(columns.num_lists).index_add(0, of, shifted.exp())
    return shifted - total.log()[of]


@torch.no_grad()
def encoded(encoder: Encoder, tokens: Texts, texts: Iterable[str]) -> Tensor:
    """Return unit vectors (n, D) of texts, without a gradient."""
    ids = [tokens.ids(text) for text in texts]
    starts = range(0, len(ids), _TEXTS_AT_ONCE)
    return torch.cat([encoder(ids[start : start + _TEXTS_AT_ONCE]) for start in starts])
