"""Table of fixed size of masses that fade in event time; the least mass makes room for a new key.

A key is a 64-bit hash. Its low bits name a set of four rows, 32 of the others are kept in the row
that it takes. So an unknown key passes for a known one with probability 2^-30 per look-up at most.
A mass that grows by repetition outlasts any number of keys that come once.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from weighting.errors import SnapshotError
from weighting.estimators.coefficient_table import one_of_each

Array = NDArray[np.float64]
Keys = NDArray[np.uint64]
Places = NDArray[np.intp]
Times = NDArray[np.int64]
_WAYS = 4
_EACH_WAY = np.arange(_WAYS)
_BEFORE_ALL_US = -(1 << 62)


class FadingTable:
    """Mass of each of the latest keys, halved in each half-life of event time.

    Time never runs backwards: what is late counts as if it came now.

    >>> table = FadingTable(hash_bits=8, half_life_seconds=1.0)
    >>> table.add(7, 3.0, 0)
    >>> table.get(7, 1_000_000)
    1.5
    """

    def __init__(self, *, hash_bits: int, half_life_seconds: float) -> None:
        """Start empty.

        Args:
            hash_bits: log2 of the number of rows, from 2 to 32.
            half_life_seconds: event time after which a mass is half of what it was.
        """
        self.hash_bits = hash_bits
        self._half_life_us = 1e6 * half_life_seconds
        self._set_mask = (1 << (hash_bits - 2)) - 1
        self._clear()

    def _clear(self) -> None:
        number = 1 << self.hash_bits
        self._tag = array("I", bytes(4 * number))
        self._mass = array("d", bytes(8 * number))
        self._time_us = array("q", bytes(8 * number))
        self._now_us = _BEFORE_ALL_US

    def get(self, key: int, time_us: int) -> float:
        """Mass of a key at a time; 0 of an unknown one. Pure."""
        row = self.find(key)
        return self._faded(row, max(time_us, self._now_us)) if row >= 0 else 0.0

    def add(self, key: int, mass: float, time_us: int) -> tuple[int, float]:
        """Add to the mass of a key at a time.

        Returns:
            Its row, and the share that is left there of what the key had before; 0 if it is new.
        """
        now = self._now_us = max(time_us, self._now_us)
        row, left = self.find(key), 0.0
        if row >= 0:
            left = self.left(row)
            self._mass[row] = left * self._mass[row] + mass
        else:
            row = self._least((key & self._set_mask) * _WAYS, now)
            self._tag[row] = key >> 32 or 1
            self._mass[row] = mass
        self._time_us[row] = now
        return row, left

    def get_many(self, keys: Keys, time_us: Times) -> Array:
        """Masses (N,) of keys (N,) at times (N,); 0 of an unknown one. Pure."""
        row, masses = self._find_many(keys), np.zeros(len(keys))
        known = np.flatnonzero(row >= 0)
        now = np.maximum(time_us, self._now_us)
        masses[known] = self._faded_many(row[known], now[known])
        return masses

    def add_many(self, keys: Keys, masses: Array, time_us: int) -> None:
        """Add masses (N,) to those of keys (N,), all at one time.

        A key that is there several times gets all its masses. Where new keys want one row, that
        of the largest number has it.
        """
        now = self._now_us = max(time_us, self._now_us)
        keys, which = np.unique(keys, return_inverse=True)
        total = np.bincount(which, masses, len(keys)).astype(np.float64)
        row = self._find_many(keys)
        tags, mass, times = self._columns()
        known, new = np.flatnonzero(row >= 0), np.flatnonzero(row < 0)
        own = row[known]
        mass[own] = self._faded_many(own, now) + total[known]
        times[own] = now
        sets, added = self._sets(keys[new]), total[new]
        for some in one_of_each(sets):
            ways = sets[some][:, None] * _WAYS + _EACH_WAY
            least = np.where(tags.take(ways) == 0, -1.0, self._faded_many(ways, now))
            row = ways[np.arange(len(some)), least.argmin(axis=1)]
            tags[row], mass[row], times[row] = _tags(keys[new[some]]), added[some], now

    def _columns(self) -> tuple[NDArray[np.uint32], Array, Times]:
        """Tag, mass and time of all rows, as views."""
        tag, time_us = np.frombuffer(self._tag, np.uint32), np.frombuffer(self._time_us, np.int64)
        return tag, np.frombuffer(self._mass), time_us

    def _sets(self, keys: Keys) -> Places:
        """Set (N,) of each key (N,)."""
        sets: Places = (keys & np.uint64(self._set_mask)).astype(np.intp)
        return sets

    def _find_many(self, keys: Keys) -> Places:
        """Rows (N,) of keys (N,), -1 where one has none. Pure."""
        sets, (tags, _, _) = self._sets(keys), self._columns()
        found = tags.reshape(-1, _WAYS).take(sets, axis=0) == _tags(keys)[:, None]
        rows = np.full(len(keys), -1)
        place = np.flatnonzero(found)[::-1]  # of two ways, as for `find`, the first
        rows[place // _WAYS] = sets[place // _WAYS] * _WAYS + place % _WAYS
        return rows

    def _faded_many(self, rows: Places, now_us: Times | int) -> Array:
        _, mass, times = self._columns()
        faded: Array = mass.take(rows) * np.exp2((times.take(rows) - now_us) / self._half_life_us)
        return faded

    def mass(self, row: int) -> float:
        """Mass of a row when something was last added to it."""
        return self._mass[row]

    def left(self, row: int) -> float:
        """Share of a row's mass that is left at the newest time of all."""
        age = self._now_us - self._time_us[row]
        return 2.0 ** (-age / self._half_life_us) if age else 1.0

    def find(self, key: int) -> int:
        """Row of a key, -1 where it has none. Pure."""
        row, tag, tags = (key & self._set_mask) * _WAYS, key >> 32 or 1, self._tag
        if tags[row] == tag:
            return row
        if tags[row + 1] == tag:
            return row + 1
        if tags[row + 2] == tag:
            return row + 2
        return row + 3 if tags[row + 3] == tag else -1

    def _least(self, row: int, now: int) -> int:
        """Row of a set for a new key: an unused one, else the first of the least mass."""
        tags, ways = self._tag, range(row, row + _WAYS)
        for way in ways:
            if not tags[way]:
                return way
        return min(ways, key=lambda way: self._faded(way, now))

    def _faded(self, row: int, now: int) -> float:
        age = now - self._time_us[row]
        mass = self._mass[row]
        return mass * 2.0 ** (-age / self._half_life_us) if age else mass

    def snapshot(self) -> dict[str, Any]:
        """State after the last `add`: rows in use, in order, little-endian."""
        tag = np.frombuffer(self._tag, np.uint32)
        used = np.flatnonzero(tag)
        return {
            "hash_bits": self.hash_bits,
            "now_us": self._now_us,
            "row": used.astype("<u4").tobytes(),
            "tag": tag[used].astype("<u4").tobytes(),
            "mass": np.frombuffer(self._mass)[used].astype("<f8").tobytes(),
            "time_us": np.frombuffer(self._time_us, np.int64)[used].astype("<i8").tobytes(),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restore the state returned by `snapshot`.

        Raises:
            SnapshotError: it has another size, or its columns do not match.
        """
        if state["hash_bits"] != self.hash_bits:
            raise SnapshotError("hash_bits", state["hash_bits"], self.hash_bits)
        types = {"row": "<u4", "tag": "<u4", "mass": "<f8", "time_us": "<i8"}
        columns = {name: np.frombuffer(state[name], dtype=kind) for name, kind in types.items()}
        lengths = [len(column) for column in columns.values()]
        row = columns["row"]
        if len(set(lengths)) > 1 or (len(row) > 0 and int(row.max()) >> self.hash_bits):
            raise SnapshotError("rows", lengths, "columns of one length, inside the table")
        self._clear()
        self._now_us = state["now_us"]
        np.frombuffer(self._tag, np.uint32)[row] = columns["tag"]
        np.frombuffer(self._mass)[row] = columns["mass"]
        np.frombuffer(self._time_us, np.int64)[row] = columns["time_us"]


def _tags(keys: Keys) -> NDArray[np.uint32]:
    """Tags (N,) by which keys (N,) are known in their sets."""
    tags: NDArray[np.uint32] = np.maximum(keys >> np.uint64(32), np.uint64(1)).astype(np.uint32)
    return tags
