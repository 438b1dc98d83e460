"""Judged samples for tests of the evaluation, and shown lists whose truth is known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from learner.evaluation.evaluation import Evaluation
from learner.evaluation.judged import NUM_KEPT, Details, Judged

Array = NDArray[np.float64]
LIST_SIZE = 8


def judged(logit: Array, label: Array, weight: Array | None = None) -> Judged:
    """N samples that were all shown first, each without a list."""
    ones = np.ones(len(logit))
    return Judged(
        logit=logit,
        relevance=logit,
        label=label,
        weight=ones if weight is None else weight,
        examination=ones,
        position=np.ones(len(logit), dtype=np.intp),
        lists=np.full(len(logit), -1, dtype=np.intp),
    )


@dataclass(frozen=True)
class Shop:
    """Lists of 8 items in an order of their own, clicked by examination times relevance.

    Attributes:
        relevance: (L, 8) probability of a click as if shown first, by place.
        theta: (8,) examination probability of each place.
        clicked: (L, 8) 0 or 1.
    """

    relevance: Array
    theta: Array
    clicked: Array

    def judge(
        self,
        score: Array,
        *,
        logit: Array | None = None,
        chunk: int = 40,
        into: Evaluation | None = None,
        scenario: Sequence[str] = (),
        num_earlier: Sequence[int] = (),
    ) -> Evaluation:
        """Evaluate scores (L, 8), and logits where shown; by default theta sigma(score)'s.

        With scenario and earlier lists of the query of each list, or without details.
        """
        p = self.theta * expit(score).clip(1e-9, 1 - 1e-9)
        shown = np.log(p / (1 - p)) if logit is None else logit
        evaluation = Evaluation() if into is None else into
        place = np.arange(1, LIST_SIZE + 1, dtype=np.intp)
        for start in range(0, len(score), chunk):
            rows = slice(start, start + chunk)
            number = len(score[rows])
            evaluation.update(
                Judged(
                    logit=shown[rows].ravel(),
                    relevance=score[rows].ravel(),
                    label=self.clicked[rows].ravel(),
                    weight=np.ones(number * LIST_SIZE),
                    examination=np.tile(self.theta, number),
                    position=np.tile(place, number),
                    lists=np.repeat(np.arange(number), LIST_SIZE),
                    details=details_of(scenario[rows], num_earlier[rows]) if scenario else None,
                )
            )
        return evaluation

    def true_ndcg(self, score: Array) -> float:
        """NDCG of scores (L, 8) by the true relevance."""
        discount = 1 / np.log2(2 + np.arange(LIST_SIZE))
        by_score = np.take_along_axis(self.relevance, np.argsort(-score, axis=1), axis=1)
        best = -np.sort(-self.relevance, axis=1)
        return float((by_score @ discount).sum() / (best @ discount).sum())


def details_of(scenario: Sequence[str], num_earlier: Sequence[int]) -> Details:
    """Details of the samples of lists of 8 items; all weights are 1."""
    number = LIST_SIZE * len(scenario)
    return Details(
        scenario=np.repeat(np.array(scenario, dtype=object), LIST_SIZE),
        num_earlier=np.repeat(np.array(num_earlier, dtype=np.intp), LIST_SIZE),
        importance=np.ones(number),
        factor=np.ones(number),
        time_us=np.arange(number, dtype=np.int64),
        kept=np.zeros((number, NUM_KEPT)),
    )


def shop(num_lists: int, *, seed: int = 0, sorting: float = 0.0) -> Shop:
    """A shop that sorts by relevance to the power of `sorting`, in part by chance; 0: at random."""
    draw = np.random.default_rng(seed)
    relevance = draw.beta(0.6, 2.5, (num_lists, LIST_SIZE)).clip(0.01, 0.95)
    order = np.argsort(-sorting * np.log(relevance) + draw.gumbel(size=relevance.shape), axis=1)
    relevance = np.take_along_axis(relevance, order, axis=1)
    theta = 1 / np.arange(1.0, LIST_SIZE + 1)
    clicked = (draw.random(relevance.shape) < theta * relevance).astype(np.float64)
    return Shop(relevance, theta, clicked)
