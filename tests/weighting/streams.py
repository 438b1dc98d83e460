"""Short-hand samples for tests, and a position-biased click log whose truth is known."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import msgspec
import numpy as np
from numpy.typing import NDArray

from weighting.provenance import Position
from weighting.sample import Attribute, CopyKind, Sample
from weighting.tasks import CLICK, PURCHASE, TaskName

SECOND = 1_000_000
DAY = 86_400 * SECOND


@dataclass(frozen=True)
class Doc:
    id: str
    text: str = ""
    attributes: dict[str, Attribute] = field(default_factory=dict)


def sample(
    label: int = 0,
    *,
    task: TaskName = CLICK,
    late: bool = False,
    query: str = "red shoes",
    item_id: str = "SKU-7",
    text: str = "Red shoe, size 9",
    attributes: dict[str, Attribute] | None = None,
    position: int | None = 1,
    at: int = 0,
    offset: int = 0,
    window: int = 900 * SECOND,
    attribution: int = 7 * DAY,
    client: int = 0,
) -> Sample:
    return Sample(
        sample_id=f"s{offset}",
        task=task,
        copy_kind=CopyKind.LATE_POSITIVE if late else CopyKind.FIRST,
        label=label,
        list_id="q1",
        list_size=10,
        client=client,
        query=query,
        item_id=item_id,
        text=text,
        attributes={"category": "shoes", "price": 49.9} if attributes is None else attributes,
        position=position,
        shown_us=at,
        event_time_us=at,
        elapsed_us=window,
        delay_us=None,
        window_us=window,
        attribution_us=attribution,
        inferred=False,
        positions=(Position("clicks", 3, offset),),
    )


def stream(n: int, seed: int = 0) -> list[Sample]:
    """N samples of both tasks, late copies among them, in event order."""
    rng = np.random.default_rng(seed)
    samples = []
    for i in range(n):
        label = int(rng.random() < 0.3)
        samples.append(
            sample(
                label,
                task=PURCHASE if rng.random() < 0.3 else CLICK,
                late=bool(label and rng.random() < 0.2),
                query=f"query {rng.integers(5)}",
                item_id=f"SKU-{rng.integers(20)}",
                position=None if rng.random() < 0.1 else int(rng.integers(1, 11)),
                at=i * 60 * SECOND,
                offset=i,
            )
        )
    return samples


def events(n: int, seed: int = 0) -> list[list[Sample]]:
    """Samples of each of N events: a shown list of 1 to 8, a click's first copy, or a late copy.

    What follows a list comes between lists, now and then twice in a row and of one list.
    """
    rng = np.random.default_rng(seed)
    emitted: list[list[Sample]] = []
    for i in range(n):
        kind, now = rng.choice(3, p=[0.6, 0.3, 0.1]), i * 60 * SECOND
        size = int(rng.integers(1, 9)) if kind == 0 else 1
        number = i if kind == 0 else max(0, i - int(rng.integers(3)))
        query = f"query {rng.integers(5)}"
        emitted.append(
            [
                msgspec.structs.replace(
                    sample(
                        int(kind == 2 or rng.random() < 0.3),
                        task=CLICK if kind == 0 or (kind == 2 and rng.random() < 0.5) else PURCHASE,
                        late=bool(kind == 2),
                        query=query,
                        item_id=f"SKU-{rng.integers(20)}",
                        position=place,
                        at=now,
                        offset=10 * i + place,
                    ),
                    list_id=f"list-{number}",
                )
                for place in range(1, size + 1)
            ]
        )
    return emitted


@dataclass
class ClickLog:
    """Lists of ten of a query's items in any order; P(click) = .55 / position * attractiveness."""

    num_queries: int = 20
    num_items: int = 40
    seed: int = 0

    def __post_init__(self) -> None:
        self.rng = np.random.default_rng(self.seed)
        self.attractiveness = self.rng.uniform(0, 1, (self.num_queries, self.num_items)) ** 2
        self.clicks = np.zeros_like(self.attractiveness)
        self.examined = np.zeros_like(self.attractiveness)

    def docs(self, query: int) -> list[Doc]:
        return [Doc(f"{query}-{i}") for i in range(self.num_items)]

    def lists(self, n: int) -> Iterator[list[Sample]]:
        for t in range(n):
            query = int(self.rng.integers(self.num_queries))
            shown = self.rng.permutation(self.num_items)[:10]
            theta = 0.55 / np.arange(1, 11)
            clicked = self.rng.random(10) < theta * self.attractiveness[query, shown]
            self.clicks[query, shown] += clicked
            self.examined[query, shown] += theta
            yield [
                sample(
                    int(y),
                    query=f"query {query}",
                    item_id=f"{query}-{i}",
                    text="",
                    attributes={},
                    position=k,
                    at=t * SECOND,
                    offset=t,
                )
                for k, (i, y) in enumerate(zip(shown, clicked, strict=True), 1)
            ]

    def counts(self) -> NDArray[np.float64]:
        """Click counts over examinations, shrunk to .3 with pseudo-count 2, per (query, item)."""
        rate: NDArray[np.float64] = (self.clicks + 0.3 * 2) / (self.examined + 2)
        return rate

    def ndcg(self, scores: NDArray[np.float64]) -> float:
        """Mean NDCG@10 of scores (queries, items), with the attractiveness as gain."""
        discount = 1 / np.log2(np.arange(2, 12))
        values = []
        for score, gain in zip(scores, self.attractiveness, strict=True):
            best = np.argsort(-score, kind="stable")[:10]
            ideal = (np.sort(gain)[::-1][:10] * discount).sum()
            values.append(float((gain[best] * discount).sum() / ideal))
        return float(np.mean(values))
