"""Values of a row, checked: texts, numbers, flags and times; and rows that are left out."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from consumers.mending import as_id, instant
from deploy.errors import TableRefused, UsageError
from weighting.sample import Attribute

MAX_CHARS = 100_000
MAX_WEIGHT = 1e6  # of a row
_FIRST_ROWS = 3
_TRUE, _FALSE = {"1", "true", "yes", "y", "t"}, {"0", "false", "no", "n", "f"}
_EXPECTED_TIME = (
    "ISO 8601 with an offset, or a number since 1970 (s, ms, us). Of other texts, name the format: "
    "--time-format, or time.format of a mapping"
)
_DAY_US = 86_400_000_000
_END_US = 10**16  # where numbers of microseconds end, in November 2286
_INT64 = range(-(1 << 63), 1 << 63)
_MAX_ELEMENTS = 16
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Wrong(ValueError):
    """Value that cannot be used.

    Attributes:
        column: where it is.
        found: the value, shortened.
        expected: in words.
    """

    def __init__(self, column: str, found: Any, expected: str) -> None:
        """Take the place, the value and the expectation."""
        text = repr(found)
        self.column = column
        self.found = text if len(text) <= 60 else f"{text[:57]}..."
        self.expected = expected
        super().__init__(f"column {column!r}: found {self.found}, expected {expected}")


def text_of(value: Any, column: str, *, empty: bool = False) -> str:
    """Return a text without space around it; numbers and ids become their decimal text.

    Raises:
        Wrong: it is empty, longer than 100,000 characters, or no text.
    """
    if value is None or (isinstance(value, float) and math.isnan(value)):
        value = ""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise Wrong(column, value, "a text")
    text = str(value).strip()
    if len(text) > MAX_CHARS:
        found = f"{text[:20]}... ({len(text)} characters)"
        raise Wrong(column, found, f"at most {MAX_CHARS:,} characters")
    if not text and not empty:
        raise Wrong(column, value, "a text that is not empty")
    return text


def number_of(value: Any, column: str, *, low: float, high: float) -> float:
    """Return a number within bounds, both included.

    Raises:
        Wrong: it is none, or outside.
    """
    expected = f"a number from {low:g} to {high:g}" if high < math.inf else f"a number >= {low:g}"
    try:
        number = _decimal(value)
    except (TypeError, ValueError, OverflowError):
        raise Wrong(column, value, expected) from None
    if not low <= number <= high or math.isinf(number):  # NaN is not within them either
        raise Wrong(column, value, expected)
    return number


def whole_of(value: Any, column: str, *, low: int) -> int:
    """Return a whole number of at least `low`.

    Raises:
        Wrong: it is none.
    """
    expected = f"a whole number >= {low}"
    try:
        number = _decimal(value)
    except (TypeError, ValueError, OverflowError):
        raise Wrong(column, value, expected) from None
    if not number.is_integer() or number < low or number > 2**53:
        raise Wrong(column, value, expected)
    return int(number)


def _decimal(value: Any) -> float:
    """Return a number; Python would read the text 1_5 as 15."""
    if isinstance(value, str) and "_" in value:
        raise ValueError
    return float(value)


def flag_of(value: Any, column: str) -> bool | None:
    """Return whether something happened; None where nothing is said.

    Raises:
        Wrong: neither yes nor no.
    """
    if value is None or value == "" or (isinstance(value, float) and math.isnan(value)):
        return None
    word = str(value).strip().lower().removesuffix(".0")
    if word in _TRUE:
        return True
    if word in _FALSE:
        return False
    raise Wrong(column, value, "true or false, or 1 or 0")


def attribute_of(value: Any, column: str) -> Attribute | None:
    """Return an attribute of an item, None where there is none; of a list its first 16 texts.

    Raises:
        Wrong: it is an object, a list of anything but texts and numbers, or a number beyond all
            bounds.
    """
    if value is None or value == "" or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, list):
        known = [(place, each) for place, each in enumerate(value) if each is not None]
        return [_element(each, f"{column}[{place}]") for place, each in known[:_MAX_ELEMENTS]]
    if not isinstance(value, str | int | float):
        raise Wrong(column, value, "a text, a number, true or false, or a list of texts")
    if isinstance(value, float) and math.isinf(value):
        raise Wrong(column, value, "a number that is finite")
    return float(value) if isinstance(value, int) and _far(value, column) else value


def _element(value: Any, column: str) -> str:
    """Return the text of an element; readers of events drop what is none."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise Wrong(column, value, "a text or a number")
    if isinstance(value, float) and not math.isfinite(value):
        raise Wrong(column, value, "a number that is finite")
    if isinstance(value, int):
        _far(value, column)
    return as_id(value) or str(value)


def _far(value: int, column: str) -> bool:
    if abs(value) >= 10**300:
        raise Wrong(column, value, "a number below 1e300")
    return value not in _INT64


def time_of(
    value: Any,
    column: str,
    *,
    zone: ZoneInfo | None,
    pattern: str | None = None,
    now_us: int | None = None,
) -> int:
    """Return a time in microseconds since 1970.

    Args:
        value: a time of Parquet, a text, or a number since 1970 in seconds, milliseconds,
            microseconds or nanoseconds, as many digits as that has in the years 2001 to 2286.
        column: for the error.
        zone: of times that name no offset; None: they are refused.
        pattern: of texts, as for `datetime.strptime`; ISO 8601 by default.
        now_us: times more than a day later are refused; None: none are.

    Raises:
        Wrong: it cannot be read in one way only, is not in the years 1970 to 2286, is in the
            future, or no clock of the zone ever showed it.
    """
    if isinstance(value, datetime):
        found: datetime | None = value
    elif pattern is not None and isinstance(value, str):
        try:
            found = datetime.strptime(value.strip(), pattern)  # noqa: DTZ007 - the zone follows
        except ValueError:
            raise Wrong(column, value, f"a time like {pattern}") from None
    else:
        found = instant(value) or _without_offset(value)
    if found is None:
        raise Wrong(column, value, _EXPECTED_TIME)
    try:
        time_us = _since_1970(_zoned(found, value, column, zone))
    except OverflowError:  # in UTC, beyond the years 1 to 9999
        time_us = -1
    if not 0 <= time_us < _END_US:
        raise Wrong(column, value, "a time in the years 1970 to 2286")
    if now_us is not None and time_us > now_us + _DAY_US:
        raise Wrong(column, value, "a time that is not in the future")
    return time_us


def zone_of(name: str | None) -> ZoneInfo | None:
    """Return the zone that `--timezone` names; None where it is not given.

    Raises:
        UsageError: there is no such zone.
    """
    try:
        return None if name is None else ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise UsageError(
            f"--timezone: got {name!r}, expected a name such as Europe/Berlin or UTC"
        ) from error


def _zoned(found: datetime, value: Any, column: str, zone: ZoneInfo | None) -> datetime:
    if found.tzinfo is None:
        if zone is None:
            raise Wrong(column, value, "a time with an offset (Z or +01:00), or --timezone NAME")
        found = found.replace(tzinfo=zone)
        if found.astimezone(UTC).astimezone(zone).replace(tzinfo=None) != found.replace(
            tzinfo=None
        ):
            raise Wrong(column, value, f"a time that clocks of {zone.key} showed")
    return found


def _since_1970(found: datetime) -> int:
    delta = found.astimezone(UTC) - _EPOCH
    return (delta.days * 86_400 + delta.seconds) * 1_000_000 + delta.microseconds


def _without_offset(value: Any) -> datetime | None:
    """Return an ISO 8601 time without an offset; a date alone says no time."""
    if not isinstance(value, str) or len(value.strip()) <= len("2026-01-01"):
        return None
    try:
        return datetime.fromisoformat(value.strip())
    except ValueError:
        return None


@dataclass(slots=True)
class LeftOut:
    """Rows that are not used: for each reason, how many, and the numbers of the first.

    Attributes:
        name: of the file.
        skip: whether wrong values are left out too; else the first one ends the reading.
        counts: reason -> number of rows.
        first: reason -> the first rows.
    """

    name: str
    skip: bool
    counts: dict[str, int] = field(default_factory=dict)
    first: dict[str, list[int]] = field(default_factory=dict)

    def add(self, row: int, reason: str) -> None:
        """Count a row."""
        self.counts[reason] = self.counts.get(reason, 0) + 1
        rows = self.first.setdefault(reason, [])
        if len(rows) < _FIRST_ROWS:
            rows.append(row)

    def refuse(self, row: int, error: Wrong) -> None:
        """Count a row with a wrong value, if such rows are to be left out.

        Raises:
            TableRefused: they are not.
        """
        if not self.skip:
            raise TableRefused(
                f"{self.name}: row {row}, {error}. Correct it, or leave such rows out with "
                "--skip-invalid."
            )
        self.add(row, f"column {error.column!r}: expected {error.expected}")

    def lines(self) -> Iterable[str]:
        """Return one line per reason."""
        for reason, number in self.counts.items():
            rows = ", ".join(map(str, self.first[reason]))
            more = ", ..." if number > len(self.first[reason]) else ""
            yield f"left out: {number:,} rows: {reason} (row {rows}{more})"
