"""All estimators of one task, learned together from delay-corrected samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from weighting.checks import check_labels, check_weights, drop_weightless
from weighting.estimators.calibration import Calibration, CalibrationConfig
from weighting.estimators.conditional import Conditional, ConditionalConfig, Prediction
from weighting.estimators.delayed_positives import DelayedPositiveRate
from weighting.estimators.prior import Prior, PriorConfig
from weighting.features import Document
from weighting.sample import Sample
from weighting.tasks import Task

Array = NDArray[np.float64]
_LEAST = 1e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskConfig:
    """The priors of one task.

    Attributes:
        prior: p(y).
        delayed_positives: S, the share of positives that arrive after the first copy.
    """

    prior: PriorConfig = field(default_factory=PriorConfig)
    delayed_positives: PriorConfig = field(
        default_factory=lambda: PriorConfig(initial=0.05, initial_pseudo_count=20.0)
    )


class TaskEstimators:
    """Prior, delayed-positive rate, conditional and calibration of one task."""

    def __init__(
        self,
        task: Task,
        config: TaskConfig,
        conditional: ConditionalConfig,
        calibration: CalibrationConfig,
    ) -> None:
        """Start untrained."""
        self.prior = Prior(config.prior)
        self.delayed_positive_rate = DelayedPositiveRate(config.delayed_positives)
        self.calibration = Calibration(calibration)
        self.conditional = Conditional(
            conditional, initial=config.prior.initial, with_position=task.position_matters
        )

    def predict(self, samples: Sequence[Sample]) -> tuple[Prediction, Array]:
        """Prediction of N samples, and their calibrated p(y=1|x) (N,) where shown. Pure."""
        prediction = self.conditional.predict(samples)
        p = expit(self.calibration.predict(prediction.logit))
        return prediction, np.clip(p, _LEAST, 1 - _LEAST)

    def pair_memory_logits(self, query: str, documents: Sequence[Document]) -> Array:
        """Calibrated pair-memory logits (N,) of documents, as if each were shown first. Pure."""
        return self.calibration.predict(self.conditional.predict_first(query, documents))

    def learn(
        self,
        time_us: NDArray[np.int64],
        prediction: Prediction,
        label: Array,
        delayed: NDArray[np.bool_],
        correction: Array,
    ) -> None:
        """Learn N samples, weighted by the delay correction alone.

        The scheme's factor belongs to the trained model, not to what it is made from.

        Args:
            time_us: (N,) event times.
            prediction: made by `predict` before any of them was learned.
            label: (N,) labels, 0 or 1.
            delayed: (N,) True for delayed positives.
            correction: (N,) correction weights.
        """
        check_labels(label)
        check_weights("correction weight", correction)
        self.prior.update(time_us, correction * label, correction * (1 - label))
        counted = drop_weightless(correction, time_us, label, delayed)
        self.delayed_positive_rate.update(*counted)
        self.calibration.learn(time_us, prediction.logit, label, correction)
        self.conditional.learn(prediction, label, correction)

    def snapshot(self) -> dict[str, Any]:
        """State after the last `learn`, as plain numbers."""
        return {
            "prior": self.prior.snapshot(),
            "late": self.delayed_positive_rate.snapshot(),
            "calibration": self.calibration.snapshot(),
            "conditional": self.conditional.snapshot(),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restore the state returned by `snapshot`."""
        self.prior.restore(state["prior"])
        self.delayed_positive_rate.restore(state["late"])
        self.calibration.restore(state["calibration"])
        self.conditional.restore(state["conditional"])
