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

Each batch takes a few steps of length 1 / (sum_i e_i p_i / 2 + lambda) down that gradient over the
items at hand, lambda scaled to their share of the query's exposure. Counts, not single clicks, are
fitted: the noise of a click is averaged before it moves anything.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import msgspec
import numpy as np
from msgspec import Meta
from numpy.typing import NDArray
from scipy.special import expit

from learner.errors import Corrupt
from weighting.checks import check_finite, check_weights
from weighting.constraints import Count, NotNegativeInt, check
from weighting.query_key import query_key

Vector = NDArray[np.float32]
FORMAT = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class ResidualConfig:
    """Residual of recurring queries: what they learn beyond their text."""

    shrinkage: Annotated[
        float, Meta(ge=1e-6, description="Precision of the Gaussian prior on the residual.")
    ] = 1.0
    steps: Annotated[
        NotNegativeInt, Meta(description="Gradient steps per batch with the query; 0 disables it.")
    ] = 2
    max_exposure: Annotated[
        float, Meta(ge=1, description="Exposure of an item beyond which its counts are halved.")
    ] = 500.0
    max_queries: Annotated[
        Count, Meta(description="Queries kept; the least recent is evicted first.")
    ] = 50_000
    max_items: Annotated[
        Count, Meta(description="Items counted per query; the oldest is evicted first.")
    ] = 1_000

    def __post_init__(self) -> None:
        """Check every field."""
        check(self, "learner.residual")


class _Recurring:
    """One query: its residual (D,), and (clicks, exposure) per item."""

    __slots__ = ("counts", "vector")

    def __init__(self, width: int) -> None:
        self.vector = np.zeros(width, dtype=np.float32)
        self.counts: dict[str, tuple[float, float]] = {}

    def count(self, item: str, clicks: float, exposure: float, *, most: float) -> None:
        """Add to the counts of an item; halve them when its exposure exceeds `most`."""
        old_clicks, old_exposure = self.counts.get(item, (0.0, 0.0))
        c, e = old_clicks + float(clicks), old_exposure + float(exposure)
        self.counts[item] = (c / 2, e / 2) if e > most else (c, e)

    def forget(self, *, most: int) -> None:
        """Forget the items counted first, so that at most `most` remain."""
        for item in list(self.counts)[: max(0, len(self.counts) - most)]:
            del self.counts[item]


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
        return self._stacked([self.get(query) for query in queries])

    def learn(
        self,
        query: str,
        items: Sequence[str],
        vectors: Vector,
        base: NDArray[np.float64],
        clicks: Sequence[float],
        exposure: Sequence[float],
    ) -> None:
        """Learn one query's items of a batch.

        Args:
            query: the query's text.
            items: ids of n distinct items.
            vectors: (n, D) the encoder's vectors of the items.
            base: (n,) the encoder's own logits, s u.v + bias.
            clicks: (n,) weighted clicks in this batch.
            exposure: (n,) weighted exposure in this batch, in showings at the first position.

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
        known = self._touch(query_key(query))
        for item, (c, e) in zip(items, counts[:, used].T.tolist(), strict=True):
            known.count(item, c, e, most=self.config.max_exposure)
        c_n, e_n = np.array([known.counts[item] for item in items]).T
        known.forget(most=self.config.max_items)
        if not e_n.sum() > 0:
            # Late positives whose first copies were left out, as in quarantine: clicks without
            # a showing are no rate
            return
        share = e_n.sum() / max(sum(e for _, e in known.counts.values()), 1e-9)
        shrinkage = self.config.shrinkage * share
        r = known.vector.astype(np.float64)
        for _ in range(self.config.steps):
            # No matrix products: their order of adding depends on the cores of the machine
            p_n = expit(base + (vectors * r).sum(axis=1))
            gradient = ((e_n * p_n - c_n)[:, None] * vectors).sum(axis=0) + shrinkage * r
            r -= gradient / ((e_n * p_n).sum() / 2 + shrinkage)
        known.vector = r.astype(np.float32)

    def _touch(self, query: str) -> _Recurring:
        """Return the query as the newest; forget the oldest when there are too many."""
        known = self._queries.get(query)
        if known is None:
            known = self._queries[query] = _Recurring(self.width)
            if len(self._queries) > self.config.max_queries:
                self._queries.popitem(last=False)
        self._queries.move_to_end(query)
        return known

    def vectors(self) -> tuple[list[str], Vector]:
        """Return the keys of all queries and their residuals (Q, D): what serving needs."""
        rows = [known.vector for known in self._queries.values()]
        return list(self._queries), self._stacked(rows)

    def _stacked(self, rows: Sequence[Vector]) -> Vector:
        return np.stack(rows) if rows else np.zeros((0, self.width), dtype=np.float32)

    def snapshot(self) -> tuple[bytes, Vector]:
        """Return counts as msgpack and residuals (Q, D), oldest query first."""
        queries, vectors = self.vectors()
        counts = [
            [query, [[item, c, e] for item, (c, e) in known.counts.items()]]
            for query, known in self._queries.items()
        ]
        assert [row[0] for row in counts] == queries
        return msgspec.msgpack.encode({"format": FORMAT, "queries": counts}), vectors

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
        self._queries.clear()
        for (query, counts), vector in zip(state["queries"], vectors, strict=True):
            known = self._queries[query] = _Recurring(self.width)
            known.vector = np.array(vector)
            known.counts = {item: (c, e) for item, c, e in counts}

    def load_vectors(self, queries: Sequence[str], vectors: Vector) -> None:
        """Take residuals for serving, without the counts that learning needs."""
        for query, vector in zip(queries, vectors, strict=True):
            self._queries[query] = _Recurring(self.width)
            self._queries[query].vector = vector
