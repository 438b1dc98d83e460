"""Number of lists that a query had before: counts of the frequent ones, in a table of fixed size.

A place of the table holds 32 bits of a query's hash and a count. A list of another query that falls
on a taken place takes one off its count, and takes the place when nothing is left (Misra and Gries,
Science of Computer Programming 1982, per place). So a count is never too high but for queries that
share 32 bits of hash in one place, and queries that come often keep theirs.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping
from hashlib import blake2b
from typing import Any

import msgspec
import numpy as np

from learner.errors import Corrupt
from weighting.query_key import query_key

FORMAT = 1
NUM_PLACES = 1 << 15
_LARGEST = 0xFFFFFFFF


class QueryFrequency:
    """Lists counted per query, whatever its spelling (`query_key`).

    >>> frequency = QueryFrequency()
    >>> [frequency.learn(query) for query in ("shoes", "mug", "Shoes")]
    [0, 0, 1]
    """

    def __init__(self) -> None:
        """Start with nothing counted."""
        self._table = array("Q", bytes(8 * NUM_PLACES))

    def get(self, query: str) -> int:
        """Return the lists that a query had so far, 0 where that is not known. Pure."""
        place, tag = _place(query)
        held, count = divmod(self._table[place], _LARGEST + 1)
        return count if held == tag else 0

    def learn(self, query: str) -> int:
        """Count a list of a query; return how many it had before."""
        place, tag = _place(query)
        held, count = divmod(self._table[place], _LARGEST + 1)
        if count and held == tag:
            self._table[place] = tag << 32 | min(count + 1, _LARGEST)
            return count
        if count > 1:
            self._table[place] -= 1
        else:
            self._table[place] = tag << 32 | 1
        return 0

    def snapshot(self) -> bytes:
        """Return places as u32 and entries as u64, little-endian, of those in use, as msgpack."""
        table = np.frombuffer(self._table, np.uint64)
        used = np.flatnonzero(table)
        state = {
            "format": FORMAT,
            "num_places": NUM_PLACES,
            "place": used.astype("<u4").tobytes(),
            "entry": table[used].astype("<u8").tobytes(),
        }
        return msgspec.msgpack.encode(state)

    def restore(self, data: bytes) -> None:
        """Restore the state returned by `snapshot`.

        Raises:
            Corrupt: it is of another format or size.
        """
        state: Mapping[str, Any] = msgspec.msgpack.decode(data)
        found = state["format"], state["num_places"]
        if found != (FORMAT, NUM_PLACES):
            expected = f"format {FORMAT}, {NUM_PLACES} places"
            raise Corrupt("query frequency", expected=expected, found=f"{found[0]}, {found[1]}")
        table = array("Q", bytes(8 * NUM_PLACES))
        places = np.frombuffer(state["place"], "<u4")
        np.frombuffer(table, np.uint64)[places] = np.frombuffer(state["entry"], "<u8")
        self._table = table


def _place(query: str) -> tuple[int, int]:
    """Return the place of a query in the table, and 32 bits of its hash."""
    data = query_key(query).encode("utf-8", "surrogatepass")
    hashed = int.from_bytes(blake2b(data, digest_size=8).digest(), "little")
    return hashed % NUM_PLACES, hashed >> 32
