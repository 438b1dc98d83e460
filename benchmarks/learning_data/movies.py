"""Movie search: real queries, and real people who marked hits shown in random order.

The Movie Search Ranking Dataset: a marked hit is a click, its position is null. Folds 0 to 7 are
the stream, in an order drawn from the seed; fold 9 is judged as `unseen_queries`, or fold 8 where
settings are chosen. The text of a movie is its title. Pairs whose movie has no text are left out.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.learning_data.dataset import (
    UNSEEN_QUERIES,
    Dataset,
    Item,
    ShownList,
    judged_query,
    made,
)
from benchmarks.learning_data.folder import attribute
from benchmarks.learning_data.table import read_table

_TEXTUAL = ("genres", "tags", "director", "actors", "characters")
_ATTRIBUTES = (*_TEXTUAL, "year", "votes", "rating", "popularity")
_NUM_STREAM_FOLDS, _CHOOSING_FOLD, _REPORTED_FOLD = 8, 8, 9


def load_movies(folder: Path, *, seed: int, choosing: bool) -> Dataset:
    """Read `movies.parquet` and `judgments.parquet`.

    Raises:
        DataError: a file or a column is missing.
    """
    movies = read_table(folder / "movies.parquet", ("id", "title", *_ATTRIBUTES))
    items = {item.id: item for item in map(_item, _rows(movies))}
    required = ("query_id", "query", "fold", "doc_id", "grade")
    table = read_table(folder / "judgments.parquet", required)
    by_query: dict[tuple[int, str, str], dict[str, float]] = {}
    num_dropped = 0
    for row in _rows(table):
        if row["doc_id"] not in items:
            num_dropped += 1
            continue
        key = (row["fold"], row["query_id"], row["query"])
        by_query.setdefault(key, {})[row["doc_id"]] = float(row["grade"])
    lists = [
        ShownList(
            id=query_id,
            query=query,
            items=tuple(grades),
            positions=(None,) * len(grades),
            clicked=tuple(grade > 0 for grade in grades.values()),
            purchased=(None,) * len(grades),
        )
        for (fold, query_id, query), grades in by_query.items()
        if fold < _NUM_STREAM_FOLDS
    ]
    order = np.random.Generator(np.random.PCG64(seed)).permutation(len(lists))
    part = _CHOOSING_FOLD if choosing else _REPORTED_FOLD
    judged = [
        judged_query(UNSEEN_QUERIES, query, grades)
        for (fold, _, query), grades in by_query.items()
        if fold == part
    ]
    notes = (f"{num_dropped} pairs of movies without text: left out",)
    return made("msrd_movie_search", items, [lists[i] for i in order], judged, notes)


def _rows(table: dict[str, list[Any]]) -> list[dict[str, Any]]:
    return [dict(zip(table, values, strict=True)) for values in zip(*table.values(), strict=True)]


def _item(row: dict[str, Any]) -> Item:
    attributes = {name: attribute(row[name]) for name in _ATTRIBUTES}
    return Item(
        id=row["id"],
        text=row["title"] or "",
        attributes={name: value for name, value in attributes.items() if value is not None},
    )
