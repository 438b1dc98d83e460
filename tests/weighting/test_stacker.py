"""Calibration and stacker: a few coefficients that go on learning and cannot be thrown off."""

from __future__ import annotations

import math
import random

import msgspec
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import expit

from tests.weighting.streams import DAY
from weighting.errors import SnapshotError
from weighting.estimators.calibration import Calibration, CalibrationConfig
from weighting.estimators.recursive import RecursiveLogistic
from weighting.estimators.stacker import Stacker, StackerConfig

Array = NDArray[np.float64]


def draw(n: int, a: float, b: float, c: float, seed: int = 0) -> tuple[Array, Array, Array]:
    """Two logits of different scales and the label that they explain."""
    rng = np.random.default_rng(seed)
    encoder, memory = rng.normal(-1, 2, n), rng.normal(-2, 1, n)
    p = expit(a * encoder + b * memory + c)
    return encoder, memory, (rng.random(n) < p).astype(float)


STARTS = {"encoder": 0.5, "memory": 0.5}


def fresh(**changes: float) -> Stacker:
    return Stacker(STARTS, config=StackerConfig(**changes))


def taught(
    stacker: Stacker, parts: Array, label: Array, *, examination: Array | None = None
) -> None:
    """Learn in steps of eight lists of eight."""
    theta = np.ones(len(label)) if examination is None else examination
    for i in range(0, len(label), 64):
        here = slice(i, i + 64)
        lists = np.arange(len(label[here])) // 8
        stacker.learn(parts[:, here], label[here], np.ones(len(lists)), theta[here], lists)


def trained(stacker: Stacker, n: int, a: float, b: float, c: float, seed: int = 0) -> Stacker:
    encoder, memory, label = draw(n, a, b, c, seed)
    taught(stacker, np.stack([encoder, memory]), label)
    return stacker


def found(stacker: Stacker) -> list[float]:
    return list(stacker.coefficients().values())


@pytest.mark.parametrize("truth", [(1.5, 0.3, 0.5), (0.2, 1.2, -1.0), (0.05, 3.0, 2.0)])
def test_the_stacker_finds_how_much_each_part_is_worth(truth: tuple[float, float, float]) -> None:
    a, b, c = found(trained(fresh(), 20_000, *truth))
    assert (a, b) == pytest.approx(truth[:2], abs=0.25)
    level, expected = (c - a - 2 * b, truth[2] - truth[0] - 2 * truth[1])  # where the parts lie
    assert level == pytest.approx(expected, abs=0.25)


def test_how_easy_a_list_is_passes_for_no_part() -> None:
    """A part that tells lists apart, and nothing within them, orders nothing."""
    rng = np.random.default_rng(0)
    easy = np.repeat(rng.normal(0, 2, 2500), 8)
    useful = rng.normal(size=20_000)
    label = (rng.random(20_000) < expit(useful + easy - 1)).astype(float)
    stacker = fresh()
    taught(stacker, np.stack([useful, easy + 0.3 * rng.normal(size=20_000)]), label)
    useful_found, level_found, _ = found(stacker)
    assert level_found < 0.3 < 0.5 < useful_found


def test_a_part_that_knows_nothing_earns_nothing_from_positions() -> None:
    """Were its logit taken where shown, as log theta here, it would explain the positions."""
    rng = np.random.default_rng(0)
    theta = 1 / (1 + np.tile(np.arange(8), 3000))
    encoder = rng.normal(size=24_000)
    label = (rng.random(24_000) < theta * expit(encoder - 1)).astype(float)
    ignorant = Stacker(STARTS)
    taught(ignorant, np.stack([encoder, rng.normal(size=24_000)]), label, examination=theta)
    assert found(ignorant) == pytest.approx([1.0, 0.0, -1.0], abs=0.12)
    told = Stacker(STARTS)
    taught(told, np.stack([encoder, np.log(theta)]), label, examination=theta)
    assert found(told)[1] < 0.15


LISTS_TO_LOSE = 500


def test_a_part_that_turns_harmful_is_lost_within_the_stated_number_of_lists() -> None:
    stacker = trained(fresh(), 20_000, 1.0, 1.0, 0.0)
    assert found(stacker)[1] > 0.8
    trained(stacker, 8 * LISTS_TO_LOSE, 1.0, -0.5, 0.0, seed=1)
    assert found(stacker)[1] < 0.1
    assert found(stacker)[0] > 0.2


def test_the_stacker_follows_when_the_parts_change_places() -> None:
    stacker = trained(fresh(half_life_samples=2000), 20_000, 1.0, 0.2, 0.0)
    a, b, _ = found(trained(stacker, 20_000, 0.2, 1.0, 0.0, seed=1))
    assert a < 0.4 < 0.8 < b


def test_a_part_is_switched_off_but_never_turned_round_and_comes_back() -> None:
    stacker = trained(fresh(), 5000, -1.0, 0.5, 0.0)
    assert 0 <= found(stacker)[0] < 1e-3
    assert found(trained(stacker, 40_000, 1.0, 0.5, 0.0))[0] > 0.5


def test_the_order_of_samples_and_of_lists_within_a_step_does_not_count() -> None:
    encoder, memory, label = draw(64, 1.0, 1.0, 0.0)
    parts, lists, ones = np.stack([encoder, memory]), np.arange(64) // 8, np.ones(64)
    mixed = np.random.default_rng(1).permutation(64)
    one, other = fresh(), fresh()
    one.learn(parts, label, ones, ones, lists)
    other.learn(parts[:, mixed], label[mixed], ones, ones, 99 - lists[mixed])
    assert found(one) == pytest.approx(found(other), rel=1e-6)


def test_a_silent_part_adds_nothing_and_learns_nothing() -> None:
    encoder, _, label = draw(2000, 1.0, 0.0, 0.0)
    silent = np.full(2000, np.nan)
    stacker = fresh()
    taught(stacker, np.stack([encoder, silent]), label)
    assert stacker.contributions(np.array([[1.0], [np.nan]]))["memory"].tolist() == [0.0]
    coefficients, level = found(stacker), stacker.get(np.array([[0.0], [np.nan]]))
    assert level == pytest.approx(coefficients[2])
    slope = coefficients[1] / 0.5  # the silent one's own coefficient is where it started
    assert stacker._within.mean[1] == 0.5
    assert slope > 0


@settings(max_examples=50, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.floats(-40, 40),
            st.floats(-40, 40),
            st.booleans(),
            st.floats(0, 1e4),
            st.floats(0, 1),
            st.integers(-1, 3),
        ),
        min_size=1,
        max_size=20,
    )
)
def test_no_input_or_weight_throws_the_stacker_off(
    rows: list[tuple[float, float, bool, float, float, int]],
) -> None:
    stacker = fresh()
    encoder, memory, label, weight, theta, lists = (
        np.array(column, dtype=float) for column in zip(*rows, strict=True)
    )
    for _ in range(3):
        parts = np.stack([encoder, memory])
        stacker.learn(parts, label, weight, theta, lists.astype(np.intp))
    assert np.isfinite(found(stacker)).all()
    assert min(found(stacker)[:2]) >= 0


def test_asking_changes_nothing_and_an_empty_batch_teaches_nothing() -> None:
    stacker = trained(fresh(), 500, 1.0, 1.0, 0.0)
    before = stacker.snapshot()
    stacker.get(np.array([[1.0], [2.0]]))
    nothing = np.zeros(0)
    stacker.learn(np.zeros((2, 0)), nothing, nothing, nothing, np.zeros(0, dtype=np.intp))
    assert stacker.snapshot() == before


def test_a_restored_stacker_goes_on_with_the_same_bits() -> None:
    original, resumed = trained(fresh(), 1000, 0.7, 0.4, -0.3), fresh()
    resumed.restore(original.snapshot())
    one, other = (trained(own, 500, 0.7, 0.4, -0.3, 2) for own in (original, resumed))
    assert one.snapshot() == other.snapshot()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xc1",
        msgspec.msgpack.encode({"format": 0}),
        msgspec.msgpack.encode({"format": 2}),
        msgspec.msgpack.encode(7),
        b"\x91" * 5000 + b"\x00",
        Stacker({"another": 1.0}).snapshot(),
    ],
)
def test_bytes_that_are_no_stacker_are_refused(data: bytes) -> None:
    with pytest.raises(SnapshotError, match="snapshot"):
        fresh().restore(data)


@pytest.mark.parametrize("value", [None, math.nan, math.inf, "x", [1.0]])
@pytest.mark.parametrize("place", ["within mean", "level mean", "level precision", "pivot"])
def test_a_snapshot_with_what_is_no_number_is_refused(place: str, value: object) -> None:
    state = msgspec.msgpack.decode(trained(fresh(), 64, 1.0, 0.5, -0.5).snapshot())
    name, _, field = place.partition(" ")
    numbers = state[name][field] if field else state[name][0]
    numbers[0] = value
    with pytest.raises(SnapshotError):
        fresh().restore(msgspec.msgpack.encode(state))


def test_a_snapshot_with_too_few_numbers_is_refused() -> None:
    state = msgspec.msgpack.decode(trained(fresh(), 64, 1.0, 0.5, -0.5).snapshot())
    del state["pivot"][0][0]
    with pytest.raises(SnapshotError, match="pivot"):
        fresh().restore(msgspec.msgpack.encode(state))


@pytest.mark.parametrize("values", [{"deviation": 0.0}, {"half_life_samples": -1.0}])
def test_an_impossible_setting_is_refused_by_key(values: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=f"stacker.{next(iter(values))}"):
        StackerConfig(**values)


def test_with_examination_the_mode_is_that_of_the_position_based_likelihood() -> None:
    encoder, memory, label = draw(400, 1.0, 0.5, -0.5)
    theta = np.tile([1.0, 0.5, 0.25, 0.1], 100)
    label = label * (np.random.default_rng(3).random(400) < theta)
    model = RecursiveLogistic((0.5, 0.5, 0.0), (4.0, 4.0, 0.25), (-9.0,) * 3, (9.0,) * 3)

    def loss(x: Array) -> float:
        p = theta * expit(x[0] * encoder + x[1] * memory + x[2])
        away = x - [0.5, 0.5, 0.0]
        likelihood = -(label * np.log(p) + (1 - label) * np.log1p(-p)).sum()
        return float(likelihood + 0.5 * (np.array([4, 4, 0.25]) * away**2).sum())

    model.learn((encoder, memory, np.ones(400)), label, np.ones(400), examination=theta)
    best = minimize(loss, np.full(3, 0.5), method="L-BFGS-B", options={"ftol": 1e-15})
    assert model.mean == pytest.approx(best.x, abs=1e-3)


@pytest.mark.parametrize("truth", [(1.0, 0.5, -0.5), (-1.0, 0.5, -0.5), (-0.3, -0.3, 1.0)])
def test_one_batch_lands_on_the_mode_inside_the_bounds_that_a_general_optimiser_finds(
    truth: tuple[float, float, float],
) -> None:
    encoder, memory, label = draw(200, *truth)
    bounds = [(0.1, 9.0), (0.1, 9.0), (-9.0, 9.0)]
    model = RecursiveLogistic((0.5, 0.5, 0.0), (4.0, 4.0, 0.25), *zip(*bounds, strict=True))

    def loss(theta: Array) -> float:
        logit = theta[0] * encoder + theta[1] * memory + theta[2]
        away = theta - [0.5, 0.5, 0.0]
        likelihood = (np.logaddexp(0, logit) - label * logit).sum()
        return float(likelihood + 0.5 * (np.array([4, 4, 0.25]) * away**2).sum())

    model.learn((encoder, memory, np.ones(200)), label, np.ones(200))
    options = {"ftol": 1e-15, "gtol": 1e-9}
    best = minimize(loss, np.full(3, 0.5), method="L-BFGS-B", bounds=bounds, options=options)
    assert model.mean == pytest.approx(best.x, abs=1e-4)


def level_after(steps: list[list[bool]], *, level_samples: float | None = 1e4) -> float:
    """Probability at the level, which 10 samples with one positive were worth before any."""
    start = math.log(0.1 / 0.9)
    model = RecursiveLogistic(
        (1.0, start), (100.0, 0.9), (0.05, -50.0), (50.0, 50.0), level_samples=level_samples
    )
    for labels in steps:
        y = np.array(labels, dtype=np.float64)
        model.learn((np.zeros(len(y)), np.ones(len(y))), y, np.ones(len(y)))
    return float(expit(model.mean[-1]))


@settings(max_examples=60, deadline=None)
@example(negatives=16, positives=148, random=random.Random(0), size=1)
@example(negatives=3000, positives=3000, random=random.Random(0), size=3000)
@given(st.integers(0, 200), st.integers(0, 200), st.randoms(), st.integers(1, 40))
def test_in_whatever_order_labels_come_the_level_is_their_share(
    negatives: int, positives: int, random: random.Random, size: int
) -> None:
    """One after the other, mixed, or each kind at once, as when all clicks come late."""
    mixed = [False] * negatives + [True] * positives
    runs = [[False] * negatives, [True] * positives]
    random.shuffle(mixed)
    orders = {
        "one kind at once, then the other": runs,
        "the other way round": runs[::-1],
        "mixed": [mixed[i : i + size] for i in range(0, len(mixed), size)],
    }
    share = (positives + 1) / (negatives + positives + 10)
    for name, steps in orders.items():
        p = level_after([step for step in steps if step])
        assert p == pytest.approx(share, rel=1e-3), name


def test_a_gaussian_belief_would_overshoot_when_the_clicks_come_last() -> None:
    steps = [[False] * 120, [True] * 14]
    assert level_after(steps) == pytest.approx(15 / 144, rel=1e-3)
    assert level_after(steps, level_samples=None) > 3 * 15 / 144


def test_counts_behind_a_level_are_bounded_so_that_it_can_come_back() -> None:
    """A level at 1e-9 is worth a thousand samples and no more."""
    steps = [[False] * 10**6, *[[True] * 1000] * 3]
    assert level_after(steps, level_samples=1000.0) > 0.4


@pytest.mark.parametrize(("slope", "shift"), [(0.5, 0.0), (1.0, 0.7), (2.0, -0.5)])
def test_calibration_undoes_a_wrong_scale_and_base_rate(slope: float, shift: float) -> None:
    rng = np.random.default_rng(0)
    calibration = Calibration(CalibrationConfig())
    logit = rng.normal(-1, 1.5, 30_000)
    label = (rng.random(30_000) < expit(slope * logit + shift)).astype(float)
    for i, (x, y) in enumerate(zip(logit.tolist(), label.tolist(), strict=True)):
        calibration.learn_one(i, x, y, 1.0)
    assert calibration.get() == pytest.approx((slope, shift), abs=0.12)


def test_calibration_starts_as_the_identity_and_keeps_its_slope_in_bounds() -> None:
    calibration = Calibration(CalibrationConfig())
    assert calibration.predict(np.array([-3.0, 0.5])).tolist() == [-3.0, 0.5]
    logit = np.linspace(-5, 5, 100)
    for i in range(200):
        for x in logit.tolist():
            calibration.learn_one(i, x, float(x < 0), 1.0)
    assert calibration.get()[0] == 0.25


def test_calibration_returns_towards_the_identity_when_nothing_confirms_it() -> None:
    """Half is forgotten after the half-life, so newer samples move it sooner."""
    old, recent = Calibration(CalibrationConfig()), Calibration(CalibrationConfig())
    for i in range(2000):
        for calibration in (old, recent):
            calibration.learn_one(0, 0.0, float(i % 4 == 0), 1.0)
    for _ in range(50):
        old.learn_one(5 * DAY, 0.0, 1.0, 1.0)
        recent.learn_one(1, 0.0, 1.0, 1.0)
    assert old.get()[1] > recent.get()[1]


@settings(max_examples=25, deadline=None)
@given(
    st.integers(1, 40),
    st.integers(100, 1_000),
    st.floats(0.35, 1.0),
    st.sampled_from([0.2, 0.3, 0.5]),
    st.integers(0, 99),
)
@example(12, 1_000, 0.5, 0.3, 0)
@example(10, 320, 0.5, 0.3, 0)
@example(100, 320, 0.9, 0.3, 0)
def test_the_level_recovers_from_more_clicks_than_were_examined(
    steps: int, number: int, rate: float, theta: float, seed: int
) -> None:
    """No level explains them, so they press it up to its bound, but they are no samples of it."""
    draw = np.random.default_rng(seed)
    stacker = Stacker({"encoder": 1.0, "memory": 1.0}, intercept=-2.0)
    lists = np.arange(number) // 10
    for clicked in [max(rate, theta + 0.05)] * steps + [theta / 6] * (2 * steps + 20):
        stacker.learn(
            draw.normal(size=(2, number)),
            (draw.random(number) < clicked).astype(float),
            np.ones(number),
            np.full(number, theta),
            lists,
        )
    assert float(expit(stacker.get(np.zeros((2, 1)))[0])) < 0.5
