"""Lists of examples from the rows of a file: what was shown together is compared together.

Of shown lists, rows with one `list_id` are a list. Of pairs, those with one `list_id`, else those
of one query (whatever its spelling) and day; such a list is divided where it has more than 100
rows. A label between 0 and 1 is a probability, and is drawn once, by the seed and the row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any, cast
from zoneinfo import ZoneInfo

from deploy.errors import TableRefused
from deploy.fitting.columns import PAIRS, Columns
from deploy.tables.rows import Table
from deploy.tables.values import (
    MAX_WEIGHT,
    LeftOut,
    Wrong,
    attribute_of,
    flag_of,
    number_of,
    text_of,
    time_of,
    whole_of,
)
from weighting.query_key import query_key
from weighting.sample import Attribute

LONGEST_LIST = 100
_DAY_US = 86_400_000_000
_NO_TIME = -1


@dataclass(slots=True, kw_only=True, eq=False)
class Examples:
    """One list: N items under one query, with what became of each.

    Attributes:
        id: of the list.
        query: its text.
        client_id: who saw it; "" when nothing says.
        time_us: of its newest row.
        rows: numbers in the file.
        items: ids, or texts where the file has no ids.
        texts: of the items.
        attributes: of the items.
        positions: 1-based; None where the file has none.
        grades: labels in [0, 1]; clicks of a shown list.
        labels: 0 or 1, what is learned.
        weights: what each counts.
        bought: of clicked items; None where nothing is known.
    """

    id: str
    query: str
    client_id: str = ""
    time_us: int = _NO_TIME
    rows: list[int] = field(default_factory=list)
    items: list[str] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    attributes: list[dict[str, Attribute]] = field(default_factory=list)
    positions: list[int | None] = field(default_factory=list)
    grades: list[float] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)
    bought: list[bool | None] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """How a file is read.

    Attributes:
        zone: of times without an offset; None: refused.
        time_format: of texts, as for `datetime.strptime`; ISO 8601 by default.
        now_us: times more than a day later are refused; None: none are.
        first_position: number of the first place of a list.
        before_us: rows from this time on are left out; None: none are.
        seed: of the draws of labels.
    """

    zone: ZoneInfo | None = None
    time_format: str | None = None
    now_us: int | None = None
    first_position: int = 1
    before_us: int | None = None
    seed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """Examples of a file.

    Attributes:
        lists: in order of time, or of the file where it has none.
        num_rows: used.
        notes: what a user should know.
    """

    lists: list[Examples]
    num_rows: int
    notes: list[str]


def read_examples(
    table: Table,
    columns: Columns,
    reading: Reading,
    left_out: LeftOut,
    *,
    as_of_us: int,
    advance: Callable[[int], None] = lambda rows: None,
) -> Found:
    """Read all rows.

    In memory are numbers and references of every row, and each distinct text once.

    Args:
        table: the file.
        columns: of it.
        reading: how.
        left_out: takes rows that are not used.
        as_of_us: where the file has no times, its lists come a second apart and end here.
        advance: called with numbers of rows read.

    Raises:
        TableRefused: a value is wrong, or nothing can be learned from the file.
    """
    reader = _Reader(table.path, columns, reading, left_out)
    for number, row in table.rows(columns.wanted):
        reader.take(number, row)
        advance(1)
    return reader.found(as_of_us)


class _Reader:
    """Lists by key, as their rows come."""

    def __init__(self, path: Path, columns: Columns, reading: Reading, left_out: LeftOut) -> None:
        self._path = path
        self._columns = columns
        self._reading = reading
        self._left_out = left_out
        self._lists: dict[tuple[str, int], list[Examples]] = {}
        self._known: dict[Any, Any] = {}  # equal values are kept once
        self._seen: set[bytes] = set()
        self._num_rows = 0
        self._drawn = 0
        self._not_clicked = 0
        self._has_time = "time" in columns.named

    def take(self, number: int, row: Mapping[str, Any]) -> None:
        """Add a row to its list."""
        try:
            self._take(number, row)
        except Wrong as error:
            self._left_out.refuse(number, error)

    def _take(self, number: int, row: Mapping[str, Any]) -> None:
        named = self._columns.named
        get = {name: row.get(column) for name, column in named.items()}
        query = self._once(text_of(get["query"], named["query"]))
        text = self._once(text_of(get["text"], named["text"]))
        item = text
        if "item_id" in named:
            item = self._once(text_of(get["item_id"], named["item_id"]))
        time_us = _NO_TIME
        if self._has_time:
            time_us = self._time(get["time"], named["time"])
            before_us = self._reading.before_us
            if before_us is not None and time_us >= before_us:
                self._left_out.add(number, "not before --before")
                return
        if self._columns.kind == PAIRS:
            grade = number_of(get["label"], named["label"], low=0, high=1)
            bought, position = None, None
        else:
            grade, bought = self._outcome(get)
            position = self._position(get)
        weight = 1.0
        if "weight" in named:
            weight = number_of(get["weight"], named["weight"], low=0, high=MAX_WEIGHT)
            if weight == 0:
                self._left_out.add(number, "weight 0")
                return
        own = self._list_of(get, query, time_us)
        if self._again(number, own, item, (grade, time_us)):
            return
        attributes = self._attributes(row)
        own.time_us = max(own.time_us, time_us)
        own.rows.append(number)
        own.items.append(item)
        own.texts.append(text)
        own.attributes.append(attributes)
        own.positions.append(position)
        own.grades.append(grade)
        own.labels.append(self._label(number, grade))
        own.weights.append(weight)
        own.bought.append(bought)
        self._num_rows += 1

    def _time(self, value: Any, column: str) -> int:
        own = self._reading
        return time_of(value, column, zone=own.zone, pattern=own.time_format, now_us=own.now_us)

    def _outcome(self, get: Mapping[str, Any]) -> tuple[float, bool | None]:
        named = self._columns.named
        clicked = flag_of(get["clicked"], named["clicked"])
        if clicked is None:
            raise Wrong(named["clicked"], get["clicked"], "true or false, or 1 or 0")
        bought = None
        if "purchased" in named:
            bought = flag_of(get["purchased"], named["purchased"])
        if bought and not clicked:
            self._not_clicked += 1
        return float(clicked), bought if clicked else None

    def _position(self, get: Mapping[str, Any]) -> int | None:
        column = self._columns.named.get("position")
        if column is None or get["position"] is None:
            return None
        first = self._reading.first_position
        try:
            return whole_of(get["position"], column, low=first) - first + 1
        except Wrong as error:
            hint = " (does the file count from 0? --first-position 0)" if first == 1 else ""
            raise Wrong(column, get["position"], error.expected + hint) from error

    def _label(self, number: int, grade: float) -> int:
        if grade in (0.0, 1.0):
            return int(grade)
        self._drawn += 1
        return int(self._hash(f"label/{number}") / (1 << 56) < grade)

    def _hash(self, text: str) -> int:
        """Return a number in [0, 2^56) that looks random."""
        data = f"{self._reading.seed}/{text}".encode("utf-8", "surrogatepass")
        return int.from_bytes(blake2b(data, digest_size=7).digest(), "little")

    def _list_of(self, get: Mapping[str, Any], query: str, time_us: int) -> Examples:
        """Return the list of a row, made if it is the first."""
        named = self._columns.named
        if "list_id" in named:
            name = text_of(get["list_id"], named["list_id"])
            key = (name, 0)
        else:
            name = query_key(query)
            key = (name, time_us // _DAY_US)
        parts = self._lists.setdefault(key, [])
        limit = LONGEST_LIST if self._columns.kind == PAIRS else float("inf")
        if parts and parts[-1].query != query and "list_id" in named:
            raise Wrong(named["query"], query, f"{parts[-1].query!r}, as in the rows of {name!r}")
        if not parts or len(parts[-1].rows) >= limit:
            client = ""
            if get.get("client_id") is not None:
                client = text_of(get["client_id"], named["client_id"], empty=True)
            parts.append(Examples(id=f"{name}/{len(parts)}", query=query, client_id=client))
        return parts[-1]

    def _again(self, number: int, own: Examples, item: str, outcome: tuple[float, int]) -> bool:
        """Return whether the same item was in the list before; the row is then left out."""
        key: tuple[Any, ...] = (own.id.rpartition("/")[0], own.query, item)
        if self._columns.kind == PAIRS:
            key = (*key, *outcome)
        digest = blake2b(repr(key).encode("utf-8", "surrogatepass"), digest_size=12).digest()
        if digest in self._seen:
            self._left_out.add(number, "the same item in the same list again")
            return True
        self._seen.add(digest)
        return False

    def _attributes(self, row: Mapping[str, Any]) -> dict[str, Attribute]:
        found: dict[str, Attribute] = {}
        for name, column in self._columns.attributes.items():
            value = attribute_of(row.get(column), column)
            if value is not None:
                found[name] = value
        key = repr(found)
        return cast(dict[str, Attribute], self._known.setdefault(key, found))

    def _once(self, text: str) -> str:
        return cast(str, self._known.setdefault(text, text))

    def found(self, as_of_us: int) -> Found:
        """Return the lists in order of time.

        Raises:
            TableRefused: there is nothing to tell apart.
        """
        lists = [own for parts in self._lists.values() for own in parts if own.rows]
        if not lists:
            left = "; ".join(self._left_out.lines()) or "the file has no row"
            raise TableRefused(f"{self._path}: no row to learn from: {left}")
        labels = {label for own in lists for label in own.labels}
        if len(labels) == 1:
            only = labels.pop()
            raise TableRefused(
                f"{self._path}: all {self._num_rows:,} rows have label {only}, expected 0 and 1: "
                f"add rows with label {1 - only}"
            )
        if not self._has_time:
            if self._columns.kind == PAIRS:  # files are often sorted by label or category
                lists.sort(key=lambda own: self._hash(f"order/{own.id}"))
            start = as_of_us - 1_000_000 * len(lists)
            for n, own in enumerate(lists, 1):
                own.time_us = start + n * 1_000_000
        lists.sort(key=lambda own: own.time_us)  # stable
        return Found(lists=lists, num_rows=self._num_rows, notes=list(self._notes(lists)))

    def _notes(self, lists: list[Examples]) -> Iterable[str]:
        if self._drawn:
            yield f"{self._drawn:,} labels between 0 and 1: each drawn once as 0 or 1, by the seed"
        if self._not_clicked:
            yield f"{self._not_clicked:,} rows purchased without a click: the purchase is not used"
        alone = sum(len(own.rows) == 1 for own in lists)
        if alone:
            yield (
                f"{alone:,} of {len(lists):,} lists have one item only: there is nothing to "
                "compare it with, and it counts a tenth (weighting.caps.one_item_list)"
            )
        if not any(len(set(own.grades)) > 1 for own in lists):
            yield (
                "no list has items of different labels: which of them is better can neither be "
                "learned nor judged"
            )
        if not self._has_time:
            order = ", in an order drawn by the seed" if self._columns.kind == PAIRS else ""
            yield f"no column for time: lists come a second apart{order}; --as-of ends them"
