"""A folder of items, shown lists and graded judgments, as docs/benchmark.md describes it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from benchmarks.learning_data.dataset import (
    DataError,
    Dataset,
    Item,
    JudgedQuery,
    ShownList,
    judged_query,
    made,
)
from benchmarks.learning_data.table import Column, Table, read_table
from weighting.sample import Attribute

ITEMS, LISTS, JUDGMENTS = "items.parquet", "lists.parquet", "judgments.parquet"


def read_folder(folder: Path) -> Dataset:
    """Read `items.parquet`, `lists.parquet` and `judgments.parquet` of a folder.

    Raises:
        DataError: something is missing or cannot be used.
    """
    if not folder.is_dir():
        raise DataError(
            f"{folder}: no such folder; expected one with {ITEMS}, {LISTS} and {JUDGMENTS}"
        )
    items = _items(folder / ITEMS)
    lists = _lists(folder / LISTS, items)
    judged = _judged(folder / JUDGMENTS, items)
    return made(folder.resolve().name, items, lists, judged)


def _items(path: Path) -> dict[str, Item]:
    table = read_table(path, ("item_id", "text"), others=True)
    column = Column(path, "item_id", table.pop("item_id"))
    ids = column.ids()
    texts = Column(path, "text", table.pop("text")).texts()
    named = {str(name): values for name, values in table.items()}
    items: dict[str, Item] = {}
    for row, (item_id, text) in enumerate(zip(ids, texts, strict=True)):
        if item_id in items:
            raise column.refused(row, "an earlier row has this id; keep one row per item")
        attributes = {}
        for name, values in named.items():
            value = attribute(values[row])
            if value is not None:
                attributes[name] = value
        items[item_id] = Item(id=item_id, text=text, attributes=attributes)
    return items


def attribute(value: Any) -> Attribute | None:
    """Return a value as the product knows attributes; None where there is none.

    Of lists the texts of their elements, of other types (dates, decimals, structures) their text.
    """
    match value:
        case None:
            return None
        case float():
            return value if math.isfinite(value) else None
        case bool() | int() | str():
            return value
        case list():
            return [str(element) for element in value if element is not None]
        case _:
            return str(value)


def _lists(path: Path, items: dict[str, Item]) -> list[ShownList]:
    required = ("list_id", "query", "item_id", "clicked")
    table = read_table(path, required, others=True)
    ids = Column(path, "list_id", table["list_id"]).ids()
    queries = Column(path, "query", table["query"])
    texts = queries.texts()
    shown = _known_items(path, table, items)
    clicked = Column(path, "clicked", table["clicked"]).flags()
    nothing: list[Any] = [None] * len(ids)
    positions = Column(path, "position", table.get("position", nothing)).positions()
    purchased = Column(path, "purchased", table.get("purchased", nothing)).flags_or_none()
    rows: dict[str, list[int]] = {}
    for row, list_id in enumerate(ids):
        rows.setdefault(list_id, []).append(row)
    lists = []
    for list_id, own in rows.items():
        for row in own:
            if texts[row] != texts[own[0]]:
                raise queries.refused(
                    row,
                    f"list_id {list_id} began with {texts[own[0]]!r}; give each list an id of its "
                    "own, and one query",
                )
        if all(positions[row] is not None for row in own):
            own = sorted(own, key=lambda row: positions[row] or 0)
        lists.append(
            ShownList(
                id=list_id,
                query=texts[own[0]],
                items=tuple(shown[row] for row in own),
                positions=tuple(positions[row] for row in own),
                clicked=tuple(clicked[row] for row in own),
                purchased=tuple(purchased[row] for row in own),
            )
        )
    return lists


def _judged(path: Path, items: dict[str, Item]) -> list[JudgedQuery]:
    table = read_table(path, ("query", "item_id", "grade", "part"))
    queries = Column(path, "query", table["query"]).texts()
    candidates = _known_items(path, table, items)
    column = Column(path, "grade", table["grade"])
    parts = Column(path, "part", table["part"]).texts()
    found: dict[tuple[str, str], dict[str, float]] = {}
    for row, grade in enumerate(column.grades()):
        own = found.setdefault((parts[row], queries[row]), {})
        if own.setdefault(candidates[row], grade) != grade:
            raise column.refused(
                row,
                f"query {queries[row]!r} and item {candidates[row]!r} have another grade in an "
                f"earlier row; keep one",
            )
    return [judged_query(part, query, grades) for (part, query), grades in found.items()]


def _known_items(path: Path, table: Table, items: dict[str, Item]) -> list[str]:
    column = Column(path, "item_id", table["item_id"])
    found = column.ids()
    for row, item in enumerate(found):
        if item not in items:
            raise column.refused(row, f"no such item_id in {ITEMS}; add the item or leave out rows")
    return found
