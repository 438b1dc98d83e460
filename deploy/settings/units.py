"""Durations, sizes and times as people write them: `30s`, `7d`, `P7D`, `2MB`, ISO 8601; a number without its unit is refused."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from fractions import Fraction

MICROSECONDS = {
    "us": 1,
    "ms": 1_000,
    "s": 1_000_000,
    "m": 60_000_000,
    "h": 3_600_000_000,
    "d": 86_400_000_000,
    "w": 604_800_000_000,
}
BYTES = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}

_ISO = re.compile(r"P(?:(\d+)W)?(?:(\d+)D)?(?:T(?:(\d+)H)?(?:(\d+)M)?(?:(\d+(?:\.\d+)?)S)?)?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Unit:
    """How a quantity is written, and how many of its smallest unit one of ours is."""

    expected: str  #: what to write, in words
    pattern: str  #: the same as a regular expression, for editors
    factors: Mapping[str, int]  #: unit -> how many of the smallest
    per_stored: int  #: how many of the smallest make one as we store it

    def parse(self, text: str) -> float | None:
        """Return the quantity as we store it (a whole number where it is one), None where the text is not one with its unit."""
        smallest = (
            self._iso(text)
            if self.factors is MICROSECONDS and text.startswith("P")
            else self._plain(text)
        )
        if smallest is None:
            return None
        stored = smallest / self.per_stored
        return int(stored) if stored.denominator == 1 else float(stored)

    def format(self, stored: float) -> str:
        """Return a text that `parse` reads back: a whole number of the largest unit that makes one, weeks excepted."""
        smallest = round(stored * self.per_stored, 3)
        for unit, factor in sorted(self.factors.items(), key=lambda pair: -pair[1]):
            if smallest >= factor and smallest % factor == 0 and unit != "w":
                return f"{int(smallest) // factor}{unit}"
        return f"{smallest:f}".rstrip("0").rstrip(".") + min(
            self.factors, key=lambda unit: self.factors[unit]
        )

    def _plain(self, text: str) -> Fraction | None:
        match = re.fullmatch(r"(\d+(?:\.\d+)?) ?([A-Za-z]+)", text)
        if match is None or match[2] not in self.factors:
            return None
        return Fraction(match[1]) * self.factors[match[2]]

    def _iso(self, text: str) -> Fraction | None:
        match = _ISO.fullmatch(text)
        if match is None or not any(match.groups()) or text.endswith("T"):
            return None
        return sum(
            (
                Fraction(number or 0) * MICROSECONDS[unit]
                for number, unit in zip(match.groups(), "wdhms", strict=True)
            ),
            Fraction(),
        )


_DURATION = "a duration with its unit, such as 500ms, 30s, 15m, 7d or P7D"
_DURATION_PATTERN = r"^([0-9]+([.][0-9]+)? ?(us|ms|s|m|h|d|w)|P[0-9TWDHMS.]+)$"

#: suffix of a field's name -> how its value is written; the key in a file is the name without the suffix.
UNITS = {
    "_us": Unit(expected=_DURATION, pattern=_DURATION_PATTERN, factors=MICROSECONDS, per_stored=1),
    "_ms": Unit(
        expected=_DURATION, pattern=_DURATION_PATTERN, factors=MICROSECONDS, per_stored=1_000
    ),
    "_seconds": Unit(
        expected=_DURATION, pattern=_DURATION_PATTERN, factors=MICROSECONDS, per_stored=1_000_000
    ),
    "_bytes": Unit(
        expected="a size with its unit, such as 64KB, 2MB or 1GiB",
        pattern=r"^[0-9]+([.][0-9]+)? ?(B|KB|MB|GB|KiB|MiB|GiB)$",
        factors=BYTES,
        per_stored=1,
    ),
}


def parse_time(text: str) -> int | None:
    """Return microseconds since the Unix epoch of an ISO 8601 time, None where it is none; without an offset it is UTC, as Kafka has it.

    >>> parse_time("2026-11-23T22:08:12") == parse_time("2026-11-24T00:08:12+02:00") == 1_795_471_692_000_000
    True
    """
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        return None
    if time.tzinfo is None:
        time = time.replace(tzinfo=UTC)
    return int(time.timestamp()) * 1_000_000 + time.microsecond


def format_time(time_us: int) -> str:
    """Return microseconds since the Unix epoch in ISO 8601, UTC; a fraction only where there is one.

    >>> format_time(1_795_471_692_000_000)
    '2026-11-23T22:08:12Z'
    """
    return (
        datetime.fromtimestamp(time_us // 1_000_000, UTC)
        .replace(microsecond=time_us % 1_000_000, tzinfo=None)
        .isoformat()
        + "Z"
    )
