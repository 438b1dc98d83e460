"""p(y|x) from a river pipeline, always predicted before it is learned.

`pipeline` is the reference: `predict_proba_one`, then `learn_one` with the sample's weight and the chance that its place was looked at. The
methods here take a whole batch, hash each sample once instead of twice, and give the same numbers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

import numpy as np
from msgspec import Meta
from numpy.typing import NDArray
from river import compose
from scipy.special import expit

from weighting.constraints import check
from weighting.estimators.logistic import DiagonalLogistic
from weighting.estimators.propensity import Propensity, PropensityConfig
from weighting.features import Document, FieldConfig, Fields
from weighting.sample import Sample

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class ConditionalConfig:
    """Inputs of the estimator of p(y|x), and how long it remembers."""

    fields: FieldConfig = field(default_factory=FieldConfig)
    propensity: PropensityConfig = field(default_factory=PropensityConfig)
    memory: Annotated[
        float, Meta(ge=1, description="Samples of its own that a coefficient remembers.")
    ] = 20_000.0

    def __post_init__(self) -> None:
        """Check every field."""
        check(self, "conditional")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Prediction:
    """What was predicted of N samples.

    Attributes:
        fields: their hashed fields.
        positions: their places, None where unknown or without a role.
        seen: (N,) theta, the chance that their place was looked at.
        first_logit: (N,) logits as if shown first: of r(x).
        logit: (N,) logits where they were shown: of theta r(x).
        memory_first_logit: (N,) `first_logit` as far as the pair was seen: see `Conditional.predict_first`.
        memory_logit: (N,) logits of theta r(x) with that.
    """

    fields: list[dict[int, float]]
    positions: list[int | None]
    seen: Array
    first_logit: Array
    logit: Array
    memory_first_logit: Array
    memory_logit: Array


class Conditional:
    """The online estimator of one task."""

    def __init__(self, config: ConditionalConfig, *, initial: float, with_position: bool) -> None:
        """Start at p(y=1|x) = `initial` for a sample shown first; `with_position` gives each place of the list a chance of its own."""
        self.config = config
        self._with_position = with_position
        self._fields = Fields(config.fields)
        self._model = DiagonalLogistic(
            self._fields.num_buckets, math.log(initial / (1 - initial)), config.memory
        )
        self._propensity = Propensity(config.propensity)
        self.pipeline = compose.Pipeline(("fields", self._fields), ("logistic", self._model))

    def predict(self, samples: Sequence[Sample]) -> Prediction:
        """Predict N samples. Pure; all see the same state."""
        fields = self._fields.fields
        xs = [fields(s.query, s.item_id, s.text, s.attributes) for s in samples]
        positions = [s.position if self._with_position else None for s in samples]
        seen = self._propensity.get(positions)
        logit = self._logits(xs)
        memory = self._as_far_as_seen(
            logit, [self._fields.identity(s.query, s.item_id, s.text) for s in samples]
        )
        return Prediction(
            fields=xs,
            positions=positions,
            seen=seen,
            first_logit=logit,
            logit=_shown(logit, seen),
            memory_first_logit=memory,
            memory_logit=_shown(memory, seen),
        )

    def predict_first(self, query: str, documents: Sequence[Document]) -> Array:
        """Logits (N,) of documents as if each were shown first, as far as each was seen under this query. Pure.

        m = base + k (logit - base), base the logit of a sample of which nothing is known, k = 1 - v the share of the prior variance of the
        pair's own coefficient that its samples took away; k = 0 under a query never seen, whatever buckets its pairs share. A memory speaks
        of what it has seen: about a product or a query that never was, it says nothing, however much its other fields would guess from what
        the shop chose to show. That is the encoder's part.
        """
        logit = self._logits(
            [self._fields.fields(query, d.id, d.text, d.attributes) for d in documents]
        )
        return self._as_far_as_seen(
            logit, [self._fields.identity(query, d.id, d.text) for d in documents]
        )

    def learn(self, prediction: Prediction, label: Array, weight: Array) -> None:
        """Learn the N predicted samples one after another: order within the batch counts."""
        learn_one = self._model.learn_one
        for x, y, w, t in zip(
            prediction.fields,
            label.tolist(),
            weight.tolist(),
            prediction.seen.tolist(),
            strict=True,
        ):
            learn_one(x, y > 0, w, t)
        self._propensity.update(prediction.positions, label, weight, expit(prediction.first_logit))

    def snapshot(self) -> dict[str, Any]:
        """The pipeline and the propensities as plain numbers, after the last sample learned (the fields have no state)."""
        return {"logistic": self._model.snapshot(), "propensity": self._propensity.snapshot()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Resume after the sample that the snapshot was taken behind; refuses a snapshot of another table."""
        self._model.restore(state["logistic"])
        self._propensity.restore(state["propensity"])

    def _logits(self, xs: list[dict[int, float]]) -> Array:
        belief_one = self._model.belief_one
        return np.clip(np.array([belief_one(x)[0] for x in xs], dtype=np.float64), -30.0, 30.0)

    def _as_far_as_seen(self, logit: Array, identities: Sequence[tuple[int, int]]) -> Array:
        base = self._model.belief_one(self._fields.constant())[0]
        known = self._model.known
        seen = np.array(
            [known(pair) if known(query) else 0.0 for query, pair in identities], dtype=np.float64
        )
        return base + seen * (logit - base)


def _shown(logit: Array, seen: Array) -> Array:
    """Logit of theta sigma(m) = log theta - log(1 - theta + e^-m)."""
    shown: Array = np.log(seen) - np.log1p(np.exp(-logit) - seen)
    return shown
