"""Hash table of Gaussian coefficients with fingerprints; the row unused for longest is replaced.

A key below 2^32 is a hash. Its low bits name a set of four rows, its other bits are kept in the
row that it takes, so a key that was never learned is *unknown*: it passes for another with
probability n / 2^32, n the rows in use (at most 2^(hash_bits - 32), 1 in 4,096 by default). Keys
from 2^32 on have rows of their own, which are never replaced.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from weighting.errors import SnapshotError

Keys = NDArray[np.uint64]
Rows = NDArray[np.intp]

OWN = 1 << 32
"""The first key with a row of its own."""
_WAYS = 4  # spelled out in `rows`, where a loop would take three times as long
_EACH_WAY = np.arange(_WAYS)
_BEFORE_ALL_US, _AFTER_ALL_US = -(1 << 63), (1 << 63) - 1


class CoefficientTable:
    """Mean, variance and latest event time of each coefficient; each starts at Normal(0, 1).

    Attributes:
        mean: of each row.
        variance: of each row.
        time_us: event time of the latest sample of each row.
        extra: further columns by name; each starts at 0.
        unknown: the row of every key that has none; it stays as each starts.
        num_taken: number of hashed rows in use.
    """

    def __init__(self, hash_bits: int, num_own: int, extra: Sequence[str] = ()) -> None:
        """Start with no row in use.

        Args:
            hash_bits: log2 of the number of hashed rows, from 2 on.
            num_own: number of keys with rows of their own.
            extra: names of further columns.
        """
        self.hash_bits = hash_bits
        self.num_own = num_own
        self._names = tuple(extra)
        self._num_hashed = 1 << hash_bits
        self._set_bits = hash_bits - 2
        self.unknown = self._num_hashed + num_own
        self._clear()

    def _clear(self) -> None:
        num_rows = self.unknown + 1
        self._tag = array("I", bytes(4 * self._num_hashed))
        self.mean = array("d", bytes(8 * num_rows))
        self.variance = array("d", [1.0]) * num_rows
        self.time_us = array("q", bytes(8 * num_rows))
        self.extra = {name: array("d", bytes(8 * num_rows)) for name in self._names}
        self._spared = np.zeros(num_rows, dtype=np.bool_)  # scratch
        self._last = np.zeros(num_rows, dtype=np.int32)  # scratch
        self.num_taken = 0

    def rows(self, keys: Iterable[int]) -> list[int]:
        """Return the row of each key; `unknown` where it has none. Pure."""
        tags, bits, unknown = self._tag, self._set_bits, self.unknown
        mask, own = (1 << bits) - 1, self._num_hashed - OWN
        found = []
        for key in keys:
            if key >= OWN:
                found.append(key + own)
                continue
            row, tag = (key & mask) << 2, (key >> bits) + 1
            if tags[row] == tag:
                found.append(row)
            elif tags[row + 1] == tag:
                found.append(row + 1)
            elif tags[row + 2] == tag:
                found.append(row + 2)
            else:
                found.append(row + 3 if tags[row + 3] == tag else unknown)
        return found

    def take(self, key: int, time_us: int, in_use: Sequence[int] = ()) -> int:
        """Return a row for a key that has none: an unused one, else that used longest ago.

        Rows `in_use` are spared as long as the key's set has others.
        """
        tags, row = self._tag, (key & ((1 << self._set_bits) - 1)) << 2
        ways = range(row, row + _WAYS)
        for taken in ways:
            if not tags[taken]:
                self.num_taken += 1
                break
        else:
            spared = [way for way in ways if way not in in_use]
            taken = min(spared or ways, key=self.time_us.__getitem__)
        tags[taken] = (key >> self._set_bits) + 1
        self.mean[taken], self.variance[taken], self.time_us[taken] = 0.0, 1.0, time_us
        for column in self.extra.values():
            column[taken] = 0.0
        return taken

    def columns(self) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]:
        """Mean, variance and time of all rows: views, to be read and written until `restore`."""
        return (
            np.frombuffer(self.mean),
            np.frombuffer(self.variance),
            np.frombuffer(self.time_us, np.int64),
        )

    def rows_many(self, keys: Keys) -> Rows:
        """Return the row (M,) of each key (M,); `unknown` where it has none. Pure."""
        sets, wanted = self._sets_and_tags(keys)
        found = self._tags().take(sets, axis=0) == wanted[:, None]
        place = np.flatnonzero(found)  # a tag is in one way of its set at most
        which, way = place // _WAYS, place % _WAYS
        rows = np.full(len(keys), self.unknown)
        rows[which] = sets[which] * _WAYS + way
        own = np.flatnonzero(keys >= OWN)
        rows[own] = keys[own].astype(np.intp) - (OWN - self._num_hashed)
        return rows

    def different(self, rows: Rows) -> tuple[Rows, Rows]:
        """Return the K different ones of rows (M,), and which of them each is (M,)."""
        each = np.arange(len(rows))
        self._last[rows] = each
        last = self._last.take(rows)
        is_last = last == each
        which = np.cumsum(is_last) - 1
        return rows[is_last], which.take(last)

    def take_many(self, keys: Keys, time_us: int, in_use: Rows) -> Rows:
        """Return rows (K,) for different keys (K,) that have none: unused, else the oldest.

        Rows `in_use` and those taken here are spared. A key whose set has no others gets
        `unknown`. Which key gets which row depends on the order of the keys.
        """
        tags, rows = self._tags().reshape(-1), np.full(len(keys), self.unknown)
        (mean, variance, times), spared = self.columns(), self._spared
        sets, wanted = self._sets_and_tags(keys)
        spared[in_use] = True
        for own in one_of_each(sets):
            ways = sets[own][:, None] * _WAYS + _EACH_WAY
            age = times.take(ways)
            age[tags.take(ways) == 0] = _BEFORE_ALL_US
            age[spared.take(ways)] = _AFTER_ALL_US
            best = age.argmin(axis=1)
            at = np.arange(len(own)), best
            free = np.flatnonzero(age[at] < _AFTER_ALL_US)
            row = ways[at][free]
            self.num_taken += int((tags[row] == 0).sum())
            tags[row], rows[own[free]], spared[row] = wanted[own[free]], row, True
            mean[row], variance[row], times[row] = 0.0, 1.0, time_us
            for column in self.extra.values():
                np.frombuffer(column)[row] = 0.0
        spared[in_use] = spared[rows] = False
        return rows

    def _tags(self) -> NDArray[np.uint32]:
        """Tags (number of sets, 4), as a view."""
        return np.frombuffer(self._tag, np.uint32).reshape(-1, _WAYS)

    def _sets_and_tags(self, keys: Keys) -> tuple[Rows, NDArray[np.uint32]]:
        """Set (M,) of each key (M,), and its tag there, which from `OWN` on no row has."""
        sets = (keys & np.uint64((1 << self._set_bits) - 1)).astype(np.intp)
        tags = (keys >> np.uint64(self._set_bits)) + np.uint64(1)
        return sets, tags.astype(np.uint32)

    def snapshot(self) -> dict[str, Any]:
        """State after the last sample: rows in use, in order, little-endian.

        Row and the key's upper bits as u32, mean, variance and `extra` as f64, event time as i64.
        """
        mean, variance = np.frombuffer(self.mean), np.frombuffer(self.variance)
        tag = np.zeros(self.unknown + 1, dtype=np.uint32)
        tag[: self._num_hashed] = np.frombuffer(self._tag, np.uint32)
        touched = (tag > 0) | (mean != 0) | (variance != 1)
        for column in self.extra.values():
            touched |= np.frombuffer(column) != 0
        used = np.flatnonzero(touched)
        extra = {n: np.frombuffer(c)[used].astype("<f8").tobytes() for n, c in self.extra.items()}
        return {
            **({"extra": extra} if extra else {}),
            "hash_bits": self.hash_bits,
            "num_own": self.num_own,
            "row": used.astype("<u4").tobytes(),
            "tag": tag[used].astype("<u4").tobytes(),
            "mean": mean[used].astype("<f8").tobytes(),
            "variance": variance[used].astype("<f8").tobytes(),
            "time_us": np.frombuffer(self.time_us, np.int64)[used].astype("<i8").tobytes(),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restore the state returned by `snapshot`.

        Raises:
            SnapshotError: it has another size, or its columns do not match.
        """
        for key in ("hash_bits", "num_own"):
            if state[key] != getattr(self, key):
                raise SnapshotError(key, state[key], getattr(self, key))
        types = {"row": "<u4", "tag": "<u4", "mean": "<f8", "variance": "<f8", "time_us": "<i8"}
        columns = {name: np.frombuffer(state[name], dtype=kind) for name, kind in types.items()}
        found = state.get("extra", {})
        if set(found) != set(self._names):
            raise SnapshotError("columns", sorted(found), sorted(self._names))
        extra = {name: np.frombuffer(found[name], dtype="<f8") for name in self._names}
        lengths = [len(column) for column in (*columns.values(), *extra.values())]
        row = columns["row"]
        if len(set(lengths)) > 1 or (len(row) > 0 and int(row.max()) >= self.unknown):
            raise SnapshotError("rows", lengths, "columns of one length, inside the table")
        self._clear()
        hashed = row < self._num_hashed
        np.frombuffer(self._tag, np.uint32)[row[hashed]] = columns["tag"][hashed]
        np.frombuffer(self.mean)[row] = columns["mean"]
        np.frombuffer(self.variance)[row] = columns["variance"]
        np.frombuffer(self.time_us, np.int64)[row] = columns["time_us"]
        for name, column in extra.items():
            np.frombuffer(self.extra[name])[row] = column
        self.num_taken = int(hashed.sum())


def one_of_each(sets: Rows) -> Iterator[Rows]:
    """Yield the numbers of all keys (K,), no two of one set (K,) at once."""
    waiting = np.arange(len(sets))
    while len(waiting):
        _, first = np.unique(sets[waiting], return_index=True)
        yield waiting[first]
        waiting = np.delete(waiting, first)
