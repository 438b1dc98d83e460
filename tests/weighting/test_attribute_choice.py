"""Conditional logit and attribute lifts: right on simulated choices, bounded, restored exactly."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray

from tests.weighting.streams import DAY
from weighting.errors import SnapshotError
from weighting.estimators.attribute_choice import AttributeChoice, AttributeChoiceConfig
from weighting.estimators.conditional_logit import ConditionalLogit, _Posterior
from weighting.estimators.count_table import CountTable
from weighting.sample import Attribute

Array = NDArray[np.float64]
ALPHA = np.array([0.9, 0.4, -0.3])
NUM_LISTS, SIZE = 250, 8


def choices(seed: int, *, theta: float = 0.7) -> tuple[Array, Array, Array, NDArray[np.intp]]:
    """Inputs, choices, offsets and lists of shoppers who choose by ALPHA among what they examine.

    Places are examined with theta^place, and inputs fall along the places, so that a model that
    does not know the places is wrong about the inputs.
    """
    draw = np.random.default_rng(seed)
    inputs = draw.normal(size=(3, NUM_LISTS, SIZE)) - 0.3 * np.arange(SIZE)
    offset = np.log(theta) * np.arange(SIZE) + np.zeros((NUM_LISTS, SIZE))
    utility = offset + np.einsum("k,kln->ln", ALPHA, inputs) + draw.gumbel(size=(NUM_LISTS, SIZE))
    choice = (utility == utility.max(axis=1, keepdims=True)).astype(np.float64)
    lists = np.repeat(np.arange(NUM_LISTS), SIZE)
    return inputs.reshape(3, -1), choice.reshape(-1), offset.reshape(-1), lists


def fitted(seed: int) -> ConditionalLogit:
    """A model that met the lists in batches of ten, in order."""
    inputs, choice, offset, lists = choices(seed)
    model = ConditionalLogit(mean=[0.0] * 3, precision=[0.01] * 3)
    for start in range(0, len(choice), 10 * SIZE):
        own = slice(start, start + 10 * SIZE)
        model.learn(inputs[:, own], choice[own], offset[own], lists[own])
    return model


def test_alpha_is_recovered_within_its_intervals_from_simulated_choices() -> None:
    inside, errors = [], []
    for seed in range(30):
        model = fitted(seed)
        away = (model.mean - ALPHA) / model.standard_errors()
        inside.append(np.abs(away) < 1.96)
        errors.append(model.standard_errors())
    assert 0.8 <= np.mean(inside), "a 95 % interval covers the truth"
    assert np.max(errors) < 0.15, "and says something"
    spread = np.std([fitted(seed).mean for seed in range(30)], axis=0)
    np.testing.assert_allclose(spread, np.mean(errors, axis=0), rtol=0.4)


def test_the_gradient_is_that_of_the_likelihood_by_finite_differences() -> None:
    inputs, choice, offset, lists = choices(0)
    draw = np.random.default_rng(1)
    choice = choice * draw.uniform(0.2, 2.0, len(choice)) + 0.3 * (draw.random(len(choice)) < 0.1)
    P = np.diag([1.0, 2.0, 0.5])
    posterior = _Posterior(np.zeros(3), P, inputs, choice, offset, lists)
    at, step = np.array([0.3, -0.2, 0.7]), 1e-5
    gradient, hessian = posterior.derivatives(at)
    for k, unit in enumerate(np.eye(3)):
        up, down = at + step * unit, at - step * unit
        slope = (posterior.objective(up) - posterior.objective(down)) / (2 * step)
        assert gradient[k] == pytest.approx(slope, rel=1e-5, abs=1e-4)
        bend = (posterior.derivatives(up)[0] - posterior.derivatives(down)[0]) / (2 * step)
        np.testing.assert_allclose(hessian[k], bend, rtol=1e-5, atol=1e-4)


def test_a_constant_added_to_all_items_of_a_list_changes_nothing() -> None:
    inputs, choice, offset, lists = choices(0)
    shift = np.random.default_rng(1).normal(size=NUM_LISTS)[lists]
    plain, shifted = (ConditionalLogit([0.0] * 3, [1.0] * 3) for _ in range(2))
    plain.learn(inputs, choice, offset, lists)
    shifted.learn(inputs + shift, choice, offset - 3 * shift, lists)
    np.testing.assert_allclose(shifted.mean, plain.mean, atol=1e-8)
    np.testing.assert_allclose(
        shifted.probabilities(inputs - shift, offset + shift, lists),
        shifted.probabilities(inputs, offset, lists),
        atol=1e-12,
    )


def test_lists_of_one_item_and_lists_without_a_choice_teach_nothing() -> None:
    inputs, choice, offset, lists = choices(0)
    model = fitted(1)
    before = model.snapshot()
    model.learn(inputs, 0 * choice, offset, lists, keep=0.5)
    model.learn(inputs, np.ones(len(choice)), offset, np.arange(len(choice)), keep=0.5)
    assert model.snapshot() == before


def test_information_fades_towards_the_start_and_never_below_it() -> None:
    model = fitted(0)
    errors = model.standard_errors()
    inputs, choice, offset, lists = choices(1)
    few = lists < 2
    for _ in range(20):
        model.learn(inputs[:, few], choice[few], offset[few], lists[few], keep=0.5)
    assert (model.standard_errors() > 2 * errors).all()
    assert (model.standard_errors() <= 0.01**-0.5).all()


def test_a_forgotten_input_is_new_and_the_others_know_what_they_knew_without_it() -> None:
    model = fitted(0)
    mean, errors = model.mean, model.standard_errors()
    model.forget([1])
    np.testing.assert_array_equal(model.mean[[0, 2]], mean[[0, 2]])
    np.testing.assert_allclose(model.standard_errors()[[0, 2]], errors[[0, 2]])
    assert model.mean[1] == 0
    assert model.standard_errors()[1] == pytest.approx(10)


# --- counts ---


def keys(*numbers: int) -> NDArray[np.uint64]:
    return np.array(numbers, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)


def test_a_count_that_repeats_outlasts_any_number_of_keys_that_come_once() -> None:
    table = CountTable(hash_bits=4, half_life_seconds=1e6)
    table.add(keys(1), np.ones(1), np.full(1, 9.0), 0)
    for i in range(2, 500):
        table.add(keys(i), np.zeros(1), np.ones(1), 0)
    observed, expected = table.get(keys(1, 10**9))
    assert observed.tolist() == [1, 0]
    assert expected.tolist() == [9, 0]
    assert len(table.snapshot()["row"]) // 4 <= 16


def test_counts_of_another_size_are_refused() -> None:
    small, large = (CountTable(hash_bits=bits, half_life_seconds=1.0) for bits in (4, 5))
    with pytest.raises(SnapshotError, match="hash_bits"):
        small.restore(large.snapshot())
    with pytest.raises(SnapshotError, match="columns"):
        small.restore({**small.snapshot(), "tag": b"1234"})


# --- attributes ---

BRANDS = [f"brand {i}" for i in range(6)]
WORTH = np.array([1.2, 0.6, 0.0, 0.0, -0.6, -1.2])


class Shop:
    """Clicks by brand, and under the word "red" by colour; shapes are worth nothing."""

    def __init__(self, seed: int = 0) -> None:
        self.draw = np.random.default_rng(seed)

    def teach(
        self, model: AttributeChoice, lists: int, *, at: int = 0, theta: float = 0.8
    ) -> AttributeChoice:
        queries, labels, thetas = [], [], []
        attributes: list[dict[str, Attribute]] = []
        for i in range(lists):
            colour = ["red", "blue"][i % 2]
            for place in range(8):
                brand, own = int(self.draw.integers(6)), int(self.draw.integers(2))
                queries.append(f"{colour} shoe")
                attributes.append(
                    {
                        "shape": f"shape {self.draw.integers(4)}",
                        "brand": BRANDS[brand],
                        "colour": ["red", "blue"][own],
                    }
                )
                logit = WORTH[brand] + (1.0 if own == i % 2 else -1.0) - 1.5
                thetas.append(theta**place)
                labels.append(float(self.draw.random() < thetas[-1] / (1 + np.exp(-logit))))
        learn(model, queries, attributes, labels, thetas, lists=np.arange(lists).repeat(8), at=at)
        return model


def learn(
    model: AttributeChoice,
    queries: list[str],
    attributes: Sequence[dict[str, Attribute]],
    labels: list[float],
    theta: list[float],
    *,
    lists: NDArray[np.intp],
    at: int = 0,
) -> None:
    number = len(labels)
    model.learn(
        queries,
        attributes,
        label=np.array(labels),
        weight=np.ones(number),
        exposure=np.ones(number),
        examination=np.array(theta),
        logit=np.full(number, -1.5),
        lists=lists,
        time_us=np.full(number, at, dtype=np.int64),
    )


@pytest.fixture(scope="module")
def trained() -> AttributeChoice:
    model, shop = AttributeChoice(), Shop()
    for step in range(25):
        shop.teach(model, 20, at=step)
    return model


def test_attributes_that_matter_count_and_those_that_do_not_count_for_nothing(
    trained: AttributeChoice,
) -> None:
    found = trained.coefficients()
    assert list(found) == ["brand", "colour", "shape"]
    brand, colour, shape = found.values()
    assert brand.alone > 0.6
    assert brand.alone > 5 * brand.alone_error
    assert colour.by_query > 0.3
    assert colour.by_query > 5 * colour.by_query_error
    assert abs(shape.alone) < max(3 * shape.alone_error, 0.6)


def test_what_was_learned_carries_to_items_and_queries_never_seen(
    trained: AttributeChoice,
) -> None:
    brands: list[dict[str, Attribute]] = [{"brand": name, "size": 40} for name in BRANDS]
    by_brand = trained.predict(["a lamp"] * 6, brands)
    assert np.corrcoef(by_brand, WORTH)[0, 1] > 0.95
    colours: list[dict[str, Attribute]] = [{"colour": "red"}, {"colour": "blue"}]
    red, blue = trained.predict(["red desk lamp"] * 2, colours)
    assert red - blue > 0.5
    red, blue = trained.predict(["blue desk lamp"] * 2, colours)
    assert blue - red > 0.5


def test_it_is_silent_about_what_it_never_met(trained: AttributeChoice) -> None:
    unknown: list[dict[str, Attribute]] = [{}, {"brand": "?"}, {"maker": BRANDS[0]}, {"brand": []}]
    assert np.isnan(trained.predict(["red shoe"] * 4, unknown)).all()
    assert trained.predict([], []).shape == (0,)


def test_the_chances_of_a_list_sum_to_one_and_are_those_of_the_utilities(
    trained: AttributeChoice,
) -> None:
    brands: list[dict[str, Attribute]] = [{"brand": name} for name in BRANDS]
    lists = np.array([0, 0, 0, 1, 1, 1])
    p = trained.probabilities(["shoe"] * 6, brands, lists)
    odds = np.exp(trained.predict(["shoe"] * 6, brands))
    expected = np.concatenate([odds[:3] / odds[:3].sum(), odds[3:] / odds[3:].sum()])
    np.testing.assert_allclose(p, expected, rtol=1e-12)


@pytest.mark.parametrize("alone", [False, True])
def test_position_does_not_pass_for_worth(alone: bool) -> None:
    """A brand shown where few look is worth what its clicks there say, in lists and by itself."""
    model = AttributeChoice(AttributeChoiceConfig(max_words=0))
    draw = np.random.default_rng(0)
    attributes: list[dict[str, Attribute]] = [{"brand": "first"}, {"brand": "last"}] * 50
    theta, lists = [1.0, 0.2] * 50, np.arange(100) // (1 if alone else 2)
    for at in range(40):
        labels = [float(draw.random() < 0.3 * t) for t in theta]
        learn(model, ["x"] * 100, attributes, labels, theta, lists=lists, at=at)
    first, last = model.predict(["x"] * 2, attributes[:2])
    assert abs(first - last) < 0.25


def test_the_state_is_bounded_however_many_attributes_values_and_words_there_are() -> None:
    config = AttributeChoiceConfig(hash_bits=6, max_attributes=3)
    model = AttributeChoice(config)
    for i in range(200):
        own: list[dict[str, Attribute]] = [{f"name {i}": f"value {i}", "long" * 99: 1.0}] * 2
        learn(model, [f"word{i}"] * 2, own, [1.0, 0.0], [1.0] * 2, lists=np.zeros(2, np.intp), at=i)
    assert sorted(model.coefficients()) == ["name 0", "name 1", "name 2"]
    assert len(msgspec.msgpack.encode(model.snapshot())) < 64 * 32 + 1500


def test_a_name_unused_for_a_half_life_gives_its_place_to_a_new_one() -> None:
    """And a restored model does so alike: the order in which names came is not kept."""
    config = AttributeChoiceConfig(max_attributes=3, half_life_days=1.0, deviation=3.0)
    original, resumed = AttributeChoice(config), AttributeChoice(config)
    draw, worn = np.random.default_rng(0), {}
    weeks = [["z", "y", "b"], ["y", "b", "early"], ["y", "b", "new"], ["y"], ["y", "d", "c"]]
    for i, names in enumerate(weeks):
        for _ in range(20):
            own: list[dict[str, Attribute]] = [
                {name: float(draw.integers(5)) for name in names} for _ in range(4)
            ]
            label, before = [1.0, 0.0, 0.0, 0.0], resumed
            resumed = AttributeChoice(config)
            resumed.restore(before.snapshot())
            for model in (original, resumed):
                lists = np.zeros(4, np.intp)
                learn(model, ["q"] * 4, own, label, [0.9] * 4, lists=lists, at=i * DAY + i // 2)
            said = [model.predict(["q"] * 4, own).tobytes() for model in (original, resumed)]
            assert said[0] == said[1]
            assert resumed.snapshot() == original.snapshot()
        worn[i] = sorted(original.coefficients())
    assert list(worn.values()) == [
        list("byz"),
        list("byz"),
        ["b", "new", "y"],
        ["b", "new", "y"],
        list("cdy"),
    ]


def test_an_attribute_unused_for_a_half_life_keeps_its_place_if_it_comes_again() -> None:
    model = AttributeChoice(AttributeChoiceConfig(max_attributes=1, half_life_days=1.0))
    for at, names in ((0, ["a"]), (3 * DAY, ["a", "new"]), (3 * DAY, ["\ud800", "tab\t"])):
        own: list[dict[str, Attribute]] = [dict.fromkeys(names, "x"), dict.fromkeys(names, "y")]
        lists = np.zeros(2, np.intp)
        learn(model, ["q"] * 2, own, [1.0, 0.0], [1.0] * 2, lists=lists, at=at)
    assert list(model.coefficients()) == ["a"]
    learn(model, ["q"], [{"\ud800": "x"}], [1.0], [1.0], lists=np.zeros(1, np.intp), at=9 * DAY)
    assert list(model.coefficients()) == ["a"], "whoever cannot be written has no name"


def test_attributes_of_the_same_list_keep_their_places_whatever_name_comes_first() -> None:
    model = AttributeChoice(AttributeChoiceConfig(max_attributes=3, half_life_days=1.0))
    for at, names in ((0, ["a", "b", "c"]), (3 * DAY, ["new", "a", "b", "c"])):
        own: list[dict[str, Attribute]] = [dict.fromkeys(names, "x"), dict.fromkeys(names, "y")]
        lists = np.zeros(2, np.intp)
        learn(model, ["q"] * 2, own, [1.0, 0.0], [1.0] * 2, lists=lists, at=at)
    assert list(model.coefficients()) == ["a", "b", "c"]


def test_a_text_that_an_attribute_has_twice_counts_once() -> None:
    said = []
    for times in (1, 16):
        model = AttributeChoice()
        own: list[dict[str, Attribute]] = [{"tags": ["new"] * times}, {"tags": ["old"]}]
        learn(model, ["q"] * 2, own, [1.0, 0.0], [1.0] * 2, lists=np.zeros(2, np.intp), at=0)
        said.append(model.predict(["q"] * 2, own).tolist())
    assert said[0] == said[1]


def test_new_keys_of_one_call_take_rows_as_if_they_came_one_by_one() -> None:
    draw = np.random.default_rng(3)
    together, alone = (CountTable(hash_bits=4, half_life_seconds=1.0) for _ in range(2))
    for at in range(30):
        keys = np.unique(draw.integers(1 << 40, 1 << 60, 12, dtype=np.uint64))
        observed, expected = draw.uniform(size=(2, len(keys)))
        together.add(keys, observed, expected, at * 100_000)
        for i in range(len(keys)):
            one = slice(i, i + 1)
            alone.add(keys[one], observed[one], expected[one], at * 100_000)
    assert together.snapshot() == alone.snapshot()


def test_a_snapshot_that_is_not_finite_is_refused() -> None:
    state = ConditionalLogit(mean=[0.0], precision=[1.0]).snapshot()
    with pytest.raises(SnapshotError, match="coefficients"):
        ConditionalLogit(mean=[0.0], precision=[1.0]).restore({**state, "mean": [float("nan")]})


def test_information_fades_by_the_time_between_choices_not_by_showings() -> None:
    """Lists without a choice in between leave the fading to the next choice."""
    own: list[dict[str, Attribute]] = [{"brand": name} for name in BRANDS]
    errors = []
    for between in (0, 5):
        model = AttributeChoice(AttributeChoiceConfig(half_life_days=1.0, deviation=9.0))
        for at in range(40):
            labels = [float(i == at % 2) for i in range(6)]
            learn(model, ["q"] * 6, own, labels, [1.0] * 6, lists=np.zeros(6, np.intp), at=at)
        for i in range(between):
            none = [0.0] * 6
            learn(model, ["q"] * 6, own, none, [1.0] * 6, lists=np.arange(6), at=(i + 1) * DAY)
        labels = [1.0] + [0.0] * 5
        learn(model, ["q"] * 6, own, labels, [1.0] * 6, lists=np.zeros(6, np.intp), at=8 * DAY)
        errors.append(model.coefficients()["brand"].alone_error)
    assert errors[1] == pytest.approx(errors[0], rel=0.3)


def test_a_restored_one_is_the_same_and_goes_on_the_same(trained: AttributeChoice) -> None:
    state = msgspec.msgpack.encode(trained.snapshot())
    both = []
    for _ in range(2):
        model = AttributeChoice()
        model.restore(msgspec.msgpack.decode(state))
        assert msgspec.msgpack.encode(model.snapshot()) == state
        assert model.coefficients() == trained.coefficients()
        both.append(msgspec.msgpack.encode(Shop(7).teach(model, 5, at=99).snapshot()))
    assert both[0] == both[1] != state


def test_more_attributes_than_there_is_room_for_are_refused(trained: AttributeChoice) -> None:
    small = AttributeChoice(AttributeChoiceConfig(max_attributes=2))
    with pytest.raises(SnapshotError, match="attributes"):
        small.restore(trained.snapshot())
