"""Tolerant decoding of records that the strict decoder refused.

Action, ids and time must be right: the first of them that is not, in the order of the wire type,
refuses the record. Any other field is repaired where its meaning is certain, else dropped.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, Literal, TypeAlias, TypeVar

import msgspec

from consumers import mending
from consumers.events import (
    ACTIONS,
    ActionWire,
    CandidateWire,
    EventAttributesWire,
    ExposureWire,
    ForeignWire,
    ItemWire,
    ObjectWire,
    PositionWire,
    QueryAttributesWire,
)
from weighting.sample import Attribute

#: Kinds of fields, the metric label: what a repair may concern.
FIELDS = (
    "client_id",
    "query_id",
    "object_id",
    "event_id",
    "timestamp",
    "user_query",
    "hits",
    "candidates",
    "text",
    "attributes",
    "position",
    "amount",
    "encoding",
    "unused",
)

Result: TypeAlias = Literal["repaired", "dropped"]
RESULTS: tuple[Result, ...] = ("repaired", "dropped")

_BOM = b"\xef\xbb\xbf"
_NO_UNICODE = "Expected Unicode, got a part of a character"

_W = TypeVar("_W", bound=msgspec.Struct)


class Repair(msgspec.Struct, frozen=True):
    """What became of one field that is not as the schema says.

    Attributes:
        field: kind of the field, one of `FIELDS`.
        path: JSON path of the field.
        result: read in spite of its form, or read as absent.
    """

    field: str
    path: str
    result: Result


class Refused(Exception):
    """A record without what a sample needs.

    Attributes:
        reason: one of `codec.REASONS`.
        error: what is wrong, with its JSON path.
    """

    def __init__(self, reason: str, error: str) -> None:
        """Name what is wrong and where."""
        super().__init__(error)
        self.reason = reason
        self.error = error


def read(wire: type[_W], value: bytes, repairs: list[Repair]) -> _W | ForeignWire:
    """Read a record as `wire`, or as an action that is not learned from.

    Args:
        wire: a wire type of a whole record.
        value: its bytes, not empty.
        repairs: takes what was repaired or dropped.

    Raises:
        Refused: something that a sample needs is missing or wrong.
        ValueError: it is no JSON.
        RecursionError: its brackets are nested too deeply.
    """
    num_before = len(repairs)
    reader = _Reader(repairs)
    raw = reader.parse(value)
    if not isinstance(raw, dict):
        if reader.broken:
            raise ValueError("no JSON object")
        raise Refused("schema", f"Expected `object`, got `{_json_type(raw)}`")
    foreign = _is_foreign(raw)
    if foreign and wire is ActionWire:
        return _foreign(wire, raw)
    try:
        event = reader.read(wire, raw, "$")
    except Refused:
        if not foreign:
            raise
        del repairs[num_before:]
        return _foreign(wire, raw)
    if len(repairs) == num_before:  # what is odd is in a field that is not in the schema
        repairs.append(Repair("unused", "$", "dropped"))
    return event


def parse(value: bytes) -> Any:
    """Parse JSON that may have a byte order mark, NaN or broken text in it.

    Raises:
        ValueError: it is no JSON.
        RecursionError: its brackets are nested too deeply.
    """
    return _Reader([]).parse(value)


def _is_foreign(raw: Mapping[str, Any]) -> bool:
    """Return whether a record names an action other than ours."""
    name = raw.get("action_name")
    return isinstance(name, str) and not mending.is_broken(name) and name not in ACTIONS


def _foreign(wire: type[msgspec.Struct], raw: Mapping[str, Any]) -> ForeignWire:
    """Return what is read of an action other than ours; the items topic has no event time."""
    time = None if wire is ItemWire else mending.instant(raw.get("timestamp"))
    return ForeignWire(mending.as_id(raw.get("client_id")) or "", time)


def _found_nothing(raw: Mapping[str, Any]) -> bool:
    """Return whether a query has an empty list of hits in the form of null, "" or no field."""
    return (
        raw.get("query_response_hit_ids") in (None, "")
        and mending.text(raw.get("user_query")) is not None
        and raw.get("action_name") is None
    )


class _Field:
    """A field of a wire type.

    Attributes:
        type: annotated with its limits.
        needed: without it the record is refused.
    """

    __slots__ = ("_box", "needed", "type")

    def __init__(self, field_type: Any, needed: bool) -> None:
        self.type = field_type
        self.needed = needed
        # msgspec keeps what it knows of structs only: any other type it would analyse anew.
        self._box = msgspec.defstruct("Box", [("value", field_type)])

    def read(self, value: Any) -> Any:
        """Return a value as the schema has it, None where it is not so."""
        try:
            return msgspec.convert({"value": value}, self._box).value  # type: ignore[attr-defined]
        except (msgspec.ValidationError, UnicodeEncodeError):
            return None


class _Reader:
    """Reading of one record.

    Attributes:
        repairs: what was repaired or dropped so far.
        broken: text that is no Unicode, NaN or infinity may be anywhere in it.
    """

    def __init__(self, repairs: list[Repair]) -> None:
        self.repairs = repairs
        self.broken = False

    def parse(self, value: bytes) -> Any:
        """Parse the record."""
        if value.startswith(_BOM):
            value = value[len(_BOM) :]
            self._add("encoding", "$", "repaired")
        try:
            return msgspec.json.decode(value)
        except (msgspec.DecodeError, UnicodeDecodeError):
            self.broken = True
            text = value.decode(errors="surrogateescape")
            return json.loads(text, parse_int=mending.long_integer, strict=False)

    def read(self, wire: type[_W], raw: Mapping[str, Any], path: str) -> _W:
        """Read an object; refuse it where a field that is needed is not right."""
        values: dict[str, Any] = {}
        if wire is ExposureWire and _found_nothing(raw):
            raw = {**raw, "query_response_hit_ids": []}
            self._add("hits", f"{path}.query_response_hit_ids", "repaired")
        for name, field in _FIELDS[wire].items():
            value, at = raw.get(name), f"{path}.{name}"
            taken = None if value is None else self._take(name, field, value, at)
            if taken is None:
                if field.needed:
                    raise _refusal(name, field, raw, path)
                taken = self._instead(wire, name, value, at)
            if taken is not None:
                values[name] = taken
        return wire(**values)

    def _instead(self, wire: type[msgspec.Struct], name: str, value: Any, at: str) -> str | None:
        """Return what stands for a field that is not there or not right, None for nothing."""
        if wire is ExposureWire and name == "user_query":
            self._add(name, at, "repaired" if value is None else "dropped")
            return ""
        if value is not None:
            self._add(_KINDS.get(name, "unused"), at, "dropped")
        return None

    def _take(self, name: str, field: _Field, value: Any, at: str) -> Any:
        """Return the value of a field, None where none can be had."""
        if name in _OBJECTS:
            return self._object(_OBJECTS[name], value, at)
        if name == "candidates":
            return self._candidates(value, at)
        strict = field.read(value)
        if strict is not None and not (self.broken and mending.is_broken(value)):
            return strict
        if name == "attributes":
            return self._attributes(value, at)
        mended = field.read(_MENDS[name](value)) if name in _MENDS else None
        if mended is not None:
            self._add(_KINDS.get(name, "unused"), at, "repaired")
        return mended

    def _object(self, wire: type[_W], value: Any, at: str) -> _W | None:
        if value == []:  # an empty object of PHP
            self._add(_KINDS.get(at.rpartition(".")[2], "unused"), at, "repaired")
            value = {}
        return self.read(wire, value, at) if isinstance(value, dict) else None

    def _candidates(self, value: Any, at: str) -> list[CandidateWire] | None:
        if not isinstance(value, list):
            return None
        read = []
        for index, raw in enumerate(value):
            try:
                candidate = self._object(CandidateWire, raw, f"{at}[{index}]")
            except Refused:
                candidate = None
            if candidate is None:
                self._add("candidates", f"{at}[{index}]", "dropped")
            else:
                read.append(candidate)
        return read

    def _attributes(self, value: Any, at: str) -> dict[str, Attribute] | None:
        """Return the attributes that are features; nested objects are none."""
        if value == []:
            self._add("attributes", at, "repaired")
            return {}
        if not isinstance(value, dict):
            return None
        read: dict[str, Attribute] = {}
        for name, found in value.items():
            if found is None:
                continue
            mended = mending.attribute(found)
            if mended is not None:
                read[mending.text(name) or ""] = mended
            if mended != found or type(mended) is not type(found) or mending.is_broken(name):
                result: Result = "dropped" if mended is None else "repaired"
                self._add("attributes", f"{at}.{mending.text(name)}", result)
        return read

    def _add(self, field: str, path: str, result: Result) -> None:
        self.repairs.append(Repair(field, path, result))


def _refusal(name: str, field: _Field, raw: Mapping[str, Any], path: str) -> Refused:
    """Return the error of a field that is needed and not right, in msgspec's words."""
    if name not in raw:
        where = "" if path == "$" else f" - at `{path}`"
        return Refused("schema", f"Object missing required field `{name}`{where}")
    at, value = f"{path}.{name}", raw[name]
    broken_at = at if isinstance(value, str) and mending.is_broken(value) else None
    mended: Any = None
    if isinstance(value, list):  # its first element that is wrong is the reason
        mended, broken_at = _up_to_broken(value, at)
    elif broken_at is None and name in _MENDS:
        mended = _MENDS[name](value)
    message = "" if broken_at == at else _error(field, value if mended is None else mended)
    if broken_at is not None and not message:
        return Refused("not_utf8", f"{_NO_UNICODE} - at `{broken_at}`")
    reason = "naive_timestamp" if "timezone component" in message else "schema"
    if " - at `$" in message:
        return Refused(reason, message.replace(" - at `$", f" - at `{at}"))
    return Refused(reason, f"{message} - at `{at}`")


def _error(field: _Field, value: Any) -> str:
    """Return what is wrong with a value, in msgspec's words; empty when nothing is."""
    try:
        msgspec.convert(value, field.type)
    except msgspec.ValidationError as error:
        return str(error)
    return ""


def _up_to_broken(values: list[Any], at: str) -> tuple[list[Any], str | None]:
    """Return the elements before the first broken text, with ids as text, and its path."""
    read: list[Any] = []
    for num, value in enumerate(values):
        if isinstance(value, str) and mending.is_broken(value):
            return read, f"{at}[{num}]"
        mended = mending.as_id(value)
        read.append(value if mended is None else mended)
    return read, None


def _json_type(value: Any) -> str:
    names = {list: "array", str: "str", bool: "bool", int: "int", float: "float"}
    return names.get(type(value), "null")


# --- fields ---------------------------------------------------------------------------------------

_OBJECTS: dict[str, type[msgspec.Struct]] = {
    "query_attributes": QueryAttributesWire,
    "event_attributes": EventAttributesWire,
    "object": ObjectWire,
    "position": PositionWire,
}

_MENDS: dict[str, Callable[[Any], Any]] = {
    "client_id": mending.as_id,
    "query_id": mending.as_id,
    "object_id": mending.as_id,
    "event_id": mending.key,
    "page": mending.key,
    "timestamp": mending.instant,
    "user_query": mending.text,
    "query_response_hit_ids": mending.hits,
    "text": mending.text,
    "ordinal": mending.integer,
    "price": mending.number,
    "revenue": mending.number,
    "quantity": mending.number,
}

_KINDS = {
    **{name: name for name in FIELDS},
    "page": "event_id",
    "query_response_hit_ids": "hits",
    "ordinal": "position",
    "price": "amount",
    "revenue": "amount",
    "quantity": "amount",
}

_UNNEEDED = {"user_query"}  # the schema has it, and "" is what it is without


_FIELDS: dict[type[msgspec.Struct], dict[str, _Field]] = {
    wire: {
        each.name: _Field(each.type, each.required and each.name not in _UNNEEDED)
        for each in msgspec.structs.fields(wire)
    }
    for wire in (
        ExposureWire,
        QueryAttributesWire,
        CandidateWire,
        ActionWire,
        EventAttributesWire,
        ObjectWire,
        PositionWire,
        ItemWire,
    )
}
