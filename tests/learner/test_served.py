"""The served score: inverted, stacked, multiplied along the tasks, in one place for all."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.special import expit

from learner.served import ServedScore, chain, ranking_score, root
from tests.learner.test_scorer import learned, live, requests
from weighting.schemes.ratio import ImportanceRatio
from weighting.tasks import CLICK, PURCHASE, TASKS, Task, TaskName

SUPPORT = {
    name: Task(name=name, parent=parent, window="", loss="pointwise", position_matters=False)
    for name, parent in (("opened", None), ("read", "opened"), ("resolved", "opened"))
}


def test_the_tasks_are_multiplied_from_the_shown_items_to_the_task_declared_last() -> None:
    assert (root(), chain()) == (CLICK, [CLICK, PURCHASE])
    assert (root(SUPPORT), chain(SUPPORT)) == ("opened", ["opened", "resolved"])
    probability = {CLICK: np.array([0.5, 0.1]), PURCHASE: np.array([0.2, 0.9])}
    np.testing.assert_array_equal(
        ranking_score(probability), probability[CLICK] * probability[PURCHASE]
    )


def taught(exponent: float = 1.0) -> tuple[ServedScore, NDArray[np.float64]]:
    """Stackers that learned that the encoder is right, and logits to ask about."""
    served = ServedScore(ImportanceRatio(exponent).invert)
    draw = np.random.default_rng(0)
    encoder, memory = draw.normal(size=(2, 400))
    label = (encoder > 0).astype(np.float64)
    for task in TASKS:
        served.learn(task, encoder, memory, label, np.ones(400), prior=0.3)
    return served, encoder


def test_a_restored_score_is_the_same_score() -> None:
    served, encoder = taught()
    again = ServedScore(served.invert)
    again.restore(served.snapshot())
    for task in TASKS:
        expected = served.logit(task, encoder, -encoder, prior=0.3)
        np.testing.assert_array_equal(again.logit(task, encoder, -encoder, prior=0.3), expected)
    assert again.snapshot() == served.snapshot()


def test_predicting_is_pure_and_what_was_learned_counts() -> None:
    served, encoder = taught()
    before = served.snapshot()
    shifted = served.logit(CLICK, encoder, 0 * encoder, prior=0.3)
    assert served.snapshot() == before
    untrained = ServedScore(served.invert).logit(CLICK, encoder, 0 * encoder, prior=0.3)
    assert np.ptp(shifted) > np.ptp(untrained)


@pytest.mark.parametrize("task", TASKS)
def test_the_evaluation_s_score_is_the_scorer_s(task: TaskName) -> None:
    own = learned(3)
    (request, *_) = requests(1)
    scores = live(own).score([request])[0]
    logits = own.ranker(
        [request.query] * len(request.documents), [d.text for d in request.documents]
    )
    encoder = logits.by_task[task].detach().double().numpy()
    memory = own.weigher.pair_memory_logits(task, request.query, request.documents)
    served = own.served.logit(task, encoder, memory, prior=own.weigher.prior(task))
    np.testing.assert_allclose(scores.probability[task], expit(served), rtol=1e-12)
