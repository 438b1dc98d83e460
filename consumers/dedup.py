"""Seen this event already? By a 64-bit keyed hash of what makes an event the same, for a window in event time, per partition.

An id is forgotten once its partition's watermark has passed its time by the window, rounded up to a sixteenth of it; so memory is bounded
by the rate of events, and the answer depends on the partition's own records only.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping
from hashlib import blake2b

_KEYED = blake2b(digest_size=8, key=b"steelyard.dedup")
_BUCKETS = 16


class Dedup:
    """The ids of one partition; `snapshot` resumes after the last event that was asked about."""

    __slots__ = ("_bucket_us", "_oldest", "_seen")

    def __init__(self, window_us: int) -> None:
        """Remember ids for `window_us` of event time, at least."""
        self._bucket_us = max(-(-window_us // _BUCKETS), 1)
        self._oldest: int | None = None  # bucket; nothing below it is remembered
        self._seen: dict[int, int] = {}  # hash -> bucket of its event time

    def __len__(self) -> int:
        """Return how many ids are remembered."""
        return len(self._seen)

    def seen(self, identity: bytes, time_us: int, watermark_us: int) -> bool:
        """Say whether this id was asked about before, and remember it.

        Args:
            identity: what makes it the same event again.
            time_us: its event time, made monotone.
            watermark_us: the partition's own watermark.
        """
        oldest = watermark_us // self._bucket_us - _BUCKETS
        if self._oldest is None or oldest > self._oldest:
            self._oldest = oldest
            self._seen = {
                hashed: bucket for hashed, bucket in self._seen.items() if bucket >= oldest
            }
        keyed = _KEYED.copy()  # keying anew takes half as long again
        keyed.update(identity)
        hashed = int.from_bytes(keyed.digest(), "little")
        if hashed in self._seen:
            return True
        self._seen[hashed] = time_us // self._bucket_us
        return False

    def snapshot(self) -> dict[str, object]:
        """Return the ids as sorted 64-bit words per bucket: equal state gives equal values."""
        buckets: dict[int, list[int]] = {}
        for hashed, bucket in self._seen.items():
            buckets.setdefault(bucket, []).append(hashed)
        return {
            "oldest": self._oldest,
            "buckets": [
                (bucket, array("Q", sorted(hashes)).tobytes())
                for bucket, hashes in sorted(buckets.items())
            ],
        }

    def restore(self, state: Mapping[str, object]) -> None:
        """Take back what `snapshot` returned."""
        oldest, buckets = state["oldest"], state["buckets"]
        assert oldest is None or isinstance(oldest, int)
        assert isinstance(buckets, list)
        self._oldest = oldest
        self._seen = {}
        for bucket, words in buckets:
            hashes = array("Q")
            hashes.frombytes(words)
            self._seen.update(dict.fromkeys(hashes, bucket))
