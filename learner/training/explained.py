"""Explained predictions: lists with a click as they would have been served, part by part.

Legend: n samples that are shown items of lists with a click, K columns of all parts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from weighting.sample import Sample

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class ExplainedItem:
    """One shown item.

    Attributes:
        item_id: identity of the item; "" when it has none.
        text: its text.
        position: place where it was shown, from 1; None when not known.
        clicked: whether it was.
        score: that ranking would have sorted by, largest first.
        logit: log-odds of a click, if shown first: the sum of the contributions.
        contributions: column of a part -> what it adds to the logit, and the intercept.
    """

    item_id: str
    text: str
    position: int | None
    clicked: bool
    score: float
    logit: float
    contributions: Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class ExplainedList:
    """One shown list, its items in the order that would have been served.

    Attributes:
        list_id: id of the exposure.
        query: the query's text.
        items: those shown.
    """

    list_id: str
    query: str
    items: tuple[ExplainedItem, ...]


def explained(
    samples: Sequence[Sample],
    score: Array,
    logit: Array,
    contributions: Mapping[str, Array],
    *,
    limit: int,
) -> tuple[ExplainedList, ...]:
    """Return the first lists of n samples.

    Args:
        samples: the shown items.
        score: (n,) that ranking would have sorted by.
        logit: (n,) of a click, if shown first.
        contributions: K names -> (n,) what each adds to the logit.
        limit: most lists.
    """
    by_list: dict[str, list[int]] = {}
    for place, s in enumerate(samples):
        if s.list_id in by_list or len(by_list) < limit:
            by_list.setdefault(s.list_id, []).append(place)
    found = []
    for list_id, places in by_list.items():
        items = tuple(
            ExplainedItem(
                item_id=samples[place].item_id,
                text=samples[place].text,
                position=samples[place].position,
                clicked=bool(samples[place].label),
                score=float(score[place]),
                logit=float(logit[place]),
                contributions={name: float(own[place]) for name, own in contributions.items()},
            )
            for place in sorted(places, key=lambda place: -score[place])
        )
        found.append(ExplainedList(list_id=list_id, query=samples[places[0]].query, items=items))
    return tuple(found)
