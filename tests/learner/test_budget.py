"""Privacy budget: epsilon beside the exact curve of Gaussian mechanisms, and refusals."""

from __future__ import annotations

import math
import sys
from importlib.abc import MetaPathFinder
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq
from scipy.stats import norm

from learner.config import LearnerConfig
from learner.errors import PrivacyUnsupported
from learner.training.budget import PrivacyConfig, epsilon
from learner.training.rehearsal import RehearsalConfig
from tests.learner.training import trainer


def exact(noise_multiplier: float, num_steps: int, delta: float) -> float:
    """Epsilon of K Gaussian mechanisms, which are one of mu = sqrt(K) / s.

    Balle and Wang, ICML 2018, theorem 8.
    """
    mu = math.sqrt(num_steps) / noise_multiplier

    def excess(eps: float) -> float:
        first, second = norm.logcdf(mu / 2 - eps / mu), eps + norm.logcdf(-mu / 2 - eps / mu)
        return float(_exp(first) - _exp(second) - delta)

    return float(brentq(excess, 0.0, mu * mu / 2 + 40 * mu))


def _exp(value: float) -> float:
    return math.exp(min(value, 700.0))


def renyi(noise_multiplier: float, num_steps: int, delta: float) -> float:
    """The best order of K a / (2 s^2), in closed form (Mironov 2017, proposition 3)."""
    slope = num_steps / (2 * noise_multiplier**2)
    return slope + 2 * math.sqrt(slope * math.log(1 / delta))


@settings(deadline=None, max_examples=40)
@given(st.floats(0.5, 30.0), st.integers(1, 20), st.sampled_from([1e-5, 1e-6, 1e-9]))
def test_epsilon_is_a_bound_of_the_exact_curve_and_close_to_it(
    noise_multiplier: float, num_steps: int, delta: float
) -> None:
    found = epsilon(noise_multiplier, num_steps, delta)
    least = exact(noise_multiplier, num_steps, delta)
    assert least <= found <= 1.25 * least
    assert found <= renyi(noise_multiplier, num_steps, delta) * 1.01  # with a better conversion


@pytest.mark.parametrize("noise_multiplier", [1.0, 4.0])
def test_four_steps_cost_what_one_of_half_the_noise_costs(noise_multiplier: float) -> None:
    four, one = epsilon(noise_multiplier, 4, 1e-6), epsilon(noise_multiplier / 2, 1, 1e-6)
    assert four == pytest.approx(one, rel=1e-9)


@pytest.mark.parametrize("noise_multiplier", [1e-9, 1e5])
def test_epsilon_of_next_to_no_noise_and_of_very_much_is_a_number_in_order(
    noise_multiplier: float,
) -> None:
    found = epsilon(noise_multiplier, 2, 1e-6)
    assert found >= 0
    assert (found > 1e6) == (noise_multiplier < 1)


class Without(MetaPathFinder):
    """Finds that a package is not there."""

    def __init__(self, package: str) -> None:
        self._package = package

    def find_spec(self, name: str, *_: Any) -> None:
        if name == self._package:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def test_without_opacus_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "opacus"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [Without("opacus"), *sys.meta_path])
    with pytest.raises(PrivacyUnsupported, match=r'pip install "steelyard\[privacy\]"'):
        trainer(privacy=PrivacyConfig(noise_multiplier=1.0))
    trainer()  # which does without


@pytest.mark.parametrize(
    ("changes", "refusal"),
    [
        ({"loss": "in_batch_softmax"}, "learner.loss: got 'in_batch_softmax', expected pointwise"),
        ({"compute_share": 0.5}, "learner.compute_share: got 0.5, expected 1 with"),
        (
            {"rehearsal": RehearsalConfig(size_bytes=200_000)},
            "learner.rehearsal.size_bytes: got 200000, expected 0 with",
        ),
    ],
)
def test_what_lets_one_list_act_on_the_gradient_of_another_is_refused(
    changes: dict[str, Any], refusal: str
) -> None:
    with pytest.raises(ValueError, match=refusal):
        LearnerConfig(privacy=PrivacyConfig(noise_multiplier=1.0), **changes)
    LearnerConfig(privacy=PrivacyConfig(noise_multiplier=0.0), **changes)


def test_the_settings_are_left_out_of_versions_at_their_defaults() -> None:
    assert "privacy" not in LearnerConfig().on_disk()
    private = LearnerConfig(privacy=PrivacyConfig(noise_multiplier=1.0))
    assert private.on_disk()["privacy"]["noise_multiplier"] == 1.0
