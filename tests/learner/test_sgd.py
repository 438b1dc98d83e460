"""SGD in samples: torch's own at the reference size, and the same way under every cut."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from learner.errors import OptimizerChanged
from learner.training.adamw import Group
from learner.training.optimizer import Optimizer
from learner.training.schedule import Schedule
from learner.training.sgd import SGD
from tests.learner.training import lists, trainer

REFERENCE = 64
momenta = st.sampled_from([0.0, 0.5, 0.9])


def moved(cut: Sequence[int], gradient: torch.Tensor, momentum: float) -> torch.Tensor:
    """Where steps of these sizes with one gradient lead, from a moving start."""
    p = torch.nn.Parameter(torch.ones_like(gradient))
    own = SGD([Group(parameters=[p], lr=0.01)], REFERENCE, momentum=momentum)
    p.grad = torch.ones_like(gradient)
    own.step(REFERENCE)
    for size in cut:
        p.grad = gradient.clone()
        own.step(size)
    return torch.stack([p.detach(), own.state()[p]["momentum"]])


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_a_step_of_the_reference_size_is_a_step_of_torch_s_sgd(momentum: float) -> None:
    draw = torch.Generator().manual_seed(0)
    start, gradients = torch.randn(7, generator=draw), torch.randn(20, 7, generator=draw)
    ours, theirs = (torch.nn.Parameter(start.clone()) for _ in range(2))
    own = SGD([Group(parameters=[ours], lr=0.1, weight_decay=0.3)], REFERENCE, momentum=momentum)
    reference = torch.optim.SGD([theirs], lr=0.1, momentum=momentum, weight_decay=0.3)
    for gradient in gradients:
        ours.grad, theirs.grad = gradient.clone(), gradient.clone()
        own.step(REFERENCE)
        reference.step()
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(1, 300), min_size=1, max_size=6), momenta)
def test_steps_with_one_gradient_lead_where_one_step_of_their_sum_does(
    cut: list[int], momentum: float
) -> None:
    gradient = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    whole, parts = moved([sum(cut)], gradient, momentum), moved(cut, gradient, momentum)
    torch.testing.assert_close(whole, parts, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_a_step_of_twice_the_size_is_two_steps_in_expectation(momentum: float) -> None:
    """Over noisy gradients: the means of where they lead agree within four standard errors."""
    draw = torch.Generator().manual_seed(1)
    noise = torch.randn(2, 4000, generator=draw, dtype=torch.float64)
    g1, g2 = 1 + noise
    ends = []
    for sizes, gradients in (
        ((2 * REFERENCE,), ((g1 + g2) / 2,)),
        ((REFERENCE, REFERENCE), (g1, g2)),
    ):
        p = torch.nn.Parameter(torch.zeros(4000, dtype=torch.float64))
        own = SGD([Group(parameters=[p], lr=0.01)], REFERENCE, momentum=momentum)
        for size, gradient in zip(sizes, gradients, strict=True):
            p.grad = gradient.clone()
            own.step(size)
        ends.append(p.detach())
    error = float((ends[0] - ends[1]).std()) / 4000**0.5
    assert abs(float((ends[0] - ends[1]).mean())) < 4 * error + 1e-12
    assert abs(float(ends[0].mean())) > 100 * error


@settings(deadline=None)
@given(st.booleans(), st.integers(1, 500), st.lists(st.integers(1, 400), min_size=2, max_size=9))
def test_the_rate_over_a_stream_does_not_depend_on_its_cut(
    falls: bool, warm_up: int, cut: list[int]
) -> None:
    schedule = Schedule(inverse_sqrt=falls, warm_up_samples=warm_up)
    ends = [sum(cut[:i]) for i in range(len(cut) + 1)]
    parts = sum(schedule.mean(a, b - a) * (b - a) for a, b in pairwise(ends))
    assert parts == pytest.approx(schedule.mean(0, ends[-1]) * ends[-1])
    by_sample = sum(
        min((n + 0.5) / warm_up, (warm_up / (n + 0.5)) ** 0.5 if falls else 1.0)
        for n in range(ends[-1])
    )
    assert parts == pytest.approx(by_sample, rel=0.01, abs=0.3)


def test_without_a_schedule_the_rate_is_what_it_was_to_the_bit() -> None:
    none = Schedule(inverse_sqrt=False, warm_up_samples=0)
    assert none.constant
    assert {none.mean(n, size) for n in (0, 7, 10**12) for size in (0, 1, 320)} == {1.0}
    after = Schedule(inverse_sqrt=False, warm_up_samples=1000)
    assert {after.mean(n, size) for n in (1000, 10**12) for size in (1, 320)} == {1.0}


def test_a_falling_rate_never_ends() -> None:
    schedule = Schedule(inverse_sqrt=True, warm_up_samples=1000)
    assert schedule.mean(10**11, 320) == pytest.approx(1e-4, rel=1e-3)


def test_the_scheduled_rate_is_what_a_step_moves_by() -> None:
    def distance(**changes: Any) -> float:
        own = trainer(
            optimizer="sgd",
            head_lr=0.5,
            momentum=0.0,
            weight_decay=0.0,
            l2_sp_samples=0.0,
            **changes,
        )
        before = own.ranker.bias.detach().clone()
        own.step(lists(4))
        return float((own.ranker.bias.detach() - before).abs())

    num_samples = len(lists(4))
    warming = distance(warm_up_samples=10 * num_samples)
    assert warming == pytest.approx(distance() / 20, rel=0.05)


def test_the_schedule_goes_on_behind_a_checkpoint_and_starts_where_it_is_new() -> None:
    own = trainer(warm_up_samples=1000)
    own.step(lists(4))
    state = own.components.optimizer.state()
    assert int(state["schedule|num_samples"]) == len(lists(4))
    assert "schedule|num_samples" not in trainer().components.optimizer.state()
    plain = trainer()
    plain.step(lists(4))
    for given_state, expected in ((state, len(lists(4))), (plain.components.optimizer.state(), 0)):
        again = trainer(warm_up_samples=1000)
        other = Optimizer(again.config, again.ranker, again.process_group)
        other.restore(given_state)
        assert int(other.state()["schedule|num_samples"]) == expected
    plain.components.optimizer.restore(state)  # a schedule given up leaves nothing behind
    assert "schedule|num_samples" not in plain.components.optimizer.state()


@pytest.mark.parametrize(("ours", "theirs"), [("sgd", "adamw"), ("adamw", "sgd")])
def test_the_state_of_another_optimiser_is_refused_by_name(ours: str, theirs: str) -> None:
    written = trainer(optimizer=theirs)
    written.step(lists(4))
    message = f"learner.optimizer: got {ours}, but the checkpoint holds the state of {theirs}"
    with pytest.raises(OptimizerChanged, match=message):
        trainer(optimizer=ours).components.optimizer.restore(written.components.optimizer.state())


def test_a_gradient_of_a_refused_step_is_gone_as_after_a_resume() -> None:
    """No step was taken, so a checkpoint has nothing of it; nor has who goes on without one."""
    p = torch.nn.Parameter(torch.ones(3))
    own = SGD([Group(parameters=[p], lr=0.1, weight_decay=0.1)], REFERENCE, momentum=0.9)
    p.grad = torch.full((3,), torch.nan)
    own.zero_grad()
    own.step(REFERENCE)
    assert torch.equal(p.detach(), torch.ones(3))
    assert own.state() == {}


def test_what_has_momentum_moves_without_a_gradient_restored_or_not() -> None:
    ends = []
    for restored in (False, True):
        p = torch.nn.Parameter(torch.ones(3))
        groups = [Group(parameters=[p], lr=0.1, weight_decay=0.1)]
        own = SGD(groups, REFERENCE, momentum=0.9)
        p.grad = torch.ones(3)
        own.step(REFERENCE)
        before = p.detach().clone()
        if restored:
            state, own = own.state(), SGD(groups, REFERENCE, momentum=0.9)
            own.restore(state)
        own.zero_grad()
        own.step(REFERENCE)
        assert not torch.equal(p.detach(), before)
        ends.append(torch.stack([p.detach(), own.state()[p]["momentum"]]))
    assert torch.equal(*ends)
