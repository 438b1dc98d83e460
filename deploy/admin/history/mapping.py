"""Mapping file of a history: which column is what, and how its times are written."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal, TypeAlias
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import msgspec
from msgspec import Meta

from deploy.errors import TableRefused
from deploy.settings import yaml

_Kind: TypeAlias = Literal["exposure", "click", "purchase"]
_KINDS: tuple[_Kind, ...] = ("exposure", "click", "purchase")
_REQUIRED = {
    "shown": ("query_id", "query", "item", "time", "clicked"),
    "events": ("event", "client_id", "item", "time"),
}


class Columns(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """Name of the column of each value; None: there is none.

    Attributes:
        query_id: one showing of a list.
        client_id: who saw it; without one, every list is a client of its own.
        query: text that was searched for.
        item: id of the item.
        text: of the item.
        position: place in the list.
        time: when it happened; of a row per shown item, when the list was shown.
        event: what happened, where each row is an event.
        clicked: whether; where each row is a shown item.
        clicked_at: when.
        purchased: whether.
        purchased_at: when.
        transaction_id: of a purchase.
        price: likewise.
        currency: likewise.
        quantity: likewise; zero or below is a return.
    """

    query_id: str | None = None
    client_id: str | None = None
    query: str | None = None
    item: str | None = None
    text: str | None = None
    position: str | None = None
    time: str | None = None
    event: str | None = None
    clicked: str | None = None
    clicked_at: str | None = None
    purchased: str | None = None
    purchased_at: str | None = None
    transaction_id: str | None = None
    price: str | None = None
    currency: str | None = None
    quantity: str | None = None

    def named(self) -> dict[str, str]:
        """Return value -> column of those that there are."""
        return {name: column for name, column in msgspec.structs.asdict(self).items() if column}


class Times(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """How times are written: `format` as for strptime, `zone` of those without an offset."""

    format: str | None = None
    zone: str | None = None


class Mapping(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """A mapping file.

    Attributes:
        rows: `shown`, a row per shown item, or `events`, a row per event.
        columns: of the values.
        attributes: columns that are attributes of items.
        events: kind -> what the column `event` says of it.
        time: how times are written.
        first_position: number of the first place of a list.
        delimiter: of a CSV file; found in the header by default.
        scenario: of all lists, such as search.
        items: texts and attributes travel `inline` with the lists, or on the `topic` of items.
    """

    rows: Literal["shown", "events"]
    columns: Columns
    attributes: list[str] = []
    events: dict[_Kind, list[str]] = {}
    time: Times = Times()
    first_position: Annotated[int, Meta(ge=0, le=1)] = 1
    delimiter: str | None = None
    scenario: Annotated[str, Meta(min_length=1, max_length=100)] | None = None
    items: Literal["inline", "topic"] = "inline"

    @property
    def zone(self) -> ZoneInfo | None:
        """Zone of times without an offset; None: they are refused."""
        return None if self.time.zone is None else ZoneInfo(self.time.zone)

    @property
    def kinds(self) -> dict[str, str]:
        """What the column `event` says -> kind."""
        named: dict[_Kind, list[str]] = self.events or {kind: [kind] for kind in _KINDS}
        return {word: kind for kind, words in named.items() for word in words}


def read_mapping(path: Path, columns: tuple[str, ...] | None = None) -> Mapping:
    """Read a mapping file.

    Args:
        path: a file in YAML.
        columns: of the history; every one that the mapping names must be among them.

    Raises:
        TableRefused: names the key, what was found and what is expected.
    """
    mapping = _parsed(path)
    for problem in _problems(mapping, columns):
        raise TableRefused(f"{path}: {problem}")
    return mapping


def _parsed(path: Path) -> Mapping:
    """Return a mapping whose keys and types are right."""
    try:
        raw, problems = yaml.parse(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise TableRefused(f"{path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise TableRefused(f"{path}: {error}; expected text in UTF-8") from error
    if problems:
        raise TableRefused(f"{path}: {problems[0]}")
    try:
        return msgspec.convert(raw, Mapping)
    except msgspec.ValidationError as error:
        known = ", ".join(Mapping.__struct_fields__)
        raise TableRefused(
            f"{path}: {error}. Keys are {known}; of columns {', '.join(Columns.__struct_fields__)}"
        ) from error


def _problems(mapping: Mapping, columns: tuple[str, ...] | None) -> Iterator[str]:
    """Yield what the values of a mapping have wrong, beside each other and the history."""
    named = mapping.columns.named()
    missing = [name for name in _REQUIRED[mapping.rows] if name not in named]
    if missing:
        yield (
            f"columns: found none for {', '.join(missing)}, expected the names of these "
            f"columns where rows is {mapping.rows}"
        )
    words = [word for own in mapping.events.values() for word in own]
    for word in words:
        if words.count(word) > 1:
            yield f"events: {word!r} is there {words.count(word)} times, expected once"
    try:
        _ = mapping.zone
    except (ZoneInfoNotFoundError, ValueError, OSError):
        yield f"time.zone: found {mapping.time.zone!r}, expected a name such as Europe/Berlin"
    if columns is None:
        return
    for column in (*named.values(), *mapping.attributes):
        if column not in columns:
            yield f"column {column!r} is not in the history, which has {', '.join(columns)}"
