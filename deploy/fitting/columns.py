"""Columns of a file of examples: found by usual names, or named by `--column NAME=COLUMN`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from deploy.errors import TableRefused

PAIRS, LISTS = "pairs", "lists"
ATTRIBUTE_PREFIX = "attributes."

_NAMES: Mapping[str, tuple[str, ...]] = {
    "query": ("query", "user_query", "search_term", "search_query"),
    "text": ("text", "title", "document", "product_title", "item_text"),
    "label": ("label", "relevance"),
    "weight": ("weight",),
    "item_id": ("item_id", "object_id", "product_id", "sku"),
    "list_id": ("list_id", "query_id", "search_id"),
    "client_id": ("client_id",),
    "position": ("position", "rank"),
    "clicked": ("clicked", "click"),
    "purchased": ("purchased", "purchase"),
    "time": ("time", "timestamp"),
}
"""Name -> columns that are taken for it, the first that is there."""

_REQUIRED = {
    PAIRS: ("query", "text", "label"),
    LISTS: ("list_id", "query", "text", "clicked"),
}
_TAKEN = {
    PAIRS: ("query", "text", "label", "weight", "item_id", "list_id", "time"),
    LISTS: (
        "list_id",
        "query",
        "item_id",
        "text",
        "position",
        "clicked",
        "purchased",
        "client_id",
        "time",
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Columns:
    """Columns that are read.

    Attributes:
        kind: pairs or lists.
        named: name -> column.
        attributes: name of an attribute -> column.
        not_read: the other columns of the file.
    """

    kind: str
    named: Mapping[str, str]
    attributes: Mapping[str, str]
    not_read: tuple[str, ...] = ()

    @property
    def wanted(self) -> list[str]:
        """All columns that are read, each once."""
        return list(dict.fromkeys([*self.named.values(), *self.attributes.values()]))


def find_columns(
    path: Path,
    columns: Sequence[str],
    *,
    given: Sequence[str] = (),
    attributes: Sequence[str] = (),
) -> Columns:
    """Find the columns of a file; it has pairs if it has labels, lists if it has clicks.

    Args:
        path: for errors.
        columns: of the file.
        given: texts `NAME=COLUMN`.
        attributes: columns that are attributes, beside those named `attributes.NAME`.

    Raises:
        TableRefused: a column is missing; names those that are there.
    """
    found = named_columns(path, columns, _NAMES, given)
    kind = LISTS if "clicked" in found and "label" not in found else PAIRS
    missing = [name for name in _REQUIRED[kind] if name not in found]
    if missing:
        raise TableRefused(
            f"{path}: no column for {', '.join(missing)}. Found: {', '.join(columns) or 'none'}. "
            f"Expected pairs ({', '.join(_REQUIRED[PAIRS])}) or shown lists "
            f"({', '.join(_REQUIRED[LISTS])}); name a column with --column {missing[0]}=COLUMN."
        )
    lacking = [column for column in attributes if column not in columns]
    if lacking:
        raise TableRefused(
            f"{path}: --attributes: no column {lacking[0]!r}. Found: {', '.join(columns)}"
        )
    prefixed = {
        column.removeprefix(ATTRIBUTE_PREFIX): column
        for column in columns
        if column.startswith(ATTRIBUTE_PREFIX)
    }
    named = {name: found[name] for name in _TAKEN[kind] if name in found}
    described = {**prefixed, **{column: column for column in attributes}}
    taken_all = {*named.values(), *described.values()}
    return Columns(
        kind=kind,
        named=named,
        attributes=described,
        not_read=tuple(column for column in columns if column not in taken_all),
    )


def named_columns(
    path: Path,
    columns: Sequence[str],
    names: Mapping[str, Sequence[str]],
    given: Sequence[str],
) -> dict[str, str]:
    """Return name -> column, as far as there is one.

    Args:
        path: for errors.
        columns: of the file.
        names: name -> columns that are taken for it, the first that is there.
        given: texts `NAME=COLUMN`, which come first.

    Raises:
        TableRefused: a text is of another form, or names a column that is not there.
    """
    found = {}
    for text in given:
        name, equals, column = text.partition("=")
        if not equals or name not in names:
            raise TableRefused(
                f"--column: got {text!r}, expected NAME=COLUMN with NAME one of {', '.join(names)}"
            )
        if column not in columns:
            raise TableRefused(
                f"{path}: --column {text}: no column {column!r}. Found: {', '.join(columns)}"
            )
        found[name] = column
    for name, usual in names.items():
        taken = [column for column in usual if column in columns]
        if name not in found and taken:
            found[name] = taken[0]
    return found
