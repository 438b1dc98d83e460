"""p(y|x) from a river pipeline, always predicted before it is learned.

`weighting.conditional.model` names the classifier that ends it. `pipeline` is the reference:
`predict_proba_one`, then `learn_one` with the sample's weight and examination probability. The
methods here take a whole list, hash each sample once instead of twice, and give the same numbers.
They count in floats: a list is too short for numpy to pay.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

import msgspec
import numpy as np
from msgspec import Meta
from numpy.typing import NDArray
from river import compose

from weighting.checks import check_example
from weighting.constraints import Positive, check
from weighting.errors import SnapshotError
from weighting.estimators.classifier import Classifier
from weighting.estimators.logistic import sigmoid
from weighting.estimators.models import DEFAULT, check_model, make_model
from weighting.estimators.propensity import Propensity, PropensityConfig
from weighting.features import Document, FieldConfig, Fields
from weighting.sample import Sample

Array = NDArray[np.float64]
LARGEST_LOGIT = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ConditionalConfig:
    """Model and inputs of the estimator of p(y|x), and how long it remembers."""

    model: Annotated[
        str,
        Meta(
            description="bayesian (built in), naive_bayes, or logistic:OPTIMIZER of river,"
            " such as logistic:adagrad."
        ),
    ] = DEFAULT
    fields: FieldConfig = field(default_factory=FieldConfig)
    propensity: PropensityConfig = field(default_factory=PropensityConfig)
    half_life_seconds: Annotated[
        Positive,
        Meta(description="Event time after which what a coefficient learned is half forgotten."),
    ] = 30 * 86_400.0

    def __post_init__(self) -> None:
        """Check every field."""
        check(self, "conditional")
        check_model("conditional", self.model)


class Prediction(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Prediction of one sample.

    Attributes:
        fields: its hashed fields.
        time_us: its event time.
        position: its position in the list, None where unknown or without a role.
        examination: theta, probability that its position was examined.
        first_logit: logit as if shown first: of r(x).
        logit: logit where it was shown: of theta r(x).
        pair_memory_first_logit: the pair memory's logit as if shown first; see
            `Conditional.predict_first`.
    """

    fields: dict[int, float]
    time_us: int
    position: int | None
    examination: float
    first_logit: float
    logit: float
    pair_memory_first_logit: float


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
        self._model = self._untrained(offset)
        self._propensity = Propensity(config.propensity)

    @property
    def pipeline(self) -> compose.Pipeline:
        """The reference: a pipeline around the fields and the model of this one.

        It is not kept, because functions inside it refer to themselves and to the model. So only
        the garbage collector could free a model's tables, and a server would keep those of every
        version that is gone for hours.
        """
        return compose.Pipeline(("fields", self._fields), ("model", self._model))

    def predict(self, samples: Sequence[Sample]) -> list[Prediction]:
        """Predict N samples. Pure; all see the same state."""
        base, hashed = self.base(), self._fields.fields_and_pair
        positions = [s.position if self._with_position else None for s in samples]
        thetas = [self._propensity.get(position) for position in positions]
        read = [hashed(s.query, s.item_id, s.text, s.attributes) for s in samples]
        logits = [self._logit(x) for x, _ in read]
        shown = shown_logit(np.array(logits), np.array(thetas)).tolist()
        return [
            Prediction(
                fields=x,
                time_us=s.emitted_us,
                position=position,
                examination=theta,
                first_logit=logit,
                logit=at_position,
                pair_memory_first_logit=self._pair_memory(logit, pair, base),
            )
            for s, (x, pair), position, theta, logit, at_position in zip(
                samples, read, positions, thetas, logits, shown, strict=True
            )
        ]

    def examination(self, position: int | None) -> float:
        """Probability that a 1-based position is examined; 1 of an unknown one. Pure."""
        return self._propensity.get(position if self._with_position else None)

    def predict_first(self, query: str, documents: Sequence[Document]) -> Array:
        """Pair-memory logits (N,) of documents, as if each were shown first. Pure.

        m = base + k (logit - base), base the logit of a sample of which nothing is known,
        k = 1 - v the share of the prior variance of the pair's own coefficient that its samples
        took away, as of the latest sample learned; k = 0 under a query never seen. So about a
        product or a query without samples it says nothing, however much its other fields would
        guess from what the shop chose to show. That is the encoder's part.
        """
        base, found = self.base(), np.empty(len(documents))
        for i, d in enumerate(documents):
            known = self._model.known(*self._fields.pair(query, d.id, d.text))
            found[i] = base
            if known:  # of most pairs nothing is
                x = self._fields.fields(query, d.id, d.text, d.attributes)
                found[i] += known * (self._logit(x) - base)
        return found

    def base(self) -> float:
        """Logit of a pair of which nothing is known, as if shown first. Pure."""
        return self._model.logit_one(self._fields.constant())

    def learn(
        self, predictions: Sequence[Prediction], label: Sequence[float], weight: Sequence[float]
    ) -> None:
        """Learn the N predicted samples one after another: order within the list counts.

        Args:
            predictions: made by `predict` before any of them was learned.
            label: N labels.
            weight: N weights; a sample of weight 0 changes nothing.
        """
        for y, w in zip(label, weight, strict=True):
            check_example(y, w)
        for p, y, w in zip(predictions, label, weight, strict=True):
            self._model.learn_one(p.fields, y > 0, w, p.examination, p.time_us)
            self._propensity.update(p.time_us, p.position, y, w, sigmoid(p.first_logit))

    def snapshot(self) -> dict[str, Any]:
        """State after the last sample learned, as plain numbers; the fields have none."""
        return {
            "name": self.config.model,
            "model": self._model.snapshot(),
            "propensity": self._propensity.snapshot(),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restore the state returned by `snapshot`.

        Raises:
            SnapshotError: it is of another model or table.
        """
        if state["name"] != self.config.model:
            raise SnapshotError("conditional.model", state["name"], self.config.model)
        self._model.restore(state["model"])
        self._propensity.restore(state["propensity"])

    def _untrained(self, offset: float) -> Classifier:
        return make_model(
            self.config.model,
            self.config.fields.hash_bits,
            self._fields.num_own,
            offset=offset,
            half_life_seconds=self.config.half_life_seconds,
        )

    def _logit(self, x: Mapping[int, float]) -> float:
        return min(max(self._model.logit_one(x), -LARGEST_LOGIT), LARGEST_LOGIT)

    def _pair_memory(self, logit: float, pair: tuple[int, int], base: float) -> float:
        """Shrink a logit to the base as far as its pair is unknown."""
        return base + self._model.known(*pair) * (logit - base)


def shown_logit(logit: Array, theta: Array) -> Array:
    """Logits (N,) of theta sigma(m) = log theta - log(1 - theta + e^-m), from m and theta (N,)."""
    shown: Array = np.log(theta) - np.log1p(np.exp(-logit) - theta)
    return shown
