"""Values of the wrong kind, read where their meaning is certain.

Each function returns None where it is not.
"""

from __future__ import annotations

import contextlib
import json
import math
import re
from datetime import datetime, timedelta
from typing import Any

from consumers.events import EPOCH, MAX_ELEMENTS
from weighting.sample import Attribute

_MAX_EXACT = 2**53  # beyond it a float stands for several integers
_MAX_NUMBER = 1e300
_MAX_DIGITS = 40
_MAX_CHARS = 64  # of a time or a number as text: the patterns below are quadratic
_INT64 = range(-(2**63), 2**63)
# A number with a currency or a bracket before it, or a sign or a currency after it.
_NUMBER = re.compile(r"([^\d.,]{0,5})([.,]?\d[\d.,' ]*)(\D{0,5})")
_INTEGER = re.compile(r"\s*\d{1,9}\s*", re.ASCII)
_EPOCH_TEXT = re.compile(r"\d{10,19}(\.\d+)?")
_SURROGATE = re.compile("[\ud800-\udfff]")
_ZONE_NAME = re.compile(r"\[[^\]]*\]$")
_BEFORE_OFFSET = re.compile(r" +(?=[-+Z][\d:]*$)")
# Seconds, milliseconds, microseconds and nanoseconds of the years 2001 to 2286 are disjoint.
_TICKS_PER_SECOND = (1, 10**3, 10**6, 10**9)
_MIN_SECONDS, _MAX_SECONDS = 10**9, 10**10


def as_id(value: Any) -> str | None:
    """Return an id; a number is its decimal text."""
    if isinstance(value, str):
        return None if is_broken(value) else value
    if isinstance(value, float):
        exact = value.is_integer() and abs(value) < _MAX_EXACT
        return str(int(value)) if exact else None
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else None


def hits(value: Any) -> list[str | None] | None:
    """Return ids; one that is none spoils the list, whose positions count."""
    if value == {}:  # an empty list of PHP
        return []
    return [as_id(each) for each in value] if isinstance(value, list) else None


def key(value: Any) -> str | None:
    """Return what only serves to tell events apart: equal text for equal values."""
    if isinstance(value, bool) or value in ([], {}):
        return None
    return value if isinstance(value, str) and not is_broken(value) else _canonical(value)


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def text(value: Any) -> str | None:
    """Return text without halves of characters; a number is its decimal text."""
    if isinstance(value, str):
        if not is_broken(value):
            return value
        return value.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return as_id(value) or (repr(value) if math.isfinite(value) else None)


def number(value: Any) -> float | None:
    """Return a finite number, also from text with a currency; its sign is certain."""
    if isinstance(value, str):
        value = _number_in(value) if len(value) <= _MAX_CHARS else None
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if abs(value) < _MAX_NUMBER else None


def _number_in(text: str) -> float | None:
    """Return the number in a text; the last comma or dot is taken for the decimal one."""
    text = text.replace("\N{MINUS SIGN}", "-").strip()
    if "_" not in text:  # Python would read 1_5 as 15
        with contextlib.suppress(ValueError):
            return float(text)
    found = _NUMBER.fullmatch(text)
    if found is None:
        return None
    before, digits, after = found.groups()
    whole, point, rest = re.sub("[' ]", "", digits).replace(",", ".").rpartition(".")
    size = float(f"{whole.replace('.', '')}{point}{rest or '0'}")
    return -size if "-" in before or "(" in before or "-" in after else size


def integer(value: Any) -> int | None:
    """Return an integer, also from text."""
    if isinstance(value, str):
        short = len(value) <= _MAX_CHARS
        return int(value) if short and _INTEGER.fullmatch(value) else None
    found = number(value)
    return None if found is None or not found.is_integer() else int(found)


def attribute(value: Any) -> Attribute | None:
    """Return an attribute's value: a scalar, or the first texts of a list."""
    if isinstance(value, list):
        texts = [found for each in value if (found := text(each)) is not None]
        return texts[:MAX_ELEMENTS] or (None if value else [])
    if isinstance(value, bool):
        return value
    if isinstance(value, int | float):
        if isinstance(value, int) and value not in _INT64:
            value = float(value) if abs(value) < _MAX_NUMBER else math.inf
        return value if abs(value) < _MAX_NUMBER else None
    return text(value)


def instant(value: Any) -> datetime | None:
    """Return a time that can be read in one way only.

    ISO 8601 with an offset, and numbers of seconds, milliseconds, microseconds or nanoseconds since
    1970 for the years 2001 to 2286, whose ranges are disjoint.
    """
    if isinstance(value, str):
        if len(value) > _MAX_CHARS:
            return None
        text = value.strip().upper()
        if _EPOCH_TEXT.fullmatch(text):
            return _since_epoch(float(text) if "." in text else int(text))
        return _iso(text)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return _since_epoch(value)


def _iso(text: str) -> datetime | None:
    """Return an ISO 8601 time with an offset; the name of a zone after it says nothing more."""
    for name in ("UTC", "GMT"):
        if text.endswith(name):
            text = text.removesuffix(name).rstrip() + "Z"
    text = _BEFORE_OFFSET.sub("", _ZONE_NAME.sub("", text))
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        return None
    return None if time.tzinfo is None else time


def _since_epoch(value: float) -> datetime | None:
    for ticks in _TICKS_PER_SECOND:
        if _MIN_SECONDS * ticks <= value < _MAX_SECONDS * ticks:
            us = round(value * 10**6 / ticks) if ticks < 10**6 else value // (ticks // 10**6)
            return EPOCH + timedelta(microseconds=us)
    return None


def long_integer(digits: str) -> int | float:
    """Return an integer; infinity where it is longer than any that we use."""
    return int(digits) if len(digits) <= _MAX_DIGITS else math.inf


def is_broken(value: Any) -> bool:
    """Return whether text in a value is no Unicode, or a number in it not finite."""
    if isinstance(value, str):
        return not value.isascii() and _SURROGATE.search(value) is not None
    if isinstance(value, float):
        return not math.isfinite(value)
    if isinstance(value, dict):
        return any(is_broken(name) or is_broken(each) for name, each in value.items())
    return isinstance(value, list) and any(map(is_broken, value))
