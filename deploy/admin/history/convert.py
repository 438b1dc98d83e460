"""Rows of a history to events, as producers write them, in order of time.

Ids of events are digests of what happened: who, what, when. The same row gives the same id however
often it is read, so readers drop it as a duplicate while they remember the first one.

A click without a time of its own comes a second after its list, a purchase a minute after its
click.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Mapping as Map
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any, TypeAlias

from consumers.errors import Invalid
from consumers.events import (
    Candidate,
    Kind,
    encode_click,
    encode_exposure,
    encode_item,
    encode_purchase,
)
from consumers.tolerant import Repair
from deploy.admin import event_file
from deploy.admin.history.mapping import Mapping
from deploy.errors import TableRefused
from deploy.tables.rows import Table
from deploy.tables.values import (
    LeftOut,
    Wrong,
    attribute_of,
    flag_of,
    number_of,
    text_of,
    time_of,
    whole_of,
)
from weighting.sample import Attribute

_SECOND_US = 1_000_000
_CLICK_AFTER_US, _PURCHASE_AFTER_US = _SECOND_US, 60 * _SECOND_US
_ORDER = {Kind.ITEM: 0, Kind.EXPOSURE: 1, Kind.CLICK: 2, Kind.PURCHASE: 3}
_Described: TypeAlias = tuple[str | None, dict[str, Attribute]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One event to be written.

    Attributes:
        kind: decides the topic.
        time_us: when it happened.
        key: of the record.
        value: the JSON.
        row: of the history, the first that it was made from.
    """

    kind: Kind
    time_us: int
    key: bytes
    value: bytes
    row: int


@dataclass(slots=True, kw_only=True)
class _List:
    """A shown list, as its rows come."""

    query_id: str
    client_id: str
    query: str
    time_us: int
    row: int
    items: list[tuple[float, int, str]] = field(default_factory=list)
    described: dict[str, _Described] = field(default_factory=dict)


def convert(
    table: Table,
    mapping: Mapping,
    left_out: LeftOut,
    *,
    now_us: int,
    advance: Callable[[int], None] = lambda rows: None,
) -> list[Event]:
    """Return all events of a history in order of time; all of them are in memory.

    Args:
        table: the history.
        mapping: which column is what.
        left_out: takes the rows that are not used.
        now_us: a time more than a day later is wrong: no event behind it would be in time.
        advance: called after every row.

    Raises:
        TableRefused: there is no row, or one is wrong and such rows are not to be left out.
    """
    converter = _Converter(mapping, left_out, now_us)
    wanted = [*mapping.columns.named().values(), *mapping.attributes]
    number = 0
    for number, row in table.rows(list(dict.fromkeys(wanted))):
        try:
            converter.take(number, row)
        except Wrong as error:
            left_out.refuse(number, error)
        advance(1)
    if not number:
        raise TableRefused(f"{table.path}: no row to make events of: the file has no row")
    return converter.events()


class _Converter:
    def __init__(self, mapping: Mapping, left_out: LeftOut, now_us: int) -> None:
        self._mapping = mapping
        self._now_us = now_us
        self._named = mapping.columns.named()
        self._zone = mapping.zone
        self._kinds = mapping.kinds
        self._left_out = left_out
        self._lists: dict[tuple[str, str], _List] = {}
        self._events: list[Event] = []
        self._seen: set[str] = set()

    def take(self, number: int, row: Map[str, Any]) -> None:
        """Add a row.

        Raises:
            Wrong: it has a wrong value.
        """
        if self._mapping.rows == "shown":
            self._take_shown(number, row)
        else:
            self._take_event(number, row)

    def _take_shown(self, number: int, row: Map[str, Any]) -> None:
        query_id = self._text(row, "query_id")
        client_id = self._client(row, query_id)
        item, time_us = self._text(row, "item"), self._time(row, "time")
        clicked = flag_of(self._get(row, "clicked"), self._named["clicked"])
        if clicked is None:
            raise Wrong(self._named["clicked"], None, "true or false, or 1 or 0")
        purchased = False
        if "purchased" in self._named:
            purchased = bool(flag_of(self._get(row, "purchased"), self._named["purchased"]))
        elif "purchased_at" in self._named:
            purchased = self._get(row, "purchased_at") is not None
        ordinal = self._ordinal(row)
        click_us = self._time(row, "clicked_at", time_us + _CLICK_AFTER_US)
        purchase_us = self._time(row, "purchased_at", click_us + _PURCHASE_AFTER_US)
        amounts = self._amounts(row) if purchased else {}
        if not self._show(number, row, query_id, client_id, item, time_us, ordinal):
            return
        who: dict[str, Any] = {"client_id": client_id, "object_id": item, "query_id": query_id}
        if clicked:
            self._click(number, who, click_us, ordinal)
        if purchased:
            self._purchase(number, who, purchase_us, amounts)

    def _take_event(self, number: int, row: Map[str, Any]) -> None:
        said = self._text(row, "event")
        kind = self._kinds.get(said)
        if kind is None:
            self._left_out.add(number, f"event {said!r} is none that the mapping names")
            return
        query_id = None
        if "query_id" in self._named and self._get(row, "query_id") is not None:
            query_id = self._text(row, "query_id")
        client_id, item = self._text(row, "client_id"), self._text(row, "item")
        time_us, ordinal = self._time(row, "time"), self._ordinal(row)
        who: dict[str, Any] = {"client_id": client_id, "object_id": item, "query_id": query_id}
        if kind == "exposure":
            if query_id is None:
                raise Wrong(self._named.get("query_id", "query_id"), None, "the id of the list")
            self._show(number, row, query_id, client_id, item, time_us, ordinal)
        elif kind == "click":
            text, attributes = self._described(row)
            query = self._text(row, "query") if self._get(row, "query") is not None else None
            more = {"text": text, "attributes": attributes, "user_query": query}
            self._click(number, who, time_us, ordinal, more)
        else:
            self._purchase(number, who, time_us, self._amounts(row))

    def _show(
        self,
        number: int,
        row: Map[str, Any],
        query_id: str,
        client_id: str,
        item: str,
        time_us: int,
        ordinal: int | None,
    ) -> bool:
        """Add an item to its list; False if it was in it before."""
        query = text_of(self._get(row, "query"), self._named.get("query", "query"), empty=True)
        described = self._described(row)
        own = self._lists.get((query_id, client_id))
        if own is not None and own.query != query:
            raise Wrong(self._named["query"], query, f"{own.query!r}, as in row {own.row}")
        if own is None:
            own = self._lists[query_id, client_id] = _List(
                query_id=query_id, client_id=client_id, query=query, time_us=time_us, row=number
            )
        if item in own.described:
            self._left_out.add(number, "the same item in the same list again")
            return False
        own.time_us = min(own.time_us, time_us)
        own.items.append((ordinal if ordinal is not None else float("inf"), number, item))
        own.described[item] = described
        return True

    def _click(
        self,
        number: int,
        who: Map[str, Any],
        time_us: int,
        ordinal: int | None,
        more: Map[str, Any] = {},
    ) -> None:
        event_id = self._id("click", *who.values(), time_us)
        value = encode_click(**who, **more, time_us=time_us, ordinal=ordinal, event_id=event_id)
        self._add(Kind.CLICK, number, time_us, who["client_id"], value, event_id)

    def _purchase(
        self, number: int, who: Map[str, Any], time_us: int, amounts: Map[str, Any]
    ) -> None:
        event_id = self._id("purchase", *who.values(), time_us, *sorted(amounts.items()))
        value = encode_purchase(**who, **amounts, time_us=time_us, event_id=event_id)
        self._add(Kind.PURCHASE, number, time_us, who["client_id"], value, event_id)

    def _add(
        self, kind: Kind, row: int, time_us: int, key: str, value: bytes, event_id: str
    ) -> None:
        """Add an event that a reader would take as it is."""
        if event_id in self._seen:
            self._left_out.add(row, f"the same {kind.value} again")
            return
        repairs: list[Repair] = []
        try:
            event_file.read(value, self._left_out.name, row, kind, repairs)
        except Invalid as error:
            raise Wrong(str(kind.value), key, error.error) from error
        if repairs:
            raise Wrong(str(kind.value), repairs[0].field, "a value that readers take as it is")
        self._seen.add(event_id)
        self._events.append(
            Event(kind=kind, time_us=time_us, key=key.encode(), value=value, row=row)
        )

    def events(self) -> list[Event]:
        """Return all events in order of time; of equal times lists before clicks."""
        known: dict[str, _Described] = {}
        for own in sorted(self._lists.values(), key=lambda own: own.time_us):
            try:
                if self._mapping.items == "topic":
                    self._describe(own, known)
                self._close(own)
            except Wrong as error:
                self._left_out.refuse(own.row, error)
        self._events.sort(key=lambda e: (e.time_us, _ORDER[e.kind], e.row))
        return self._events

    def _describe(self, own: _List, known: dict[str, _Described]) -> None:
        """Add an item's text where it is not the one of the list before."""
        for item, described in own.described.items():
            text, attributes = described
            if text is None or known.get(item) == described:
                continue
            known[item] = described
            value = encode_item(
                object_id=item, text=text, attributes=attributes, time_us=own.time_us
            )
            event_id = self._id("item", item, own.time_us)
            self._add(Kind.ITEM, own.row, own.time_us, item, value, event_id)

    def _close(self, own: _List) -> None:
        hits = [item for _, _, item in sorted(own.items)]
        inline = own.described if self._mapping.items == "inline" else {}
        candidates = [Candidate(item, *inline[item]) for item in hits if any(inline.get(item, ()))]
        event_id = self._id("exposure", own.query_id, own.client_id, own.time_us, own.query, *hits)
        value = encode_exposure(
            query_id=own.query_id,
            client_id=own.client_id,
            time_us=own.time_us,
            user_query=own.query,
            hits=hits,
            candidates=candidates,
            event_id=event_id,
            scenario=self._mapping.scenario,
        )
        self._add(Kind.EXPOSURE, own.row, own.time_us, own.client_id, value, event_id)

    # --- values ---------------------------------------------------------------------------------

    def _get(self, row: Map[str, Any], name: str) -> Any:
        column = self._named.get(name)
        return None if column is None else row.get(column)

    def _text(self, row: Map[str, Any], name: str) -> str:
        return text_of(self._get(row, name), self._named.get(name, name))

    def _client(self, row: Map[str, Any], query_id: str) -> str:
        return self._text(row, "client_id") if "client_id" in self._named else query_id

    def _time(self, row: Map[str, Any], name: str, default_us: int | None = None) -> int:
        value = self._get(row, name)
        if value is None and default_us is not None:
            return default_us
        column, pattern = self._named.get(name, name), self._mapping.time.format
        return time_of(value, column, zone=self._zone, pattern=pattern, now_us=self._now_us)

    def _ordinal(self, row: Map[str, Any]) -> int | None:
        value, first = self._get(row, "position"), self._mapping.first_position
        if value is None:
            return None
        return whole_of(value, self._named["position"], low=first) - first + 1

    def _amounts(self, row: Map[str, Any]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name in ("transaction_id", "currency"):
            if self._get(row, name) is not None:
                found[name] = self._text(row, name)
        for name in ("price", "quantity"):
            if (value := self._get(row, name)) is not None:
                found[name] = number_of(value, self._named[name], low=-1e12, high=1e12)
        return found

    def _described(self, row: Map[str, Any]) -> _Described:
        text = self._text(row, "text") if self._get(row, "text") is not None else None
        values = {name: attribute_of(row.get(name), name) for name in self._mapping.attributes}
        return text, {name: value for name, value in values.items() if value is not None}

    def _id(self, *parts: Any) -> str:
        data = repr(parts).encode("utf-8", "surrogatepass")
        return blake2b(data, digest_size=16).hexdigest()
