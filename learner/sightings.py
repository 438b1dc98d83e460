"""Queries shown in one list so far: a table of fixed size.

An entry holds 32 bits of the hash of a query and 32 of its list; where two queries meet in one
place, the later one stays. So a new query passes for one that recurs with probability 2^-32 per
lookup at most, and 2 MiB hold the traffic of days however many queries never come again.
"""

from __future__ import annotations

from array import array
from collections.abc import Collection, Mapping
from hashlib import blake2b
from typing import Any

import numpy as np

from learner.errors import Corrupt

_NUM_PLACES = 1 << 18
_UINT32 = 0xFFFFFFFF


class Sightings:
    """The latest queries that were shown in one list only.

    >>> sightings = Sightings()
    >>> [sightings.recurs("shoes", [name]) for name in ("list 1", "list 1", "list 2")]
    [False, False, True]
    """

    def __init__(self) -> None:
        """Start with no query seen."""
        self._table = array("Q", bytes(8 * _NUM_PLACES))

    def recurs(self, query: str, lists: Collection[str]) -> bool:
        """Note the lists of a query; return whether it was shown in more than one."""
        hashed = _hash(query)
        place, tag = hashed % _NUM_PLACES, hashed >> 32 or 1
        shown = {_hash(name) & _UINT32 for name in lists}
        entry = self._table[place]
        if entry >> 32 == tag:
            shown.add(entry & _UINT32)
        elif shown:
            self._table[place] = tag << 32 | min(shown)
        return len(shown) > 1

    def copy(self) -> Sightings:
        """Return a copy that later lists leave alone."""
        found = Sightings.__new__(Sightings)
        found._table = self._table[:]
        return found

    def snapshot(self) -> dict[str, Any]:
        """Return places as u32 and entries as u64, little-endian, of those in use."""
        table = np.frombuffer(self._table, np.uint64)
        used = np.flatnonzero(table)
        return {
            "num_places": _NUM_PLACES,
            "place": used.astype("<u4").tobytes(),
            "entry": table[used].astype("<u8").tobytes(),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restore the state returned by `snapshot`.

        Raises:
            Corrupt: it is of another size, or its columns do not match.
        """
        place = np.frombuffer(state["place"], "<u4")
        entry = np.frombuffer(state["entry"], "<u8")
        outside = len(place) > 0 and int(place.max()) >= _NUM_PLACES
        if state["num_places"] != _NUM_PLACES or len(place) != len(entry) or outside:
            found = f"{state['num_places']} places, {len(place)} and {len(entry)} in use"
            raise Corrupt("sightings", expected=f"{_NUM_PLACES} places", found=found)
        table = array("Q", bytes(8 * _NUM_PLACES))
        np.frombuffer(table, np.uint64)[place] = entry
        self._table = table


def _hash(text: str) -> int:
    data = text.encode("utf-8", "surrogatepass")
    return int.from_bytes(blake2b(data, digest_size=8).digest(), "little")
