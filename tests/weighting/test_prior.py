"""p(y), and the delayed-positive rate."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import beta

from tests.weighting.streams import DAY
from weighting.estimators.delayed_positives import DelayedPositiveRate
from weighting.estimators.prior import Prior, PriorConfig


def feed(prior: Prior, labels: list[float], at: int = 0) -> None:
    for y in labels:
        prior.update(at, y, 1 - y)


def fed(labels: list[float], at: int = 0, config: PriorConfig | None = None) -> Prior:
    prior = Prior(config or PriorConfig())
    feed(prior, labels, at)
    return prior


def test_before_any_sample_the_prior_is_the_assumption() -> None:
    assert Prior(PriorConfig(initial=0.3)).get() == pytest.approx(0.3)
    assert Prior(PriorConfig(initial=0.3)).maximum_likelihood() == 0.3


def test_many_samples_outweigh_the_assumption() -> None:
    prior = fed([1.0, 0.0, 0.0, 0.0] * 2500)
    assert prior.get() == pytest.approx(0.25, abs=0.001)
    assert prior.maximum_likelihood() == 0.25


def test_a_sample_counts_half_after_the_half_life() -> None:
    """Without pseudo-counts, 1,000 positives one day old weigh as much as 500 new negatives."""
    prior = fed([1.0] * 1000, config=PriorConfig(pseudo_count=1e-9))
    feed(prior, [0.0] * 500, DAY)
    assert prior.get() == pytest.approx(0.5)
    assert prior.maximum_likelihood() == pytest.approx(2 / 3)


def test_after_a_long_silence_the_prior_returns_to_the_long_run() -> None:
    prior = fed([1.0] * 2000 + [0.0] * 8000)
    feed(prior, [0.0], 30 * DAY)
    assert prior.get() == pytest.approx(prior.maximum_likelihood(), abs=0.01)


@given(
    st.lists(st.tuples(st.integers(0, 3 * DAY), st.booleans()), min_size=6, max_size=30),
    st.integers(1, 5),
)
def test_disorder_changes_nothing(events: list[tuple[int, bool]], cut: int) -> None:
    """Late samples too: time never runs backwards, an old sample counts as faded as it is."""
    given_order, other_order = Prior(PriorConfig()), Prior(PriorConfig())
    for at, y in events:
        given_order.update(at, float(y), float(not y))
    for at, y in events[:cut][::-1] + events[cut:][::-1]:
        other_order.update(at, float(y), float(not y))
    assert other_order.get() == pytest.approx(given_order.get(), rel=1e-9)


def test_the_interval_is_that_of_the_beta_posterior_and_narrows() -> None:
    prior = fed([1.0] * 30 + [0.0] * 70, config=PriorConfig(initial=0.5))
    pi0 = (30 + 10 * 0.5) / 110
    posterior = beta(30 + 200 * pi0, 70 + 200 * (1 - pi0))
    assert prior.interval() == pytest.approx((posterior.ppf(0.025), posterior.ppf(0.975)))
    wide, narrow = fed([1.0] + [0.0] * 9).interval(), fed(([1.0] + [0.0] * 9) * 500).interval()
    assert narrow[1] - narrow[0] < wide[1] - wide[0]


@given(st.sampled_from([0.0, 1.0]), st.integers(1, 3))
def test_a_prior_is_never_zero_or_one(label: float, n: int) -> None:
    assert 0 < fed([label] * 10**n).get() < 1


def test_a_restored_prior_goes_on_as_the_original() -> None:
    original = fed([1.0, 0.0, 0.0], at=5)
    resumed = Prior(PriorConfig())
    resumed.restore(original.snapshot())
    for prior in (original, resumed):
        feed(prior, [1.0, 0.0], DAY)
    assert resumed.get() == original.get()
    assert resumed.snapshot() == original.snapshot()


@pytest.mark.parametrize(
    "key", ["initial", "initial_pseudo_count", "half_life_seconds", "pseudo_count"]
)
@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
def test_an_impossible_prior_is_refused_by_key(key: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"prior.{key}"):
        PriorConfig(**{key: value})


def test_the_delayed_positive_rate_is_the_share_of_positives_that_came_late() -> None:
    rate = DelayedPositiveRate(PriorConfig(initial=0.5))
    rng = np.random.default_rng(0)
    for positive, late in rng.random((20_000, 2)) < (0.5, 0.3):
        rate.update(0, float(positive), bool(positive and late))
    assert rate.get() == pytest.approx(0.3, abs=0.02)


def test_negatives_say_nothing_about_the_delayed_positive_rate() -> None:
    rate = DelayedPositiveRate(PriorConfig(initial=0.65))
    for _ in range(1000):
        rate.update(0, 0.0, False)
    assert rate.get() == pytest.approx(0.65)
