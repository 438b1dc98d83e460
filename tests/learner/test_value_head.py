"""What is paid for an item: learned from purchases of a known value, told when it is served."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from learner.losses.paid_value import PaidValue, Values
from learner.losses.task_weights import TaskWeights
from learner.request import Document, ScoringInput
from learner.scorer import ModelScorer, load_scorer
from learner.trainer import Trainer
from learner.value_head import ValueHead
from tests.learner import training
from tests.learner.training import lists, published, reader, trainer, weights_of
from weighting.sample import Sample
from weighting.tasks import CLICK, PURCHASE

VALUE: dict[str, Any] = {"task_weights": TaskWeights(value=1.0)}
DEAR, CHEAP = 400.0, 4.0


def priced(number: int, *, seed: int = 0, start: int = 0) -> list[Sample]:
    """Shown lists whose bought items cost much if their text begins with one of five words."""
    return [
        msgspec.structs.replace(s, value=price(s.text) if s.task == PURCHASE and s.label else None)
        for s in lists(number, seed=seed, start=start)
    ]


def price(text: str) -> float:
    return DEAR if text.split()[-1] in training.WORDS[:5] else CHEAP


def learned(num_steps: int, **changes: Any) -> Trainer:
    own = trainer(**{**VALUE, **changes})
    for i in range(num_steps):
        own.step(priced(8, seed=i, start=8 * i))
    return own


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"value_head.weight": torch.zeros(1)}, "expected"),
        ({"value_head.bias": None}, "expected"),
        ({"value_head.sums": torch.tensor([1.0, 0, -5, 0, 0, 0])}, "none below 0"),
    ],
)
def test_values_of_another_head_are_refused(change: dict[str, Any], expected: str) -> None:
    own = ValueHead(4)
    given_tensors = {
        n: values for n, values in {**own.tensors(), **change}.items() if values is not None
    }
    with pytest.raises(ValueError, match=rf"value head: .*{expected}"):
        own.load(given_tensors)


def test_a_step_in_which_nothing_is_drawn_leaves_the_value_head_alone() -> None:
    own = trainer(**VALUE, loss="listwise", compute_share=0.05)
    left_out = set()
    for i in range(20):
        samples = priced(1, seed=i, start=i)
        report = own.step(samples)
        assert report.result == "ok"
        left_out.add(report.num_left_out == len(samples))
    assert True in left_out


# --- the head ------------------------------------------------------------------------------------


def head(width: int = 3) -> ValueHead:
    return ValueHead(width)


values = st.lists(
    st.tuples(st.floats(0, 1e6), st.sampled_from([0.0, 0.5, 1.0])), min_size=1, max_size=30
)


@settings(deadline=None, max_examples=30)
@given(values, st.integers(1, 30))
def test_mean_and_deviation_are_those_of_the_values_however_they_are_divided(
    given: list[tuple[float, float]], cut: int
) -> None:
    own = head()
    value, weight = np.array(given).T
    for part in (slice(0, cut), slice(cut, None)):
        own.learn(np.zeros(len(value[part])), value[part], weight[part])
    if not weight.sum():
        assert not own.is_ready
        return
    log = np.log1p(value)
    mean = (weight * log).sum() / weight.sum()
    square = (weight * (log - mean) ** 2).sum()
    deviation = math.sqrt((square + 1) / (weight.sum() + 1))
    expected = (log - mean) / deviation
    np.testing.assert_allclose(own.target(value), expected, atol=0.01 * (1 + abs(expected).max()))


def test_the_expected_value_of_lognormal_prices_is_their_mean() -> None:
    draw, own = np.random.default_rng(0), head()
    paid = np.expm1(draw.normal(3.0, 0.8, size=(50, 40)))
    for step in paid:
        own.learn(np.zeros(40), step, np.ones(40))
    assert own.figures()["squared_error"] == pytest.approx(0.64, rel=0.1)
    assert own.expected(np.zeros(1))[0] == pytest.approx(paid.mean(), rel=0.05)


def test_what_was_told_is_judged_before_its_value_is_learned() -> None:
    own = head()
    own.learn(np.zeros(2), np.array([9.0, 9.0]), np.ones(2))
    assert own.figures() == {}  # nothing could be told of the first
    assert own.expected(np.zeros(1))[0] > 0
    told = own.target(np.array([99.0]))
    own.learn(told, np.array([99.0]), np.ones(1))
    assert own.figures() == {
        "squared_error": pytest.approx(0, abs=1e-12),
        "squared_error_of_mean": pytest.approx(math.log(10) ** 2),
    }


def test_the_loss_is_the_weighted_squared_error_and_its_gradient_the_finite_difference() -> None:
    z = torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64, requires_grad=True)
    own = Values(z.new_tensor([0.0, 1.0, 5.0]), z.new_tensor([1.0, 0.5, 0.0]))
    assert PaidValue()(z, own).item() == pytest.approx(0.25 + 2.0)
    assert torch.autograd.gradcheck(lambda each: PaidValue()(each, own), (z,))


# --- a learner -----------------------------------------------------------------------------------


def test_prices_are_learned_better_than_their_mean_and_told_by_the_served_version(
    tmp_path: Path,
) -> None:
    own = learned(40, model="minilm-l6:1", tuning="frozen", head_lr=0.05, reference_batch_size=20)
    found = own.evaluation()
    assert found["value_squared_error"] < 0.6 * found["value_squared_error_of_mean"]
    texts = [training.text(i) for i in range(40)]
    scorer = load_scorer(published(own, tmp_path).path, "v", threads=1)
    (scores,) = scorer.score([asked(texts)])
    assert scores.value is not None
    dear = np.array([price(text) == DEAR for text in texts])
    assert scores.value[dear].mean() > 5 * scores.value[~dear].mean()
    assert CHEAP / 4 < np.median(scores.value[~dear]) < 4 * CHEAP


def asked(texts: list[str]) -> ScoringInput:
    documents = tuple(Document(text=text) for text in texts)
    return ScoringInput(query="query red", documents=documents)


def test_only_what_was_bought_for_a_known_value_teaches() -> None:
    only = {"click": 0.0, "purchase": 0.0}
    own = trainer(weight_decay=0.0, task_weights=TaskWeights(value=1.0, **only))
    own.step(priced(8))
    before, batch = weights_of(own), priced(8, seed=1, start=8)
    silent = [s for s in batch if not s.value]
    assert {s.task for s in silent} == {CLICK, PURCHASE}
    negative = [msgspec.structs.replace(s, value=9.0) for s in silent if not s.label]
    own.step([*silent, *negative])
    assert training.same(weights_of(own), before)
    own.step(batch)
    own.step(batch)  # the head is not 0 any more, and the encoder has a gradient
    moved = {name for name, p in weights_of(own).items() if not torch.equal(p, before[name])}
    assert {"value_head.weight", "value_head.bias"} <= moved
    assert any(name.startswith("encoder.") for name in moved)
    assert "purchase_bias" not in moved


def test_without_the_task_there_is_no_head_and_values_change_nothing(tmp_path: Path) -> None:
    plain, paid = trainer(), trainer()
    plain.step(lists(8))
    paid.step(priced(8))
    assert paid.files() == plain.files()
    assert not [name for name in paid.ranker.head_tensors() if "value" in name]
    (scores,) = load_scorer(published(paid, tmp_path).path, "v", threads=1).score([asked(["red"])])
    assert scores.value is None


def test_a_head_tells_nothing_before_the_first_purchase() -> None:
    own = trainer(**VALUE)
    own.step(lists(4))
    scorer = ModelScorer("v", own.ranker, own.weigher, own.served)
    assert scorer.score([asked(["red"])])[0].value is None
    assert "value_squared_error" not in own.evaluation()


@pytest.mark.parametrize(
    "kind", [{}, {"tuning": "frozen"}, {"interaction": "cross_encoder"}], ids=str
)
def test_a_learner_resumes_with_the_bits_that_it_would_have_had(kind: dict[str, Any]) -> None:
    live = learned(3, **kind)
    files = live.files()
    again = trainer(**{**VALUE, **kind})
    again.restore(reader(files))
    assert again.files() == files
    batch = priced(8, seed=9, start=100)
    live.step(batch)
    again.step(batch)
    assert again.files() == live.files()
    assert again.files() != files


def test_a_version_goes_on_with_the_task_switched_on_or_off() -> None:
    off = trainer()
    off.step(priced(8))
    on = trainer(**VALUE)
    on.restore(reader(off.files()))
    for i in range(1, 4):
        on.step(priced(8, seed=i, start=8 * i))
    assert on.ranker.value_head is not None
    assert on.ranker.value_head.weight.abs().max() > 0
    off.restore(reader(on.files()))
    off.step(priced(8, seed=9, start=100))
    assert not [name for name in off.ranker.head_tensors() if "value" in name]
