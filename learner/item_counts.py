"""Clicks and exposure of a query's items, fading in event time.

A count is brought to the present when its item is shown; the sum over all items is kept. So a list
costs as much as it is long, whatever the number of items counted before it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec


class ItemCounts:
    """Items of one query, those counted last at the end.

    Every count fades by 2^(-dt / half-life). Time never runs backwards: what is late counts as if
    it came now.
    """

    __slots__ = ("_exposure", "_rows", "_time_us")

    def __init__(self) -> None:
        """Start with nothing counted."""
        self._rows: dict[str, tuple[float, float, int]] = {}
        self._exposure = 0.0
        self._time_us = 0

    def __len__(self) -> int:
        """Return the number of items counted."""
        return len(self._rows)

    def add(
        self,
        items: Sequence[str],
        counts: Sequence[Sequence[float]],
        *,
        time_us: int,
        half_life_us: float,
        most: int,
    ) -> tuple[list[tuple[float, float]], float]:
        """Count n items; drop those counted longest ago beyond `most`.

        Args:
            items: n distinct ids.
            counts: (n, 2) clicks and exposure to add.
            time_us: event time.
            half_life_us: after which a count is half of what it was.
            most: number of items kept.

        Returns:
            The n items' clicks and exposure, and the exposure of all items.
        """
        now = max(time_us, self._time_us)
        self._exposure *= 2.0 ** ((self._time_us - now) / half_life_us)
        self._time_us = now
        found = []
        for item, (clicks, exposure) in zip(items, counts, strict=True):
            c, e, at = self._rows.pop(item, (0.0, 0.0, now))
            kept = 2.0 ** ((at - now) / half_life_us)
            c, e = kept * c + clicks, kept * e + exposure
            self._rows[item] = c, e, now
            self._exposure += exposure
            found.append((c, e))
        while len(self._rows) > most:
            _, e, at = self._rows.pop(next(iter(self._rows)))
            self._exposure -= e * 2.0 ** ((at - now) / half_life_us)
        return found, self._exposure

    def encoded(self) -> bytes:
        """Return the state as msgpack."""
        rows = [[item, *row] for item, row in self._rows.items()]
        return msgspec.msgpack.encode([self._time_us, self._exposure, rows])

    @classmethod
    def decoded(cls, state: Sequence[Any]) -> ItemCounts:
        """Return what `encoded` wrote, from the list that msgpack made of it."""
        found = cls()
        found._time_us, found._exposure, rows = state
        found._rows = {item: (c, e, at) for item, c, e, at in rows}
        return found
