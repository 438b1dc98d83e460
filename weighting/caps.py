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
from hashlib import blake2b
from typing import Annotated, Any

import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from weighting.constraints import NotNegative, Positive, Share, check
from weighting.estimators.fading_table import FadingTable
from weighting.estimators.task import shown_lists
from weighting.sample import CopyKind, Sample
from weighting.tasks import Task

Array = NDArray[np.float64]
CAPS = ("client_item", "client", "item", "long_list", "one_item_list")
_FIRST_SHOWINGS = 1000.0
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
        s, c, now = sample, self.config, sample.emitted_us
        return (
            self._room(_pair(s), c.client_item, s),
            self._room(_client(s), c.client, s),
            self._share(s, now),
            min(1.0, c.long_list / s.list_size) if self._is_listed(s) and c.long_list else 1.0,
            c.one_item_list if self._is_listed(s) and s.list_size == 1 else 1.0,
        )

    def learn(self, samples: Sequence[Sample]) -> Array:
        """Count N samples in stream order; return the factors (N, 5) of each before it counted.

        A list is counted once for its client, and all its samples have one factor for that.
        """
        rows = []
        for own in shown_lists(samples, self._shown_in_lists):
            first = samples[own.start]
            client = self._room(_client(first), self.config.client, first)
            for s in samples[own]:
                pair, _, *others = self.predict(s)
                rows.append((pair, client, *others))
                self._take(_pair(s), pair, self.config.client_item, s)
                self._show(s)
            self._take(_client(first), client, self.config.client, first)
        return np.array(rows, dtype=np.float64).reshape(-1, len(CAPS))

    def snapshot(self) -> dict[str, Any]:
        """State after the last `learn`, as plain numbers."""
        return self._table.snapshot()

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restore the state returned by `snapshot`."""
        self._table.restore(state)

    def _is_listed(self, s: Sample) -> bool:
        return self._shown_in_lists and s.list_size > 0

    def _room(self, key: int, most: float, s: Sample) -> float:
        """What is left in a bucket, at most 1."""
        if not (s.client and most):
            return 1.0
        return min(max(most - self._table.get(key, s.emitted_us), 0.0), 1.0)

    def _take(self, key: int, mass: float, most: float, s: Sample) -> None:
        if s.client and most and mass:
            self._table.add(key, mass, s.emitted_us)

    def _share(self, s: Sample, now_us: int) -> float:
        if self.config.item >= 1:
            return 1.0
        own, total = self._table.get(_item(s), now_us), self._table.get(_TOTAL, now_us)
        return min(1.0, self.config.item * (total + _FIRST_SHOWINGS) / (own + 1.0))

    def _show(self, s: Sample) -> None:
        if self.config.item < 1 and s.copy_kind is CopyKind.FIRST:
            self._table.add(_item(s), 1.0, s.emitted_us)
            self._table.add(_TOTAL, 1.0, s.emitted_us)


def _client(s: Sample) -> int:
    """Key of the lists of a sample's client."""
    return _hash("", b"client" + _bucket(s))


def _pair(s: Sample) -> int:
    """Key of the showings of a sample's item to its client."""
    return _hash(s.item_id or s.text, b"pair" + _bucket(s))


def _item(s: Sample) -> int:
    """Key of the showings of a sample's item."""
    return _hash(s.item_id or s.text, b"item")


def _bucket(s: Sample) -> bytes:
    kind = b"first" if s.copy_kind is CopyKind.FIRST else b"late"
    return kind + s.client.to_bytes(8, "little")


def _hash(text: str, key: bytes) -> int:
    data = text.encode("utf-8", "surrogatepass")
    return int.from_bytes(blake2b(data, digest_size=8, key=key).digest(), "little")


_TOTAL = _hash("", b"total")
