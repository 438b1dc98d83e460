"""p(y|x) from a river pipeline, always predicted before it is learned.

`pipeline` is the reference: `predict_proba_one`, then `learn_one` with the sample's weight and the chance that its place was looked at. The
methods here take a whole batch, hash each sample once instead of twice, and give the same numbers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from river import compose
from scipy.special import expit

from weighting.features import Document, FieldConfig, Fields
from weighting.logistic import DiagonalLogistic
from weighting.propensity import Propensity, PropensityConfig
from weighting.sample import Sample

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class ConditionalConfig:
    """What the estimator looks at, how long it remembers and how careful its memory is.

    Attributes:
        fields: the hashed fields.
        propensity: the places of a list (click task).
        memory: how many of its own samples a coefficient remembers.
        caution: standard deviations that are taken off the memory's logit: what was shown and liked ranks above what is merely unknown.
    """

    fields: FieldConfig = field(default_factory=FieldConfig)
    propensity: PropensityConfig = field(default_factory=PropensityConfig)
    memory: float = 20_000.0
    caution: float = 1.0

    def __post_init__(self) -> None:
        """Refuse what cannot be learned from.

        Raises:
            ValueError: names key, value and expectation.
        """
        if not self.memory >= 1:
            raise ValueError(f"conditional.memory: got {self.memory!r}, expected a number >= 1")
        if not 0 <= self.caution < float("inf"):
            raise ValueError(f"conditional.caution: got {self.caution!r}, expected a number >= 0")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Prediction:
    """What was predicted of N samples.

    Attributes:
        fields: their hashed fields.
        positions: their places, None where unknown or without a role.
        seen: (N,) theta, the chance that their place was looked at.
        first_logit: (N,) logits as if shown first: of r(x).
        logit: (N,) logits where they were shown: of theta r(x).
        cautious_first_logit: (N,) `first_logit` less its uncertainty.
        cautious_logit: (N,) logits of theta r(x) with that.
    """

    fields: list[dict[int, float]]
    positions: list[int | None]
    seen: Array
    first_logit: Array
    logit: Array
    cautious_first_logit: Array
    cautious_logit: Array


class Conditional:
    """The online estimator of one task."""

    def __init__(self, config: ConditionalConfig, *, initial: float, with_position: bool) -> None:
        """Start at p(y=1|x) = `initial` for a sample shown first; `with_position` gives each place of the list a chance of its own."""
        self.config = config
        self._with_position = with_position
        self._fields = Fields(config.fields)
        self._model = DiagonalLogistic(self._fields.num_buckets, math.log(initial / (1 - initial)), config.memory)
        self._propensity = Propensity(config.propensity)
        self.pipeline = compose.Pipeline(("fields", self._fields), ("logistic", self._model))

    def predict(self, samples: Sequence[Sample]) -> Prediction:
        """Predict N samples. Pure; all see the same state."""
        fields = self._fields.fields
        xs = [fields(s.query, s.item_id, s.text, s.attributes) for s in samples]
        positions = [s.position if self._with_position else None for s in samples]
        seen = self._propensity.get(positions)
        logit, cautious = self._beliefs(xs)
        return Prediction(
            fields=xs,
            positions=positions,
            seen=seen,
            first_logit=logit,
            logit=_shown(logit, seen),
            cautious_first_logit=cautious,
            cautious_logit=_shown(cautious, seen),
        )

    def predict_first(self, query: str, documents: Sequence[Document]) -> Array:
        """Logits (N,) of documents as if each were shown first, less their uncertainty. Pure."""
        fields = self._fields.fields
        return self._beliefs([fields(query, d.id, d.text, d.attributes) for d in documents])[1]

    def learn(self, prediction: Prediction, label: Array, weight: Array) -> None:
        """Learn the N predicted samples one after another: order within the batch counts."""
        learn_one = self._model.learn_one
        for x, y, w, t in zip(prediction.fields, label.tolist(), weight.tolist(), prediction.seen.tolist(), strict=True):
            learn_one(x, y > 0, w, t)
        self._propensity.update(prediction.positions, label, weight, expit(prediction.first_logit))

    def snapshot(self) -> dict[str, Any]:
        """The pipeline and the propensities as plain numbers, after the last sample learned (the fields have no state)."""
        return {"logistic": self._model.snapshot(), "propensity": self._propensity.snapshot()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Resume after the sample that the snapshot was taken behind; refuses a snapshot of another table."""
        self._model.restore(state["logistic"])
        self._propensity.restore(state["propensity"])

    def _beliefs(self, xs: list[dict[int, float]]) -> tuple[Array, Array]:
        belief_one = self._model.belief_one
        beliefs = np.array([belief_one(x) for x in xs], dtype=np.float64).reshape(-1, 2)
        logit = np.clip(beliefs[:, 0], -30.0, 30.0)
        return logit, np.clip(logit - self.config.caution * np.sqrt(beliefs[:, 1]), -30.0, 30.0)


def _shown(logit: Array, seen: Array) -> Array:
    """Logit of theta sigma(m) = log theta - log(1 - theta + e^-m)."""
    shown: Array = np.log(seen) - np.log1p(np.exp(-logit) - seen)
    return shown
