"""Stand-ins learn under their own weights what the encoder would."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.special import expit, logit

from weighting.errors import SnapshotError, WeightError
from weighting.estimators.stand_in import StandIns

Array = NDArray[np.float64]
WIDTH = 24


def products(number: int, seed: int) -> Array:
    draw = np.random.default_rng(seed)
    u, v = (draw.normal(size=(number, WIDTH)) for _ in range(2))
    lengths = np.linalg.norm(u, axis=1, keepdims=True) * np.linalg.norm(v, axis=1, keepdims=True)
    found: Array = u * v / lengths
    return found


def relevance(x: Array) -> Array:
    """What a cosine in half of the directions, and a level, say."""
    found: Array = expit(6 * x[:, : WIDTH // 2].sum(axis=1) - 1.5)
    return found


def taught(weight: Array, *, num_lists: int = 1500, theta: float = 1.0) -> StandIns:
    models = StandIns(len(weight), level=-1.0, half_life_samples=20_000.0)
    draw = np.random.default_rng(5)
    for number in range(num_lists):
        x = products(10, number)
        label = (draw.random(10) < theta * relevance(x)).astype(np.float64)
        models.learn(x, label, np.tile(weight[:, None], 10), np.full(10, theta))
    return models


def test_before_any_sample_all_say_the_level() -> None:
    assert StandIns(2, level=-1.3, half_life_samples=1.0).predict(products(3, 0)).tolist() == [
        [-1.3] * 3,
        [-1.3] * 3,
    ]


@pytest.mark.parametrize("theta", [1.0, 0.4])
def test_they_learn_the_relevance_wherever_items_were_shown(theta: float) -> None:
    x = products(2000, 10**6)
    (said,) = taught(np.ones(1), num_lists=3000, theta=theta).predict(x)
    r = relevance(x)
    start = float(((logit(r) + 1.0) ** 2).mean())
    assert float(((said - logit(r)) ** 2).mean()) < 0.35 * start
    assert expit(said).mean() == pytest.approx(r.mean(), abs=0.03)


def test_each_learns_under_its_own_weights_alone() -> None:
    x = products(50, 10**6)
    both = taught(np.array([1.0, 0.0]), num_lists=30).predict(x)
    alone = taught(np.array([1.0]), num_lists=30).predict(x)
    np.testing.assert_array_equal(both[0], alone[0])
    np.testing.assert_allclose(both[1], -1.0)


def test_a_step_goes_down_the_gradient_of_the_weighted_loss() -> None:
    models = taught(np.array([0.7, 2.0]), num_lists=20)
    x, label, theta = products(4, 77), np.array([1.0, 0, 0, 1]), np.array([1.0, 0.5, 1.0, 0.2])

    def loss(z: Array) -> Array:
        f = theta * expit(z)
        found: Array = -(label * np.log(f) + (1 - label) * np.log1p(-f)).sum(axis=-1)
        return found

    before = models.predict(x)
    models.learn(x, label, np.ones((2, 4)), theta)
    assert (loss(models.predict(x)) < loss(before)).all()


def test_samples_of_no_weight_are_as_if_they_were_not_there() -> None:
    models, others = taught(np.ones(2), num_lists=5), taught(np.ones(2), num_lists=5)
    x, label = products(6, 3), np.array([1.0, 0, 0, 0, 1, 0])
    weight = np.array([[1.0, 0, 1, 1, 0, 1]] * 2)
    models.learn(x, label, weight, np.ones(6))
    used = np.array([0, 2, 3, 5])
    others.learn(x[used], label[used], np.ones((2, 4)), np.ones(4))
    assert models.snapshot() == others.snapshot()


def test_what_cannot_be_learned_is_refused_and_nothing_is_learned() -> None:
    models = taught(np.ones(1), num_lists=2)
    before = models.snapshot()
    x = products(2, 0)
    x[1, 3] = np.nan
    with pytest.raises(WeightError, match="product: got nan"):
        models.learn(x, np.zeros(2), np.ones((1, 2)), np.ones(2))
    assert models.snapshot() == before
    with pytest.raises(SnapshotError):
        StandIns(4, level=0.0, half_life_samples=1.0).restore(before | {"squares": b"12345678"})
