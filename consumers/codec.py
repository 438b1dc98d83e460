"""Bytes to events; a record that cannot be read is an error with a stage, a reason and a position.

Hot path: below 4 us for an exposure of ten hits, held by `benchmarks/ingest.py`.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

import msgspec

from consumers.errors import Invalid
from consumers.events import (
    EPOCH,
    ActionHeadWire,
    ActionWire,
    Candidate,
    Click,
    Event,
    Exposure,
    ExposureWire,
    ItemUpdate,
    ItemWire,
    Kind,
    Other,
    Purchase,
    WireAttributes,
)
from consumers.source import Record
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
MAX_CLOCK_AHEAD_US = 300 * 1_000_000

_exposures = msgspec.json.Decoder(ExposureWire)
_actions = msgspec.json.Decoder(ActionWire)
_heads = msgspec.json.Decoder(ActionHeadWire)
_items = msgspec.json.Decoder(ItemWire)
_NOTHING: dict[str, Candidate] = {}
_UTF16_STARTS = (
    b"\xff\xfe",
    b"\xfe\xff",
    b"{\0",
    b"\0{",
)  # a byte order mark, or a bracket as two bytes
_UTF16 = "not UTF-8: the value is in UTF-16"


def decode(kind: Kind, record: Record) -> Event:
    """Decode one record of a topic that carries `kind`.

    An event time more than five minutes ahead of the append time is set to the append time, and marked `clamped`.

    Raises:
        Invalid: the record cannot be read; says stage, reason, error with its JSON path, and position.
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
    except msgspec.ValidationError as error:
        if (
            kind in (Kind.CLICK, Kind.PURCHASE)
            and (other := _other(value, record, position)) is not None
        ):
            return other
        text = str(error)
        reason = "naive_timestamp" if "timezone component" in text else "schema"
        raise Invalid(stage="schema", reason=reason, error=text, position=position) from error
    except UnicodeDecodeError as error:
        raise Invalid(
            stage="decode", reason="not_utf8", error=str(error), position=position
        ) from error
    except RecursionError as error:
        raise Invalid(
            stage="decode",
            reason="too_deep",
            error="brackets are nested too deeply",
            position=position,
        ) from error
    except msgspec.DecodeError as error:
        if value.startswith(_UTF16_STARTS):
            raise Invalid(
                stage="decode", reason="not_utf8", error=_UTF16, position=position
            ) from error
        if (
            "utf-8" in str(error).lower()
        ):  # msgspec says "Invalid UTF-8" of a bad byte outside of strings that it decodes
            raise Invalid(
                stage="decode", reason="not_utf8", error=str(error), position=position
            ) from error
        raise Invalid(
            stage="decode", reason="not_json", error=f"not JSON: {error}", position=position
        ) from error


def _without_json(kind: Kind, record: Record, position: Position) -> Event:
    if record.value is None:
        if kind is not Kind.ITEM:
            raise Invalid(
                stage="decode", reason="null_value", error="the value is null", position=position
            )
        if record.key is None:
            raise Invalid(
                stage="decode",
                reason="null_value",
                error="key and value are null: nothing says which item is gone",
                position=position,
            )
        object_id = record.key.decode(errors="replace")
        return ItemUpdate(
            object_id=object_id,
            text=None,
            attributes={},
            time_us=max(record.timestamp_us, 0),
            position=position,
        )
    if not record.value:
        raise Invalid(
            stage="decode", reason="not_json", error="the value is empty", position=position
        )
    if record.value.startswith(_UTF16_STARTS):
        raise Invalid(stage="decode", reason="not_utf8", error=_UTF16, position=position)
    raise Invalid(
        stage="decode",
        reason="confluent_wire_format",
        error="the value is in the Confluent wire format (Avro, Protobuf or JSON Schema behind a schema id): write it as plain JSON",
        position=position,
    )


def _exposure(wire: ExposureWire, record: Record, position: Position) -> Exposure:
    time_us, clamped = _time(wire.timestamp, record.timestamp_us)
    query, num_cut = wire.user_query, 0
    if len(query) > MAX_QUERY_CHARS:
        query, num_cut = query[:MAX_QUERY_CHARS], len(query) - MAX_QUERY_CHARS
    candidates, event_id, page = _NOTHING, None, None
    if wire.query_attributes is not None:
        event_id, page = wire.query_attributes.event_id, wire.query_attributes.page
        if wire.query_attributes.candidates:
            candidates = {
                str(c.object_id): Candidate(
                    str(c.object_id),
                    c.text,
                    None if c.attributes is None else _scalars(c.attributes),
                )
                for c in wire.query_attributes.candidates
            }
    identity = _cloud_event(record) if record.headers else None
    if identity is None:
        identity = (
            f"e\0{event_id}".encode()
            if event_id is not None
            else f"q\0{wire.query_id}\0{'' if page is None else page}".encode()
        )
    return Exposure(
        wire.query_id,
        wire.client_id,
        query,
        wire.query_response_hit_ids,
        candidates,
        time_us,
        position,
        identity,
        clamped,
        num_cut,
    )


def _action(wire: ActionWire, record: Record, position: Position) -> Click | Purchase | Other:
    time_us, clamped = _time(wire.timestamp, record.timestamp_us)
    attributes = wire.event_attributes
    item = attributes.object
    identity = _cloud_event(record) if record.headers else None
    if identity is None and attributes.event_id is not None:
        identity = f"e\0{attributes.event_id}".encode()
    if wire.action_name == "click":
        query, num_cut = wire.user_query or "", 0
        if len(query) > MAX_QUERY_CHARS:
            query, num_cut = query[:MAX_QUERY_CHARS], len(query) - MAX_QUERY_CHARS
        return Click(
            wire.query_id or None,
            wire.client_id,
            str(item.object_id),
            None if attributes.position is None else attributes.position.ordinal,
            query,
            item.text,
            None if item.attributes is None else _scalars(item.attributes),
            time_us,
            position,
            identity,
            clamped,
            num_cut,
        )
    if wire.action_name == "purchase":
        return Purchase(
            wire.query_id or None,
            wire.client_id,
            str(item.object_id),
            time_us,
            position,
            identity,
            clamped,
        )
    return Other(client_id=wire.client_id, time_us=time_us, position=position, clamped=clamped)


def _other(value: bytes, record: Record, position: Position) -> Other | None:
    """Return an action that we do not learn from, whatever its attributes are; None when it is a click, a purchase or no action."""
    try:
        head = _heads.decode(value)
    except (
        msgspec.DecodeError,
        UnicodeDecodeError,
        RecursionError,
    ):  # it skips what the decoder before it refused, and may meet worse
        return None
    if head.action_name in ("click", "purchase"):
        return None
    time_us, clamped = _time(head.timestamp, record.timestamp_us)
    return Other(client_id=head.client_id, time_us=time_us, position=position, clamped=clamped)


def _item(wire: ItemWire, record: Record, position: Position) -> ItemUpdate:
    time_us, clamped = (
        (max(record.timestamp_us, 0), False)
        if wire.timestamp is None
        else _time(wire.timestamp, record.timestamp_us)
    )
    attributes = {} if wire.attributes is None else _scalars(wire.attributes)
    return ItemUpdate(
        object_id=str(wire.object_id),
        text=wire.text,
        attributes=attributes,
        time_us=time_us,
        position=position,
        clamped=clamped,
    )


def _time(timestamp: datetime, append_us: int) -> tuple[int, bool]:
    since = timestamp - EPOCH
    time_us = since.days * 86_400_000_000 + since.seconds * 1_000_000 + since.microseconds
    if time_us > append_us + MAX_CLOCK_AHEAD_US and append_us >= 0:
        return append_us, True
    return time_us, False


def _scalars(attributes: WireAttributes) -> dict[str, Attribute]:
    return {name: value for name, value in attributes.items() if value is not None}


def _cloud_event(record: Record) -> bytes | None:
    """Return the pair that CloudEvents makes unique, or None where it is not complete."""
    headers = dict(record.headers)
    source, identity = headers.get("ce_source"), headers.get("ce_id")
    return None if source is None or identity is None else b"c\0" + source + b"\0" + identity


def schemas() -> dict[str, dict[str, Any]]:
    """Return the four JSON Schemas (2020-12) of what may be written: exposure, click, purchase, item."""
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
