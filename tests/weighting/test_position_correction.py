"""Importance factors and positions commute: the same relevance comes back from every place."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.special import expit, logit

from tests.weighting.streams import sample
from weighting.clip import ClipConfig
from weighting.config import WeigherConfig
from weighting.context import Context
from weighting.estimators.conditional import ConditionalConfig
from weighting.estimators.propensity import PropensityConfig
from weighting.features import FieldConfig
from weighting.position_correction import factor_at_position
from weighting.schemes.ratio import invert, ratio
from weighting.weigher import Weigher

Array = NDArray[np.float64]
PLACES = np.array([1.0, 2, 3, 5, 10, 50])
relevances = st.floats(0.01, 0.95)
exponents = st.floats(-0.5, 2)


def recovered(r: float, theta: Array, exponent: float, prior: float, bounds: ClipConfig) -> Array:
    """Relevance (N,) that the weighted loss of theta sigma(z) converges to, per examination."""
    r_n, zero, one = np.full_like(theta, r), np.zeros_like(theta), np.ones_like(theta)
    pair = []
    for y in (one, zero):
        context = Context.observed(y, r_n, prior)
        u = ratio(context.p_y_given_x, context.p_y, exponent=exponent)
        pair.append(np.clip(u, bounds.low, bounds.high))
    w1 = factor_at_position(one, r_n, theta, *pair)
    w0 = factor_at_position(zero, r_n, theta, *pair)
    clicked, passed = theta * r * w1, (1 - theta * r) * w0
    minimiser = clicked / (clicked + passed) / theta
    found: Array = expit(invert(logit(minimiser), exponent, prior))
    return found


UNBOUNDED = ClipConfig(low=0, high=1e9)


@given(relevances, exponents, st.floats(0.01, 0.9), st.floats(0, 2))
def test_relevance_comes_back_from_every_place_under_every_exponent(
    r: float, exponent: float, prior: float, decline: float
) -> None:
    found = recovered(r, PLACES**-decline, exponent, prior, UNBOUNDED)
    np.testing.assert_allclose(found, r, rtol=1e-6)


@given(relevances, relevances, exponents, st.floats(0.01, 0.9), st.sampled_from([True, False]))
def test_no_order_inverts_whatever_the_places_and_bounds(
    one: float, other: float, exponent: float, prior: float, bounded: bool
) -> None:
    bounds = ClipConfig() if bounded else UNBOUNDED
    low, high = sorted((one, other))
    worse = recovered(low, 1 / PLACES, exponent, prior, bounds)
    better = recovered(high, 1 / PLACES, exponent, prior, bounds)
    assert worse.max() <= better.min() * (1 + 1e-6)


@pytest.mark.parametrize("exponent", [0.5, 1.0])
def test_a_weigher_gives_weights_under_which_every_place_recovers_the_same_relevance(
    exponent: float,
) -> None:
    """The weights of the path itself: a click and no click of one item, at each of four places."""
    conditional = ConditionalConfig(
        fields=FieldConfig(hash_bits=12), propensity=PropensityConfig(pseudo_count=1e9)
    )
    trained = Weigher(
        WeigherConfig(
            exponent=exponent, conditional=conditional, clip=ClipConfig(normalise="raw", low=0)
        )
    )
    for i in range(40):
        trained.weigh([sample(int(i % 3 == 0), position=1, item_id="SKU-1")])
    places = [1, 2, 5, 10]
    probe = [sample(y, position=k, item_id="SKU-1") for y in (1, 0) for k in places]
    batch = trained.weigh(probe)
    w1, w0 = batch.raw[:4] / batch.correction[:4], batch.raw[4:] / batch.correction[4:]
    r, theta, prior = batch.p_y_given_x[0], batch.examination[:4], batch.prior["click"]
    clicked, passed = theta * r * w1, (1 - theta * r) * w0
    z = logit(clicked / (clicked + passed) / theta)
    np.testing.assert_allclose(expit(invert(z, exponent, prior)), r, rtol=1e-6)
