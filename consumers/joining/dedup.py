"""Deduplication by keyed hash of the event id, within a time window.

The partitions of a topic share their ids: a producer whose partitioner or partition count has
changed sends an event again to another one. An id is forgotten once the watermark of the partition
that asks has passed its time by the window, rounded up to a sixteenth of it. So memory is bounded
by the rate of events.
"""

from __future__ import annotations

from array import array
from hashlib import blake2b
from typing import TypeAlias

from consumers.joining.partition_clock import BEGINNING_US

_KEYED = blake2b(digest_size=8, key=b"steelyard.dedup")
_BUCKETS = 16

DedupState: TypeAlias = list[tuple[int, bytes]]
"""Bucket of event time, and its ids as sorted 64-bit words."""

_Place: TypeAlias = tuple[int, int]  # bucket of event time, partition number


class Dedup:
    """Event ids of one topic; `snapshot` resumes after the last id that was checked."""

    __slots__ = ("_bucket_us", "_oldest", "_places", "_seen")

    def __init__(self, window_us: int) -> None:
        """Remember ids for at least `window_us` of event time."""
        self._bucket_us = max(-(-window_us // _BUCKETS), 1)
        self._oldest: int | None = None  # bucket; nothing below it is remembered
        self._seen: dict[int, _Place] = {}
        self._places: dict[int, _Place] = {}  # of the id before: one object for all that share it

    def __len__(self) -> int:
        """Return the number of ids that are remembered."""
        return len(self._seen)

    def seen(self, identity: bytes, number: int, time_us: int, watermark_us: int) -> bool:
        """Return whether this id was checked before, and remember it.

        Args:
            identity: equal for two records of the same event.
            number: of the partition that it lies in.
            time_us: its event time, made monotone.
            watermark_us: behind which no key of the partition will be.
        """
        keyed = _KEYED.copy()  # keying anew takes half as long again
        keyed.update(identity)
        hashed = int.from_bytes(keyed.digest(), "little")
        before = self._seen.get(hashed)
        if before is not None and before[0] >= watermark_us // self._bucket_us - _BUCKETS:
            return True
        bucket = time_us // self._bucket_us
        if watermark_us > BEGINNING_US:  # else an id of a wrong clock would stay for years
            bucket = min(bucket, watermark_us // self._bucket_us + 3 * _BUCKETS)
        place = self._places.get(number)
        if place is None or place[0] != bucket:
            self._places[number] = place = (bucket, number)
        self._seen[hashed] = place
        return False

    def forget(self, watermark_us: int) -> None:
        """Forget what no partition finds any more behind the global watermark."""
        oldest = watermark_us // self._bucket_us - _BUCKETS
        if self._oldest is None or oldest > self._oldest:
            self._oldest = oldest
            self._seen = {key: place for key, place in self._seen.items() if place[0] >= oldest}

    def snapshot(self, number: int, watermark_us: int) -> DedupState:
        """Return the ids of one partition number that some partition may still ask for.

        Equal state gives equal values.

        Args:
            number: of the partition.
            watermark_us: the global watermark.
        """
        oldest = watermark_us // self._bucket_us - _BUCKETS
        buckets: dict[int, list[int]] = {}
        for hashed, (bucket, of_number) in self._seen.items():
            if of_number == number and bucket >= oldest:
                buckets.setdefault(bucket, []).append(hashed)
        return [
            (bucket, array("Q", sorted(hashes)).tobytes())
            for bucket, hashes in sorted(buckets.items())
        ]

    def restore(self, number: int, state: DedupState) -> None:
        """Restore what `snapshot` returned of one partition number, beside those of others."""
        for bucket, words in state:
            hashes = array("Q")
            hashes.frombytes(words)
            self._seen.update(dict.fromkeys(hashes, (bucket, number)))
