"""Pruning and distillation: what goes is what counts least, and the rest comes near its teacher."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModel, PretrainedConfig

from learner import arithmetic
from learner.compression import calibration, magnitude
from learner.compression.distillation import Distillation, distil
from learner.compression.importance import head_importance, most_important, unit_importance
from learner.compression.lists import LabelledList, columns_of, cosines, encoded, log_shares
from learner.compression.shape import layers_of, num_heads, num_units, reduced, spaced
from learner.encoder.encoder import Encoder
from learner.encoder.load import load_pretrained
from learner.encoder.tokens import Texts
from tests.learner.families import bert, roberta, saved

LISTS = [
    LabelledList(query="red shoe", texts=("red shoe", "blue mug", "oak lamp"), labels=(1, 0, 0)),
    LabelledList(query="mug", texts=("a blue mug", "red shoe"), labels=(1, 0)),
    LabelledList(query="oak", texts=("oak lamp", "an oak chair", "mug"), labels=(1, 1, 0)),
]
SCALE = 20.0


@pytest.fixture(autouse=True)
def one_thread() -> None:
    arithmetic.use(1)


def whole(model: object, pooling: str = "mean") -> Encoder:
    encoder = Encoder(model, tuning="full", pooling=pooling)
    encoder.model.requires_grad_(False)
    return encoder


def fresh(layers: int = 3) -> tuple[Encoder, Texts]:
    model, tokenizer, _ = load_pretrained(f"random:{layers}x64")
    return whole(model), Texts(tokenizer, max_tokens=24)


def vectors(encoder: Encoder, tokens: Texts) -> torch.Tensor:
    return encoded(encoder, tokens, columns_of(LISTS).texts)


@given(st.integers(1, 48), st.data())
def test_layers_that_stay_are_spaced_evenly_and_begin_with_the_first(
    number: int, data: st.DataObject
) -> None:
    keep = data.draw(st.integers(1, number))
    places = spaced(number, keep)
    assert len(set(places)) == keep
    assert places == sorted(places)
    assert places[0] == 0
    assert keep == 1 or places[-1] == number - 1
    steps = np.diff(places)
    assert keep == 1 or steps.max() - steps.min() <= 1


@given(st.integers(1, 5000), st.floats(0, 0.999))
def test_units_that_stay_are_as_many_as_asked_or_up_to_31_more(number: int, share: float) -> None:
    kept = num_units(number, share)
    assert 1 <= kept <= number
    asked = max(1, round(number * (1 - share)))
    assert asked <= kept < asked + 32


def test_units_without_effect_count_nothing_and_taking_them_away_changes_no_vector() -> None:
    encoder, tokens = fresh()
    idle = torch.arange(0, 256, 4)
    for layer in layers_of(encoder.model):
        layer.output.dense.weight.data[:, idle] = 0  # type: ignore[union-attr, operator]
    importance = unit_importance(encoder, tokens, LISTS, scale=SCALE)
    kept = [most_important(own, 192) for own in importance]
    for own, places in zip(importance, kept, strict=True):
        assert not own[idle].any()
        assert (own > 0).sum() > 150
        assert not set(places.tolist()) & set(idle.tolist())
    smaller = whole(reduced(encoder.model, layers=range(3), units=kept))
    assert smaller.model.config.intermediate_size == 192
    torch.testing.assert_close(vectors(smaller, tokens), vectors(encoder, tokens))


def test_importance_is_the_slope_of_the_loss_in_a_unit() -> None:
    encoder, tokens = fresh(1)
    found = unit_importance(encoder, tokens, LISTS[:1], scale=SCALE)[0]
    columns = columns_of(LISTS[:1])

    def loss(model: object) -> float:
        own = encoded(whole(model), tokens, columns.texts).double()
        return -float(log_shares(SCALE * cosines(own, columns), columns)[0])

    for unit in most_important(found, 3).tolist():
        slopes = []
        for change in (0.02, -0.02):
            model = copy.deepcopy(encoder.model)
            layers_of(model)[0].output.dense.weight.data[:, unit] *= 1 + change  # type: ignore[union-attr, index, operator]
            slopes.append(loss(model))
        assert abs(slopes[0] - slopes[1]) / 0.04 == pytest.approx(float(found[unit]), rel=0.05)


def test_heads_without_effect_count_nothing_and_taking_them_away_changes_no_vector() -> None:
    model = AutoModel.from_config(bert(num_attention_heads=4, num_hidden_layers=3))  # type: ignore[no-untyped-call]
    encoder, tokens = whole(model), fresh()[1]
    for layer in layers_of(encoder.model):
        layer.attention.output.dense.weight.data[:, 8:16] = 0  # type: ignore[union-attr, operator]
    importance = head_importance(encoder, tokens, LISTS, scale=SCALE)
    for own in importance:
        assert (own == 0).tolist() == [False, True, False, False]
    kept = [most_important(own, 3) for own in importance]
    smaller = whole(reduced(encoder.model, layers=range(3), heads=kept))
    assert smaller.model.config.kept_heads == [[0, 2, 3]] * 3
    assert smaller.model.encoder.layer[0].attention.self.query.weight.shape == (24, 32)
    assert smaller.model.encoder.layer[0].attention.output.dense.weight.shape == (32, 24)
    torch.testing.assert_close(vectors(smaller, tokens), vectors(encoder, tokens))
    again = reduced(smaller.model, layers=[0, 2], heads=[torch.tensor([1])] * 3)
    assert again.config.kept_heads == [[2], [2]]


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_importance_is_the_slope_of_the_loss_in_a_head(pooling: str) -> None:
    other, tokens = fresh(1)
    encoder = whole(other.model, pooling)
    found = head_importance(encoder, tokens, LISTS[:1], scale=SCALE)[0]
    columns = columns_of(LISTS[:1])
    for head in range(2):
        slopes = []
        for change in (0.02, -0.02):
            model = copy.deepcopy(encoder.model)
            own = slice(32 * head, 32 * head + 32)
            layers_of(model)[0].attention.output.dense.weight.data[:, own] *= 1 + change  # type: ignore[union-attr, index, operator]
            states = encoded(whole(model, pooling), tokens, columns.texts).double()
            cosine = cosines(states, columns)
            slopes.append(-float(log_shares(SCALE * cosine, columns)[0]))
        assert abs(slopes[0] - slopes[1]) / 0.04 == pytest.approx(float(found[head]), rel=0.05)


@given(st.integers(1, 64), st.floats(0, 0.999))
def test_heads_that_stay_are_the_nearest_number_and_one_at_least(number: int, share: float) -> None:
    kept = num_heads(number, share)
    assert 1 <= kept <= number
    assert kept == 1 or abs(kept - number * (1 - share)) <= 0.5


def test_the_layers_that_stay_are_those_of_the_teacher_and_their_own() -> None:
    encoder, _ = fresh(4)
    smaller = reduced(encoder.model, layers=[0, 3])
    own, given = smaller.state_dict(), encoder.model.state_dict()
    name = "attention.self.query.weight"
    assert torch.equal(own[f"encoder.layer.1.{name}"], given[f"encoder.layer.3.{name}"])
    own[f"encoder.layer.1.{name}"].zero_()
    assert given[f"encoder.layer.3.{name}"].any()
    assert encoder.model.config.num_hidden_layers == 4


def test_the_smallest_weights_of_each_matrix_go() -> None:
    encoder, _ = fresh()
    masks = magnitude.masks(encoder.model, 0.25)
    sizes = {parameter: parameter.abs().clone() for parameter in masks}
    magnitude.apply(masks)
    assert len(masks) == 3 * 6
    for parameter, size in sizes.items():
        gone = parameter == 0
        assert int(gone.sum()) == parameter.numel() // 4
        assert size[gone].max() <= size[~gone].min()


def test_distillation_moves_the_layers_alone_towards_the_teacher() -> None:
    encoder, tokens = fresh(4)
    student = whole(reduced(encoder.model, layers=[0, 3]))
    before = student.model.state_dict()["embeddings.word_embeddings.weight"].clone()
    kept = copy.deepcopy(encoder.model.state_dict())
    apart = (vectors(student, tokens) - vectors(encoder, tokens)).square().sum()
    how = Distillation(epochs=40, lr=1e-3, batch_size=4, scale=SCALE, seed=0)
    losses = distil(student, encoder, tokens, LISTS, how)
    assert losses[-1] < losses[0] / 2
    assert (vectors(student, tokens) - vectors(encoder, tokens)).square().sum() < apart / 2
    assert torch.equal(student.model.state_dict()["embeddings.word_embeddings.weight"], before)
    for name, tensor in encoder.model.state_dict().items():
        assert torch.equal(tensor, kept[name])


def test_shares_of_a_list_sum_to_one() -> None:
    columns = columns_of(LISTS)
    shares = log_shares(torch.linspace(-900, 900, len(columns.label)), columns).exp()
    sums = torch.zeros(3).index_add(0, columns.list_id, shares)
    torch.testing.assert_close(sums, torch.ones(3))


@pytest.mark.parametrize("config", [bert(), roberta()], ids=["bert", "roberta"])
def test_layers_and_units_of_the_family_are_found(tmp_path: Path, config: PretrainedConfig) -> None:
    model = load_pretrained(str(saved(tmp_path / "model", config))).model
    smaller = reduced(model, layers=[1], units=[torch.arange(32)] * 2)
    assert smaller.config.intermediate_size == 32
    assert len(layers_of(smaller)) == 1


# --- calibration ---


@given(st.floats(0.5, 20), st.floats(-3, 3), st.integers(0, 100))
def test_platt_finds_the_slope_and_intercept_of_the_labels(
    slope: float, intercept: float, seed: int
) -> None:
    draw = np.random.Generator(np.random.PCG64(seed))
    score = draw.normal(0, 1 / slope, 4_000)
    label = (draw.random(4_000) < 1 / (1 + np.exp(-slope * score - intercept))).astype(float)
    found = calibration.platt(score, label)
    assert found[0] == pytest.approx(slope, rel=0.25)
    assert found[1] == pytest.approx(intercept, abs=0.25)
    p = calibration.probability(score, found)
    assert calibration.calibration_error(p, label) < 0.05
    assert calibration.log_loss(p, label) <= calibration.log_loss(
        np.full_like(p, label.mean()), label
    )


def test_the_calibration_error_of_a_constant_is_its_distance_from_the_share() -> None:
    label = np.tile([1.0, 0.0, 0.0, 0.0, 0.0], 200)
    assert calibration.calibration_error(np.full(1000, 0.9), label) == pytest.approx(0.7)


def test_equal_scores_have_finite_probabilities() -> None:
    found = calibration.platt(np.zeros(4), np.array([1.0, 1.0, 1.0, 1.0]))
    assert np.isfinite(found).all()
