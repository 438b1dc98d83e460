"""Caps: repetition by one client, one-item lists, long lists, one item's share.

Legend: N samples, M the mass that a cap allows, m the mass so far, d the discount of a sample.

A discount is the share, in [0, 1], of an example that a sample counts for. It is known before the
label and never depends on it, so positives and negatives are discounted alike: every rate keeps its
expectation, with other weights of clients and lists behind it. The product of five factors:

    client and item   a bucket of M showings of an item to one client: d = min(1, M - m), m += d,
                      m fading in event time. So m <= M always, and in the long run a client counts
                      for M ln 2 showings of an item per half-life, however many there are;
    client            a bucket of M lists of one client, in the same way;
    item              min(1, s (T + 1000) / (m + 1)): m showings of this item and T of all, both
                      fading, so that one item is about a share s of what is learned at most;
    long list         min(1, L / n) for a list of n items;
    one-item list     a constant: the click had no competitor.

Masses are of discounts by the cap itself, so each bound holds whatever the other factors are. A
late positive has buckets of its own beside those of the first copies: what the first copy counted
for is not known any more.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b
from typing import Annotated, Any

import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from weighting.constraints import NotNegative, Positive, Share, check
from weighting.estimators.fading_table import FadingTable
from weighting.estimators.task import shown_lists
from weighting.sample import FIRST_COPY, Sample
from weighting.tasks import Task

Array = NDArray[np.float64]
CAPS = ("client_item", "client", "item", "long_list", "one_item_list")
FIRST_SHOWINGS = 1000.0
"""Showings of all items before which one item's share says nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CapsConfig:
    """Caps on what one client, item or list counts for."""

    client_item: Annotated[
        NotNegative,
        Meta(description="Showings of an item to one client that count; 0: no cap."),
    ] = 3.0
    client: Annotated[
        NotNegative, Meta(description="Lists of one client that count; 0: no cap.")
    ] = 300.0
    item: Annotated[
        Share, Meta(description="Largest share of the showings that one item counts for.")
    ] = 0.1
    long_list: Annotated[
        NotNegative, Meta(description="Samples that one list counts for; 0: no cap.")
    ] = 100.0
    one_item_list: Annotated[
        Share, Meta(description="Weight of a sample of a one-item list in counts and rates.")
    ] = 0.1
    half_life_seconds: Annotated[
        Positive, Meta(description="Event time after which what a client has used is half free.")
    ] = 30 * 86_400.0
    hash_bits: Annotated[
        int, Meta(ge=2, le=28, description="log2 of the number of clients, items, pairs kept.")
    ] = 19

    def __post_init__(self) -> None:
        """Check every field."""
        check(self, "caps")


def num_discounted(factors: Sequence[Array]) -> dict[str, int]:
    """Return the number of samples that each cap discounted, of factors (N, 5)."""
    found = {name: 0 for name in CAPS}
    for own in factors:
        for name, number in zip(CAPS, (own < 1).sum(axis=0).tolist(), strict=True):
            found[name] += number
    return found


class Caps:
    """Discounts of one task's samples, list by list in stream order."""

    def __init__(self, task: Task, config: CapsConfig) -> None:
        """Start with no client and no item known."""
        self.config = config
        self._shown_in_lists = task.parent is None
        self._table = FadingTable(
            hash_bits=config.hash_bits, half_life_seconds=config.half_life_seconds
        )

    def predict(self, sample: Sample) -> tuple[float, ...]:
        """Factors (5,) of a sample that came now, in the order of `CAPS`. Pure."""
        s = sample
        return self._factors(s, hashed(s.item_id or s.text), _bucket(s), *self._before(s))

    def learn(self, samples: Sequence[Sample]) -> Array:
        """Count N samples in stream order; return the factors (N, 5) of each before it counted.

        A list is counted once for its client, and all its samples have one factor for that.
        """
        rows, c, add = [], self.config, self._table.add
        for own in shown_lists(samples, self._shown_in_lists):
            first = samples[own.start]
            bucket, (client, total) = _bucket(first), self._before(first)
            known, counted = first.client != 0, first.copy_kind is FIRST_COPY and c.item < 1
            for s in samples[own]:
                item = hashed(s.item_id or s.text)
                factors = self._factors(s, item, bucket, client, total)
                rows.append(factors)
                if known and c.client_item and factors[0] > 0:
                    add(_mixed(item, bucket), factors[0], s.emitted_us)
                if counted:
                    add(item, 1.0, s.emitted_us)
            if known and c.client and client > 0:
                add(bucket, client, first.emitted_us)
            if counted:
                add(TOTAL, float(own.stop - own.start), first.emitted_us)
        return np.array(rows, dtype=np.float64).reshape(-1, len(CAPS))

    def of_list(self, list_size: int) -> tuple[float, float]:
        """Factors of a shown item by the length of its list, 0 if unknown. Pure."""
        c, long = self.config, 1.0
        if list_size > 0 and c.long_list:
            long = min(1.0, c.long_list / list_size)
        return long, c.one_item_list if list_size == 1 else 1.0

    def snapshot(self) -> dict[str, Any]:
        """State after the last `learn`, as plain numbers."""
        return self._table.snapshot()

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restore the state returned by `snapshot`."""
        self._table.restore(state)

    def _before(self, first: Sample) -> tuple[float, float]:
        """Factor of a list's client, and showings of all items, before the list."""
        c, now, client, total = self.config, first.emitted_us, 1.0, 0.0
        if c.client and first.client:
            client = self._room(_bucket(first), c.client, now)
        if c.item < 1:
            total = self._table.get(TOTAL, now)
        return client, total

    def _factors(
        self, s: Sample, item: int, bucket: int, client: float, total: float
    ) -> tuple[float, ...]:
        """Factors of a sample, by the hash of its item and what is known of its list."""
        c, now = self.config, s.emitted_us
        pair = share = long = alone = 1.0
        if c.client_item and s.client:
            pair = self._room(_mixed(item, bucket), c.client_item, now)
        if c.item < 1:
            showings = self._table.get(item, now)
            share = min(1.0, c.item * (total + FIRST_SHOWINGS) / (showings + 1.0))
        if self._shown_in_lists:
            long, alone = self.of_list(s.list_size)
        return pair, client, share, long, alone

    def _room(self, key: int, most: float, now_us: int) -> float:
        """What is left in a bucket, at most 1."""
        return min(max(most - self._table.get(key, now_us), 0.0), 1.0)


def _bucket(s: Sample) -> int:
    """Key of the lists of a sample's client; late positives have their own."""
    return _mixed(s.client, FIRST if s.copy_kind is FIRST_COPY else LATE)


@lru_cache(maxsize=16_384)
def hashed(text: str) -> int:
    """64-bit hash of an item's identity."""
    data = text.encode("utf-8", "surrogatepass")
    return int.from_bytes(blake2b(data, digest_size=8).digest(), "little")


def _mixed(key: int, other: int) -> int:
    """64-bit hash of two hashes (the finaliser of SplitMix64; Steele et al. 2014)."""
    z = (key + other * 0x9E3779B97F4A7C15) & _UINT64
    z = ((z ^ z >> 30) * 0xBF58476D1CE4E5B9) & _UINT64
    z = ((z ^ z >> 27) * 0x94D049BB133111EB) & _UINT64
    return z ^ z >> 31


_UINT64 = 0xFFFFFFFFFFFFFFFF
FIRST, LATE, TOTAL = (_mixed(number, 1) for number in range(3))
