"""Event ids of a topic to which partitions were added, for all of its partitions.

A producer that sends an event again then writes it to another partition, where it may even be read
first. So every partition consults these ids, and adds to them for one window; each is forgotten
once the global watermark has passed it by the window.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from typing import TypeAlias

from consumers.joining.dedup import BUCKETS, bucket_us, hash_of

Words: TypeAlias = list[tuple[int, bytes]]
"""Bucket of event time, and its ids as sorted 64-bit words."""

CarriedState: TypeAlias = tuple[int | None, Words]
"""Event time up to which ids are added (None: not begun), and the ids."""


class Carried:
    """Ids with the buckets of their event times."""

    def __init__(self, window_us: int) -> None:
        """Begin empty; ids are remembered for at least `window_us` of event time."""
        self._window_us = window_us
        self._bucket_us = bucket_us(window_us)
        self._seen: dict[int, int] = {}
        # Ids are added up to this event time: a window after the first event behind the growth.
        self._until_us: int | None = None

    def __len__(self) -> int:
        """Return the number of ids that are remembered."""
        return len(self._seen)

    def add(self, seen: Mapping[int, int]) -> None:
        """Take the ids of one partition, since partitions are added to the topic now."""
        self._until_us = None
        for hashed, bucket in seen.items():
            self._seen[hashed] = max(bucket, self._seen.get(hashed, bucket))

    def seen(self, identity: bytes, time_us: int, watermark_us: int) -> bool:
        """Return whether an id is remembered, and remember it while ids are added.

        Args:
            identity: equal for two records of the same event.
            time_us: its event time, made monotone.
            watermark_us: the global watermark.
        """
        if self._until_us is None:
            self._until_us = time_us + self._window_us
        adds = watermark_us <= self._until_us
        if not adds and not self._seen:
            return False
        hashed = hash_of(identity)
        bucket = self._seen.get(hashed)
        if bucket is not None and bucket >= self._oldest(watermark_us):
            return True
        if adds:
            self._seen[hashed] = time_us // self._bucket_us
        return False

    def snapshot(self, watermark_us: int) -> CarriedState | None:
        """Return what is remembered, None when that is over; equal state gives equal values.

        What `seen` would not find any more is dropped.
        """
        oldest = self._oldest(watermark_us)
        self._seen = {key: bucket for key, bucket in self._seen.items() if bucket >= oldest}
        if not self._seen and self._until_us is not None and self._until_us < watermark_us:
            return None
        return self._until_us, words_of(self._seen)

    def restore(self, state: CarriedState) -> None:
        """Restore what `snapshot` returned."""
        self._until_us, words = state
        self._seen = ids_of(words)

    def _oldest(self, watermark_us: int) -> int:
        return watermark_us // self._bucket_us - BUCKETS


def words_of(seen: Mapping[int, int]) -> Words:
    """Return ids by bucket, sorted."""
    buckets: dict[int, list[int]] = {}
    for hashed, bucket in seen.items():
        buckets.setdefault(bucket, []).append(hashed)
    return [
        (bucket, array("Q", sorted(hashes)).tobytes()) for bucket, hashes in sorted(buckets.items())
    ]


def ids_of(words: Sequence[tuple[int, bytes]]) -> dict[int, int]:
    """Undo `words_of`."""
    seen: dict[int, int] = {}
    for bucket, data in words:
        hashes = array("Q")
        hashes.frombytes(data)
        seen.update(dict.fromkeys(hashes, bucket))
    return seen
