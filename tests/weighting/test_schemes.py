"""Every weighting scheme keeps the same promises; each of its settings has a name."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import get_args

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import logit

from tests.weighting.streams import SECOND, sample, stream
from weighting.clip import ClipConfig
from weighting.config import WeigherConfig
from weighting.constraints import SettingError
from weighting.context import Context
from weighting.errors import WeightError
from weighting.estimators.conditional import ConditionalConfig
from weighting.features import FieldConfig
from weighting.sample import Sample
from weighting.schemes.class_balanced import class_weights
from weighting.schemes.focal import Focal
from weighting.schemes.registry import SCHEMES, SchemeName, make_scheme
from weighting.schemes.softmax_share import share
from weighting.tasks import CLICK
from weighting.weigher import Weigher

NAMES = get_args(SchemeName)
SMALL = ConditionalConfig(fields=FieldConfig(hash_bits=12))
probabilities = st.floats(0.01, 0.99)


def weigher(scheme: SchemeName, **options: float) -> Weigher:
    clip = ClipConfig(normalise="raw", low=0, high=1e9, cap=1e9)
    return Weigher(WeigherConfig(scheme=scheme, conditional=SMALL, clip=clip, **options))  # type: ignore[arg-type]


def test_every_name_in_the_settings_has_a_scheme_of_that_name() -> None:
    assert set(SCHEMES) == set(NAMES)
    described = [make_scheme(name).description() for name in NAMES]
    assert [description["scheme"] for description in described] == list(NAMES)


def test_a_name_without_a_scheme_is_refused_by_key() -> None:
    with pytest.raises(ValueError, match="scheme: got 'median', expected ratio, uniform, softm"):
        WeigherConfig(scheme="median")  # type: ignore[arg-type]


@pytest.mark.parametrize("name", NAMES)
@given(st.floats(-0.5, 2), probabilities, probabilities)
@settings(max_examples=30, deadline=None)
def test_inversion_gives_back_p_from_the_minimiser_of_the_weighted_risk(
    name: SchemeName, exponent: float, p: float, prior: float
) -> None:
    """The minimiser f* of p u1 (-log f) + (1-p) u0 (-log(1-f)) has odds p u1 / ((1-p) u0)."""
    scheme = make_scheme(name, exponent)
    labels = np.array([1.0, 0.0])
    u1, u0 = scheme.weigh(Context.observed(labels, np.array([p, p]), prior))
    minimiser = np.array([logit(p) + np.log(u1 / u0)])
    assert scheme.invert(minimiser, prior) == pytest.approx([logit(p)], abs=1e-9)
    if name != "self_paced":  # whose logits are not a multiple of those of p
        steeper = scheme.invert(minimiser + 1 + scheme.exponent, prior)
        assert steeper == pytest.approx([logit(p) + 1], abs=1e-9)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "uniform"])
@pytest.mark.parametrize("p", [0.0, 1.0, np.nan])
def test_a_probability_that_is_none_is_refused_by_name(name: SchemeName, p: float) -> None:
    labels, scheme = np.ones(1), make_scheme(name)
    prior = p if name == "class_balanced" else 0.1
    factor = {"class_balanced": "p(y)", "attribute_share": "choice"}.get(name, "p(y|x)")
    with pytest.raises(WeightError, match=re.escape(f"{factor}: got {p!r}")):
        scheme.weigh(Context.observed(labels, np.array([p]), prior, choice=np.array([p])))


@pytest.mark.parametrize("name", NAMES)
def test_weights_are_finite_and_not_negative_to_the_ends_of_probabilities(
    name: SchemeName,
) -> None:
    scheme = make_scheme(name)
    p = np.array([1e-6, 0.5, 1 - 1e-6])
    for y in (0.0, 1.0):
        weights = scheme.weigh(Context.observed(np.full(3, y), p, 1e-6))
        assert np.isfinite(weights).all()
        assert (weights >= 0).all()


@given(st.lists(st.tuples(probabilities, st.integers(0, 3)), min_size=1), st.floats(-0.5, 2))
@settings(max_examples=50, deadline=None)
def test_a_share_has_mean_one_over_every_list_and_a_scale_of_p_is_no_matter(
    items: list[tuple[float, int]], exponent: float
) -> None:
    p, lists = np.array([p for p, _ in items]), np.array([number for _, number in items])
    shares = share(p, lists, exponent=exponent)
    for number in set(lists.tolist()):
        assert shares[lists == number].mean() == pytest.approx(1)
    np.testing.assert_allclose(share(p / 3, lists, exponent=exponent), shares)


def test_a_share_is_that_of_the_softmax_over_its_list_alone() -> None:
    p, lists = np.array([0.2, 0.4, 0.4, 0.3]), np.array([0, 0, 0, 1])
    context = Context.observed(np.array([1.0, 1.0, 0.0, 1.0]), p, 0.1, lists)
    weights = make_scheme("softmax_share", 2.0).weigh(context)
    utilities = 2 * np.log(p[:3])
    expected = 3 * np.exp(utilities) / np.exp(utilities).sum()
    np.testing.assert_allclose(weights, [expected[0], expected[1], 1.0, 1.0])


@pytest.mark.parametrize("scheme", ["softmax_share", "attribute_share"])
def test_a_share_of_which_the_exponent_leaves_nothing_is_refused(scheme: SchemeName) -> None:
    with pytest.raises(SettingError, match=rf"weighting\.exponent.*{scheme}.*1: the share"):
        WeigherConfig(scheme=scheme, exponent=0.0)


def test_an_attribute_share_over_the_list_it_was_chosen_from_is_k_times_its_chance() -> None:
    choice, lists = np.array([0.2, 0.5, 0.3, 0.9, 0.1, 0.5]), np.array([0, 0, 0, 1, 1, 2])
    context = Context.observed(np.ones(6), np.full(6, 0.3), 0.1, lists, choice)
    scheme = make_scheme("attribute_share", 1.0)
    size = np.array([3, 3, 3, 2, 2, 1])
    np.testing.assert_allclose(scheme.weigh(context)[:5], (size * choice)[:5], rtol=1e-14)
    assert scheme.weigh(context)[5] == 1
    assert scheme.description()["scheme"] == "attribute_share"
    negative = Context.observed(np.zeros(6), np.full(6, 0.3), 0.1, lists, choice)
    np.testing.assert_array_equal(scheme.weigh(negative), np.ones(6))


def test_a_click_is_weighed_by_what_its_attributes_say_beside_the_others() -> None:
    """Where the brand decides, a click on it counts for more, of an item never shown before."""
    shares = weigher("attribute_share", exponent=1.0)
    plain = weigher("softmax_share", exponent=1.0)
    for own in (shares, plain):
        for number in range(80):
            own.weigh(_branded(number, 1, 0))
    batch = shares.weigh([*_branded(80, 1, 1), *_branded(81, 0, 0)])
    choice = shares._estimators[CLICK].choice
    assert choice is not None
    assert choice.predict([""], [{"brand": "brand 1"}])[0] < -0.3, "shown, and never clicked"
    known, other = batch.raw[:2]
    assert known > 1.2 > 0.8 > other
    assert known + other == pytest.approx(2)
    np.testing.assert_allclose(batch.raw[2:], batch.correction[2:])
    assert plain._estimators[CLICK].choice is None, "nobody asks for it"
    resumed = weigher("attribute_share", exponent=1.0)
    resumed.restore(shares.snapshot())
    again, there = resumed.weigh(_branded(82, 1, 1)), shares.weigh(_branded(82, 1, 1))
    assert again.raw.tobytes() == there.raw.tobytes()
    assert resumed.snapshot() == shares.snapshot()


def test_a_weigher_that_did_not_ask_for_the_choice_before_begins_it_afresh() -> None:
    plain, shares = (weigher(name, exponent=1.0) for name in ("ratio", "attribute_share"))
    plain.weigh(_branded(0, 1, 0))
    shares.restore(plain.snapshot())
    np.testing.assert_allclose(shares.weigh(_branded(1, 1, 0)).raw[0], 1.0)


def test_a_click_is_weighed_by_what_was_shown_beside_it() -> None:
    """Two items of one list, one of which has been clicked often: its click counts for more."""
    shares = weigher("softmax_share", exponent=1.0)
    for number in range(60):
        shares.weigh(_pair(number, 1, 0))
    batch = shares.weigh([*_pair(60, 1, 1), *_pair(61, 0, 0)])
    known, other = batch.raw[:2]
    assert known > 1 > other
    assert known + other == pytest.approx(2)
    np.testing.assert_allclose(batch.raw[2:], batch.correction[2:])


def _branded(number: int, *labels: int) -> list[Sample]:
    """Two new items, whose brands are always the same."""
    return [
        msgspec.structs.replace(
            s, item_id=f"SKU-{number}-{i}", attributes={"brand": f"brand {i}"}, text=f"{number} {i}"
        )
        for i, s in enumerate(_pair(number, *labels))
    ]


def _pair(number: int, *labels: int) -> list[Sample]:
    return [
        msgspec.structs.replace(
            sample(y, item_id=f"SKU-{item}", position=None, at=number * SECOND),
            list_id=f"list {number}",
        )
        for item, y in enumerate(labels)
    ]


def test_class_balanced_weights_have_mean_one_and_follow_the_effective_number() -> None:
    prior = np.array([0.01, 0.3, 0.9])
    positive, negative = class_weights(prior)
    np.testing.assert_allclose(prior * positive + (1 - prior) * negative, 1)
    expected = [(1 - 0.9999 ** (1e4 * (1 - p))) / (1 - 0.9999 ** (1e4 * p)) for p in prior]
    np.testing.assert_allclose(positive / negative, expected)


@given(probabilities, st.floats(0, 5))
def test_focal_weights_are_those_of_the_model_that_they_end_in(p: float, gamma: float) -> None:
    scheme = Focal(gamma)
    u1, u0 = scheme.weigh(Context.observed(np.array([1.0, 0.0]), np.array([p, p]), 0.1))
    f = p * u1 / (p * u1 + (1 - p) * u0)
    assert (u1, u0) == pytest.approx(((1 - f) ** gamma, f**gamma), abs=1e-9)


def test_uniform_weights_are_the_delay_correction_alone() -> None:
    for batch in (weigher("uniform").weigh(stream(200, seed)) for seed in range(3)):
        np.testing.assert_array_equal(batch.raw, batch.correction)
        np.testing.assert_array_equal(batch.weight, batch.correction.astype(np.float32))
        assert batch.exponent == 0


def test_uniform_weights_are_those_of_the_ratio_with_exponent_zero() -> None:
    uniform, off = weigher("uniform"), weigher("ratio", exponent=0.0)
    for start in range(0, 300, 100):
        part = stream(300)[start : start + 100]
        np.testing.assert_allclose(uniform.weigh(part).weight, off.weigh(part).weight)


@pytest.mark.parametrize("name", NAMES)
def test_settings_come_back_from_a_version_as_they_were(name: SchemeName) -> None:
    config = WeigherConfig(scheme=name, exponent=0.5, conditional=SMALL)
    written = msgspec.json.decode(msgspec.json.encode(config.on_disk()))
    assert WeigherConfig.from_disk(written) == config


def test_a_version_keeps_the_names_that_its_files_always_had() -> None:
    plain = WeigherConfig().on_disk()
    assert "scheme" not in plain
    assert set(plain["click"]) == {"prior", "late"}
    assert set(plain["click"]["late"]) == {"initial", "initial_mass", "half_life_seconds", "mass"}
    assert set(plain["conditional"]["propensity"]) == {"decline", "mass", "half_life_seconds"}


def test_a_manifest_names_the_scheme_and_its_parameters() -> None:
    ratio = Weigher(WeigherConfig(exponent=0.5, denoise=0.1, conditional=SMALL))
    assert ratio.description() == {"scheme": "ratio", "exponent": 0.5, "denoise": 0.1}
    uniform = Weigher(replace(ratio.config, scheme="uniform"))
    assert uniform.description() == {"scheme": "uniform", "denoise": 0.1}
