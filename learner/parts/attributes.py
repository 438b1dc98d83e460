"""Attributes of an item: what brand, colour or price are worth, by a choice model.

The part around `weighting.estimators.attribute_choice`. It carries over to items that were never
shown, which have their brand from others, and to queries never seen, which have their words from
others.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
import numpy as np

from learner.parts.part import Array, Outcomes, Pairs
from weighting.estimators.attribute_choice import (
    AttributeChoice,
    AttributeChoiceConfig,
    Coefficients,
)
from weighting.snapshot import opened
from weighting.tasks import TASKS, TaskName

FORMAT = 3
_FIGURE = "attribute_{field}:{name}"


class Attributes:
    """Utility of an item's attributes; silent where no value of it was met before."""

    columns: Mapping[str, float] = {"attributes": 1.0}

    def __init__(self, config: AttributeChoiceConfig | None = None) -> None:
        """Start with nothing known."""
        self._choice = AttributeChoice(config)

    def coefficients(self) -> dict[str, Coefficients]:
        """Return how much each attribute counts, with standard errors."""
        return self._choice.coefficients()

    def predict(self, pairs: Pairs) -> Array:
        """Return the utilities (1, N), NaN where none is known. Pure."""
        return self._choice.predict(pairs.queries, pairs.attributes)[None, :]

    def learn(self, task: TaskName, pairs: Pairs, outcomes: Outcomes) -> None:
        """Learn N showings, against what the rest of the score said of them.

        Raises:
            WeightError: a label, weight, examination probability or logit is NaN or out of range.
        """
        if TASKS[task].parent is not None:
            return
        o = outcomes
        self._choice.learn(
            pairs.queries,
            pairs.attributes,
            label=o.label,
            weight=o.weight * o.factor,
            exposure=np.where(o.shown, o.discount * o.factor, 0.0),
            examination=o.examination,
            logit=o.logit,
            lists=o.lists,
            time_us=o.time_us,
        )

    def snapshot(self) -> bytes:
        """Return all that was learned as msgpack."""
        state = {"format": FORMAT, "choice": self._choice.snapshot()}
        return msgspec.msgpack.encode(state, order="sorted")

    def restore(self, data: bytes) -> None:
        """Restore the state returned by `snapshot`.

        Raises:
            SnapshotError: the bytes are not such a snapshot.
        """
        with opened(data, "choice by attributes", format=FORMAT) as state:
            self._choice.restore(state["choice"])


def figures(coefficients: Mapping[str, Coefficients]) -> dict[str, float]:
    """Return all numbers by the names that a version's manifest has for them."""
    return {
        _FIGURE.format(field=field, name=name): value
        for name, found in coefficients.items()
        for field, value in found._asdict().items()
    }


def coefficients_of(evaluation: Mapping[str, float]) -> dict[str, Coefficients]:
    """Return the coefficients among the figures of a manifest, by attribute.

    >>> found = {"brand": Coefficients(0.8, 0.1, 0.2, 0.1)}
    >>> coefficients_of({"click_auc": 0.7, **figures(found)}) == found
    True
    """
    first = _FIGURE.format(field=Coefficients._fields[0], name="")
    names = [name.removeprefix(first) for name in evaluation if name.startswith(first)]
    keys = {
        name: [_FIGURE.format(field=field, name=name) for field in Coefficients._fields]
        for name in names
    }
    return {
        name: Coefficients(*(evaluation[key] for key in own))
        for name, own in sorted(keys.items())
        if all(key in evaluation for key in own)
    }
