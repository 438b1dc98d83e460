"""Tagged texts from the rows of a file: a list of words and a list of their tags, checked."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

from deploy.errors import TableRefused
from deploy.fitting.columns import named_columns
from deploy.tables.rows import format_of, open_table
from deploy.tables.values import MAX_WEIGHT, LeftOut, Wrong, number_of, text_of, time_of
from learner.tagging.entities import OUTSIDE, have_prefixes, is_prefixed
from weighting.query_key import query_key

NAMES: Mapping[str, tuple[str, ...]] = {
    "tokens": ("tokens", "words"),
    "tags": ("tags",),
    "weight": ("weight",),
    "time": ("time", "timestamp"),
}
"""Name -> columns that are taken for it, the first that is there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TaggedText:
    """A text and its tags.

    Attributes:
        row: its number in the file.
        words: of the text.
        tags: one for each word.
        weight: how much it counts.
        time_us: when it was written; None where times are not read.
    """

    row: int
    words: tuple[str, ...]
    tags: tuple[str, ...]
    weight: float = 1.0
    time_us: int | None = None

    @property
    def key(self) -> str:
        """Identity of the text, whatever its case and spacing."""
        return query_key(" ".join(self.words))


@dataclass(frozen=True, slots=True, kw_only=True)
class TagReading:
    """How values are read.

    Attributes:
        columns: texts `NAME=COLUMN`.
        times: whether the texts have to have times.
        zone: of times without an offset.
        time_format: of times that are texts.
    """

    columns: Sequence[str] = ()
    times: bool = False
    zone: ZoneInfo | None = None
    time_format: str | None = None


def read_texts(
    path: Path,
    reading: TagReading,
    left_out: LeftOut,
    *,
    report: Callable[[str], None] = lambda line: None,
) -> list[TaggedText]:
    """Read a file; in order of time where times are read, else of rows.

    Args:
        path: Parquet or JSONL.
        reading: how.
        left_out: takes the rows that are not used.
        report: told which columns are taken for what, and which are not read.

    Raises:
        TableRefused: the file cannot be used; names row, column, what was found and expected.
    """
    if format_of(path) == "csv":
        raise TableRefused(
            f"{path}: a CSV file has no lists; expected Parquet or JSONL with lists of texts in "
            "tokens and tags"
        )
    table = open_table(path)
    named = named_columns(path, table.columns, NAMES, reading.columns)
    required = ["tokens", "tags", *(["time"] if reading.times else [])]
    missing = [name for name in required if name not in named]
    if missing:
        raise TableRefused(
            f"{path}: no column for {', '.join(missing)}. Found: {', '.join(table.columns)}. "
            f"Name a column with --column {missing[0]}=COLUMN."
        )
    if not reading.times:
        named.pop("time", None)
    report(f"{path}: " + ", ".join(f"{name}={column}" for name, column in named.items()))
    if not_read := [column for column in table.columns if column not in named.values()]:
        report(f"columns not read: {', '.join(not_read)}")
    found = []
    for number, row in table.rows(list(named.values())):
        try:
            text = _text(number, row, named, reading)
        except Wrong as error:
            left_out.refuse(number, error)
            continue
        if not text.words or not text.weight:
            left_out.add(number, "no words" if not text.words else "weight 0")
        else:
            found.append(text)
    _check_tags(path, found, named["tags"])
    return sorted(found, key=lambda text: text.time_us or 0)


def _text(
    number: int, row: Mapping[str, Any], named: Mapping[str, str], reading: TagReading
) -> TaggedText:
    words, tags = (_list(row.get(named[name]), named[name]) for name in ("tokens", "tags"))
    if len(words) != len(tags):
        raise Wrong(
            named["tags"], len(tags), f"{len(words)} tags, one for each of {named['tokens']!r}"
        )
    weight, time_us = 1.0, None
    column = named.get("weight")
    if column is not None and row.get(column) is not None:
        weight = number_of(row[column], column, low=0, high=MAX_WEIGHT)
    if (column := named.get("time")) is not None:
        time_us = time_of(row.get(column), column, zone=reading.zone, pattern=reading.time_format)
    return TaggedText(row=number, words=words, tags=tags, weight=weight, time_us=time_us)


def _list(value: Any, column: str) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise Wrong(column, value, "a list of texts, one for each word")
    for place, own in enumerate(value):
        if not isinstance(own, str):
            raise Wrong(f"{column}[{place}]", own, "a text")
    return tuple(text_of(own, f"{column}[{place}]") for place, own in enumerate(value))


def _check_tags(path: Path, texts: Sequence[TaggedText], column: str) -> None:
    """Refuse a file without anything to tell apart, or with prefixes in some of its tags only."""
    first: dict[str, int] = {}
    for text in texts:
        for tag in text.tags:
            first.setdefault(tag, text.row)
    if not texts:
        raise TableRefused(f"{path}: no row that can be used")
    if len(first) == 1:
        tag, row = next(iter(first.items()))
        raise TableRefused(
            f"{path}: column {column!r}: found the tag {tag!r} alone, from row {row} to row "
            f"{texts[-1].row}; expected two or more to tell apart"
        )
    if have_prefixes(first):
        for tag, row in first.items():
            if tag != OUTSIDE and not is_prefixed(tag):
                raise TableRefused(
                    f"{path}: row {row}, column {column!r}: found {tag!r}, expected O or one of "
                    "the prefixes B-, I-, E-, S- and a type, as other tags have: either all have "
                    "a prefix, or none"
                )
