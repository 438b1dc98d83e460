"""Calibration and stacker: a few coefficients that go on learning and cannot be thrown off."""

from __future__ import annotations

import math

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
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


def trained(stacker: Stacker, n: int, a: float, b: float, c: float, seed: int = 0) -> Stacker:
    encoder, memory, label = draw(n, a, b, c, seed)
    for i in range(0, n, 64):
        part = slice(i, i + 64)
        stacker.learn(encoder[part], memory[part], label[part], np.ones(len(label[part])))
    return stacker


@pytest.mark.parametrize("truth", [(1.5, 0.3, 0.5), (0.2, 1.2, -1.0), (0.05, 3.0, 2.0)])
def test_the_stacker_finds_how_much_each_part_is_worth(truth: tuple[float, float, float]) -> None:
    assert trained(Stacker(), 20_000, *truth).coefficients() == pytest.approx(truth, abs=0.25)


def test_the_stacker_follows_when_the_parts_change_places() -> None:
    stacker = trained(Stacker(StackerConfig(half_life_samples=2000)), 20_000, 1.0, 0.2, 0.0)
    a, b, _ = trained(stacker, 20_000, 0.2, 1.0, 0.0, seed=1).coefficients()
    assert a < 0.4 < 0.8 < b


def test_neither_part_is_ever_switched_off_or_turned_round() -> None:
    a, b, _ = trained(Stacker(), 5000, -1.0, -0.5, 0.0).coefficients()
    assert 0.2 <= a < 0.21
    assert 0.01 <= b < 0.02
    stacker = trained(Stacker(), 5000, -1.0, -0.5, 0.0)
    a, b, _ = trained(stacker, 40_000, 1.0, 0.5, 0.0).coefficients()
    assert a > 0.5
    assert b > 0.2


@settings(max_examples=50, deadline=None)
@given(
    st.lists(
        st.tuples(st.floats(-40, 40), st.floats(-40, 40), st.booleans(), st.floats(0, 1e4)),
        min_size=1,
        max_size=20,
    )
)
def test_no_input_or_weight_throws_the_stacker_off(
    rows: list[tuple[float, float, bool, float]],
) -> None:
    stacker = Stacker()
    encoder, memory, label, weight = (
        np.array(column, dtype=float) for column in zip(*rows, strict=True)
    )
    for _ in range(3):
        stacker.learn(encoder, memory, label, weight)
    a, b, c = stacker.coefficients()
    assert 0.01 <= a <= 50
    assert 0.01 <= b <= 50
    assert math.isfinite(c)


def test_asking_changes_nothing_and_an_empty_batch_teaches_nothing() -> None:
    stacker = trained(Stacker(), 500, 1.0, 1.0, 0.0)
    before = stacker.snapshot()
    stacker.get(np.array([1.0]), np.array([2.0]))
    stacker.learn(np.array([]), np.array([]), np.array([]), np.array([]))
    assert stacker.snapshot() == before


def test_a_restored_stacker_goes_on_with_the_same_bits() -> None:
    original, resumed = trained(Stacker(), 1000, 0.7, 0.4, -0.3), Stacker()
    resumed.restore(original.snapshot())
    one, other = (trained(own, 500, 0.7, 0.4, -0.3, 2) for own in (original, resumed))
    assert one.snapshot() == other.snapshot()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xc1",
        msgspec.msgpack.encode({"format": 0}),
        msgspec.msgpack.encode({"format": 1}),
        msgspec.msgpack.encode(7),
    ],
)
def test_bytes_that_are_no_stacker_are_refused(data: bytes) -> None:
    with pytest.raises(SnapshotError, match="snapshot"):
        Stacker().restore(data)


@pytest.mark.parametrize(
    "values",
    [{"encoder": 0.0}, {"pair_memory": 100.0}, {"deviation": 0.0}, {"half_life_samples": -1.0}],
)
def test_an_impossible_start_is_refused_by_key(values: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=f"stacker.{next(iter(values))}"):
        StackerConfig(**values)


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


@pytest.mark.parametrize(("slope", "shift"), [(0.5, 0.0), (1.0, 0.7), (2.0, -0.5)])
def test_calibration_undoes_a_wrong_scale_and_base_rate(slope: float, shift: float) -> None:
    rng = np.random.default_rng(0)
    calibration = Calibration(CalibrationConfig())
    logit = rng.normal(-1, 1.5, 30_000)
    label = (rng.random(30_000) < expit(slope * logit + shift)).astype(float)
    for i in range(0, 30_000, 100):
        part = slice(i, i + 100)
        calibration.learn(np.full(100, i, dtype=np.int64), logit[part], label[part], np.ones(100))
    assert calibration.get() == pytest.approx((slope, shift), abs=0.12)


def test_calibration_starts_as_the_identity_and_keeps_its_slope_in_bounds() -> None:
    calibration = Calibration(CalibrationConfig())
    assert calibration.predict(np.array([-3.0, 0.5])).tolist() == [-3.0, 0.5]
    logit = np.linspace(-5, 5, 100)
    for i in range(200):
        at = np.full(100, i, dtype=np.int64)
        calibration.learn(at, logit, (logit < 0).astype(float), np.ones(100))
    assert calibration.get()[0] == 0.25


def test_calibration_returns_towards_the_identity_when_nothing_confirms_it() -> None:
    """Half is forgotten after the half-life, so newer samples move it sooner."""
    old, recent = Calibration(CalibrationConfig()), Calibration(CalibrationConfig())
    logit, label = np.zeros(2000), (np.arange(2000) % 4 == 0).astype(float)
    for calibration in (old, recent):
        calibration.learn(np.zeros(2000, dtype=np.int64), logit, label, np.ones(2000))
    probe = np.zeros(50), np.ones(50), np.ones(50)
    old.learn(np.full(50, 5 * DAY), *probe)
    recent.learn(np.full(50, 1), *probe)
    assert old.get()[1] > recent.get()[1]
