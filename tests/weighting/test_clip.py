"""Bounds, normalisation and refusals."""

from __future__ import annotations

import math
from typing import get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from weighting.clip import ClipConfig, Normalise, clip
from weighting.diagnostics import effective_sample_ratio, normalization_ratio
from weighting.errors import WeightError

Columns = tuple[NDArray[np.float64], NDArray[np.float64]]
columns = st.lists(st.tuples(st.floats(0.01, 1), st.floats(0, 100)), min_size=1, max_size=40).map(
    lambda pairs: (np.array([r for r, _ in pairs]), np.array([u for _, u in pairs]))
)


@given(columns, st.sampled_from(get_args(Normalise)))
def test_no_weight_leaves_its_bounds_and_every_clip_is_counted(
    batch: Columns, mode: Normalise
) -> None:
    r, u = batch
    clipped = clip(r, u, ClipConfig(cap=3.0, normalise=mode))
    assert ((clipped.weight >= 0) & (clipped.weight <= 3.0)).all()
    assert (clipped.num_low, clipped.num_high) == (int((u < 0.1).sum()), int((u > 5).sum()))
    if mode == "raw":
        assert (clipped.weight <= np.minimum(5 * r, 3.0) + 1e-12).all()
        assert (clipped.weight >= np.minimum(0.1 * r, 3.0) - 1e-12).all()


@given(columns)
def test_the_correction_weighted_mean_of_the_normalised_factor_is_one(batch: Columns) -> None:
    r, u = batch
    weight = clip(r, u, ClipConfig(cap=1e9, normalise="batch")).weight
    assert float((r * (weight / r)).sum() / r.sum()) == pytest.approx(1)


@given(columns)
def test_self_normalised_weights_have_mean_one(batch: Columns) -> None:
    r, u = batch
    weight = clip(r, u, ClipConfig(cap=1e9, normalise="self")).weight
    assert float(weight.mean()) == pytest.approx(1)


@given(columns, st.sampled_from(get_args(Normalise)))
def test_a_weight_does_not_depend_on_where_in_the_step_its_sample_stands(
    batch: Columns, mode: Normalise
) -> None:
    """Hence any split of the step into micro-batches, in any order, sums to the same loss."""
    r, u = batch
    order = np.random.default_rng(len(r)).permutation(len(r))
    config = ClipConfig(normalise=mode)
    shuffled, straight = clip(r[order], u[order], config), clip(r, u, config)
    np.testing.assert_allclose(shuffled.weight, straight.weight[order], rtol=1e-12)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -0.5])
@pytest.mark.parametrize("factor", ["correction weight", "scheme factor"])
def test_a_factor_that_is_nan_infinite_or_negative_is_refused_by_name_and_index(
    bad: float, factor: str
) -> None:
    good, other = np.ones(3), np.array([1.0, 1.0, bad])
    correction, scheme = (other, good) if factor == "correction weight" else (good, other)
    with pytest.raises(WeightError, match=f"sample 2: {factor}") as caught:
        clip(correction, scheme, ClipConfig())
    assert not caught.value.retriable


@pytest.mark.parametrize("mode", get_args(Normalise))
def test_a_batch_of_zero_weights_is_refused(mode: Normalise) -> None:
    with pytest.raises(WeightError, match="do not sum to 0"):
        clip(np.zeros(3), np.ones(3), ClipConfig(normalise=mode))


def test_an_empty_batch_has_no_weights() -> None:
    assert len(clip(np.array([]), np.array([]), ClipConfig()).weight) == 0


@pytest.mark.parametrize(
    ("values", "key"),
    [
        ({"low": 5.0, "high": 0.1}, "clip"),
        ({"low": -1.0}, "clip"),
        ({"cap": 0.0}, "clip.cap"),
        ({"normalise": "mean"}, "clip.normalise"),
    ],
)
def test_impossible_bounds_are_refused_by_key(values: dict[str, object], key: str) -> None:
    with pytest.raises(ValueError, match=key):
        ClipConfig(**values)  # type: ignore[arg-type]


@given(st.lists(st.floats(0, 100), min_size=1, max_size=50).filter(lambda w: sum(w) > 1e-3))
def test_effective_sample_ratio_lies_between_one_nth_and_one(weights: list[float]) -> None:
    assert 1 / len(weights) - 1e-9 <= effective_sample_ratio(np.array(weights)) <= 1 + 1e-9


def test_normalization_ratio_is_one_when_estimator_and_prior_agree() -> None:
    p = np.array([0.1, 0.3, 0.05, 0.15])
    assert normalization_ratio(p, float(p.mean())) == pytest.approx((1, 1))
    negative, positive = normalization_ratio(p, 0.1)
    assert positive > 1 > negative
