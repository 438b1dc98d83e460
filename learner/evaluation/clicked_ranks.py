"""Ranks of clicked items in the lists that showed them, until they are bought.

A purchase comes days after its list, and without it. So when a list with a click is scored, where
its clicked items ranked is kept: by the order that would have been served, and in the shop's. The
purchase finds it by list and item. Clicks that come after the click window are not kept.

An entry is final when no purchase can be credited any more. Where there are more entries than the
bound, only items whose hash is below a threshold are kept, half of them each time: a random share,
whatever their delay, so that the figures stay unbiased; the share doubles when there is room again.
"""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import blake2b
from typing import Any, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from learner.errors import Corrupt

Array = NDArray[np.float64]
FORMAT = 1
MAX_ENTRIES = 1 << 15
_COLUMNS = ("gain", "ndcg", "shown_ndcg", "reciprocal_rank", "shown_reciprocal_rank")


class Ranks(NamedTuple):
    """Where an item ranked in its list.

    Attributes:
        gain: 1 / theta of its position, bounded as in `list_metrics.gains`.
        ndcg: discount of its rank by our order, relative to that of the first.
        shown_ndcg: the same in the shop's order.
        reciprocal_rank: by our order.
        shown_reciprocal_rank: in the shop's.
    """

    gain: float
    ndcg: float
    shown_ndcg: float
    reciprocal_rank: float
    shown_reciprocal_rank: float


class _Entry(NamedTuple):
    final_us: int
    num_earlier: int
    ranks: Ranks


class ClickedRanks:
    """A table of bounded size: (list, item) -> `Ranks`, and how often the query had come before."""

    def __init__(self, max_entries: int = MAX_ENTRIES) -> None:
        """Start empty."""
        self._max_entries = max_entries
        self._entries: dict[int, _Entry] = {}
        self._halvings = 0

    def __len__(self) -> int:
        """Return the number of entries."""
        return len(self._entries)

    def keep(
        self,
        list_id: str,
        item_id: str,
        ranks: Ranks,
        *,
        num_earlier: int,
        final_us: int,
        time_us: int,
    ) -> None:
        """Keep where a clicked item ranked.

        Args:
            list_id: name of the list.
            item_id: name of the item.
            ranks: where it ranked.
            num_earlier: lists of the same query before.
            final_us: event time after which no purchase is credited.
            time_us: event time now; entries that are final are dropped.
        """
        self._forget(time_us)
        key = _hash(list_id, item_id)
        if key >> (64 - self._halvings):
            return
        self._entries.pop(key, None)
        self._entries[key] = _Entry(final_us, num_earlier, ranks)
        if len(self._entries) > self._max_entries:
            self._halvings += 1
            below = 64 - self._halvings
            self._entries = {k: e for k, e in self._entries.items() if not k >> below}

    def take(self, list_id: str, item_id: str) -> tuple[Ranks, int] | None:
        """Return the ranks of a bought item and `num_earlier`, once; None if nothing is kept."""
        entry = self._entries.pop(_hash(list_id, item_id), None)
        return None if entry is None else (entry.ranks, entry.num_earlier)

    def _forget(self, time_us: int) -> None:
        """Drop the oldest while they are final; what is late waits for those before it."""
        entries = self._entries
        while entries and next(iter(entries.values())).final_us < time_us:
            del entries[next(iter(entries))]
        if self._halvings and len(entries) < self._max_entries // 4:
            self._halvings -= 1

    def snapshot(self) -> bytes:
        """Return the state as msgpack, columns little-endian; equal state gives equal bytes."""
        entries = self._entries.values()
        ranks = np.array([e.ranks for e in entries], dtype="<f8").reshape(-1, len(_COLUMNS))
        state = {
            "format": FORMAT,
            "halvings": self._halvings,
            "key": np.array(list(self._entries), dtype="<u8").tobytes(),
            "final_us": np.array([e.final_us for e in entries], dtype="<i8").tobytes(),
            "num_earlier": np.array([e.num_earlier for e in entries], dtype="<i8").tobytes(),
            "ranks": ranks.tobytes(),
        }
        return msgspec.msgpack.encode(state)

    def restore(self, data: bytes) -> None:
        """Restore the state returned by `snapshot`.

        Raises:
            Corrupt: it is of another format.
        """
        state: Mapping[str, Any] = msgspec.msgpack.decode(data)
        if state["format"] != FORMAT:
            expected, found = f"format {FORMAT}", f"format {state['format']}"
            raise Corrupt("clicked ranks", expected=expected, found=found)
        self._halvings = state["halvings"]
        ranks = np.frombuffer(state["ranks"], "<f8").reshape(-1, len(_COLUMNS)).tolist()
        columns = (
            np.frombuffer(state["key"], "<u8").tolist(),
            np.frombuffer(state["final_us"], "<i8").tolist(),
            np.frombuffer(state["num_earlier"], "<i8").tolist(),
        )
        self._entries = {
            key: _Entry(final_us, num_earlier, Ranks(*row))
            for key, final_us, num_earlier, row in zip(*columns, ranks, strict=True)
        }


def _hash(list_id: str, item_id: str) -> int:
    data = f"{list_id}\0{item_id}".encode("utf-8", "surrogatepass")
    return int.from_bytes(blake2b(data, digest_size=8).digest(), "little")
