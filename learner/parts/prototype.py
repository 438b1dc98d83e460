"""Prototype of an item: mean of the queries that it was a good answer to.

Legend: N pairs, D width, M items known.

With S_i the sum of w u over the clicks on item i, u the query's unit vector and v_i the item's own,
the prototype, shrunk to the text by k pseudo-queries, is
p_i = (S_i + k v_i) / |S_i + k v_i|, and

    value = s (cos(A (u - m), A (p_i - m)) - .35).

An item without a click has its text as prototype, S_i = 0: so its first click moves the value by
little, where one that had said nothing before would rise above all others by the whole of it.
It is nearest class mean (Snell et al. 2017) in the metric (m, A) of the queries, so that what all
queries share tells no two items apart. w = min(1 / theta, bound) undoes the position: queries that
show the item low are as likely to be among those that find it. A purchase follows far fewer
accidents than a click does, and is worth several more clicks. All vectors are the starting
encoder's, so that what was summed long ago and what is asked now live in one space, however the
moving encoder has changed.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass

import msgspec
import numpy as np

from learner.parts.metric import QueryMetric, unit
from learner.parts.part import Array, Outcomes, Pairs, Vectors
from learner.parts.stateless import TYPICAL_COSINE
from weighting.checks import check_examination, check_finite, check_labels, check_weights
from weighting.errors import SnapshotError
from weighting.snapshot import opened
from weighting.tasks import TASKS, TaskName

FORMAT = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class PrototypeConfig:
    """Shrinkage and bounds of the prototypes.

    Attributes:
        pseudo_queries: k, queries that the item's own text is worth.
        largest_weight: bound of 1 / theta.
        purchase_worth: clicks that a purchase adds to its own click.
        max_queries: sum of w beyond which S is halved, so that newer queries can move the mean.
        max_items: the item without a click for longest is forgotten first.
        max_showings: showings behind m and C beyond which their sums are halved.
    """

    pseudo_queries: float = 4.0
    largest_weight: float = 3.0
    purchase_worth: float = 4.0
    max_queries: float = 500.0
    max_items: int = 20_000
    max_showings: float = 100_000.0


class Prototype:
    """Mean query of each item, its text before a click; silent before the first click of all."""

    columns: Mapping[str, float] = {"prototype": 0.25}

    def __init__(self, width: int, logit_scale: float, config: PrototypeConfig | None = None):
        """Start without items, for vectors of this width."""
        self.width = width
        self.config = config or PrototypeConfig()
        self._scale = logit_scale
        self._metric = QueryMetric(width, most=self.config.max_showings)
        self._rows: OrderedDict[str, int] = OrderedDict()
        self._sums = self._room(0)
        self._weights = np.zeros(0)

    def _room(self, number: int) -> Vectors:
        return np.zeros((number, self.width), dtype=np.float32)

    def predict(self, pairs: Pairs) -> Array:
        """Return scaled cosines of queries and prototypes (1, N). Pure."""
        if not self._rows:
            return np.full((1, len(pairs.items)), np.nan)
        mean = self.config.pseudo_queries * pairs.item_vectors
        rows = np.array([self._rows.get(item, -1) for item in pairs.items], dtype=np.intp)
        clicked = np.flatnonzero(rows >= 0)
        mean[clicked] += self._sums[rows[clicked]]
        asked, answers = self._metric.unit(pairs.query_vectors), self._metric.unit(unit(mean))
        cosine = (asked * answers).sum(axis=1).astype(np.float64)
        return np.asarray(self._scale * (cosine - TYPICAL_COSINE))[None, :]

    def learn(self, task: TaskName, pairs: Pairs, outcomes: Outcomes) -> None:
        """Add the queries of clicks and purchases to their items, and all showings to the metric.

        Raises:
            WeightError: a label, weight, examination probability or vector is NaN or out of range.
        """
        check_labels(outcomes.label)
        check_weights("weight", outcomes.weight)
        check_examination(outcomes.examination)
        check_finite("query vector", pairs.query_vectors.sum(axis=-1).astype(np.float64))
        c, is_click = self.config, TASKS[task].parent is None
        corrected = np.minimum(1 / np.maximum(outcomes.examination, 1e-9), c.largest_weight)
        weight = outcomes.label * outcomes.weight * corrected
        if not is_click:
            weight *= c.purchase_worth
        for i in np.flatnonzero(weight > 0).tolist():
            self._add(pairs.items[i], weight[i], pairs.query_vectors[i])
        if is_click:
            used = outcomes.shown & (outcomes.weight > 0)
            self._metric.learn(pairs.query_vectors[used])

    def _add(self, item: str, weight: float, query: Vectors) -> None:
        row = self._touch(item)
        sums, weights = self._sums, self._weights
        sums[row] += np.float32(weight) * query
        weights[row] += weight
        if weights[row] > self.config.max_queries:
            sums[row] /= 2
            weights[row] /= 2

    def _touch(self, item: str) -> int:
        """Return the row of an item as the newest; a new one may take the oldest's."""
        rows = self._rows
        row = rows.get(item)
        if row is None:
            if len(rows) >= self.config.max_items:
                _, row = rows.popitem(last=False)
            else:
                row = len(rows)
            self._make_room(row + 1)
            self._sums[row] = 0
            self._weights[row] = 0
            rows[item] = row
        rows.move_to_end(item)
        return row

    def _make_room(self, number: int) -> None:
        """Grow the arrays by doubling."""
        missing = number - len(self._weights)
        if missing > 0:
            more = max(missing, len(self._weights), 16)
            self._sums = np.concatenate([self._sums, self._room(more)])
            self._weights = np.concatenate([self._weights, np.zeros(more)])

    def snapshot(self) -> bytes:
        """Return items, weights and sums as msgpack, the oldest item first."""
        order = np.array(list(self._rows.values()), dtype=np.intp)
        state = {
            "format": FORMAT,
            "width": self.width,
            "metric": self._metric.snapshot(),
            "items": list(self._rows),
            "weights": self._weights[order].tolist(),
            "sums": self._sums[order].astype("<f4").tobytes(),
        }
        return msgspec.msgpack.encode(state)

    def restore(self, data: bytes) -> None:
        """Restore the state returned by `snapshot`.

        Raises:
            SnapshotError: the bytes are not such a snapshot, or of another width.
        """
        with opened(data, "prototype", format=FORMAT, width=self.width) as state:
            self._metric.restore(state["metric"])
            items, sums = state["items"], np.frombuffer(state["sums"], dtype="<f4")
            sums = sums.reshape(-1, self.width)
            if len(sums) != len(items) or not np.isfinite(sums).all():
                raise SnapshotError("prototype", len(sums), f"{len(items)} finite vectors")
            self._rows = OrderedDict((item, i) for i, item in enumerate(items))
            self._sums = sums.astype(np.float32)
            self._weights = np.array(state["weights"], dtype=np.float64)
