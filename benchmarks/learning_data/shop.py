"""The demo's simulated shop as a data set: an ESCI slice, or the invented catalogue.

Shoppers, their clicks and purchases are those of `deploy.demo.world`, with its one noise. Parts:
`stream`, queries that are asked, over all their products; `unseen_products`, the same queries over
the products that are never shown; `unseen_queries`, queries that nobody asks.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.learning_data.dataset import (
    UNSEEN_QUERIES,
    DataError,
    Dataset,
    Item,
    JudgedQuery,
    ShownList,
    judged_query,
    made,
)
from deploy.demo.catalog import load_catalog
from deploy.demo.shop import invented_shop
from deploy.demo.world import Query, Shoppers, Visit, World
from deploy.errors import DeployError

_CHOOSING = 100
"""Added to the split that settings are chosen on."""


def load_shop(
    folder: Path | None, *, name: str, seed: int, num_lists: int, choosing: bool
) -> Dataset:
    """Simulate visits to a shop.

    Args:
        folder: of an ESCI slice; None for the invented catalogue.
        name: of the data set.
        seed: of the split into parts, and of the visits.
        num_lists: visits.
        choosing: take a split and visits that no reported seed has.

    Raises:
        DataError: a file or a column is missing.
    """
    split = seed + _CHOOSING * choosing
    try:
        world = load_catalog(folder, split=split) if folder else invented_shop(seed=split)
    except DeployError as error:
        raise DataError(str(error)) from error
    shoppers = Shoppers(world, seed=split)
    lists = [_list(shoppers.visit(), number) for number in range(num_lists)]
    items = {
        product.id: Item(id=product.id, text=product.text, attributes=dict(product.attributes))
        for product in world.products()
    }
    notes = (f"visits are simulated by the demo's shoppers, split {split}",)
    return made(name, items, lists, list(_judged(world)), notes)


def _list(visit: Visit, number: int) -> ShownList:
    return ShownList(
        id=str(number),
        query=visit.query.text,
        items=tuple(visit.query.products[i].id for i in visit.shown),
        positions=tuple(range(1, len(visit.shown) + 1)),
        clicked=tuple(visit.clicked.tolist()),
        purchased=tuple(
            bool(bought) if click else None
            for click, bought in zip(visit.clicked, visit.bought, strict=True)
        ),
    )


def _judged(world: World) -> Iterator[JudgedQuery]:
    for query in world.queries:
        everything = np.arange(len(query.products))
        if not query.in_stream:
            yield _over(query, everything, UNSEEN_QUERIES)
            continue
        yield _over(query, everything, "stream")
        hidden = np.flatnonzero(~query.shown)
        if len(hidden):
            yield _over(query, hidden, "unseen_products")


def _over(query: Query, places: NDArray[np.int64], part: str) -> JudgedQuery:
    grades = {query.products[i].id: float(query.grades[i]) for i in places}
    return judged_query(part, query.text, grades)
