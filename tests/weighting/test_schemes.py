"""Every weighting scheme keeps the same promises; each of its settings has a name."""

from __future__ import annotations

from dataclasses import replace
from typing import get_args

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import logit

from tests.weighting.streams import stream
from weighting.clip import ClipConfig
from weighting.context import Context
from weighting.estimators.conditional import ConditionalConfig
from weighting.features import FieldConfig
from weighting.schemes.registry import SCHEMES, SchemeName, make_scheme
from weighting.weigher import Weigher, WeigherConfig

NAMES = get_args(SchemeName)
SMALL = ConditionalConfig(fields=FieldConfig(hash_bits=12))
probabilities = st.floats(0.01, 0.99)


def weigher(scheme: SchemeName, **options: float) -> Weigher:
    clip = ClipConfig(normalise="raw", low=0, high=1e9, cap=1e9)
    return Weigher(WeigherConfig(scheme=scheme, conditional=SMALL, clip=clip, **options))  # type: ignore[arg-type]


def test_every_name_in_the_settings_has_a_scheme_of_that_name() -> None:
    assert set(SCHEMES) == set(NAMES)
    described = [make_scheme(WeigherConfig(scheme=name)).description() for name in NAMES]
    assert [description["scheme"] for description in described] == list(NAMES)


def test_a_name_without_a_scheme_is_refused_by_key() -> None:
    with pytest.raises(ValueError, match="scheme: got 'median', expected ratio or uniform"):
        WeigherConfig(scheme="median")  # type: ignore[arg-type]


@pytest.mark.parametrize("name", NAMES)
@given(st.floats(-0.5, 2), probabilities, probabilities)
@settings(max_examples=30, deadline=None)
def test_inversion_gives_back_p_from_the_minimiser_of_the_weighted_risk(
    name: SchemeName, exponent: float, p: float, prior: float
) -> None:
    """The minimiser f* of p u1 (-log f) + (1-p) u0 (-log(1-f)) has odds p u1 / ((1-p) u0)."""
    scheme = make_scheme(WeigherConfig(scheme=name, exponent=exponent))
    labels = np.array([1.0, 0.0])
    u1, u0 = scheme.weigh(Context.observed(labels, np.array([p, p]), prior))
    minimiser = np.array([logit(p) + np.log(u1 / u0)])
    assert scheme.invert(minimiser, prior) == pytest.approx([logit(p)], abs=1e-9)
    steeper = scheme.invert(minimiser + 1 + scheme.exponent, prior)
    assert steeper == pytest.approx([logit(p) + 1], abs=1e-9)


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
