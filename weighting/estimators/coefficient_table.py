"""Hash table of Gaussian coefficients with fingerprints; the row unused for longest is replaced.

A key below 2^32 is a hash. Its low bits name a set of four rows, its other bits are kept in the
row that it takes, so a key that was never learned is *unknown*: it passes for another with
probability n / 2^32, n the rows in use (at most 2^(hash_bits - 32), 1 in 4,096 by default). Keys
from 2^32 on have rows of their own, which are never replaced.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from weighting.errors import SnapshotError

OWN = 1 << 32
"""The first key with a row of its own."""
_WAYS = 4  # spelled out in `rows`, where a loop would take three times as long


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
