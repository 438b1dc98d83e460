"""Residual of a recurring query: a vector in the encoder's space.

Legend: D width, n items of one query, Q queries.

The served vector of a query is u + r, u the encoder's and r this residual, so the encoder's logit
of an item v is s u.v + r.v (+ bias). What is learned about the items that were shown so carries
over to items that resemble them and were not. The residual of a query never seen is zero: such a
query keeps the encoder's own ranking exactly.

r is the MAP estimate of a click rate under the position-based model: item i of the query has
clicks c_i and exposure e_i (each showing counts for its examination probability),
p_i = sigma(s u.v_i + r.v_i + bias), and

    gradient of -log posterior  =  sum_i (e_i p_i - c_i) v_i + lambda r .

Each batch takes a few steps of length 1 / (sum_i max(e_i p_i, c_i) / 2 + lambda) down that gradient
over the items at hand, lambda scaled to their share of the query's exposure. Where next to nothing
was expected the clicks are the better guess of the curvature: without them, those that come late,
all at once, would be followed by a step far beyond the minimum. Counts, not single clicks, are
fitted: the noise of a click is averaged before it moves anything. Counts fade in event time.

A query is learned from its second list on (`Sightings`): most queries never come again, and what
they would hold would push out what others learned. The first list is not counted.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import msgspec
import numpy as np
from msgspec import Meta
from numpy.typing import NDArray
from scipy.special import expit

from learner.errors import Corrupt
from learner.item_counts import ItemCounts
from learner.sightings import Sightings
from weighting.checks import check_finite, check_weights
from weighting.constraints import Count, NotNegativeInt, Positive, check
from weighting.query_key import query_key

Vector = NDArray[np.float32]
FORMAT = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class ResidualConfig:
    """Residual of recurring queries: what they learn beyond their text."""

    shrinkage: Annotated[
        float, Meta(ge=1e-6, description="Precision of the Gaussian prior on the residual.")
    ] = 1.0
    steps: Annotated[
        NotNegativeInt, Meta(description="Gradient steps per batch with the query; 0 disables it.")
    ] = 2
    half_life_seconds: Annotated[
        Positive, Meta(description="Event time after which clicks and exposure count half.")
    ] = 30 * 86_400.0
    max_queries: Annotated[
        Count, Meta(description="Queries kept; the least recent is evicted first.")
    ] = 50_000
    max_items: Annotated[
        Count, Meta(description="Items counted per query; the least recent is evicted first.")
    ] = 1_000

    def __post_init__(self) -> None:
        """Check every field."""
        check(self, "learner.residual")


class _Recurring:
    """One query: its residual (D,), its counts, and these as bytes if they are as they were.

    A residual is replaced, never changed: a copy of the state may go on holding it.
    """

    __slots__ = ("counts", "encoded", "vector")

    def __init__(self, vector: Vector, counts: ItemCounts) -> None:
        self.vector = vector
        self.counts = counts
        self.encoded: bytes | None = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ResidualState:
    """State of all residuals at one moment; it may be encoded in any thread while others learn.

    Attributes:
        width: D.
        queries: keys of the Q queries, the least recent first.
        rows: residual (D,) of each.
        counts: counts of each, as bytes.
        sightings: queries shown once.
    """

    width: int
    queries: list[str]
    rows: list[Vector]
    counts: list[bytes]
    sightings: Sightings

    def vectors(self) -> Vector:
        """Return the residuals (Q, D)."""
        return _stacked(self.rows, self.width)

    def encoded(self) -> bytes:
        """Return everything but the residuals, as msgpack."""
        return msgspec.msgpack.encode(
            {
                "format": FORMAT,
                "sightings": self.sightings.snapshot(),
                "queries": self.queries,
                "counts": [msgspec.Raw(row) for row in self.counts],
            }
        )


class QueryResidual:
    """Residuals of the queries seen most recently, whatever their spelling (`query_key`).

    >>> residual = QueryResidual(2)
    >>> residual.get("shoes").tolist()
    [0.0, 0.0]
    """

    def __init__(self, width: int, config: ResidualConfig | None = None) -> None:
        """Start with no query known."""
        self.width = width
        self.config = config or ResidualConfig()
        self._queries: OrderedDict[str, _Recurring] = OrderedDict()
        self._sightings = Sightings()
        self._zero = np.zeros(width, dtype=np.float32)

    def __len__(self) -> int:
        """Return the number of queries known."""
        return len(self._queries)

    def get(self, query: str) -> Vector:
        """Return the residual (D,) of a query; zero when it was never learned. Pure."""
        known = self._queries.get(query_key(query))
        return self._zero if known is None else known.vector

    def get_all(self, queries: Sequence[str]) -> Vector:
        """Return the residuals (Q, D) of queries, in order. Pure."""
        return _stacked([self.get(query) for query in queries], self.width)

    def learn(
        self,
        query: str,
        items: Sequence[str],
        vectors: Vector,
        base: NDArray[np.float64],
        clicks: Sequence[float],
        exposure: Sequence[float],
        *,
        lists: Collection[str],
        time_us: int,
    ) -> None:
        """Learn one query's items of a batch; nothing while all its lists so far are one.

        Args:
            query: the query's text.
            items: ids of n distinct items.
            vectors: (n, D) the encoder's vectors of the items.
            base: (n,) the encoder's own logits, s u.v + bias.
            clicks: (n,) weighted clicks in this batch.
            exposure: (n,) weighted exposure in this batch, in showings at the first position.
            lists: names of the lists that the items were shown in.
            time_us: event time of the newest.

        Items without clicks and exposure teach nothing.

        Raises:
            WeightError: an input is NaN or infinite, or clicks or exposure are negative.
        """
        counts = np.array([clicks, exposure], dtype=np.float64)
        check_weights("clicks", counts[0])
        check_weights("exposure", counts[1])
        check_finite("base logit", base)
        check_finite("item vector", vectors.sum(axis=-1))
        used = np.flatnonzero(counts.any(axis=0)).tolist()
        if not len(used):
            return
        items, vectors, base = [items[i] for i in used], vectors[used], base[used]
        known = self._touch(query_key(query), lists)
        if known is None:
            return
        faded, total = known.counts.add(
            items,
            counts[:, used].T.tolist(),
            time_us=time_us,
            half_life_us=1e6 * self.config.half_life_seconds,
            most=self.config.max_items,
        )
        known.encoded = None
        c_n, e_n = np.array(faded).T
        if not e_n.sum() > 0:
            # Late positives whose first copies were left out, as in quarantine: clicks without
            # a showing are no rate
            return
        share = min(e_n.sum() / max(total, 1e-9), 1.0)
        shrinkage = self.config.shrinkage * share
        r = known.vector.astype(np.float64)
        for _ in range(self.config.steps):
            # No matrix products: their order of adding depends on the cores of the machine
            p_n = expit(base + (vectors * r).sum(axis=1))
            gradient = ((e_n * p_n - c_n)[:, None] * vectors).sum(axis=0) + shrinkage * r
            r -= gradient / (np.maximum(e_n * p_n, c_n).sum() / 2 + shrinkage)
        known.vector = r.astype(np.float32)

    def _touch(self, query: str, lists: Collection[str]) -> _Recurring | None:
        """Return the query as the newest; forget the oldest when there are too many.

        None for one that was shown in no other list yet.
        """
        known = self._queries.get(query)
        if known is None:
            if not self._sightings.recurs(query, lists):
                return None
            known = self._queries[query] = _Recurring(self._zero, ItemCounts())
            if len(self._queries) > self.config.max_queries:
                self._queries.popitem(last=False)
        self._queries.move_to_end(query)
        return known

    def queries(self) -> list[str]:
        """Return the keys of all queries, the least recent first."""
        return list(self._queries)

    def copy(self) -> ResidualState:
        """Copy the state; only counts that changed since the last copy take time."""
        for known in self._queries.values():
            if known.encoded is None:
                known.encoded = known.counts.encoded()
        return ResidualState(
            width=self.width,
            queries=list(self._queries),
            rows=[known.vector for known in self._queries.values()],
            counts=[known.encoded or b"" for known in self._queries.values()],
            sightings=self._sightings.copy(),
        )

    def snapshot(self) -> tuple[bytes, Vector]:
        """Return all but the residuals as msgpack, and residuals (Q, D), oldest query first."""
        state = self.copy()
        return state.encoded(), state.vectors()

    def restore(self, data: bytes, vectors: Vector) -> None:
        """Restore the state returned by `snapshot`.

        Raises:
            Corrupt: counts and vectors do not belong together.
        """
        state: Mapping[str, Any] = msgspec.msgpack.decode(data)
        expected = (FORMAT, (len(state["queries"]), self.width))
        if (state["format"], vectors.shape) != expected:
            raise Corrupt(
                "residual",
                expected=f"format {FORMAT}, width {self.width}",
                found=f"{state['format']}, {vectors.shape}",
            )
        self._sightings.restore(state["sightings"])
        self._queries.clear()
        rows = zip(state["queries"], state["counts"], vectors, strict=True)
        for query, counts, vector in rows:
            self._queries[query] = _Recurring(np.array(vector), ItemCounts.decoded(counts))

    def load_vectors(self, queries: Sequence[str], vectors: Vector) -> None:
        """Take residuals for serving, without the counts that learning needs."""
        for query, vector in zip(queries, vectors, strict=True):
            self._queries[query] = _Recurring(vector, ItemCounts())


def _stacked(rows: Sequence[Vector], width: int) -> Vector:
    return np.stack(rows) if rows else np.zeros((0, width), dtype=np.float32)
