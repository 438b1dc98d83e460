"""Deduplication by keyed hash of the event id, within a time window.

An id is forgotten once its partition's watermark has passed its time by the window, rounded up to
a sixteenth of it. So memory is bounded by the rate of events, and the answer depends on the
partition's own records only.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping
from hashlib import blake2b

_KEYED = blake2b(digest_size=8, key=b"steelyard.dedup")
BUCKETS = 16


def hash_of(identity: bytes) -> int:
    """Return the keyed hash of an id."""
    keyed = _KEYED.copy()  # keying anew takes half as long again
    keyed.update(identity)
    return int.from_bytes(keyed.digest(), "little")


def bucket_us(window_us: int) -> int:
    """Return the width of a bucket: a sixteenth of the window, rounded up."""
    return max(-(-window_us // BUCKETS), 1)


class Dedup:
    """Event ids of one partition; `snapshot` resumes after the last id that was checked."""

    __slots__ = ("_bucket", "_bucket_us", "_oldest", "_seen")

    def __init__(self, window_us: int) -> None:
        """Remember ids for at least `window_us` of event time."""
        self._bucket_us = bucket_us(window_us)
        self._oldest: int | None = None  # bucket; nothing below it is remembered
        self._seen: dict[int, int] = {}  # hash -> bucket of its event time
        self._bucket = 0  # of the id before; one object for all that share it

    def __len__(self) -> int:
        """Return the number of ids that are remembered."""
        return len(self._seen)

    def seen(self, identity: bytes, time_us: int, watermark_us: int) -> bool:
        """Return whether this id was checked before, and remember it.

        Args:
            identity: equal for two records of the same event.
            time_us: its event time, made monotone.
            watermark_us: the partition's own watermark.
        """
        oldest = watermark_us // self._bucket_us - BUCKETS
        if self._oldest is None or oldest > self._oldest:
            self._forget(oldest)
        hashed = hash_of(identity)
        if hashed in self._seen:
            return True
        bucket = time_us // self._bucket_us
        if bucket != self._bucket:
            self._bucket = bucket
        self._seen[hashed] = self._bucket
        return False

    def give_up(self) -> dict[int, int]:
        """Return all ids with their buckets, and remember none of them."""
        seen, self._seen = self._seen, {}
        return seen

    def _forget(self, oldest: int) -> None:
        # An id far ahead had a wrong time, and would stay for years.
        self._oldest, newest = oldest, oldest + 3 * BUCKETS
        self._seen = {
            key: bucket for key, bucket in self._seen.items() if oldest <= bucket <= newest
        }

    def snapshot(self) -> dict[str, object]:
        """Return the ids as sorted 64-bit words per bucket: equal state gives equal values."""
        buckets: dict[int, list[int]] = {}
        for hashed, bucket in self._seen.items():
            buckets.setdefault(bucket, []).append(hashed)
        words = [
            (bucket, array("Q", sorted(hashes)).tobytes())
            for bucket, hashes in sorted(buckets.items())
        ]
        return {"oldest": self._oldest, "buckets": words}

    def restore(self, state: Mapping[str, object]) -> None:
        """Restore the state returned by `snapshot`."""
        oldest, buckets = state["oldest"], state["buckets"]
        assert oldest is None or isinstance(oldest, int)
        assert isinstance(buckets, list)
        self._oldest = oldest
        self._seen = {}
        for bucket, words in buckets:
            hashes = array("Q")
            hashes.frombytes(words)
            self._seen.update(dict.fromkeys(hashes, bucket))
