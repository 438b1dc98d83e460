"""Small invented folders for the learning benchmark."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

Table = dict[str, list[Any]]

WORDS = ("red", "blue", "oak", "steel", "small", "large")


def write(path: Path, table: Table) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.table(table), path)


def tables(num_lists: int = 40) -> dict[str, Table]:
    """Six items, lists of three whose second item is clicked, two judged queries."""
    items: Table = {
        "item_id": [f"i{n}" for n in range(6)],
        "text": [f"{word} lamp" for word in WORDS],
        "price": [1.5, None, 3.0, 4.0, 5.0, 6.0],
        "tags": [["a", "b"], [], None, ["c"], ["d"], ["e"]],
    }
    lists: Table = {name: [] for name in ("list_id", "query", "item_id", "position", "clicked")}
    lists["purchased"] = []
    for number in range(num_lists):
        for place in range(3):
            lists["list_id"].append(number)
            lists["query"].append(f"{WORDS[number % 4]} light")
            lists["item_id"].append(f"i{(number + place) % 6}")
            lists["position"].append(place + 1)
            lists["clicked"].append(int(place == 1))
            lists["purchased"].append(number % 2 if place == 1 else None)
    judged: Table = {
        "query": ["small light"] * 3 + ["red light"] * 3,
        "item_id": ["i4", "i5", "i0", "i0", "i1", "i2"],
        "grade": [2, 0, 1, 1, 0, 0],
        "part": ["unseen_queries"] * 3 + ["stream"] * 3,
    }
    return {"items": items, "lists": lists, "judgments": judged}


def folder(path: Path, changed: Mapping[str, Table] | None = None) -> Path:
    """Write the three files; tables that are given replace those of `tables`."""
    for name, table in {**tables(), **(changed or {})}.items():
        write(path / f"{name}.parquet", table)
    return path
