"""Attributes of an item: what its brand, colour or price say of it under any query.

Legend: N pairs.

p(click) = theta sigma(bias + sum over the item's attribute values of their effects), learned by a
diagonal Bayesian logistic regression: the main effects of an attribute-weighted choice model
(McFadden 1974). The value of a pair is the sum of effects. It carries over to items that were never
shown, which have their brand from others.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np

from learner.parts.part import Array, Outcomes, Pairs
from weighting.checks import check_examination, check_labels, check_weights
from weighting.errors import SnapshotError
from weighting.estimators.logistic import DiagonalLogistic
from weighting.features import attribute_values
from weighting.sample import Attribute
from weighting.tasks import TASKS, TaskName

FORMAT = 2
_BIAS = 1 << 32  # behind the hashes
_DAY_SECONDS = 86_400.0


@dataclass(frozen=True, slots=True, kw_only=True)
class AttributesConfig:
    """Size of the table, and how far effects may go.

    Attributes:
        hash_bits: log2 of the number of hashed attribute values.
        deviation: standard deviation of an effect before any sample, in logits.
        half_life_days: of what is known of an effect, in event time.
    """

    hash_bits: int = 16
    deviation: float = 0.5
    half_life_days: float = 30.0


class Attributes:
    """Sum of the effects of an item's attribute values; silent where none was met before."""

    columns: Mapping[str, float] = {"attributes": 0.5}

    def __init__(self, initial: float, config: AttributesConfig | None = None):
        """Start with no effect known.

        Args:
            initial: logit of p(click) before any sample.
            config: the settings.
        """
        self.config = c = config or AttributesConfig()
        half_life = c.half_life_days * _DAY_SECONDS
        self._model = DiagonalLogistic(c.hash_bits, 1, offset=initial, half_life_seconds=half_life)

    def predict(self, pairs: Pairs) -> Array:
        """Return the sums of effects (1, N), NaN where none is known. Pure."""
        model = self._model
        xs = [self._fields(attributes) for attributes in pairs.attributes]
        heard = [any(model.known(key) for key in x) for x in xs]
        logits = [model.logit_one(x) for x in xs]
        effects = np.array(logits, dtype=np.float64) - model.offset
        found = np.where(np.array(heard, dtype=bool), effects, np.nan)
        return found[None, :]

    def learn(self, task: TaskName, pairs: Pairs, outcomes: Outcomes) -> None:
        """Learn N showings one after another.

        Raises:
            WeightError: a label, weight or examination probability is NaN or out of range.
        """
        if TASKS[task].parent is not None:
            return
        check_labels(outcomes.label)
        check_weights("weight", outcomes.weight)
        check_examination(outcomes.examination)
        learn_one = self._model.learn_one
        o = outcomes
        columns = (a.tolist() for a in (o.label, o.weight, o.examination, o.time_us))
        for attributes, y, w, theta, now in zip(pairs.attributes, *columns, strict=True):
            if x := self._fields(attributes):
                learn_one({_BIAS: 1.0, **x}, y > 0, w, theta, now)

    def _fields(self, attributes: Mapping[str, Attribute]) -> dict[int, float]:
        return dict.fromkeys(attribute_values(attributes), self.config.deviation)

    def snapshot(self) -> bytes:
        """Return all effects as msgpack."""
        state = {"format": FORMAT, "model": self._model.snapshot()}
        return msgspec.msgpack.encode(state, order="sorted")

    def restore(self, data: bytes) -> None:
        """Restore the state returned by `snapshot`.

        Raises:
            SnapshotError: the bytes are not such a snapshot.
        """
        try:
            state: Mapping[str, Any] = msgspec.msgpack.decode(data)
            if state["format"] != FORMAT:
                raise SnapshotError("format", state["format"], FORMAT)
            self._model.restore(state["model"])
        except (msgspec.DecodeError, KeyError, TypeError, ValueError) as error:
            raise SnapshotError("attributes", repr(error), "an attributes' snapshot") from error
