"""Affinity of a client: what it chose, beside what was to be expected of it.

Legend: N pairs, D width of the starting encoder's vectors, B numbers of a short vector.

Every item has two short vectors x of length about 1: of its text, the starting encoder's vector
times a fixed matrix of random signs, which keeps inner products up to 1 / sqrt(B) (Achlioptas
2003); and of its attributes, the sum of a vector of random signs for each value, over the root of
their number. The item itself counts as one more value. Of what client c was shown, with c_i the
clicks on item i and e_i = theta sigma(z) those that the rest of the score expected there,

    g_c = sum of (c_i - e_i) x_i,   s_c = sum of (c_i - e_i),   m_c = sum of (c_i + e_i),

all fading in event time with one half-life. With g, s and m the same of all clients, q = m_c / m,
and u the mean vector of what is shown, the value of a pair is

    <(g_c - q g) - (s_c - q s) u, x - u> / (1 / d^2 + m_c / B):

one Newton step from 0 towards the mode of weights of the client under Normal(0, d^2), with the
information of m_c clicks spread evenly over B directions. What the rest of the score knows of an
item is in e, and what all clients have in common is subtracted, so the value is about this client.
It is 0 for one that does as all do. An id with more than its share of all, m_c > h (m + 1000), is
shared by many: nothing is said of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from zlib import crc32

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import expit

from learner import arithmetic
from learner.parts.part import Array, Outcomes, Pairs
from learner.parts.stateless import CLIENT_COLUMNS
from weighting.checks import check_examination, check_finite, check_labels, check_weights
from weighting.errors import SnapshotError
from weighting.estimators.fading_table import FadingTable
from weighting.features import attribute_values
from weighting.sample import Attribute
from weighting.snapshot import opened
from weighting.tasks import TASKS, TaskName

FORMAT = 1
_NUM_SHORT = 24
"""B."""
_NUM_BLOCKS = len(CLIENT_COLUMNS)
_WIDTH = _NUM_BLOCKS * _NUM_SHORT
_DAY_SECONDS = 86_400.0
_FIRST_CLICKS = 1000.0
"""Of all clients, before which one's share says nothing."""

_TEXT, _ATTRIBUTE, _ITEM = (salt << 32 for salt in (1, 2, 3))


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientAffinityConfig:
    """Shrinkage, memory and bound of the profiles.

    Attributes:
        deviation: d, standard deviation of a client's effects before any sample, in logits.
        purchase_worth: by which what was bought, and expected to be, counts beside clicks.
        largest_share: h, of all clicks observed and expected, that may be one client's.
        half_life_days: of all sums, in event time.
        hash_bits: log2 of the number of clients; the one with the least behind it makes room.
        max_showings: showings behind u beyond which its sums are halved.
    """

    deviation: float = 0.5
    purchase_worth: float = 2.0
    largest_share: float = 0.1
    half_life_days: float = 30.0
    hash_bits: int = 17
    max_showings: float = 100_000.0


class ClientAffinity:
    """Affinity of a client to texts and attributes; silent where it has no history of its own."""

    columns: Mapping[str, float] = dict.fromkeys(CLIENT_COLUMNS, 0.5)

    def __init__(self, width: int, config: ClientAffinityConfig | None = None) -> None:
        """Start without clients, for vectors of this width."""
        self.width = width
        self.config = config or ClientAffinityConfig()
        signs = _signs(np.arange(width, dtype=np.uint64) + np.uint64(_TEXT))
        self._map = torch.from_numpy(signs.astype(np.float32) / np.float32(np.sqrt(_NUM_SHORT)))
        self._clear()

    def _clear(self) -> None:
        c = self.config
        half_life = c.half_life_days * _DAY_SECONDS
        self._table = FadingTable(hash_bits=c.hash_bits, half_life_seconds=half_life)
        self._everyone = FadingTable(hash_bits=2, half_life_seconds=half_life)
        # Untouched pages of zeros take no memory
        self._profiles = np.zeros((1 << c.hash_bits, _WIDTH + 1), dtype=np.float32)
        self._shared: Array = np.zeros(_WIDTH + 1)
        self._shown: Array = np.zeros(_WIDTH + 1)

    def predict(self, pairs: Pairs) -> Array:
        """Return the affinities (2, N), NaN for clients without history. Pure."""
        number = len(pairs.items)
        found = np.full((_NUM_BLOCKS, number), np.nan)
        clients, own = np.unique(np.array(pairs.clients, dtype=np.uint64), return_inverse=True)
        rows = np.array([self._row(c) for c in clients.tolist()], dtype=np.intp)
        known = np.flatnonzero(rows[own] >= 0) if number else np.zeros(0, dtype=np.intp)
        if not len(known):
            return found
        profiles = np.stack([self._profile(row) for row in rows.tolist()])[own[known]]
        x = self._vectors(pairs, known)
        centred = x[:, :_WIDTH] - self._mean()
        products = profiles * centred
        for block in range(_NUM_BLOCKS):
            columns = slice(block * _NUM_SHORT, (block + 1) * _NUM_SHORT)
            found[block, known] = np.ascontiguousarray(products[:, columns]).sum(axis=1)
        return found

    def _row(self, client: int) -> int:
        """Return the row of a client with a profile of its own, -1 of any other."""
        row = self._table.find(client) if client else -1
        if row < 0:
            return row
        total = self._everyone.left(0) * self._everyone.mass(0)
        most = self.config.largest_share * (total + _FIRST_CLICKS)
        return row if self._table.left(row) * self._table.mass(row) <= most else -1

    def _mean(self) -> Array:
        """Return u."""
        mean: Array = self._shown[:_WIDTH] / max(self._shown[_WIDTH], 1.0)
        return mean

    def _profile(self, row: int) -> Array:
        """Return what a client's items are multiplied with, as of the newest sample of all."""
        if row < 0:
            return np.zeros(_WIDTH)
        left = self._table.left(row)
        mass = left * self._table.mass(row)
        share = mass / (self._everyone.left(0) * self._everyone.mass(0))
        sums = left * self._profiles[row] - share * (self._everyone.left(0) * self._shared)
        profile: Array = sums[:_WIDTH] - sums[_WIDTH] * self._mean()
        return profile / (self.config.deviation**-2 + mass / _NUM_SHORT)

    def learn(self, task: TaskName, pairs: Pairs, outcomes: Outcomes) -> None:
        """Add what known clients did with N pairs, beside what was expected of them.

        Raises:
            WeightError: a label, weight, examination probability, logit or vector is NaN or out of
                range.
        """
        check_labels(outcomes.label)
        check_weights("weight", outcomes.weight)
        check_examination(outcomes.examination)
        check_finite("logit", outcomes.logit)
        check_finite("item vector", pairs.item_vectors.sum(axis=-1).astype(np.float64))
        is_click = TASKS[task].parent is None
        counts = outcomes.factor * (1.0 if is_click else self.config.purchase_worth)
        observed = outcomes.label * outcomes.weight * counts
        seen = outcomes.discount * outcomes.examination * counts
        expected = np.where(outcomes.shown, seen * expit(outcomes.logit), 0.0)
        is_known = np.array([client != 0 for client in pairs.clients], dtype=bool)
        used = np.flatnonzero(is_known & (observed + expected > 0))
        if not len(used):
            return
        x = self._vectors(pairs, used)
        more = (observed - expected)[used, None] * x
        clients = [pairs.clients[place] for place in used.tolist()]
        times = outcomes.time_us[used].tolist()
        starts = _starts(list(zip(clients, times, strict=True)))
        sums = np.add.reduceat(more, starts)
        masses = np.add.reduceat((observed + expected)[used], starts).tolist()
        for start, total, mass in zip(starts, sums, masses, strict=True):
            row, kept = self._table.add(clients[start], mass, times[start])
            self._profiles[row] = kept * self._profiles[row] + total
            _, kept = self._everyone.add(0, mass, times[start])
            self._shared = kept * self._shared + total
        if is_click:
            self._shown = self._shown + x[outcomes.shown[used]].sum(axis=0)
            if self._shown[_WIDTH] > self.config.max_showings:
                self._shown = self._shown / 2

    def _vectors(self, pairs: Pairs, places: NDArray[np.intp]) -> Array:
        """Return short vectors of texts and attributes, and 1, of n places: (n, 2 B + 1)."""
        vectors = torch.from_numpy(pairs.item_vectors[places])
        texts = arithmetic.product(vectors, self._map).double().numpy()
        own = [(pairs.items[i], pairs.attributes[i]) for i in places.tolist()]
        attributes = _sketched([_values(*pair) for pair in own])
        return np.hstack([texts, attributes, np.ones((len(places), 1))])

    def snapshot(self) -> bytes:
        """Return the clients in use, their profiles, and the sums of all as msgpack."""
        table = self._table.snapshot()
        used = np.frombuffer(table["row"], dtype="<u4")
        state = {
            "format": FORMAT,
            "width": self.width,
            "table": table,
            "profiles": self._profiles[used].astype("<f4").tobytes(),
            "everyone": self._everyone.snapshot(),
            "shared": self._shared.tolist(),
            "shown": self._shown.tolist(),
        }
        return msgspec.msgpack.encode(state)

    def restore(self, data: bytes) -> None:
        """Restore the state returned by `snapshot`.

        Raises:
            SnapshotError: the bytes are not such a snapshot, or of another width.
        """
        with opened(data, "client affinity", format=FORMAT, width=self.width) as state:
            used = np.frombuffer(state["table"]["row"], dtype="<u4")
            profiles = np.frombuffer(state["profiles"], dtype="<f4").reshape(-1, _WIDTH + 1)
            sums = np.array([state["shared"], state["shown"]], dtype=np.float64)
            finite = np.isfinite(profiles).all() and np.isfinite(sums).all()
            if len(profiles) != len(used) or sums.shape != (2, _WIDTH + 1) or not finite:
                raise SnapshotError("profiles", len(profiles), f"{len(used)} finite vectors")
            self._clear()
            self._table.restore(state["table"])
            self._everyone.restore(state["everyone"])
            self._profiles[used] = profiles
            self._shared, self._shown = sums


def _starts(keys: Sequence[tuple[int, int]]) -> list[int]:
    """Return where runs of equal keys begin: the showings of a list.

    >>> _starts([(7, 1), (7, 1), (7, 2), (9, 2)])
    [0, 2, 3]
    """
    return [i for i, key in enumerate(keys) if i == 0 or key != keys[i - 1]]


def _values(item: str, attributes: Mapping[str, Attribute]) -> list[int]:
    """Return hashes of an item's attribute values, and of itself."""
    own = item.encode("utf-8", "surrogatepass")
    return [_ITEM + crc32(own), *(_ATTRIBUTE + value for _, value in attribute_values(attributes))]


def _sketched(values: Sequence[Sequence[int]]) -> Array:
    """Return the short vectors (n, B) of n items with one value or more.

    >>> red, both = _sketched([[1], [1, 2]])
    >>> round(float((red * red).sum()), 6)
    1.0
    """
    number = np.array([len(own) for own in values], dtype=np.int64)
    total = np.zeros((len(values), _NUM_SHORT), dtype=np.int64)
    signs = _signs(np.array([key for own in values for key in own], dtype=np.uint64))
    np.add.at(total, np.repeat(np.arange(len(values)), number), signs)
    short: Array = total / np.sqrt(_NUM_SHORT * number)[:, None]
    return short


def _signs(keys: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Return B signs for each of n keys (n, B), by bits of a hash (SplitMix64, Steele et al.)."""
    z = keys * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    bits = (z ^ (z >> np.uint64(31)))[:, None] >> np.arange(_NUM_SHORT, dtype=np.uint64)
    return 1 - 2 * (bits & np.uint64(1)).astype(np.int64)
