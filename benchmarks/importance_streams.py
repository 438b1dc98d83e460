"""Invented streams of shown lists, one for each thing that a sample weight might help with.

300 queries, met as often as Zipf's law has it, and 200 items have random unit vectors u and v of 16
numbers, which stand for those of an encoder before any training. What they are worth to each other
is sigma(level + 2.5 z), where z is u' diag(a) v over its deviation and the a are drawn from
Normal(1, 1): the cosine is a lead, and the rest must be learned. A list shows ten items in the
order of the cosine with noise (1.0 Gumbel on a cosine of deviation 1); place k is examined with
1/k, and an item that was examined is clicked with its worth. All figures that come from the
simulation say so. Judged are 100 queries that were never shown, over all items, by their worth.

    clean       level -1.5
    accidents   as clean; besides, an examined item is clicked by accident with 15 %
    bots        as clean; besides, a fifth of the lists are a bot's, which clicks three at random
    imbalance   level -4.5
    drift       as clean; half-way a is drawn anew
    few         as clean; a fifth of the lists
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from weighting.sample import CopyKind, Sample
from weighting.tasks import CLICK

Array = NDArray[np.float64]
NUM_QUERIES, NUM_ITEMS, WIDTH, NUM_SHOWN, NUM_JUDGED = 300, 200, 16, 10, 100
_STEEPNESS = 2.5
_SECONDS_BETWEEN = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """One kind of stream."""

    level: float = -1.5
    accidents: float = 0.0
    bots: float = 0.0
    drift: bool = False
    share_of_lists: float = 1.0


KINDS = {
    "clean": Kind(),
    "accidents": Kind(accidents=0.15),
    "bots": Kind(bots=0.2),
    "imbalance": Kind(level=-4.5),
    "drift": Kind(drift=True),
    "few": Kind(share_of_lists=0.2),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """One list: its samples, and the products (10, D) of their vectors, element by element."""

    samples: list[Sample]
    products: Array


class Stream:
    """Shown lists of one kind and seed, and queries to judge.

    Attributes:
        products: (100, 200, D) of the judged queries with all items.
    """

    def __init__(self, kind: Kind, *, num_lists: int, seed: int) -> None:
        """Draw what does not depend on the lists."""
        self._kind = kind
        self._num_lists = max(1, round(num_lists * kind.share_of_lists))
        self._draw = draw = np.random.Generator(np.random.PCG64(seed))
        vectors = draw.normal(size=(NUM_QUERIES + NUM_JUDGED + NUM_ITEMS, WIDTH))
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        self._queries, judged, self._items = np.split(
            vectors, [NUM_QUERIES, NUM_QUERIES + NUM_JUDGED]
        )
        self.products: Array = judged[:, None] * self._items
        self._popularity = 1 / np.arange(1, NUM_QUERIES + 1)
        self._popularity /= self._popularity.sum()
        self._metric = draw.normal(1, 1, WIDTH)

    def worth(self, products: Array) -> Array:
        """Probability (...,) of a click where it is examined, now, from products (..., D)."""
        deviation = np.linalg.norm(self._metric) / WIDTH
        worth: Array = expit(self._kind.level + _STEEPNESS * (products @ self._metric) / deviation)
        return worth

    def lists(self) -> Iterator[Shown]:
        """Yield the lists in stream order."""
        for number in range(self._num_lists):
            if self._kind.drift and number == self._num_lists // 2:
                self._metric = self._draw.normal(1, 1, WIDTH)
            yield self._list(number)

    def _list(self, number: int) -> Shown:
        draw, kind = self._draw, self._kind
        query = int(draw.choice(NUM_QUERIES, p=self._popularity))
        products = self._queries[query] * self._items
        lead = products.sum(axis=1) * np.sqrt(WIDTH) + draw.gumbel(size=NUM_ITEMS)
        shown = np.argsort(-lead, kind="stable")[:NUM_SHOWN]
        examined = draw.random(NUM_SHOWN) < 1 / np.arange(1, NUM_SHOWN + 1)
        clicked = examined & (draw.random(NUM_SHOWN) < self.worth(products[shown]))
        clicked |= examined & (draw.random(NUM_SHOWN) < kind.accidents)
        if draw.random() < kind.bots:
            clicked = draw.permutation(NUM_SHOWN) < 3
        pairs = zip(shown.tolist(), clicked.tolist(), strict=True)
        samples = [
            _sample(number, place, query, item, click) for place, (item, click) in enumerate(pairs)
        ]
        return Shown(samples=samples, products=products[shown])


def _sample(number: int, place: int, query: int, item: int, clicked: bool) -> Sample:
    time_us = number * _SECONDS_BETWEEN * 1_000_000
    return Sample(
        sample_id=f"{number}/{place}",
        task=CLICK,
        copy_kind=CopyKind.FIRST,
        label=int(clicked),
        list_id=str(number),
        list_size=NUM_SHOWN,
        query=f"query {query}",
        item_id=f"item {item}",
        text=f"item {item}",
        attributes={},
        position=place + 1,
        shown_us=time_us,
        event_time_us=time_us,
        elapsed_us=0,
        delay_us=None,
        window_us=0,
        attribution_us=0,
        inferred=False,
        positions=(),
        client=0,
    )
