"""Evaluation where positives come late: expected figures are those of the final labels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from learner.evaluation.evaluation import Evaluation
from learner.served import ServedScore
from learner.trainer import Trainer
from tests.learner.judging import judged
from tests.learner.training import trainer
from tests.weighting.streams import SECOND, sample
from weighting.caps import CapsConfig
from weighting.config import WeigherConfig
from weighting.sample import Sample
from weighting.tasks import PURCHASE

Array = NDArray[np.float64]
PROBABILITY = {"mug": 0.03, "lamp": 0.1, "hose": 0.25, "jacket": 0.5}
NUM_CLICKS = 6_000
HOUR = 3600 * SECOND
WINDOW = HOUR

#: Delay of each of N purchases in observation windows, at most 100 of them.
DELAYS: dict[str, Callable[[np.random.Generator, int], Array]] = {
    "all late": lambda draw, n: draw.uniform(1, 5, n),
    "exponential": lambda draw, n: np.minimum(draw.exponential(2.0, n), 100),
    "heavy tail": lambda draw, n: np.minimum(draw.lognormal(0.5, 1.5, n), 100),
}


def purchases(delay: str) -> tuple[list[Sample], Array, Array]:
    """Samples in the order of their emission, and logit and final label of each click."""
    draw = np.random.default_rng(7)
    names = draw.choice(list(PROBABILITY), NUM_CLICKS)
    p = np.array([PROBABILITY[name] for name in names])
    bought = draw.random(NUM_CLICKS) < p
    delays = DELAYS[delay](draw, NUM_CLICKS)
    copies = []
    for i, name in enumerate(names.tolist()):
        common: dict[str, Any] = {
            "task": PURCHASE,
            "query": "gift",
            "item_id": name,
            "text": name,
            "attributes": {},
            "at": i * 10 * SECOND,
            "window": WINDOW,
            "attribution": 100 * WINDOW,
        }
        late = bool(bought[i] and delays[i] > 1)
        first = sample(int(bought[i] and not late), offset=2 * i, **common)
        copies.append((common["at"] + WINDOW, first))
        if late:
            emitted = common["at"] + int(delays[i] * WINDOW)
            copies.append((emitted, sample(1, late=True, offset=2 * i + 1, **common)))
    copies.sort(key=lambda copy: copy[0])
    return [copy for _, copy in copies], np.log(p / (1 - p)), bought.astype(np.float64)


class Perfect(ServedScore):
    """Serves the true probability of each sample of the batch."""

    batch: list[Sample]

    def logit(self, *_: Any, **__: Any) -> Array:
        p = np.array([PROBABILITY[s.item_id] for s in self.batch])
        logit: Array = np.log(p / (1 - p))
        return logit

    def learn(self, *_: Any, **__: Any) -> None:
        """Learn nothing: no share of the batch is asked about again."""


@pytest.mark.parametrize("delay", DELAYS)
def test_a_perfect_model_is_judged_as_by_final_labels_however_late_they_come(delay: str) -> None:
    samples, logit, bought = purchases(delay)
    # Four items are a quarter of the showings each, which no shop's are.
    own: Trainer = trainer(WeigherConfig(caps=CapsConfig(item=1.0)), tuning="frozen")
    own.components.served = perfect = Perfect(
        own.weigher.invert, own.served.parts, own.weigher.config.initial()
    )
    for start in range(0, len(samples), 200):
        perfect.batch = samples[start : start + 200]
        own.step(perfect.batch)
    oracle = Evaluation()
    oracle.update(judged(logit, bought))
    expected, found = oracle.get(), own.evaluations[PURCHASE].get()
    assert found["position_normalized_entropy"] == pytest.approx(
        expected["position_normalized_entropy"], abs=0.05
    )
    assert found["auc"] == pytest.approx(expected["auc"], abs=0.03)
    assert found["predicted_to_observed"] == pytest.approx(1, abs=0.1)
    for quarter in own.evaluations[PURCHASE].quarters()[1:3]:  # while clicks and purchases come
        assert quarter["position_normalized_entropy"] < 1
