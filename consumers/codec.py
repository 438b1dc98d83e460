"""Decoding of records to events.

Hot path: below 4 us for an exposure of ten hits, held by `benchmarks/ingest.py`.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Any

import msgspec

from consumers import tolerant
from consumers.errors import Invalid
from consumers.events import (
    EPOCH,
    ActionWire,
    Candidate,
    CandidateWire,
    Click,
    Event,
    EventAttributesWire,
    Exposure,
    ExposureWire,
    ForeignWire,
    ItemUpdate,
    ItemWire,
    Kind,
    Other,
    Purchase,
    WireAttributes,
)
from consumers.source import Record
from consumers.tolerant import Repair
from weighting.provenance import Position
from weighting.sample import Attribute

#: Every reason that a dead letter can have; the metric label.
REASONS = (
    "null_value",
    "confluent_wire_format",
    "not_json",
    "not_utf8",
    "too_deep",
    "naive_timestamp",
    "schema",
)

MAX_QUERY_CHARS = 4096
MAX_VALUE = 1e12
MAX_TIME_US = 4_102_444_800 * 1_000_000  # year 2100

_exposures = msgspec.json.Decoder(ExposureWire)
_actions = msgspec.json.Decoder(ActionWire)
_items = msgspec.json.Decoder(ItemWire)
_WIRES: dict[Kind, type[ExposureWire | ActionWire | ItemWire]] = {
    Kind.EXPOSURE: ExposureWire,
    Kind.CLICK: ActionWire,
    Kind.PURCHASE: ActionWire,
    Kind.ITEM: ItemWire,
}
_NOTHING: dict[str, Candidate] = {}
# A byte order mark, or a bracket as two bytes.
_UTF16_STARTS = (b"\xff\xfe", b"\xfe\xff", b"{\0", b"\0{")
_UTF16 = "not UTF-8: the value is in UTF-16"
_CONFLUENT = (
    "the value is in the Confluent wire format (Avro, Protobuf or JSON Schema behind a schema id): "
    "write it as plain JSON"
)


def decode(kind: Kind, record: Record, repairs: list[Repair] | None = None) -> Event:
    """Decode one record of a topic that carries `kind`.

    Fields that no sample needs never refuse a record. What is repaired or dropped is added to
    `repairs`.

    Event times are kept within the years 1970 to 2100; whether one is right is for the join's
    clocks to say. An item without a time gets that of its record.

    Raises:
        Invalid: the record cannot be read; has stage, reason, error with JSON path, and position.
    """
    position = Position(record.topic, record.partition, record.offset)
    value = record.value
    if not value or value[0] == 0:
        return _without_json(kind, record, position)
    try:
        if kind is Kind.EXPOSURE:
            return _exposure(_exposures.decode(value), record, position)
        if kind is Kind.ITEM:
            return _item(_items.decode(value), record, position)
        return _action(_actions.decode(value), record, position)
    except RecursionError as error:
        raise _undecodable(*_reason(error, value), position) from error
    except (UnicodeDecodeError, msgspec.DecodeError) as error:
        return _tolerant(kind, record, value, error, [] if repairs is None else repairs)


def _tolerant(
    kind: Kind, record: Record, value: bytes, strict: Exception, repairs: list[Repair]
) -> Event:
    """Decode a record that the strict decoder refused."""
    position = Position(record.topic, record.partition, record.offset)
    try:
        wire = tolerant.read(_WIRES[kind], value, repairs)
    except tolerant.Refused as refused:
        reason, error = _reason(strict, value)
        if reason == "not_utf8":
            raise _undecodable(reason, error, position) from strict
        raise Invalid(
            stage="schema", reason=refused.reason, error=refused.error, position=position
        ) from refused
    except (ValueError, RecursionError) as error:
        first = strict
        if isinstance(strict, msgspec.ValidationError) or isinstance(error, RecursionError):
            first = error
        raise _undecodable(*_reason(first, value), position) from error
    if isinstance(wire, ExposureWire):
        return _exposure(wire, record, position)
    if isinstance(wire, ItemWire):
        return _item(wire, record, position)
    if isinstance(wire, ActionWire):
        return _action(wire, record, position)
    return _foreign(wire, record, position)


def _undecodable(reason: str, error: str, position: Position) -> Invalid:
    return Invalid(stage="decode", reason=reason, error=error, position=position)


def _reason(error: Exception, value: bytes) -> tuple[str, str]:
    """Return reason and error of a value that is not JSON."""
    if isinstance(error, RecursionError):
        return "too_deep", "brackets are nested too deeply"
    if isinstance(error, UnicodeDecodeError):
        return "not_utf8", str(error)
    if value.startswith(_UTF16_STARTS):
        return "not_utf8", _UTF16
    # msgspec says "Invalid UTF-8" of a bad byte outside of strings that it decodes.
    if "utf-8" in str(error).lower():
        return "not_utf8", str(error)
    return "not_json", f"not JSON: {error}"


def _without_json(kind: Kind, record: Record, position: Position) -> Event:
    """Return the deletion of an item; elsewhere raise."""
    if record.value is None:
        return _deletion(kind, record, position)
    if not record.value:
        raise _undecodable("not_json", "the value is empty", position)
    if record.value.startswith(_UTF16_STARTS):
        raise _undecodable("not_utf8", _UTF16, position)
    raise _undecodable("confluent_wire_format", _CONFLUENT, position)


def _deletion(kind: Kind, record: Record, position: Position) -> ItemUpdate:
    if kind is not Kind.ITEM:
        raise _undecodable("null_value", "the value is null", position)
    if record.key is None:
        error = "key and value are null: nothing says which item is gone"
        raise _undecodable("null_value", error, position)
    return ItemUpdate(
        object_id=record.key.decode(errors="replace"),
        text=None,
        attributes={},
        time_us=_within(record.timestamp_us),
        position=position,
    )


def _exposure(wire: ExposureWire, record: Record, position: Position) -> Exposure:
    time_us = _time(wire.timestamp)
    query, num_cut = _cut(wire.user_query)
    candidates, event_id, page, scenario = _NOTHING, None, None, ""
    if wire.query_attributes is not None:
        attributes = wire.query_attributes
        event_id, page, scenario = attributes.event_id, attributes.page, attributes.scenario or ""
        if attributes.candidates:
            candidates = _candidates(attributes.candidates)
    identity = _identity(record, event_id, wire.query_id)
    if identity is None:
        identity = f"q\0{wire.query_id}\0{'' if page is None else page}".encode()
    return Exposure(
        wire.query_id,
        wire.client_id,
        query,
        wire.query_response_hit_ids,
        candidates,
        time_us,
        position,
        identity,
        num_cut,
        scenario=scenario,
    )


def _cut(query: str) -> tuple[str, int]:
    """Return a query within the limit, and the number of characters cut off."""
    if len(query) <= MAX_QUERY_CHARS:
        return query, 0
    return query[:MAX_QUERY_CHARS], len(query) - MAX_QUERY_CHARS


def _candidates(wires: Iterable[CandidateWire]) -> dict[str, Candidate]:
    candidates = {}
    for wire in wires:
        object_id = str(wire.object_id)
        attributes = None if wire.attributes is None else _scalars(wire.attributes)
        candidates[object_id] = Candidate(object_id, wire.text, attributes)
    return candidates


def _action(wire: ActionWire, record: Record, position: Position) -> Click | Purchase | Other:
    time_us = _time(wire.timestamp)
    attributes = wire.event_attributes
    item = attributes.object
    object_id = str(item.object_id)
    returned = wire.action_name == "purchase" and _is_return(attributes)
    subject = f"{'return' if returned else wire.action_name}\0{object_id}"
    identity = _identity(record, attributes.event_id, subject)
    if wire.action_name == "click":
        query, num_cut = _cut(wire.user_query or "")
        return Click(
            wire.query_id or None,
            wire.client_id,
            object_id,
            None if attributes.position is None else attributes.position.ordinal,
            query,
            item.text,
            None if item.attributes is None else _scalars(item.attributes),
            time_us,
            position,
            identity,
            num_cut,
        )
    if wire.action_name == "purchase":
        return Purchase(
            wire.query_id or None,
            wire.client_id,
            object_id,
            time_us,
            position,
            identity,
            returned,
            None if returned else _value(attributes),
        )
    return Other(client_id=wire.client_id, time_us=time_us, position=position)


def _foreign(wire: ForeignWire, record: Record, position: Position) -> Other:
    """Return an action that is not learned from, whatever its form."""
    time_us = None if wire.timestamp is None else _time(wire.timestamp)
    return Other(client_id=wire.client_id, time_us=time_us, position=position)


def _item(wire: ItemWire, record: Record, position: Position) -> ItemUpdate:
    time_us = _time(wire.timestamp) if wire.timestamp else _within(record.timestamp_us)
    attributes = {} if wire.attributes is None else _scalars(wire.attributes)
    return ItemUpdate(
        object_id=str(wire.object_id),
        text=wire.text,
        attributes=attributes,
        time_us=time_us,
        position=position,
    )


def _time(timestamp: datetime) -> int:
    """Return an event time that can be added to and written, whatever the clock said."""
    since = timestamp - EPOCH
    return _within(since.days * 86_400_000_000 + since.seconds * 1_000_000 + since.microseconds)


def _within(time_us: int) -> int:
    return min(max(time_us, 0), MAX_TIME_US)


def _scalars(attributes: WireAttributes) -> dict[str, Attribute]:
    return {name: value for name, value in attributes.items() if value is not None}


def _is_return(attributes: EventAttributesWire) -> bool:
    """Return whether an order line takes its item back."""
    quantity, price, revenue = attributes.quantity, attributes.price, attributes.revenue
    return (
        (quantity is not None and quantity <= 0)
        or (price is not None and price < 0)
        or (revenue is not None and revenue < 0)
    )


def _value(attributes: EventAttributesWire) -> float | None:
    """Return what was paid for the item, at most `MAX_VALUE`; None if that is not told.

    A revenue may be that of the whole order, so it counts only where there is no price.
    """
    price, quantity = attributes.price, attributes.quantity
    value = attributes.revenue if price is None else price * (1 if quantity is None else quantity)
    return None if value is None else min(value, MAX_VALUE)


def _identity(record: Record, event_id: str | int | None, subject: str) -> bytes | None:
    """Return the identity that a producer gave an event; None without one.

    An id may be that of an order or a batch: the subject tells its events apart. The id is the last
    part.
    """
    if record.headers:
        headers = dict(record.headers)
        source, identity = headers.get("ce_source"), headers.get("ce_id")
        if source is not None and identity:
            return b"\0".join((b"c", source, subject.encode(), identity))
    return None if event_id is None or event_id == "" else f"e\0{subject}\0{event_id}".encode()


def schemas() -> dict[str, dict[str, Any]]:
    """Return the JSON Schemas (2020-12) of exposure, click, purchase and item."""
    wires: dict[str, Any] = {
        "exposure": ExposureWire,
        "click": ActionWire,
        "purchase": ActionWire,
        "item": ItemWire,
    }
    written = {}
    for name, wire in wires.items():
        (reference,), components = msgspec.json.schema_components(
            [wire], ref_template="#/$defs/{name}"
        )
        written[name] = {
            "$schema": "https://json-schema.org/draft/2020-12/schema",
            "$id": f"steelyard/{name}.schema.json",
            "title": name,
            **reference,
            "$defs": dict(sorted(components.items())),
        }
    return written
