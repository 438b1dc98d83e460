"""Weighted clicks and exposures of a step, per query and item."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from weighting.query_key import query_key
from weighting.sample import FIRST_COPY
from weighting.tasks import TaskName
from weighting.weighted import WeightedBatch


@dataclass(slots=True, kw_only=True)
class ItemCount:
    """One item under one query.

    Attributes:
        place: of its first sample in the step.
        clicks: labels, weighted by discount and delay correction.
        exposure: examination probabilities of its first copies, discounted alike.
    """

    place: int
    clicks: float = 0.0
    exposure: float = 0.0


@dataclass(slots=True, kw_only=True)
class QueryCounts:
    """Items of one query in a step, in the order of their first samples.

    Attributes:
        items: by identity.
        lists: names of the lists that they were shown in; a sample without one is one by itself.
        time_us: event time of the newest sample.
    """

    items: dict[str, ItemCount] = field(default_factory=dict)
    lists: dict[str, None] = field(default_factory=dict)
    time_us: int = 0

    @property
    def places(self) -> list[int]:
        """Place of each item's first sample."""
        return [count.place for count in self.items.values()]

    @property
    def clicks(self) -> list[float]:
        """Weighted clicks of each item."""
        return [count.clicks for count in self.items.values()]

    @property
    def exposure(self) -> list[float]:
        """Weighted exposure of each item."""
        return [count.exposure for count in self.items.values()]


def query_counts(
    weighted: WeightedBatch, task: TaskName, factor: NDArray[np.float64]
) -> Mapping[str, QueryCounts]:
    """Count the samples of a task by key of the query and item.

    An item without an id goes by its text.

    Args:
        weighted: N samples with their weights.
        task: whose samples count.
        factor: (N,) by which each counts.
    """
    found: dict[str, QueryCounts] = {}
    for i, s in enumerate(weighted.samples):
        if s.task != task or not factor[i]:
            continue
        counts = found.setdefault(query_key(s.query), QueryCounts())
        counts.lists[s.list_id or s.sample_id] = None
        counts.time_us = max(counts.time_us, s.emitted_us)
        count = counts.items.setdefault(s.item_id or s.text, ItemCount(place=i))
        count.clicks += float(weighted.correction[i] * factor[i]) * s.label
        if s.copy_kind is FIRST_COPY:
            count.exposure += float(weighted.discount[i] * weighted.examination[i] * factor[i])
    return found
