"""DP-SGD on lists: clipping per list, noise, exact resumption, and what is said about it."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry
from scipy.stats import kstest
from torch import Tensor, nn

from learner import arithmetic
from learner import version_layout as layout
from learner.errors import PrivacyUnsupported
from learner.process_group import SingleProcess
from learner.residual import ResidualConfig
from learner.telemetry import Telemetry
from learner.trainer import Trainer
from learner.training.budget import PrivacyConfig, epsilon
from learner.training.privacy import PrivateSum
from tests.learner.training import batches, config, lists, reader, same, trainer, weights_of
from weighting.clip import ClipConfig
from weighting.config import WeigherConfig
from weighting.sample import Sample
from weighting.tasks import CLICK
from weighting.weigher import Weigher
from weighting.weighted import WeightedBatch

arithmetic.use(1)
SILENT = 1e-30
"""A noise multiplier of nothing, with which everything else is as with noise."""
KINDS: list[dict[str, Any]] = [
    {"tuning": "full"},
    {"tuning": "top:1", "loss": "listwise"},
    {"tuning": "full", "interaction": "cross_encoder", "loss": "pairwise"},
    {"tuning": "frozen"},
    {"tuning": "top:1", "loss": "listwise", "max_step_tokens": 40},
]


class Counted(Weigher):
    """Weighs as any other, without a scale that depends on others, times a test's factor."""

    def __init__(self, factor: float = 1.0) -> None:
        super().__init__(WeigherConfig(clip=ClipConfig(normalise="raw")))
        self._factor = factor

    def weigh(self, samples: Sequence[Sample]) -> WeightedBatch:
        found = super().weigh(samples)
        changed = {name: getattr(found, name) * self._factor for name in ("a", "b", "weight")}
        return dataclasses.replace(found, **changed)


def secrets(name: str = "one") -> Callable[[int], bytes]:
    """Secrets that a test can give twice."""
    numbers = itertools.count()
    return lambda size: hashlib.shake_256(f"{name}{next(numbers)}".encode()).digest(size)


def private(
    noise_multiplier: float = 1.0,
    max_norm: float = 1.0,
    *,
    most: int = 2,
    weigher: Weigher | None = None,
    secret: Callable[[int], bytes] | None = None,
    **changes: Any,
) -> Trainer:
    own = PrivacyConfig(
        noise_multiplier=noise_multiplier, max_norm=max_norm, max_contributions=most
    )
    learner = config(**{"max_grad_norm": 1e9, "privacy": own, **changes})
    return Trainer(learner, weigher or Counted(), secret=secret or secrets())


def gradient(own: Trainer, samples: list[Sample]) -> Tensor:
    """The gradient that a step took, as one vector; zeros where there was none."""
    own.step(samples)
    moving = [p for _, p in own.ranker.named_parameters() if p.requires_grad]
    parts = [torch.zeros_like(p) if p.grad is None else p.grad for p in moving]
    return torch.cat([p.flatten() for p in parts]).double()


def by_hand(samples: list[Sample], max_norm: float, factor: float, **kind: Any) -> Tensor:
    """Sum of clipped gradients of lists, each from a step of a learner without privacy.

    What a list weighs depends on those before it, so every step has all samples, and the loss of
    the other lists is taken out.
    """
    total, names = torch.zeros(1).double(), dict.fromkeys(s.list_id for s in samples)
    for name in names:

        class Alone(Counted):
            def weigh(self, given: Sequence[Sample], name: str = name) -> WeightedBatch:
                found = super().weigh(given)
                own = np.array([s.list_id == name for s in given], dtype=np.float32)
                return dataclasses.replace(found, a=found.a * own, b=found.b * own)

        plain = Trainer(config(max_grad_norm=1e9, **kind), Alone(factor))
        own = gradient(plain, samples)
        norm = float(own.norm()) * len(samples)
        total = total + own * min(1.0, max_norm / max(norm, 1e-30))
    return total


@pytest.mark.parametrize("kind", KINDS[:4], ids=str)
def test_without_noise_and_bound_a_step_is_the_plain_step(kind: dict[str, Any]) -> None:
    samples = lists(4)
    expected = gradient(Trainer(config(max_grad_norm=1e9, **kind), Counted()), samples)
    found = gradient(private(SILENT, 1e9, **kind), samples)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    assert float(expected.norm()) > 1e-3


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("max_norm", [0.05, 1.0])
def test_each_list_is_clipped_over_all_that_moves_and_then_summed(
    kind: dict[str, Any], max_norm: float
) -> None:
    samples = lists(3)
    expected = by_hand(samples, max_norm, 1.0, **kind)
    found = gradient(private(SILENT, max_norm, **kind), samples)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-6)
    assert float(found.norm()) * len(samples) <= 3 * max_norm


def test_weights_are_in_the_gradient_before_it_is_clipped() -> None:
    samples, single, double = lists(3), Counted(), Counted(2.0)
    free = [gradient(private(SILENT, 1e9, weigher=w), samples) for w in (Counted(), Counted(2.0))]
    torch.testing.assert_close(free[1], 2 * free[0], rtol=1e-4, atol=1e-6)
    bound = [gradient(private(SILENT, 1e-3, weigher=w), samples) for w in (single, double)]
    torch.testing.assert_close(bound[1], bound[0], rtol=1e-3, atol=1e-9)
    assert float(bound[0].norm()) * len(samples) <= 3 * 1e-3


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 10_000), st.floats(1e-3, 1e3), st.floats(1e-3, 10), st.booleans())
def test_one_list_moves_the_sum_by_its_bound_at_most(
    seed: int, size: float, max_norm: float, partial: bool
) -> None:
    draw = torch.Generator().manual_seed(seed)
    parameters = [nn.Parameter(torch.zeros(n)) for n in (3, 5)]
    total = PrivateSum(parameters, max_norm=max_norm, noise=0.0, secret=b"secret")
    given = [size * torch.randn(n, generator=draw) for n in (3, 5)]
    parameters[0].grad = given[0].clone()
    parameters[1].grad = None if partial else given[1].clone()
    norm = float(torch.cat(given[: 1 if partial else 2]).double().norm())
    total.add()
    assert all(p.grad is None for p in parameters)
    total.finish(1)
    found = torch.cat([p.grad for p in parameters if p.grad is not None]).double()
    assert float(found.norm()) <= max_norm
    assert float(found.norm()) == pytest.approx(min(norm, max_norm), rel=1e-5)


def noise_of(
    sums: Sequence[float] = (0.0,), *, step: int = 1, noise: float = 3.0, secret: bytes = b"a"
) -> Tensor:
    """Noise on a sum of 20,000 numbers."""
    parameters = [nn.Parameter(torch.zeros(n)) for n in (12_000, 8_000)]
    total = PrivateSum(parameters, max_norm=1e9, noise=noise, secret=secret)
    for value in sums:
        for p in parameters:
            p.grad = torch.full_like(p, value)
        total.add()
    total.finish(step)
    found = torch.cat([p.grad for p in parameters if p.grad is not None])
    return (found - sum(sums)).double() / noise


def test_noise_is_normal_of_its_scale_in_every_parameter_with_or_without_a_gradient() -> None:
    z = noise_of()
    assert kstest(z.numpy(), "norm").pvalue > 1e-3
    assert float(z.var()) == pytest.approx(1.0, abs=0.04)
    assert abs(float((z[:8_000] * z[12_000:]).mean())) < 0.04  # two parameters
    assert abs(float((z[:-1] * z[1:]).mean())) < 0.03


@pytest.mark.parametrize(
    "changes", [{"step": 2}, {"secret": b"b"}, {"noise": 3.5}, {"sums": (1e-3,)}], ids=str
)
def test_noise_is_the_same_for_the_same_sum_alone(changes: dict[str, Any]) -> None:
    # With the same noise on another sum the difference of two versions would be the gradient
    first, other = noise_of(), noise_of(**changes)
    assert torch.equal(first, noise_of())
    assert abs(float((first * other).mean())) < 0.04


def test_noise_in_a_step_has_the_scale_that_the_settings_say() -> None:
    samples = lists(3)
    quiet, loud = (gradient(private(s, 0.5), samples) for s in (SILENT, 4.0))
    z = (loud - quiet) * len(samples) / (4.0 * 0.5)
    assert kstest(z.numpy(), "norm").pvalue > 1e-3
    assert float(z.std()) == pytest.approx(1.0, abs=0.02)


def test_a_learner_that_resumes_has_the_same_bits() -> None:
    steps = batches(4)
    through, first = private(dropout=0.1), private(dropout=0.1)
    for samples in steps[:2]:
        through.step(samples)
        first.step(samples)
    files = first.files()
    resumed = private(dropout=0.1, secret=secrets("another"))
    resumed.restore(reader(files))
    for samples in steps[2:]:
        through.step(samples)
        resumed.step(samples)
    assert through.files() == resumed.files()
    other = private(dropout=0.1, secret=secrets("another"))
    for samples in steps:
        other.step(samples)
    assert not same(weights_of(other), weights_of(resumed))


def test_the_secret_is_only_where_serving_does_not_read() -> None:
    given: list[bytes] = []

    def secret(size: int) -> bytes:
        given.append(bytes(range(size)))
        return given[-1]

    own = private(secret=secret)
    own.step(lists(2))
    (value,) = given
    assert len(value) == 32
    assert [name for name, data in own.files().items() if value in data] == [layout.PRIVACY]
    assert layout.PRIVACY.startswith("training/")
    assert layout.PRIVACY not in trainer().files()


def test_by_default_the_secret_is_of_the_system() -> None:
    own = PrivacyConfig(noise_multiplier=1.0)
    moved = []
    for _ in range(2):
        one = Trainer(config(privacy=own), Counted())
        one.step(lists(2))
        moved.append(weights_of(one))
    assert not same(*moved)


def test_contributions_beyond_the_bound_teach_nothing_and_are_counted() -> None:
    def last(samples: list[Sample], most: int) -> tuple[Trainer, Tensor]:
        own = private(SILENT, most=most, residual=ResidualConfig(steps=0))
        own.step(lists(2))
        return own, gradient(own, samples)

    again, new = lists(2), lists(1, start=50, seed=5)
    own, found = last([*again, *new], most=1)
    assert own.budget is not None
    assert own.budget.num_dropped == 2
    assert np.isfinite(list(own.evaluations[CLICK].get().values())).all()
    free, more = last([*again, *new], most=2)
    assert free.budget is not None
    assert free.budget.num_dropped == 0
    assert not torch.allclose(found, more)
    _, none = last(again, most=1)
    assert float(none.abs().max()) < 1e-20  # what noise there is
    assert own.num_samples == len(again) * 2 + len(new)


def test_an_epoch_more_is_a_contribution_more() -> None:
    own = private(SILENT, most=2)
    weighted = own.step(lists(2)).weighted
    own.repeat(weighted)
    before = own.budget
    own.repeat(weighted)
    assert before is not None
    assert own.budget is not None
    assert (before.num_dropped, own.budget.num_dropped) == (0, 2)


def test_the_budget_is_in_the_checkpoint_on_a_metric_and_on_the_card() -> None:
    own = private(1.5, most=3)
    report = own.step(lists(2))
    files, expected = own.files(), epsilon(1.5, 3, 1e-6)
    written = msgspec.json.decode(files[layout.PROGRESS])["privacy"]
    assert written["epsilon"] == expected
    assert (written["unit"], written["max_contributions"]) == ("list", 3)
    card = files[layout.CARD].decode()
    assert f"epsilon {expected:.3g} at delta 1e-06, from at most 3 steps" in card
    assert "does not cover" in card
    assert "## Privacy" not in trainer().files()[layout.CARD].decode()
    registry = CollectorRegistry()
    telemetry = Telemetry(registry)
    assert registry.get_sample_value("steelyard_privacy_epsilon") == float("inf")
    telemetry.stepped(report, own, 0.1)
    assert registry.get_sample_value("steelyard_privacy_epsilon") == expected
    assert registry.get_sample_value("steelyard_privacy_delta") == 1e-6


def test_a_budget_is_that_of_the_weakest_settings_that_were_in_force() -> None:
    first = private(2.0, most=4)
    first.step(lists(2))
    later = private(3.0, most=2)
    later.restore(reader(first.files()))
    assert later.budget is not None
    assert later.budget.epsilon == epsilon(2.0, 4, 1e-6)


def test_noise_that_came_later_says_since_when() -> None:
    plain = trainer(weighting=WeigherConfig(clip=ClipConfig(normalise="raw")))
    plain.step(lists(2))
    later = private()
    later.restore(reader(plain.files()))
    report = later.step(lists(2, start=9))
    assert later.budget is not None
    assert later.budget.since_step == 1
    assert "after step 1, and of nothing before" in later.files()[layout.CARD].decode()
    registry = CollectorRegistry()
    Telemetry(registry).stepped(report, later, 0.1)
    assert registry.get_sample_value("steelyard_privacy_epsilon") == float("inf")


class TwoRanks(SingleProcess):
    world = 2


def test_several_ranks_are_refused() -> None:
    own = config(privacy=PrivacyConfig(noise_multiplier=1.0))
    with pytest.raises(PrivacyUnsupported, match=r"noise_multiplier: got 1 with 2 ranks"):
        Trainer(own, Weigher(), TwoRanks())
