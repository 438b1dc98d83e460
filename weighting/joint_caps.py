"""Caps of a whole batch at once: those of `Caps`, in columns.

Legend: N samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from weighting.caps import CAPS, FIRST, FIRST_SHOWINGS, LATE, TOTAL, Caps, hashed
from weighting.estimators.task import shown_lists
from weighting.sample import FIRST_COPY, Sample

Array = NDArray[np.float64]
Keys = NDArray[np.uint64]
Places = NDArray[np.intp]
Times = NDArray[np.int64]


class JointCaps(Caps):
    """The caps of `Caps`, and their state; a batch is counted at once.

    Masses are read before the batch, and what came earlier in it is added in full: within a batch
    nothing fades. So every bound holds, also for a client that fills a batch alone.
    """

    def learn(self, samples: Sequence[Sample]) -> Array:
        """Count N samples in stream order; return the factors (N, 5) of each before it counted."""
        factors = np.ones((len(samples), len(CAPS)))
        if not len(samples):
            return factors
        s, c = _Seen.of(samples, self._shown_in_lists), self.config
        known = s.client > 0
        own = np.flatnonzero(known & (c.client_item > 0))
        heads = s.head[known[s.head] & (c.client > 0)]
        every = np.arange(len(samples) if c.item < 1 else 0)
        # One look-up for all of them: keys of different kinds differ
        keys = np.concatenate([mixed(s.item[own], s.bucket[own]), s.bucket[heads], s.item[every]])
        places, one = np.concatenate([own, heads, every]), np.ones(len(own) + len(heads))
        counted = np.concatenate([one, s.first[every]])
        before = self._table.get_many(keys, s.time_us[places]) + _earlier(keys, counted)
        pairs, lists, items = np.split(before, [len(own), len(one)])
        factors[own, 0] = pairs = np.clip(c.client_item - pairs, 0.0, 1.0)
        of_list = np.ones(len(samples))
        of_list[heads] = lists = np.clip(c.client - lists, 0.0, 1.0)
        factors[:, 1] = of_list[s.head][s.lists]
        if c.item < 1:
            most = c.item * (self._showings(s)[s.lists] + FIRST_SHOWINGS)
            factors[:, 2] = np.minimum(1.0, most / (items + 1.0))
        if self._shown_in_lists:
            factors[:, 3:] = [self.of_list(sample.list_size) for sample in samples]
        self._add(s, keys, places, np.concatenate([pairs, lists, s.first[every]]))
        return factors

    def _showings(self, s: _Seen) -> Array:
        """Showings of all items before each list (L,)."""
        keys, counted = np.full(len(s.head), TOTAL, dtype=np.uint64), s.first.astype(np.float64)
        return (
            self._table.get_many(keys, s.time_us[s.head]) + (np.cumsum(counted) - counted)[s.head]
        )

    def _add(self, s: _Seen, keys: Keys, places: Places, masses: Array) -> None:
        """Add what was counted under each key (K,), and the showings of all items."""
        added = np.flatnonzero(masses)
        if not len(added):
            return
        keys, masses = keys[added], masses[added]
        if self.config.item < 1 and s.first.any():
            keys = np.concatenate([keys, [np.uint64(TOTAL)]])
            masses = np.concatenate([masses, [s.first.sum()]])
        self._table.add_many(keys, masses, int(s.time_us[places[added]].max()))


class _Seen(NamedTuple):
    """What the caps see of N samples in L lists.

    Attributes:
        client: (N,) hashes of their clients, 0 if unknown.
        item: (N,) hashes of their items.
        bucket: (N,) keys of their clients' lists.
        first: (N,) whether each is a first copy.
        time_us: (N,) event times.
        head: (L,) first sample of each list.
        lists: (N,) list of each sample.
    """

    client: Keys
    item: Keys
    bucket: Keys
    first: NDArray[np.bool_]
    time_us: Times
    head: Places
    lists: Places

    @classmethod
    def of(cls, samples: Sequence[Sample], shown_in_lists: bool) -> _Seen:
        """Read N samples."""
        parts = list(shown_lists(samples, shown_in_lists))
        client = np.array([s.client for s in samples], dtype=np.uint64)
        first = np.array([s.copy_kind is FIRST_COPY for s in samples])
        copies = np.where(first, np.uint64(FIRST), np.uint64(LATE))
        return cls(
            client=client,
            item=np.array([hashed(s.item_id or s.text) for s in samples], dtype=np.uint64),
            bucket=mixed(client, copies),
            first=first,
            time_us=np.array([s.shown_us + s.elapsed_us for s in samples], dtype=np.int64),
            head=np.array([own.start for own in parts]),
            lists=np.repeat(np.arange(len(parts)), [own.stop - own.start for own in parts]),
        )


def mixed(keys: Keys, others: Keys) -> Keys:
    """64-bit hashes (N,) of two hashes (N,), those of `caps` for one pair."""
    z = keys + others * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ z >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ z >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    found: Keys = z ^ z >> np.uint64(31)
    return found


def _earlier(keys: Keys, counted: Array) -> Array:
    """Sum (N,) of what is counted (N,) of a key before each sample."""
    order = np.argsort(keys, kind="stable")
    before = np.cumsum(counted[order]) - counted[order]
    begins = np.concatenate([[True], keys[order][1:] != keys[order][:-1]])[: len(keys)]
    start = np.maximum.accumulate(np.where(begins, np.arange(len(keys)), 0))
    found = np.empty(len(keys))
    found[order] = before - before[start]
    return found
