"""Durations, sizes and times as text: `30s`, `P7D`, `2MB`, ISO 8601.

A number without its unit is refused.
"""

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

_PLAIN = re.compile(r"(\d+(?:\.\d+)?) ?([A-Za-z]+)")
_ISO = re.compile(r"P(?:(\d+)W)?(?:(\d+)D)?(?:T(?:(\d+)H)?(?:(\d+)M)?(?:(\d+(?:\.\d+)?)S)?)?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Unit:
    """Notation of durations or sizes.

    Attributes:
        expected: description of what to write.
        pattern: the same as a regular expression, for editors.
        factors: unit -> its size in the smallest.
        per_stored: size in the smallest of the unit that a field stores.
    """

    expected: str
    pattern: str
    factors: Mapping[str, int]
    per_stored: int

    def parse(self, text: str) -> float | None:
        """Return the quantity as stored; None without a known unit."""
        iso = self.factors is MICROSECONDS and text.startswith("P")
        smallest = _parse_iso(text) if iso else self._parse_plain(text)
        if smallest is None:
            return None
        stored = smallest / self.per_stored
        return int(stored) if stored.denominator == 1 else float(stored)

    def format(self, stored: float) -> str:
        """Return the text, in the largest unit that makes it whole."""
        smallest = round(stored * self.per_stored, 3)
        by_size = sorted(self.factors, key=lambda unit: self.factors[unit])
        for unit in reversed(by_size):
            factor = self.factors[unit]
            if smallest >= factor and smallest % factor == 0 and unit != "w":
                return f"{int(smallest) // factor}{unit}"
        return f"{smallest:f}".rstrip("0").rstrip(".") + by_size[0]

    def _parse_plain(self, text: str) -> Fraction | None:
        match = _PLAIN.fullmatch(text)
        if match is None or match[2] not in self.factors:
            return None
        return Fraction(match[1]) * self.factors[match[2]]


def _parse_iso(text: str) -> Fraction | None:
    match = _ISO.fullmatch(text)
    if match is None or not any(match.groups()) or text.endswith("T"):
        return None
    total = Fraction()
    for number, unit in zip(match.groups(), "wdhms", strict=True):
        total += Fraction(number or 0) * MICROSECONDS[unit]
    return total


def _duration(per_stored: int) -> Unit:
    return Unit(
        expected="a duration with its unit, such as 500ms, 30s, 15m, 7d or P7D",
        pattern=r"^([0-9]+([.][0-9]+)? ?(us|ms|s|m|h|d|w)|P[0-9TWDHMS.]+)$",
        factors=MICROSECONDS,
        per_stored=per_stored,
    )


_SIZE = Unit(
    expected="a size with its unit, such as 64KB, 2MB or 1GiB",
    pattern=r"^[0-9]+([.][0-9]+)? ?(B|KB|MB|GB|KiB|MiB|GiB)$",
    factors=BYTES,
    per_stored=1,
)

#: Suffix of a field's name -> notation of its value; a key in a file has no suffix.
UNITS = {
    "_us": _duration(1),
    "_ms": _duration(1_000),
    "_seconds": _duration(1_000_000),
    "_bytes": _SIZE,
}


def parse_time(text: str) -> int | None:
    """Return an ISO 8601 time in microseconds since the Unix epoch.

    None if it is no such time. Without an offset it is UTC, as in Kafka's tools.

    >>> parse_time("2026-11-23T22:08:12"), parse_time("2026-11-24T00:08:12+02:00")
    (1795471692000000, 1795471692000000)
    """
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        return None
    if time.tzinfo is None:
        time = time.replace(tzinfo=UTC)
    return int(time.timestamp()) * 1_000_000 + time.microsecond


def format_time(time_us: int) -> str:
    """Return microseconds since the Unix epoch as ISO 8601, UTC.

    >>> format_time(1_795_471_692_000_000)
    '2026-11-23T22:08:12Z'
    """
    whole = datetime.fromtimestamp(time_us // 1_000_000, UTC)
    return whole.replace(microsecond=time_us % 1_000_000, tzinfo=None).isoformat() + "Z"
