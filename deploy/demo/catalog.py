"""A shop from real queries and products with graded judgments, in two Parquet files."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from deploy.demo.world import Product, Query, World
from deploy.errors import DeployError
from learner.extras import needed_by

_GRADES = {100.0: 4.0, 10.0: 2.0, 1.0: 0.4, 0.0: 0.0}
_IN_STREAM = 110 / 150
_LARGEST_CLASS = 300
_SMALLEST_CLASS = 40


def load_catalog(folder: Path, *, split: int) -> World:
    """Read `judgments.parquet` and `products.parquet` of a folder.

    Args:
        folder: of the two files.
        split: seed of the queries that are asked in the stream (110 of 150), and of the fifth of
            each one's products that is never shown.

    Raises:
        DeployError: a file is missing or lacks a column, or the package that reads it is not
            installed.
    """
    path = folder / "judgments.parquet"
    judgments = _read(path, ("query", "docId", "rating"))
    known = _products(folder / "products.parquet")
    judged = _judged(judgments, known, path)
    draw = np.random.Generator(np.random.PCG64(split))
    texts = sorted(judged)
    in_stream = set(draw.permutation(len(texts))[: round(len(texts) * _IN_STREAM)].tolist())
    queries = []
    for i, text in enumerate(texts):
        pairs = sorted(judged[text])
        shown = np.ones(len(pairs), dtype=bool)
        if i in in_stream:
            shown[draw.permutation(len(pairs))[: len(pairs) // 5]] = False
        query = Query(
            text=text,
            products=tuple(known[asin] for asin, _ in pairs),
            grades=np.array([grade for _, grade in pairs]),
            shown=shown,
            in_stream=i in in_stream,
        )
        queries.append(query)
    return World(name=f"{folder.name}, split {split}", queries=tuple(queries))


def _products(path: Path) -> dict[str, Product]:
    table = _read(path, ("asin", "title", "brand", "category"))
    classes = _classes(dict(zip(table["asin"], table["category"], strict=True)))
    rows = zip(table["asin"], table["title"], table["brand"], strict=True)
    return {
        asin: Product(
            id=asin, text=title, attributes={"brand": brand or "", "category": classes[asin]}
        )
        for asin, title, brand in rows
    }


def _judged(
    table: dict[str, list[Any]], known: dict[str, Product], path: Path
) -> dict[str, list[tuple[str, float]]]:
    """Return query -> (product, grade) of all that were judged."""
    judged: dict[str, list[tuple[str, float]]] = {}
    for query, asin, rating in zip(table["query"], table["docId"], table["rating"], strict=True):
        if float(rating) not in _GRADES or asin not in known:
            ratings = ", ".join(map(str, _GRADES))
            raise DeployError(
                f"{path}: query {query!r}: got rating {rating!r} of {asin!r}, expected one of "
                f"{ratings}, and an asin of products.parquet"
            )
        judged.setdefault(query, []).append((asin, _GRADES[float(rating)]))
    return judged


def _read(path: Path, columns: tuple[str, ...]) -> dict[str, list[Any]]:
    with needed_by(f"{path}: reading Parquet", DeployError):
        import pyarrow
        import pyarrow.parquet
    try:
        read = pyarrow.parquet.read_table(path, columns=list(columns))
        table: dict[str, list[Any]] = read.to_pydict()
    except (OSError, pyarrow.ArrowInvalid) as error:
        cause = str(error).partition("\n")[0]
        raise DeployError(
            f"{path}: {cause}; expected a Parquet file with the columns {', '.join(columns)}"
        ) from error
    return table


def _classes(categories: dict[str, list[str]]) -> dict[str, str]:
    """Return one class per product, neither too large nor too small.

    Its first category, or the first two where the first holds too many; small ones are merged.
    """
    first = Counter(path[0] for path in categories.values() if path)

    def named_by(path: list[str]) -> str:
        if not path:
            return "Unknown"
        return path[0] if first[path[0]] <= _LARGEST_CLASS else " / ".join(path[:2])

    named = {asin: named_by(path) for asin, path in categories.items()}
    sizes = Counter(named.values())
    return {
        asin: name if sizes[name] >= _SMALLEST_CLASS else f"{name.split(' / ')[0]} / other"
        for asin, name in named.items()
    }
