"""Bounds, their counts, and refusals."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from weighting.clip import ClipConfig, bounded, num_clipped
from weighting.diagnostics import effective_sample_ratio, normalization_ratio
from weighting.errors import WeightError


@given(st.lists(st.floats(0, 100), max_size=40))
def test_no_factor_leaves_its_bounds_and_every_clip_is_counted(factors: list[float]) -> None:
    u, config = np.array(factors), ClipConfig(cap=3.0)
    within = bounded(u, config)
    assert ((within >= 0.1) & (within <= 5)).all()
    assert num_clipped(u, within, config) == {
        "low": sum(f < 0.1 for f in factors),
        "high": sum(f > 5 for f in factors),
        "cap": sum(f > 3 for f in factors),
    }


@pytest.mark.parametrize("bad", [math.nan, math.inf, -0.5])
def test_a_factor_that_is_nan_infinite_or_negative_is_refused_by_name_and_index(bad: float) -> None:
    with pytest.raises(WeightError, match="sample 2: scheme factor") as caught:
        bounded(np.array([1.0, 1.0, bad]), ClipConfig())
    assert not caught.value.retriable


@pytest.mark.parametrize(
    ("values", "key"),
    [
        ({"low": 5.0, "high": 0.1}, "clip"),
        ({"low": -1.0}, "clip"),
        ({"cap": 0.0}, "clip.cap"),
        ({"normalise": "mean"}, "clip.normalise"),
        ({"half_life_samples": 0.0}, "clip.half_life_samples"),
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
    assert normalization_ratio(p, np.full(4, p.mean())) == pytest.approx((1, 1))
    negative, positive = normalization_ratio(p, np.full(4, 0.1))
    assert positive > 1 > negative
