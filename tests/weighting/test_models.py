"""River's models as p(y|x): equal to river, bounded, better than the prior, or refused by name."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import msgspec
import numpy as np
import pytest
from river import compose, linear_model, naive_bayes

from tests.weighting.streams import DAY, Doc, events, sample, stream
from weighting.config import WeigherConfig
from weighting.constraints import SettingError
from weighting.errors import SnapshotError
from weighting.estimators.classifier import Classifier
from weighting.estimators.coefficient_table import OWN
from weighting.estimators.conditional import Conditional, ConditionalConfig
from weighting.estimators.logistic import sigmoid
from weighting.estimators.models import REFUSED, make_model, names
from weighting.estimators.river_logistic import OPTIMIZERS, RiverLogistic
from weighting.features import FieldConfig, Fields
from weighting.sample import Sample
from weighting.weigher import Weigher

SMALL = ConditionalConfig(fields=FieldConfig(hash_bits=14))
DENSE = {"adam", "rmsprop", "nesterov"}  # river's step writes keys that the sample does not have
every = pytest.mark.parametrize("name", names())


def conditional(name: str) -> Conditional:
    return Conditional(replace(SMALL, model=name), initial=0.1, with_position=True)


def model(name: str, offset: float = 0.0) -> Classifier:
    return make_model(name, 14, 26, offset=offset, half_life_seconds=30 * 86_400.0)


def learn(estimator: Conditional, samples: list[Sample]) -> None:
    label = [float(s.label) for s in samples]
    estimator.learn(estimator.predict(samples), label, [1.0] * len(samples))


def liked(n: int, seed: int = 0) -> list[Sample]:
    """N samples of ten items, of which two are clicked in 60 of 100 cases, the others in 4."""
    rng = np.random.default_rng(seed)
    items = rng.integers(10, size=n)
    clicked = rng.random(n) < np.where(items < 2, 0.6, 0.04)
    return [
        sample(int(y), item_id=f"item {i}", text=f"item {i}", attributes={}, at=t * DAY // 500)
        for t, (i, y) in enumerate(zip(items.tolist(), clicked, strict=True))
    ]


@every
def test_a_stream_of_two_classes_is_learned_better_than_the_prior(name: str) -> None:
    """Predictions are of samples not yet learned, and inside (0, 1)."""
    estimator, losses, by_prior = conditional(name), [], []
    samples = liked(3000)
    rate = float(np.mean([s.label for s in samples]))
    for s in samples:
        (found,) = estimator.predict([s])
        p = sigmoid(found.logit)
        assert 0 < p < 1
        losses.append(-math.log(p if s.label else 1 - p))
        by_prior.append(-math.log(rate if s.label else 1 - rate))
        learn(estimator, [s])
    assert np.mean(losses[1000:]) < 0.98 * np.mean(by_prior[1000:])
    hit, missed, unknown = estimator.predict_first(
        "red shoes", [Doc("item 1", "item 1"), Doc("item 7", "item 7"), Doc("never shown")]
    )
    assert missed < hit
    assert unknown == pytest.approx(estimator.base())


@pytest.mark.parametrize("name", ["bayesian", "naive_bayes", "logistic:adagrad"])
def test_what_was_seldom_examined_is_as_relevant_as_what_always_was(name: str) -> None:
    rng = np.random.default_rng(0)
    found = []
    for examination in (1.0, 0.3):
        own = model(name, offset=-1.0)
        for _ in range(6000):
            own.learn_one({7: 1.0}, bool(rng.random() < 0.5 * examination), 1.0, examination)
        found.append(sigmoid(own.logit_one({7: 1.0})))
    assert found == pytest.approx([0.5, 0.5], abs=0.08)


def test_a_negative_moves_a_coefficient_along_the_slope_of_its_likelihood() -> None:
    """River's SGD, lr .01: dm = -lr w x t r (1 - r) / (1 - t r), and of a positive lr w x (1 - r).

    The intercept moves by the same without x.
    """
    w, t, x = 0.5, 0.3, 2.0
    r = sigmoid(-1.0)
    for y, slope in ((False, -t * r * (1 - r) / (1 - t * r)), (True, 1 - r)):
        own = model("logistic:sgd", offset=-1.0)
        own.learn_one({7: x}, y, w, t)
        assert own.logit_one({7: x}) + 1.0 == pytest.approx(0.01 * w * slope * (x * x + 1))


def raw(s: Sample) -> dict[str, Any]:
    return {"query": s.query, "id": s.item_id, "text": s.text, "attributes": s.attributes}


@pytest.mark.parametrize("optimizer", sorted(set(OPTIMIZERS) - DENSE))
def test_logistic_regression_is_river_s_but_for_the_order_of_a_sum(optimizer: str) -> None:
    reference = compose.Pipeline(
        ("fields", Fields(SMALL.fields)),
        ("model", linear_model.LogisticRegression(OPTIMIZERS[optimizer](), intercept_init=-1.0)),
    )
    own, fields = model(f"logistic:{optimizer}", offset=-1.0), Fields(SMALL.fields)
    for i, s in enumerate(stream(400)):
        x, w = raw(s), 0.25 + i % 3
        logit = own.logit_one(fields.transform_one(x))
        assert 1 / (1 + math.exp(-logit)) == pytest.approx(
            reference.predict_proba_one(x)[True], rel=1e-12
        )
        reference.learn_one(x, bool(s.label), w=w)
        own.learn_one(fields.transform_one(x), bool(s.label), w)
    weights = reference["model"].weights
    assert weights
    assert [own.logit_one({key: 1.0}) for key in weights] == pytest.approx(
        [weight + reference["model"].intercept for weight in weights.values()], rel=1e-12
    )


@pytest.mark.parametrize("optimizer", sorted(DENSE))
def test_where_all_samples_share_their_keys_every_optimizer_is_river_s(optimizer: str) -> None:
    reference = linear_model.LogisticRegression(OPTIMIZERS[optimizer]())
    own, rng = model(f"logistic:{optimizer}"), np.random.default_rng(0)
    for _ in range(200):
        x = {1: float(rng.normal()), 2: float(rng.normal()), OWN: 0.5}
        y = bool(rng.random() < sigmoid(x[1]))
        reference.learn_one(dict(x), y)
        own.learn_one(x, y)
    for key, weight in reference.weights.items():
        expected = weight + reference.intercept
        assert own.logit_one({key: 1.0}) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_an_optimizer_keeps_nothing_that_a_snapshot_lacks(optimizer: str) -> None:
    """All that a step changes is a column of the table or a number of the snapshot."""
    own = RiverLogistic(optimizer, 6, 0, offset=0.0)
    before = {**vars(own._model), **vars(own._optimizer)}
    own.learn_one({1: 1.0}, True)
    own.learn_one({2: 1.0}, False)
    after = {**vars(own._model), **vars(own._optimizer)}
    changed = {name for name in after if name not in before or before[name] is not after[name]}
    same = {name for name in changed if before.get(name) == after[name]}
    state = own.snapshot()
    columns = state["table"].get("extra", {})
    assert changed - same <= {"_weights", *state["numbers"], *columns}
    assert {"intercept", "n_iterations"} <= changed


def test_naive_bayes_is_river_s() -> None:
    """Of river's pipeline, with every field of its own declared and one sample of each label."""
    untyped: Any = naive_bayes.MultinomialNB
    reference, fields = untyped(), Fields(SMALL.fields)
    for key in range(OWN, OWN + 26):
        reference.feature_counts[key].update({True: 0.0})
    for label in (True, False):
        reference.class_counts[label] = 1
    own = model("naive_bayes")
    for s in stream(400):
        x = fields.transform_one(raw(s))
        p = reference.predict_proba_one(x)[True]
        assert sigmoid(own.logit_one(x)) == pytest.approx(p, rel=1e-9)
        reference.learn_one(x, bool(s.label))
        own.learn_one(x, bool(s.label))


def test_a_sample_of_weight_three_counts_in_naive_bayes_as_three() -> None:
    once, thrice = model("naive_bayes"), model("naive_bayes")
    once.learn_one({1: 0.5, 2: 1.0}, True, 3.0)
    for _ in range(3):
        thrice.learn_one({1: 0.5, 2: 1.0}, True)
    for x in ({1: 0.5}, {2: 1.0}, {3: 1.0}):
        assert once.logit_one(x) == pytest.approx(thrice.logit_one(x))


def test_naive_bayes_reads_no_evidence_in_a_field_that_was_never_seen() -> None:
    """Of a stream at the probability that it was started with."""
    own = model("naive_bayes", offset=math.log(0.1 / 0.9))
    for i in range(1000):
        own.learn_one({OWN: 0.5, i % 7: 1.0}, i % 10 == 0)
    unseen = own.logit_one({OWN: 0.5, 1 << 20: 1.0}) - own.logit_one({OWN: 0.5})
    assert abs(unseen) < 0.1
    assert sigmoid(own.logit_one({OWN: 0.5})) == pytest.approx(0.1, abs=0.01)


@pytest.mark.parametrize("name", ["naive_bayes", "logistic:adam", "logistic:ftrl"])
def test_weights_are_the_same_in_any_batches_and_after_a_restart(name: str) -> None:
    config = WeigherConfig(conditional=replace(SMALL, model=name))
    lists = events(60)
    whole, parts = Weigher(config), Weigher(config)
    at_once = whole.weigh([s for own in lists for s in own])
    found = []
    for own in lists:
        found += parts.weigh(own).p_y_given_x.tolist()
        resumed = Weigher(config)
        resumed.restore(parts.snapshot())
        parts = resumed
    assert found == at_once.p_y_given_x.tolist()


def test_a_snapshot_of_another_model_is_refused_by_name() -> None:
    sgd, adam = conditional("logistic:sgd"), conditional("logistic:adam")
    learn(sgd, stream(5))
    with pytest.raises(SnapshotError, match=r"conditional\.model: got 'logistic:sgd'"):
        adam.restore(sgd.snapshot())
    state = msgspec.msgpack.decode(msgspec.msgpack.encode(sgd.snapshot()))
    with pytest.raises(SnapshotError, match="columns"):
        adam.restore({**state, "name": "logistic:adam"})


@pytest.mark.parametrize("name", [*REFUSED, "perceptron", "logistic", "logistic:", ""])
def test_a_model_that_cannot_be_used_is_refused_with_the_reason(name: str) -> None:
    with pytest.raises(SettingError, match=r"conditional\.model: got") as refused:
        ConditionalConfig(model=name)
    assert "logistic:adagrad" in str(refused.value)
    assert REFUSED.get(name, "") in str(refused.value)
