"""p(y|x) from a river pipeline, always predicted before it is learned.

`pipeline` is the reference: `predict_proba_one`, then `learn_one` with the sample's weight and
examination probability. The methods here take a whole batch, hash each sample once instead of
twice, and give the same numbers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Annotated, Any

import numpy as np
from msgspec import Meta
from numpy.typing import NDArray
from river import compose
from scipy.special import expit

from weighting.checks import check_labels, check_weights
from weighting.constraints import Positive, check
from weighting.estimators.logistic import DiagonalLogistic
from weighting.estimators.propensity import Propensity, PropensityConfig
from weighting.features import Document, FieldConfig, Fields
from weighting.sample import Sample

Array = NDArray[np.float64]
_LARGEST_LOGIT = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ConditionalConfig:
    """Inputs of the estimator of p(y|x), and how long it remembers."""

    fields: FieldConfig = field(default_factory=FieldConfig)
    propensity: PropensityConfig = field(default_factory=PropensityConfig)
    half_life_seconds: Annotated[
        Positive,
        Meta(description="Event time after which what a coefficient learned is half forgotten."),
    ] = 30 * 86_400.0

    def __post_init__(self) -> None:
        """Check every field."""
        check(self, "conditional")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Prediction:
    """Predictions of N samples.

    Attributes:
        fields: their hashed fields.
        time_us: (N,) their event times.
        positions: their positions in the list, None where unknown or without a role.
        examination: (N,) theta, probability that their position was examined.
        first_logit: (N,) logits as if shown first: of r(x).
        logit: (N,) logits where they were shown: of theta r(x).
        pair_memory_first_logit: (N,) the pair memory's logits as if shown first; see
            `Conditional.predict_first`.
        pair_memory_base: the same of a pair of which nothing is known.
    """

    fields: list[dict[int, float]]
    time_us: NDArray[np.int64]
    positions: list[int | None]
    examination: Array
    first_logit: Array
    logit: Array
    pair_memory_first_logit: Array
    pair_memory_base: float


class Conditional:
    """Online estimator of p(y|x) of one task, with its memory of (query, item) pairs."""

    def __init__(self, config: ConditionalConfig, *, initial: float, with_position: bool) -> None:
        """Start at one probability for every sample that is shown first.

        Args:
            config: fields and memory.
            initial: p(y=1|x) before any sample.
            with_position: whether positions have examination probabilities of their own.
        """
        self.config = config
        self._with_position = with_position
        self._fields = Fields(config.fields)
        offset = math.log(initial / (1 - initial))
        self._model = DiagonalLogistic(
            config.fields.hash_bits,
            self._fields.num_own,
            offset=offset,
            half_life_seconds=config.half_life_seconds,
        )
        self._propensity = Propensity(config.propensity)
        self.pipeline = compose.Pipeline(("fields", self._fields), ("logistic", self._model))

    def predict(self, samples: Sequence[Sample]) -> Prediction:
        """Predict N samples. Pure; all see the same state."""
        fields, identity = self._fields.fields, self._fields.identity
        xs = [fields(s.query, s.item_id, s.text, s.attributes) for s in samples]
        pairs = [identity(s.query, s.item_id, s.text) for s in samples]
        positions = [s.position if self._with_position else None for s in samples]
        examination = self._propensity.get(positions)
        logit = self._logits(xs)
        pair_memory = self._pair_memory(logit, pairs)
        return Prediction(
            fields=xs,
            time_us=np.array([s.emitted_us for s in samples], dtype=np.int64),
            positions=positions,
            examination=examination,
            first_logit=logit,
            logit=shown_logit(logit, examination),
            pair_memory_first_logit=pair_memory,
            pair_memory_base=self.base(),
        )

    def predict_first(self, query: str, documents: Sequence[Document]) -> Array:
        """Pair-memory logits (N,) of documents, as if each were shown first. Pure.

        m = base + k (logit - base), base the logit of a sample of which nothing is known,
        k = 1 - v the share of the prior variance of the pair's own coefficient that its samples
        took away, as of the latest sample learned; k = 0 under a query never seen. So about a
        product or a query without samples it says nothing, however much its other fields would
        guess from what the shop chose to show. That is the encoder's part.
        """
        fields, identity = self._fields.fields, self._fields.identity
        logit = self._logits([fields(query, d.id, d.text, d.attributes) for d in documents])
        pairs = [identity(query, d.id, d.text) for d in documents]
        return self._pair_memory(logit, pairs)

    def base(self) -> float:
        """Logit of a pair of which nothing is known, as if shown first. Pure."""
        return self._model.logits([self._fields.constant()])[0]

    def learn(self, prediction: Prediction, label: Array, weight: Array) -> None:
        """Learn the N predicted samples one after another: order within the batch counts.

        Args:
            prediction: made by `predict` before any of them was learned.
            label: (N,) labels.
            weight: (N,) weights; a sample of weight 0 changes nothing.
        """
        check_labels(label)
        check_weights("weight", weight)
        learn_one = self._model.learn_one
        columns = label.tolist(), weight.tolist(), prediction.examination.tolist()
        times = prediction.time_us.tolist()
        for x, y, w, t, now in zip(prediction.fields, *columns, times, strict=True):
            learn_one(x, y > 0, w, t, now)
        expected = expit(prediction.first_logit)
        time_us, positions = prediction.time_us, prediction.positions
        self._propensity.update(time_us, positions, label, weight, expected)

    def snapshot(self) -> dict[str, Any]:
        """State after the last sample learned, as plain numbers; the fields have none."""
        return {"logistic": self._model.snapshot(), "propensity": self._propensity.snapshot()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restore the state returned by `snapshot`; refuse one of another table."""
        self._model.restore(state["logistic"])
        self._propensity.restore(state["propensity"])

    def _logits(self, xs: Sequence[dict[int, float]]) -> Array:
        logit = np.array(self._model.logits(xs), dtype=np.float64)
        return np.clip(logit, -_LARGEST_LOGIT, _LARGEST_LOGIT)

    def _pair_memory(self, logit: Array, pairs: Sequence[tuple[int, int]]) -> Array:
        """Shrink logits (N,) to the base as far as their pairs are unknown."""
        base = self.base()
        known = self._model.known(chain.from_iterable(pairs))
        of_query, of_pair = np.array(known, dtype=np.float64).reshape(-1, 2).T
        k = np.where(of_query > 0, of_pair, 0.0)
        shrunk: Array = base + k * (logit - base)
        return shrunk


def shown_logit(logit: Array, theta: Array) -> Array:
    """Logits (N,) of theta sigma(m) = log theta - log(1 - theta + e^-m), from m and theta (N,)."""
    shown: Array = np.log(theta) - np.log1p(np.exp(-logit) - theta)
    return shown
