"""All estimators of one task, learned together, list by list, from delay-corrected samples."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from itertools import takewhile
from typing import Any

import numpy as np
from numpy.typing import NDArray

from weighting.checks import check_labels
from weighting.delay_correction import delay_correction
from weighting.estimators.attribute_choice import AttributeChoice
from weighting.estimators.calibration import Calibration, CalibrationConfig
from weighting.estimators.conditional import Conditional, ConditionalConfig, Prediction
from weighting.estimators.delayed_positives import DelayedPositiveRate
from weighting.estimators.logistic import sigmoid
from weighting.estimators.prior import LEAST, Prior, PriorConfig
from weighting.features import Document
from weighting.sample import FIRST_COPY, LATE_COPY, Sample
from weighting.tasks import Task

Array = NDArray[np.float64]
LEAST_CHANCE = 1e-12
Row = tuple[float, ...]
"""Estimates of one sample, in the order of the fields of `Estimates`."""


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


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Estimates:
    """Estimates of N samples, each read before any label of its list was learned.

    Attributes:
        prior: (N,) p(y=1).
        relevance: (N,) calibrated p(y=1|x) as if shown first.
        p_positive: (N,) calibrated p(y=1|x) where shown.
        examination: (N,) probability that the sample's position is examined.
        delayed_positive_rate: (N,) S; 0 where the first copy was final.
        pair_memory_logit: (N,) calibrated pair-memory logit as if shown first.
        pair_memory_base: (N,) the same of a pair of which nothing is known.
        choice: (N,) chance that the item is the one chosen from its list, by its attributes.
    """

    prior: Array
    relevance: Array
    p_positive: Array
    examination: Array
    delayed_positive_rate: Array
    pair_memory_logit: Array
    pair_memory_base: Array
    choice: Array

    @classmethod
    def of(cls, rows: Sequence[Row]) -> Estimates:
        """Put the estimates of N samples into columns."""
        names = [f.name for f in fields(cls)]
        columns = np.array(rows, dtype=np.float64).reshape(-1, len(names)).T.copy()
        return cls(**dict(zip(names, columns, strict=True)))


class TaskEstimators:
    """Prior, delayed-positive rate, conditional and calibration of one task.

    They learn list after list, in stream order: all samples of a list are predicted before any of
    its labels is learned, and the next list is predicted after. So a stream teaches the same bits
    under every division into batches of whole lists.
    """

    def __init__(
        self,
        task: Task,
        config: TaskConfig,
        conditional: ConditionalConfig,
        calibration: CalibrationConfig,
        *,
        with_choice: bool = False,
    ) -> None:
        """Start untrained; `with_choice` if the choice by attributes is asked for."""
        self._shown_in_lists = task.parent is None
        self.prior = Prior(config.prior)
        self.delayed_positive_rate = DelayedPositiveRate(config.delayed_positives)
        self.calibration = Calibration(calibration)
        self.conditional = self._new_conditional(conditional, config.prior.initial, task)
        self.choice = AttributeChoice() if with_choice and self._shown_in_lists else None

    def predict(self, samples: Sequence[Sample]) -> Estimates:
        """Estimates of N samples, all from the state as it is. Pure."""
        predictions, rows = self.conditional.predict(samples), []
        for own in shown_lists(samples, self._shown_in_lists):
            rows += self._rows(samples[own], predictions[own])
        return Estimates.of(rows)

    def pair_memory_logits(self, query: str, documents: Sequence[Document]) -> Array:
        """Calibrated pair-memory logits (N,) of documents, as if each were shown first. Pure."""
        return self.calibration.predict(self.conditional.predict_first(query, documents))

    def pair_memory_base(self) -> float:
        """Calibrated pair-memory logit of a pair of which nothing is known. Pure."""
        return self.calibration.predict(self.conditional.base())

    def examination(self, position: int | None) -> float:
        """Probability that a 1-based position is examined; 1 of an unknown one. Pure."""
        return self.conditional.examination(position)

    def learn(
        self,
        samples: Sequence[Sample],
        label: Array,
        discount: Array,
        asked: Sequence[tuple[int, int | None]] = (),
    ) -> tuple[Estimates, Array, list[float]]:
        """Learn N samples in stream order, each weighted by its correction alone.

        The scheme's factor belongs to the trained model, not to what it is made from.

        Args:
            samples: of this task.
            label: (N,) their labels, 0 or 1.
            discount: (N,) share of an example that each counts for.
            asked: positions whose examination probability is asked for, each with the number of
                samples that come before; ascending. One within a list is answered after it.

        Returns:
            What was estimated of each before its list was learned; its correction (N,): the
            discount times the delay correction; and the answers.
        """
        check_labels(label)
        answers: list[float] = []
        labels, discounts, rows, corrections = label.tolist(), discount.tolist(), [], []
        for own in shown_lists(samples, self._shown_in_lists):
            answers += self._answers(asked[len(answers) :], own.start)
            found, correction = self._learn_list(samples[own], labels[own], discounts[own])
            rows += found
            corrections += correction
        answers += self._answers(asked[len(answers) :], len(samples))
        return Estimates.of(rows), np.array(corrections, dtype=np.float64), answers

    def snapshot(self) -> dict[str, Any]:
        """State after the last `learn`, as plain numbers."""
        return {
            "prior": self.prior.snapshot(),
            "late": self.delayed_positive_rate.snapshot(),
            "calibration": self.calibration.snapshot(),
            "conditional": self.conditional.snapshot(),
            "choice": self.choice.snapshot() if self.choice else None,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restore the state returned by `snapshot`."""
        self.prior.restore(state["prior"])
        self.delayed_positive_rate.restore(state["late"])
        self.calibration.restore(state["calibration"])
        self.conditional.restore(state["conditional"])
        if self.choice and state["choice"]:  # else it was not asked for before, and begins afresh
            self.choice.restore(state["choice"])

    def _new_conditional(
        self, config: ConditionalConfig, initial: float, task: Task
    ) -> Conditional:
        return Conditional(config, initial=initial, with_position=task.position_matters)

    def _answers(self, asked: Sequence[tuple[int, int | None]], learned: int) -> list[float]:
        """Examination probabilities asked for after so many samples, or fewer."""
        due = takewhile(lambda each: each[0] <= learned, asked)
        return [self.examination(position) for _, position in due]

    def _rows(self, samples: Sequence[Sample], predictions: Sequence[Prediction]) -> list[Row]:
        """Estimates of the samples of one list."""
        prior, rate = self.prior.get(), self.delayed_positive_rate.get()
        base, calibrate = self.pair_memory_base(), self.calibration.predict
        return [
            (
                prior,
                _probability(calibrate(p.first_logit)),
                _probability(calibrate(p.logit)),
                p.examination,
                0.0 if s.window_us >= s.attribution_us else rate,
                calibrate(p.pair_memory_first_logit),
                base,
                choice,
            )
            for s, p, choice in zip(samples, predictions, self._choices(samples), strict=True)
        ]

    def _learn_list(
        self, samples: Sequence[Sample], labels: Sequence[float], discounts: Sequence[float]
    ) -> tuple[list[Row], list[float]]:
        """Predict the samples of one list, then learn them."""
        predictions = self.conditional.predict(samples)
        rows = self._rows(samples, predictions)
        corrections = []
        examples = zip(samples, predictions, labels, discounts, rows, strict=True)
        for s, p, y, d, row in examples:
            p_positive, rate = row[2], row[4]
            r = d * delay_correction(y, p_positive, rate)
            self.prior.update(p.time_us, r * y, r * (1 - y))
            if y > 0:
                late = s.copy_kind is LATE_COPY
                self.delayed_positive_rate.update(p.time_us, d * y, late)
            self.calibration.learn_one(p.time_us, p.logit, y, r)
            corrections.append(r)
        self.conditional.learn(predictions, labels, corrections)
        if self.choice:
            self._learn_choice(samples, predictions, rows, (labels, corrections, discounts))
        return rows, corrections

    def _choices(self, samples: Sequence[Sample]) -> list[float]:
        """Chance of each of a list's samples to be the one chosen; all the same without a model."""
        number = len(samples)
        if self.choice is None or number == 1:
            return [1 / (number + 1)] * number  # inside (0, 1), as of lists of one
        attributes = [s.attributes for s in samples]
        p = self.choice.probabilities(
            [s.query for s in samples], attributes, np.zeros(number, dtype=np.intp)
        )
        chances: list[float] = np.clip(p, LEAST_CHANCE, 1 - LEAST_CHANCE).tolist()
        return chances

    def _learn_choice(
        self,
        samples: Sequence[Sample],
        predictions: Sequence[Prediction],
        rows: Sequence[Row],
        columns: tuple[Sequence[float], Sequence[float], Sequence[float]],
    ) -> None:
        """Let the choice by attributes learn one list, against p(y): labels, weights, discounts."""
        assert self.choice
        label, weight, discount = (np.array(column, dtype=np.float64) for column in columns)
        first = np.array([s.copy_kind is FIRST_COPY for s in samples])
        prior = rows[0][0]
        self.choice.learn(
            [s.query for s in samples],
            [s.attributes for s in samples],
            label=label,
            weight=weight,
            exposure=np.where(first, discount, 0.0),
            examination=np.array([p.examination for p in predictions]),
            logit=np.full(len(samples), math.log(prior / (1 - prior))),
            lists=np.zeros(len(samples), dtype=np.intp),
            time_us=np.array([p.time_us for p in predictions], dtype=np.int64),
        )


def shown_lists(samples: Sequence[Sample], shown_in_lists: bool) -> Iterator[slice]:
    """Divide samples of one task into those that one event emitted: a shown list, or a single one.

    Args:
        samples: in stream order.
        shown_in_lists: whether the task's samples form lists; a later copy never does.
    """
    start, before = 0, None
    for i, s in enumerate(samples):
        listed = shown_in_lists and s.copy_kind is FIRST_COPY
        own = (s.list_id or None) if listed else None
        if i > start and (own is None or own != before):
            yield slice(start, i)
            start = i
        before = own
    if samples:
        yield slice(start, len(samples))


def _probability(logit: float) -> float:
    return min(max(sigmoid(logit), LEAST), 1 - LEAST)
