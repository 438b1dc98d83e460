"""What a query that recurs has learned beyond its text: a residual in the encoder's space, zero for a query never seen.

Legend: D width, n items of one query.

The served vector of a query is u + r, u the encoder's and r this residual, so the encoder's logit of an item v is s u.v + r.v (+ bias).
What is learned about the items that were shown so carries over to items that resemble them and were not; a query never seen keeps the
encoder's own ranking exactly.

r is the MAP estimate of a click rate under the position-based model: item i of the query has clicks c_i and exposure e_i (each showing
counts for the chance of being looked at at its place), p_i = sigma(s u.v_i + r.v_i + bias), and

    gradient of -log posterior  =  sum_i (e_i p_i - c_i) v_i + lambda r .

Each batch takes a few steps of length 1 / (sum_i e_i p_i / 2 + lambda) down that gradient over the items at hand, lambda scaled to their
share of the query's exposure. Counts, not single clicks, are what is fitted: the noise of a click is averaged before it moves anything.
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

from learner.errors import Corrupt
from weighting.checks import check_finite, check_weights
from weighting.constraints import Count, NotNegativeInt, check

Vector = NDArray[np.float32]
FORMAT = 1


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


class QueryResidual:
    """Residuals of the queries seen most recently.

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
        """The residual (D,) of a query; zero when it was never learned. Pure."""
        known = self._queries.get(query)
        return self._zero if known is None else known.vector

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
            WeightError: an input is NaN or infinite, or an exposure negative.
        """
        counts = np.array([clicks, exposure], dtype=np.float64)
        check_weights("clicks", counts[0])
        check_weights("exposure", counts[1])
        check_finite("base logit", base)
        check_finite("item vector", vectors.sum(axis=-1))
        used = np.flatnonzero(counts.any(axis=0)).tolist()
        if not len(used):
            return
        if len(used) < len(items):
            items, vectors, base = [items[i] for i in used], vectors[used], base[used]
            clicks, exposure = counts[:, used].tolist()
        known = self._queries.get(query)
        if known is None:
            known = self._queries[query] = _Recurring(self.width)
            if len(self._queries) > self.config.max_queries:
                self._queries.popitem(last=False)
        self._queries.move_to_end(query)
        for item, c, e in zip(items, clicks, exposure, strict=True):
            old_c, old_e = known.counts.get(item, (0.0, 0.0))
            new_c, new_e = old_c + float(c), old_e + float(e)
            known.counts[item] = (
                (new_c / 2, new_e / 2) if new_e > self.config.max_exposure else (new_c, new_e)
            )
        c_n, e_n = np.array([known.counts[item] for item in items]).T
        for item in list(known.counts)[: max(0, len(known.counts) - self.config.max_items)]:
            del known.counts[item]
        if (
            not e_n.sum() > 0
        ):  # late positives whose first copies were left out, as in quarantine: clicks without a showing are no rate
            return
        share = e_n.sum() / max(sum(e for _, e in known.counts.values()), 1e-9)
        pull = self.config.shrinkage * share
        r = known.vector.astype(np.float64)
        for _ in range(self.config.steps):
            p_n = 1 / (1 + np.exp(-(base + vectors @ r)))
            gradient = (e_n * p_n - c_n) @ vectors + pull * r
            r -= gradient / ((e_n * p_n).sum() / 2 + pull)
        known.vector = r.astype(np.float32)

    def vectors(self) -> tuple[list[str], Vector]:
        """Queries, and their residuals (Q, D): all that serving needs."""
        rows = [known.vector for known in self._queries.values()]
        return list(self._queries), np.stack(rows) if rows else np.zeros(
            (0, self.width), dtype=np.float32
        )

    def snapshot(self) -> tuple[bytes, Vector]:
        """Counts as msgpack, and residuals (Q, D), oldest query first; resumes after the last batch learned."""
        queries, vectors = self.vectors()
        counts = [
            [query, [[item, c, e] for item, (c, e) in known.counts.items()]]
            for query, known in self._queries.items()
        ]
        assert [row[0] for row in counts] == queries
        return msgspec.msgpack.encode({"format": FORMAT, "queries": counts}), vectors

    def restore(self, data: bytes, vectors: Vector) -> None:
        """Resume after a snapshot.

        Raises:
            Corrupt: counts and vectors do not belong together.
        """
        state: Mapping[str, Any] = msgspec.msgpack.decode(data)
        if (
            state["format"] != FORMAT
            or len(state["queries"]) != len(vectors)
            or vectors.shape[1:] != (self.width,)
        ):
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
