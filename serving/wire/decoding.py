"""Decoding of request bodies piece by piece, so that no call holds the interpreter for long.

A call of msgspec holds it until it returns, and a body may be of the worst kind: a number such as
1e300 costs it 15 us, and two megabytes of them a third of a second. So Python reads the numbers,
and no call builds those of more than four kilobytes; threads may be switched between two calls.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import msgspec
import numpy as np
from msgspec import UNSET, Raw, UnsetType

from learner.artifact import Document
from serving.errors import Invalid, TooLarge
from serving.wire.protocol import Context, Instance, RerankRequest, TeiRequest
from serving.wire.unknown import ignored, refused

T = TypeVar("T")


class _Shape(msgspec.Struct):
    """The fields that distinguish the two shapes of `/rerank`."""

    documents: Raw | UnsetType = UNSET
    texts: Raw | UnsetType = UNSET


def _finite(digits: str) -> float:
    """Return a float; Python reads any number in less than a microsecond."""
    value = float(digits)
    if not math.isfinite(value):
        raise ValueError("Number out of range")
    return value


_SMALL_BYTES = 4096
_SCALAR = msgspec.json.Decoder(float_hook=_finite)
_LIST = msgspec.json.Decoder(list[Raw])
_SMALL_DOCUMENT: msgspec.json.Decoder[Any]
_SMALL_DOCUMENT = msgspec.json.Decoder(str | dict[str, Any], float_hook=_finite)
_DOCUMENT: msgspec.json.Decoder[Any] = msgspec.json.Decoder(str | dict[str, Raw])


def check_values(body: bytes, most: int) -> None:
    """Refuse a body with more values than `most`, before any of them is built.

    Raises:
        TooLarge: it has more.
    """
    if body.count(b",") >= most and (values := num_values(body)) > most:
        raise TooLarge("", values, most)


def num_values(body: bytes) -> int:
    r"""Return an upper bound of the values in JSON: commas outside of strings, and one.

    Runs in numpy, which lets other threads run meanwhile.

    >>> num_values(b'{"a": [1, 2, "x, \\", 3], "b": "\", 4"}')
    5
    """
    characters = np.frombuffer(body, np.uint8)
    quotes = characters == ord('"')
    escapes = characters == ord("\\")
    if (escapes[:-1] & quotes[1:]).any():
        # a quote behind an odd number of backslashes is part of a string
        places = np.arange(len(characters), dtype=np.int32)
        last_other = np.maximum.accumulate(np.where(escapes, np.int32(-1), places))
        num_before = places[1:] - 1 - last_other[:-1]
        quotes[1:] &= num_before % 2 == 0
    outside = ~np.logical_xor.accumulate(quotes)
    return int(np.count_nonzero((characters == ord(",")) & outside)) + 1


def decode(body: bytes, kind: type[T]) -> T:
    """Return `body` as a `kind`, which holds no number and no nested value that is not `Raw`.

    Raises:
        Invalid: not JSON, or not of that shape; names the path.
    """
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        if unknown := _UNKNOWN.fullmatch(str(error)):
            name, where = unknown[1], unknown[2] or "$"
            inner = _INNER.get(where.partition("[")[0], kind)
            raise refused(name, inner.__struct_fields__, where) from error
        raise Invalid(str(error)) from error
    except RecursionError as error:
        raise Invalid("JSON is nested too deeply") from error


_UNKNOWN = re.compile(r"Object contains unknown field `(.*?)`(?: - at `(\$\.[^`]*)`)?", re.DOTALL)
_INNER: Mapping[str, Any] = {"$.context": Context, "$.instances": Instance}
"""Path -> the kind of what is there."""


class _KnownRerank(RerankRequest, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A request of known fields alone: nearly all are, and take one call."""


class _KnownTei(TeiRequest, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A request of known fields alone."""


_KNOWN: Mapping[type, type] = {RerankRequest: _KnownRerank, TeiRequest: _KnownTei}
PLACES: Mapping[type, Mapping[str, str]] = {
    RerankRequest: {name: name for name in RerankRequest.__struct_fields__}
    | {name: f"context.{name}" for name in Context.__struct_fields__},
    TeiRequest: {name: name for name in TeiRequest.__struct_fields__},
}
"""Kind -> the fields of its top level and of what it holds, with the path of each."""


def decode_open(body: bytes, kind: type[T]) -> tuple[T, tuple[str, ...]]:
    """Return `body` as `decode` does, and the names of unknown fields, which are ignored.

    Raises:
        Invalid: as `decode`; or an unknown field is probably a misspelling of a known one.
    """
    try:
        return msgspec.json.decode(body, type=_KNOWN[kind]), ()
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        pass  # what is wrong, if anything, is said below
    places = PLACES[kind]
    names = [name for name in decode(body, dict[str, Raw]) if places.get(name) != name]
    unknown = ignored(names, places)
    return decode(body, kind), unknown


def decode_rerank(
    body: bytes,
) -> tuple[RerankRequest, tuple[str, ...]] | tuple[TeiRequest, tuple[str, ...]]:
    """Return the body of `/rerank` in the shape that its fields announce, as `decode_open` does.

    `documents` means Cohere or Jina, `texts` means TEI.

    Raises:
        Invalid: neither, both, or not of the announced shape.
    """
    shape = decode(body, _Shape)
    if (shape.documents is UNSET) == (shape.texts is UNSET):
        raise Invalid("Expected either `documents` (Cohere, Jina) or `texts` (TEI) - at `$`")
    if shape.texts is UNSET:
        return decode_open(body, RerankRequest)
    request, unknown = decode_open(body, TeiRequest)
    if not request.truncate:
        reason = "texts longer than the model reads are always cut"
        raise Invalid(f"Expected `true`, got `false`: {reason} - at `$.truncate`")
    return request, unknown


def top_n(asked: RerankRequest) -> int | None:
    """Return the number of documents to answer with; None for all.

    Raises:
        Invalid: no integer, or less than 1.
    """
    value = None if asked.top_n is UNSET else _value(asked.top_n, "$.top_n")
    if value is None:
        return None
    value = _integer(value)
    if isinstance(value, bool) or not isinstance(value, int):
        kind = _KINDS.get(type(value), "object")
        raise Invalid(f"Expected `int`, got `{kind}` - at `$.top_n`")
    if value < 1:
        raise Invalid("Expected `int` >= 1 - at `$.top_n`")
    return value


_KINDS = {float: "float", str: "str", bool: "bool", list: "array"}


def document(raw: Raw, where: str, index: int, fields: Sequence[str] | None = None) -> Document:
    """Return one document of a request as the scorer takes it.

    Args:
        raw: text, or an object with `text`, maybe `id`, and attributes.
        where: its path in the request, with ``{}`` for `index`: only an error writes it out.
        index: its place in the request.
        fields: whose values make its text, instead of `text`.

    Raises:
        Invalid: there is no text, or `id` is neither string nor integer.
    """
    small = memoryview(raw).nbytes <= _SMALL_BYTES
    values = _decoded(_SMALL_DOCUMENT if small else _DOCUMENT, raw, where, index)
    if isinstance(values, str):
        return Document(text=values)
    if not small:
        values = {key: _value(value, where, index) for key, value in values.items()}
    here = where.format(index)
    text, name = values.get("text"), values.get("id")
    if fields:
        text = _joined(values, fields, here)
    if not isinstance(text, str):
        advice = " (or name the fields to read in `rank_fields`)" if text is None else ""
        raise Invalid(f"Expected `str` - at `{here}.text`{advice}")
    name = _integer(name)
    if name is None:
        name = ""
    elif isinstance(name, bool) or not isinstance(name, str | int):
        raise Invalid(f"Expected `str | int` - at `{here}.id`")
    if len(values) <= 1 + ("id" in values):
        return Document(text=text, id=str(name))
    attributes = {
        key: feature
        for key, value in values.items()
        if key not in ("text", "id") and (feature := _feature(value)) is not None
    }
    return Document(text=text, id=str(name), attributes=attributes)


def _joined(values: Mapping[str, Any], fields: Sequence[str], where: str) -> str:
    found = [values[name] for name in fields if isinstance(values.get(name), str | int | float)]
    if not found:
        raise Invalid(f"Expected one of `rank_fields` ({', '.join(fields)[:200]}) - at `{where}`")
    return " ".join(map(str, found))


def _feature(value: Any) -> Any:
    """Return an attribute: a scalar, or the texts of a list; None of what is neither."""
    if isinstance(value, list):
        return [str(each) for each in value if isinstance(each, str) or type(each) is int]
    return value if isinstance(value, str | int | float) else None


def _integer(value: Any) -> Any:
    """Return a float without a fraction as an integer, anything else as it is."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _value(raw: Raw, where: str, index: int = 0) -> Any:
    """Return a scalar, the scalars of a list, or an empty object instead of one.

    What is nested deeper is never used, so it is not built.
    """
    first = _first(raw)
    if first == _OBJECT:
        return {}
    if first != _ARRAY:
        return _decoded(_SCALAR, raw, where, index)
    items = _decoded(_LIST, raw, where, index)
    return [_decoded(_SCALAR, item, where, index) for item in items if _first(item) not in _NESTED]


_OBJECT, _ARRAY = b"{["
_NESTED = (_OBJECT, _ARRAY)


def _first(raw: Raw) -> int:
    return memoryview(raw)[0]


def _decoded(decoder: msgspec.json.Decoder[T], raw: Raw, where: str, index: int = 0) -> T:
    try:
        return decoder.decode(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise Invalid(f"{error} - at `{where.format(index)}`") from error
    except RecursionError as error:
        raise Invalid(f"JSON is nested too deeply - at `{where.format(index)}`") from error
