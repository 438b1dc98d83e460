"""Running normalisation: the same weight whatever batch a sample fell into."""

from __future__ import annotations

import math
from typing import get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from weighting.clip import Normalise
from weighting.errors import WeightError
from weighting.estimators.normaliser import Normaliser

Array = NDArray[np.float64]
MODES = get_args(Normalise)


def stream(n: int, seed: int = 0) -> tuple[Array, Array]:
    """Corrections (n,), and weights with a mean factor of about 1.5."""
    rng = np.random.default_rng(seed)
    r = rng.uniform(0.3, 1, n)
    return r, r * rng.gamma(2.0, 0.75, n)


def scales(own: Normaliser, r: Array, w: Array, size: int) -> Array:
    return np.concatenate(
        [own.update(r[i : i + size], w[i : i + size]) for i in range(0, len(r), size)]
    )


@given(st.sampled_from(MODES), st.integers(1, 400), st.integers(0, 99))
def test_scales_have_the_same_bits_under_every_division_into_batches(
    mode: Normalise, size: int, seed: int
) -> None:
    r, w = stream(700, seed)
    whole, divided = Normaliser(mode, 100.0), Normaliser(mode, 100.0)
    expected = scales(whole, r, w, len(r))
    assert scales(divided, r, w, size).tobytes() == expected.tobytes()
    assert divided.snapshot() == whole.snapshot()


def test_the_scaled_weights_keep_the_mean_correction_or_have_mean_one() -> None:
    r, w = stream(20_000)
    means = {mode: float((scales(Normaliser(mode, 5e3), r, w, 320) * w).mean()) for mode in MODES}
    assert means["running"] == pytest.approx(float(r.mean()), rel=0.02)
    assert means["self"] == pytest.approx(1, rel=0.02)
    assert means["raw"] == pytest.approx(float(w.mean()))


@pytest.mark.parametrize("mode", MODES)
def test_the_weight_of_a_sample_has_no_part_in_its_own_scale(mode: Normalise) -> None:
    (r, w), own, other = stream(50), Normaliser(mode, 1e3), Normaliser(mode, 1e3)
    changed = np.append(w[:-1], 100 * w[-1])
    assert own.update(r, w)[-1] == other.update(r, changed)[-1]
    assert (own.get() != other.get()) == (mode != "raw")


def test_the_scale_follows_a_change_of_the_weights_within_a_few_half_lives() -> None:
    own, ones = Normaliser("running", 200.0), np.ones(2000)
    own.update(ones, 4 * ones)
    assert own.get() == pytest.approx(0.25, rel=0.02)
    own.update(ones, ones / 2)
    assert own.get() == pytest.approx(2, rel=0.02)


def test_weights_of_zero_are_no_division_by_zero() -> None:
    own = Normaliser("running", 1e3)
    assert np.isfinite(own.update(np.ones(5000), np.zeros(5000))).all()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -0.5])
@pytest.mark.parametrize("factor", ["correction weight", "weight"])
def test_a_weight_that_is_nan_infinite_or_negative_is_refused_by_name_and_index(
    bad: float, factor: str
) -> None:
    own, good, other = Normaliser("running", 1e3), np.ones(3), np.array([1.0, 1.0, bad])
    columns = (other, good) if factor == "correction weight" else (good, other)
    with pytest.raises(WeightError, match=f"sample 2: {factor}"):
        own.update(*columns)
    assert own.get() == 1
