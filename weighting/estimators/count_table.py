"""Table of fixed size of clicks, observed and expected, that fade in event time.

Legend: n keys. A key is a 64-bit hash. Its low bits name a set of four rows, 32 of the others are
kept in the row that it takes; the least expected clicks of a set make room for a new key. Whole
columns of keys are read and counted at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from weighting.errors import SnapshotError

Array = NDArray[np.float64]
Keys = NDArray[np.uint64]
_WAYS = np.arange(4)
_TYPES = {"row": "<u4", "tag": "<u4", "observed": "<f8", "expected": "<f8", "time_us": "<i8"}


class CountTable:
    """Observed and expected clicks of each of the latest keys, halved in each half-life.

    Time never runs backwards: what is late counts as if it came now.

    >>> table = CountTable(hash_bits=8, half_life_seconds=1.0)
    >>> key = np.array([7], dtype=np.uint64)
    >>> table.add(key, np.array([1.0]), np.array([4.0]), 0)
    >>> table.add(key, np.array([0.5]), np.array([0.0]), 1_000_000)
    >>> [column.tolist() for column in table.get(key)]
    [[1.0], [2.0]]
    """

    def __init__(self, *, hash_bits: int, half_life_seconds: float) -> None:
        """Start empty.

        Args:
            hash_bits: log2 of the number of rows, from 2 to 32.
            half_life_seconds: event time after which a count is half of what it was.
        """
        self.hash_bits = hash_bits
        self._half_life_us = 1e6 * half_life_seconds
        self._clear()

    def _clear(self) -> None:
        number = 1 << self.hash_bits
        self._tag = np.zeros(number, np.uint32)
        self._observed = np.zeros(number)
        self._expected = np.zeros(number)
        self._time_us = np.zeros(number, np.int64)
        self.newest_us: int | None = None

    def get(self, keys: Keys) -> tuple[Array, Array]:
        """Observed and expected clicks (n,) by the newest time; 0 of an unknown key. Pure."""
        row = self._find(keys)
        known = row >= 0
        keep = np.where(known, self._keep(row), 0.0)
        return keep * self._observed[row], keep * self._expected[row]

    def add(self, keys: Keys, observed: Array, expected: Array, time_us: int) -> None:
        """Add to the counts of n different keys at a time."""
        self.newest_us = time_us if self.newest_us is None else max(time_us, self.newest_us)
        row = self._find(keys)
        old = row[row >= 0]
        keep = self._keep(old)
        self._observed[old] = keep * self._observed[old] + observed[row >= 0]
        self._expected[old] = keep * self._expected[old] + expected[row >= 0]
        self._time_us[old] = self.newest_us
        new = np.flatnonzero(row < 0)
        if len(new):
            self._put(keys[new], observed[new], expected[new], self.newest_us)

    def _find(self, keys: Keys) -> NDArray[np.intp]:
        """Row of each key (n,), -1 where it has none."""
        rows = self._first(keys)[:, None] + _WAYS
        found = self._tag[rows] == _tags(keys)[:, None]
        row: NDArray[np.intp] = np.where(found.any(axis=1), rows[:, 0] + found.argmax(axis=1), -1)
        return row

    def _first(self, keys: Keys) -> NDArray[np.intp]:
        sets = keys & np.uint64((1 << (self.hash_bits - 2)) - 1)
        return sets.astype(np.intp) * len(_WAYS)

    def _put(self, keys: Keys, observed: Array, expected: Array, now_us: int) -> None:
        """Give new keys rows, one after the other: an unused one of the set, else the least one."""
        first = self._first(keys)
        rows = first[:, None] + _WAYS
        mass = np.where(self._tag[rows] > 0, self._keep(rows) * self._expected[rows], -1.0)
        masses: dict[int, list[float]] = {}  # of each set, with what this call put there
        holder: dict[int, int] = {}  # row -> place of the key that has it at the end
        columns = zip(first.tolist(), mass.tolist(), expected.tolist(), strict=True)
        for place, (of_set, found, own) in enumerate(columns):
            known = masses.setdefault(of_set, found)
            way = known.index(min(known))
            known[way] = own
            holder[of_set + way] = place
        taken, places = np.array(list(holder)), np.array(list(holder.values()))
        self._tag[taken] = _tags(keys)[places]
        self._observed[taken], self._expected[taken] = observed[places], expected[places]
        self._time_us[taken] = now_us

    def _keep(self, row: NDArray[np.intp]) -> Array:
        age = np.maximum((self.newest_us or 0) - self._time_us[row], 0)
        keep: Array = np.exp2(-age / self._half_life_us)
        return keep

    def snapshot(self) -> dict[str, Any]:
        """State after the last `add`: rows in use, in order, little-endian."""
        used = np.flatnonzero(self._tag)
        columns = {"row": used, **{name: getattr(self, f"_{name}")[used] for name in [*_TYPES][1:]}}
        packed = {name: columns[name].astype(kind).tobytes() for name, kind in _TYPES.items()}
        return {"hash_bits": self.hash_bits, "newest_us": self.newest_us, **packed}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restore the state returned by `snapshot`.

        Raises:
            SnapshotError: it has another size, or its columns do not match.
        """
        if state["hash_bits"] != self.hash_bits:
            raise SnapshotError("hash_bits", state["hash_bits"], self.hash_bits)
        columns = {name: np.frombuffer(state[name], dtype=kind) for name, kind in _TYPES.items()}
        row = columns.pop("row")
        lengths = [len(row), *(len(column) for column in columns.values())]
        if len(set(lengths)) > 1 or (len(row) > 0 and int(row.max()) >> self.hash_bits):
            raise SnapshotError("rows", lengths, "columns of one length, inside the table")
        self._clear()
        self.newest_us = state["newest_us"]
        for name, column in columns.items():
            getattr(self, f"_{name}")[row] = column


def _tags(keys: Keys) -> NDArray[np.uint32]:
    """The upper halves of keys, never 0."""
    upper = (keys >> np.uint64(32)).astype(np.uint32)
    return np.maximum(upper, np.uint32(1))
