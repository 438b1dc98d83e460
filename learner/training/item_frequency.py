"""Frequency of items among the clicks of a stream, from the gaps between two clicks on them.

Yi et al., RecSys 2019, algorithm 2, counted in clicks and not in steps: the same whatever the
steps that a stream is cut into.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b

import msgspec
import numpy as np
from numpy.typing import NDArray

from learner.errors import Corrupt

NUM_BUCKETS = 1 << 16
_LEAST_RATE = 0.01


class _State(msgspec.Struct, array_like=True):
    total: int
    buckets: bytes
    last: bytes
    number: bytes
    gap: bytes


class ItemFrequency:
    """q = 1 / gap, the gap a fading mean over the last hundred or so between two clicks.

        gap <- gap + max(1 / n, .01) (t - last - gap),    last <- t

    t counts clicks, n those on the item; the first gap is that from the start. An item never
    clicked has t + 1. Items share 65,536 counters, by a hash.

    >>> frequency = ItemFrequency()
    >>> frequency.learn(["a", "b", "a", "c"] * 50)
    >>> np.exp(frequency.log_frequency(["a", "b"])).round(2).tolist()
    [0.5, 0.25]
    """

    def __init__(self) -> None:
        """Start without a click."""
        self._total = 0
        self._last = np.zeros(NUM_BUCKETS, dtype=np.int64)
        self._number = np.zeros(NUM_BUCKETS, dtype=np.int64)
        self._gap = np.zeros(NUM_BUCKETS)

    def log_frequency(self, items: Sequence[str]) -> NDArray[np.float64]:
        """Return log q (n,) of n items."""
        places = [_bucket(item) for item in items]
        known = self._number[places] > 0
        return -np.log(np.where(known, self._gap[places], self._total + 1.0))

    def learn(self, items: Sequence[str]) -> None:
        """Count clicks, by their items and in order."""
        for item in items:
            self._total += 1
            place = _bucket(item)
            self._number[place] += 1
            rate = max(1 / self._number[place], _LEAST_RATE)
            self._gap[place] += rate * (self._total - self._last[place] - self._gap[place])
            self._last[place] = self._total

    def snapshot(self) -> bytes:
        """Return the state after the last click learned."""
        used = np.flatnonzero(self._number)
        return msgspec.msgpack.encode(
            _State(
                total=self._total,
                buckets=used.astype(np.int64).tobytes(),
                last=self._last[used].tobytes(),
                number=self._number[used].tobytes(),
                gap=self._gap[used].tobytes(),
            )
        )

    def restore(self, data: bytes) -> None:
        """Restore the state returned by `snapshot`; no bytes are a start without a click.

        Raises:
            Corrupt: the data is none.
        """
        fresh = ItemFrequency()
        try:
            state = msgspec.msgpack.decode(data or fresh.snapshot(), type=_State)
            used = np.frombuffer(state.buckets, np.int64)
            fresh._last[used] = np.frombuffer(state.last, np.int64)
            fresh._number[used] = np.frombuffer(state.number, np.int64)
            fresh._gap[used] = np.frombuffer(state.gap, np.float64)
        except (msgspec.DecodeError, ValueError, IndexError) as error:
            expected = "frequencies of items"
            raise Corrupt("item frequencies", expected=expected, found=str(error)) from error
        self._total, self._last = state.total, fresh._last
        self._number, self._gap = fresh._number, fresh._gap


def _bucket(item: str) -> int:
    digest = blake2b(item.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little") % NUM_BUCKETS
