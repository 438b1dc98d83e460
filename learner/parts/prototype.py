"""Prototype of an item: mean of the queries that it was a good answer to.

Legend: N pairs, D width, M items known.

For each task, with S_i the sum of w u over the positive labels of item i, u the query's unit vector
and v_i the item's own, the prototype, shrunk to the text by k pseudo-queries, is
p_i = (S_i + k v_i) / |S_i + k v_i|, and

    value = s cos(A (u - m), A (p_i - m)),

nearest class mean (Snell et al. 2017) in the metric (m, A) of the queries, so that what all queries
share tells no two items apart. w = min(1 / theta, bound) undoes the position: queries that show the
item low are as likely to be among those that find it. A purchase follows far fewer accidents than a
click does, and is worth several more clicks to the prototype of clicks. All vectors are the
starting encoder's, so that what was summed long ago and what is asked now live in one space,
however the moving encoder has changed.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np

from learner.parts.metric import QueryMetric, unit
from learner.parts.part import Array, Outcomes, Pairs, Vectors
from weighting.checks import check_examination, check_finite, check_labels, check_weights
from weighting.errors import SnapshotError
from weighting.tasks import TASKS, TaskName

FORMAT = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class PrototypeConfig:
    """Shrinkage and bounds of the prototypes.

    Attributes:
        pseudo_queries: k, queries that the item's own text is worth.
        largest_weight: bound of 1 / theta.
        worth_to_parent: w of a positive label in the prototype of its task's parent; 1 in its own.
        max_queries: sum of w beyond which S is halved, so that newer queries can move the mean.
        max_items: per task; the item without a positive label for longest is forgotten first.
        max_showings: showings behind m and C beyond which their sums are halved.
    """

    pseudo_queries: float = 4.0
    largest_weight: float = 3.0
    worth_to_parent: float = 4.0
    max_queries: float = 500.0
    max_items: int = 20_000
    max_showings: float = 100_000.0


class Prototype:
    """Mean query of each item; silent about an item without a positive label."""

    columns: Mapping[str, float] = {"prototype": 0.5}

    def __init__(self, width: int, logit_scale: float, config: PrototypeConfig | None = None):
        """Start without items, for vectors of this width."""
        self.width = width
        self.config = config or PrototypeConfig()
        self._scale = logit_scale
        self._metric = QueryMetric(width, most=self.config.max_showings)
        self._rows: dict[TaskName, OrderedDict[str, int]] = {t: OrderedDict() for t in TASKS}
        self._sums: dict[TaskName, Vectors] = {t: self._room(0) for t in TASKS}
        self._weights: dict[TaskName, Array] = {t: np.zeros(0) for t in TASKS}

    def _room(self, number: int) -> Vectors:
        return np.zeros((number, self.width), dtype=np.float32)

    def predict(self, task: TaskName, pairs: Pairs) -> Array:
        """Return scaled cosines of queries and prototypes (1, N). Pure."""
        found = np.full((1, len(pairs.items)), np.nan)
        rows = np.array([self._rows[task].get(item, -1) for item in pairs.items], dtype=np.intp)
        known = np.flatnonzero(rows >= 0)
        if len(known):
            text = pairs.item_vectors[known]
            mean = self._sums[task][rows[known]] + self.config.pseudo_queries * text
            asked = self._metric.unit(pairs.query_vectors[known])
            answers = self._metric.unit(unit(mean))
            found[0, known] = self._scale * (asked * answers).sum(axis=1).astype(np.float64)
        return found

    def learn(self, task: TaskName, pairs: Pairs, outcomes: Outcomes) -> None:
        """Add the queries of positive labels to their items, and all showings to the metric.

        Raises:
            WeightError: a label, weight, examination probability or vector is NaN or out of range.
        """
        check_labels(outcomes.label)
        check_weights("weight", outcomes.weight)
        check_examination(outcomes.examination)
        check_finite("query vector", pairs.query_vectors.sum(axis=-1).astype(np.float64))
        c, parent = self.config, TASKS[task].parent
        corrected = np.minimum(1 / np.maximum(outcomes.examination, 1e-9), c.largest_weight)
        weight = outcomes.label * outcomes.weight * corrected
        for i in np.flatnonzero(weight > 0).tolist():
            self._add(task, pairs.items[i], weight[i], pairs.query_vectors[i])
            if parent is not None:
                worth = c.worth_to_parent * weight[i]
                self._add(parent, pairs.items[i], worth, pairs.query_vectors[i])
        if parent is None:
            used = outcomes.shown & (outcomes.weight > 0)
            self._metric.learn(pairs.query_vectors[used])

    def _add(self, task: TaskName, item: str, weight: float, query: Vectors) -> None:
        row = self._touch(task, item)
        sums, weights = self._sums[task], self._weights[task]
        sums[row] += np.float32(weight) * query
        weights[row] += weight
        if weights[row] > self.config.max_queries:
            sums[row] /= 2
            weights[row] /= 2

    def _touch(self, task: TaskName, item: str) -> int:
        """Return the row of an item as the newest; a new one may take the oldest's."""
        rows = self._rows[task]
        row = rows.get(item)
        if row is None:
            if len(rows) >= self.config.max_items:
                _, row = rows.popitem(last=False)
            else:
                row = len(rows)
            self._make_room(task, row + 1)
            self._sums[task][row] = 0
            self._weights[task][row] = 0
            rows[item] = row
        rows.move_to_end(item)
        return row

    def _make_room(self, task: TaskName, number: int) -> None:
        """Grow the arrays by doubling."""
        missing = number - len(self._weights[task])
        if missing > 0:
            more = max(missing, len(self._weights[task]), 16)
            self._sums[task] = np.concatenate([self._sums[task], self._room(more)])
            self._weights[task] = np.concatenate([self._weights[task], np.zeros(more)])

    def snapshot(self) -> bytes:
        """Return items, weights and sums as msgpack, the oldest item first."""
        tasks = {}
        for task, rows in self._rows.items():
            order = np.array(list(rows.values()), dtype=np.intp)
            tasks[task] = {
                "items": list(rows),
                "weights": self._weights[task][order].tolist(),
                "sums": self._sums[task][order].astype("<f4").tobytes(),
            }
        state = {"format": FORMAT, "width": self.width, "metric": self._metric.snapshot()}
        return msgspec.msgpack.encode({**state, "tasks": tasks})

    def restore(self, data: bytes) -> None:
        """Restore the state returned by `snapshot`.

        Raises:
            SnapshotError: the bytes are not such a snapshot, or of another width.
        """
        try:
            state: Mapping[str, Any] = msgspec.msgpack.decode(data)
            if (state["format"], state["width"]) != (FORMAT, self.width):
                found = f"{state['format']}, width {state['width']}"
                raise SnapshotError("format", found, f"{FORMAT}, width {self.width}")
            self._metric.restore(state["metric"])
            for task in TASKS:
                own = state["tasks"][task]
                sums = np.frombuffer(own["sums"], dtype="<f4").reshape(-1, self.width)
                weights = np.array(own["weights"], dtype=np.float64)
                if len(sums) != len(own["items"]) or not np.isfinite(sums).all():
                    raise SnapshotError("prototype", task, "a finite vector for each item")
                self._rows[task] = OrderedDict((item, i) for i, item in enumerate(own["items"]))
                self._sums[task] = sums.astype(np.float32)
                self._weights[task] = weights
        except (msgspec.DecodeError, KeyError, TypeError, ValueError) as error:
            raise SnapshotError("prototype", repr(error), "a prototype's snapshot") from error
