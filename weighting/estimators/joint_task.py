"""All estimators of one task, which learn a whole batch at once from what they said before it.

Legend: N samples.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logit

from weighting.checks import check_labels
from weighting.delay_correction import delay_corrections
from weighting.estimators.conditional import ConditionalConfig
from weighting.estimators.joint_conditional import JointConditional, Predictions
from weighting.estimators.prior import LEAST
from weighting.estimators.task import LEAST_CHANCE, Estimates, TaskEstimators, shown_lists
from weighting.sample import LATE_COPY, Sample
from weighting.tasks import Task

Array = NDArray[np.float64]
Places = NDArray[np.intp]


class JointTaskEstimators(TaskEstimators):
    """The estimators of `TaskEstimators`, and their state; they learn batch after batch.

    All samples of a batch are predicted before any of its labels is learned. So a sample's
    estimates do not know the lists just before it, and depend on where a batch begins; the order
    of samples within a batch does not count, but for rounding.
    """

    conditional: JointConditional

    def predict(self, samples: Sequence[Sample]) -> Estimates:
        """Estimates of N samples, all from the state as it is. Pure."""
        return self._estimates(
            samples, self.conditional.predict_many(samples), self._lists(samples)
        )

    def learn(
        self,
        samples: Sequence[Sample],
        label: Array,
        discount: Array,
        asked: Sequence[tuple[int, int | None]] = (),
    ) -> tuple[Estimates, Array, list[float]]:
        """Learn N samples at once; as `TaskEstimators.learn`, and all is read before the batch."""
        check_labels(label)
        answers = [self.examination(position) for _, position in asked]
        p, lists = self.conditional.predict_many(samples), self._lists(samples)
        found = self._estimates(samples, p, lists)
        delay = delay_corrections(label, found.p_positive, found.delayed_positive_rate)
        correction = discount * delay
        late = np.array([s.copy_kind is LATE_COPY for s in samples])
        self.prior.update_many(p.time_us, correction * label, correction * (1 - label))
        self.delayed_positive_rate.update_many(p.time_us, np.sign(discount * label), late)
        self.calibration.learn_many(p.time_us, p.logit, label, correction)
        self.conditional.learn_many(p, label, correction)
        if self.choice:
            level = logit(found.prior)
            self.choice.learn(
                [s.query for s in samples],
                [s.attributes for s in samples],
                label=label,
                weight=correction,
                exposure=np.where(late, 0.0, discount),
                examination=p.examination,
                logit=level,
                lists=lists,
                time_us=p.time_us,
            )
        return found, correction, answers

    def _estimates(
        self, samples: Sequence[Sample], predicted: Predictions, lists: Places
    ) -> Estimates:
        calibrate, number = self.calibration.predict, len(samples)
        final = np.array([s.window_us >= s.attribution_us for s in samples], dtype=np.bool_)
        return Estimates(
            prior=np.full(number, self.prior.get()),
            relevance=_probability(calibrate(predicted.first_logit)),
            p_positive=_probability(calibrate(predicted.logit)),
            examination=predicted.examination,
            delayed_positive_rate=np.where(final, 0.0, self.delayed_positive_rate.get()),
            pair_memory_logit=calibrate(predicted.pair_memory_first_logit),
            pair_memory_base=np.full(number, self.pair_memory_base()),
            choice=self._chances(samples, lists),
        )

    def _chances(self, samples: Sequence[Sample], lists: Places) -> Array:
        """Chance (N,) of each sample to be the one chosen from its list; see `_choices`."""
        number = np.bincount(lists)[lists]
        if self.choice is None:
            return 1 / (number + 1)
        queries, attributes = [s.query for s in samples], [s.attributes for s in samples]
        p = self.choice.probabilities(queries, attributes, lists)
        return np.where(number == 1, 0.5, np.clip(p, LEAST_CHANCE, 1 - LEAST_CHANCE))

    def _lists(self, samples: Sequence[Sample]) -> Places:
        """Number (N,) of the shown list of each sample."""
        own = [part.stop - part.start for part in shown_lists(samples, self._shown_in_lists)]
        return np.repeat(np.arange(len(own)), own)

    def _new_conditional(
        self, config: ConditionalConfig, initial: float, task: Task
    ) -> JointConditional:
        return JointConditional(config, initial=initial, with_position=task.position_matters)


def _probability(logits: Array) -> Array:
    p: Array = np.clip(expit(logits), LEAST, 1 - LEAST)
    return p
