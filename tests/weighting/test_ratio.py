"""The formula, its fixed points and its inversion."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import expit, logit

from weighting.delay_correction import delay_correction as correction
from weighting.errors import WeightError
from weighting.schemes.ratio import invert, ratio

P = (0.02, 0.1, 0.3, 0.6)
S = (0.9, 0.6, 0.8, 0.4)
CASES = list(zip(P, S, strict=True))
probabilities = st.floats(0.001, 0.999)


def fixed_point(positive: float, negative: float) -> float:
    """Minimum of the weighted cross-entropy with these masses, found without the closed form."""

    def loss(m: float) -> float:
        return float(positive * np.logaddexp(0, -m) + negative * np.logaddexp(0, m))

    options = {"xatol": 1e-10}
    return float(
        expit(minimize_scalar(loss, bounds=(-20, 20), method="bounded", options=options).x)
    )


def ratios(p: float, pi: float, exponent: float) -> tuple[float, float]:
    """Ratio of a positive and of a negative."""
    u = ratio(np.array([p, 1 - p]), np.array([pi, 1 - pi]), exponent=exponent)
    return float(u[0]), float(u[1])


@pytest.mark.parametrize(("p", "s"), CASES)
def test_the_delay_correction_restores_p_on_an_observed_and_re_emitted_stream(
    p: float, s: float
) -> None:
    """Copies per example: an in-window positive p(1-S), a delayed positive pS, a first negative.

    First negatives are 1-p+pS of them, the later positives among them.
    """
    positive = (p * (1 - s) + p * s) * correction(1, p, s)
    negative = (1 - p + p * s) * correction(0, p, s)
    assert fixed_point(positive, negative) == pytest.approx(p, abs=1e-6)


def test_without_the_correction_the_same_stream_misses_p() -> None:
    p, s = 0.3, 0.8
    re_emitted = fixed_point(p, 1 - p + p * s)
    never_re_emitted = fixed_point(p * (1 - s), 1 - p * (1 - s))
    assert re_emitted == pytest.approx(0.2419, abs=1e-4)
    assert never_re_emitted == pytest.approx(0.06, abs=1e-4)


@given(probabilities, st.floats(0, 1))
def test_the_correction_keeps_one_unit_of_mass_per_example(p: float, s: float) -> None:
    positive, negative = p * correction(1, p, s), (1 - p + p * s) * correction(0, p, s)
    assert positive == pytest.approx(p)
    assert negative == pytest.approx(1 - p)


@given(probabilities, st.floats(0, 1), st.sampled_from([0.0, 1.0]))
def test_the_delay_correction_lies_between_zero_and_one(p: float, s: float, label: float) -> None:
    assert 0 <= correction(label, p, s) <= 1


@given(probabilities, st.sampled_from([0.0, 1.0]))
def test_without_late_positives_every_delay_correction_is_one(p: float, label: float) -> None:
    assert correction(label, p, 0.0) == 1


@pytest.mark.parametrize("exponent", [-0.5, 0.0, 0.5, 1.0, 2.0])
@pytest.mark.parametrize(("p", "s"), CASES)
@pytest.mark.parametrize("delayed", [False, True])
def test_inversion_gives_back_p_after_training_under_the_ratio(
    exponent: float, p: float, s: float, delayed: bool
) -> None:
    pi = 0.137
    s = s if delayed else 0.0
    u = ratios(p, pi, exponent)
    f = fixed_point(p * correction(1, p, s) * u[0], (1 - p + p * s) * correction(0, p, s) * u[1])
    inverted = invert(np.array([logit(f)]), exponent, pi)
    assert float(expit(inverted[0])) == pytest.approx(p, abs=1e-5)


@given(st.floats(-0.5, 2), probabilities, probabilities)
def test_inversion_undoes_the_minimiser_of_the_weighted_risk(
    exponent: float, p: float, pi: float
) -> None:
    minimiser = (1 + exponent) * logit(p) - exponent * logit(pi)
    inverted = invert(np.array([minimiser]), exponent, pi)
    assert float(inverted[0]) == pytest.approx(logit(p), abs=1e-9)


@pytest.mark.parametrize("exponent", [-0.9, -1.0, -3.0, math.nan, math.inf])
def test_an_exponent_that_cannot_be_inverted_is_refused(exponent: float) -> None:
    half = np.array([0.5])
    with pytest.raises(ValueError, match="exponent"):
        ratio(half, half, exponent=exponent)
    with pytest.raises(ValueError, match="exponent"):
        invert(half, exponent, 0.5)


def population(pi: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """A Beta(1.2, 8) population of p on a fine grid with its masses, whose mean is near .13."""
    p = (np.arange(200_000) + 0.5) / 200_000
    mass = p ** (1.2 - 1) * (1 - p) ** (8 - 1)
    return p, mass / mass.sum()


def test_the_mean_weight_is_one_plus_the_chi_squared_dependence_and_at_most_two() -> None:
    p, mass = population(0.13)
    pi = float((mass * p).sum())
    u1, u0 = ratio(p, np.full_like(p, pi)), ratio(1 - p, np.full_like(p, 1 - pi))
    mean = float((mass * (p * u1 + (1 - p) * u0)).sum())
    chi_squared = float((mass * (p - pi) ** 2).sum()) / (pi * (1 - pi))
    assert mean == pytest.approx(1 + chi_squared, rel=1e-9)
    assert 1 <= mean <= 2
    assert float((mass * (p * u1**2 + (1 - p) * u0**2)).sum()) <= 1 / pi + 1 / (1 - pi)
    assert u1.max() <= 1 / pi


@pytest.mark.parametrize(
    ("exponent", "expected"), [(0.25, 0.994), (0.5, 0.974), (1.0, 0.870), (-0.5, 0.973)]
)
def test_the_effective_sample_size_of_the_ratio_is_the_known_one(
    exponent: float, expected: float
) -> None:
    p, mass = population(0.13)
    pi = float((mass * p).sum())
    u1 = ratio(p, np.full_like(p, pi), exponent=exponent)
    u0 = ratio(1 - p, np.full_like(p, 1 - pi), exponent=exponent)
    first = float((mass * (p * u1 + (1 - p) * u0)).sum())
    second = float((mass * (p * u1**2 + (1 - p) * u0**2)).sum())
    assert first**2 / second == pytest.approx(expected, abs=0.01)


@pytest.mark.parametrize("bad", [0.0, 1.0, -0.1, 1.1, math.nan, math.inf])
def test_a_probability_outside_the_open_unit_interval_is_refused_by_index(bad: float) -> None:
    good, p = np.array([0.5, 0.5]), np.array([0.5, bad])
    with pytest.raises(WeightError, match=r"sample 1: p\(y\|x\)"):
        ratio(p, good)
    with pytest.raises(WeightError, match=r"sample 1: p\(y\)"):
        ratio(good, p)
