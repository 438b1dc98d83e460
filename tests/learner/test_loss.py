"""L = 1/N sum w_i loss_i, against loops that spell the formula out."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from learner.losses.loss import Targets
from learner.losses.registry import LOSSES, losses_of
from weighting.tasks import CLICK, PURCHASE, TASKS

POINTWISE, LISTWISE = LOSSES["pointwise"], LOSSES["listwise"]
Samples = list[tuple[float, float, int, float, int]]
"""Logit, weight, label, examination probability, list."""
samples = st.lists(
    st.tuples(
        st.floats(-8, 8),
        st.floats(0, 5),
        st.integers(0, 1),
        st.sampled_from([1.0, 0.5, 0.1, 0.03]),
        st.integers(0, 3),
    ),
    min_size=1,
    max_size=20,
)


def columns(rows: Samples, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, Targets]:
    """Logits and targets of rows."""
    z, w, y, examination, of = (list(column) for column in zip(*rows, strict=True))
    weight, label = torch.tensor(w, dtype=dtype), torch.tensor(y, dtype=dtype)
    targets = Targets(
        a=weight * label,
        b=weight * (1 - label),
        examination=torch.tensor(examination, dtype=dtype),
        discount=torch.ones(len(z), dtype=dtype),
        list_id=torch.tensor(of, dtype=torch.long),
        num_lists=4,
    )
    return torch.tensor(z, dtype=dtype), targets


def no_samples() -> tuple[torch.Tensor, Targets]:
    z, targets = columns([(0.0, 0.0, 0, 1.0, 0)], torch.float32)
    none = torch.zeros(0, dtype=torch.long)
    return z[none], targets.at(none)


def plain_pointwise(rows: Samples) -> float:
    total = 0.0
    for z, w, y, examination, _ in rows:
        f = examination / (1 + math.exp(-z))  # clicked = looked at and found worth it
        total += w * (-math.log(f) if y else -math.log(1 - f))
    return total


def plain_listwise(rows: Samples) -> float:
    total = 0.0
    for z, w, y, examination, of in rows:
        everyone = sum(e * math.exp(other) for other, _, _, e, listed in rows if listed == of)
        total += w * y * -math.log(examination * math.exp(z) / everyone)
    return total


@settings(deadline=None)
@given(samples)
def test_the_pointwise_loss_is_the_sum_of_each_sample_s_own_weighted_cross_entropy(
    rows: Samples,
) -> None:
    expected = plain_pointwise(rows)
    for dtype, tolerance in ((torch.float64, 1e-6), (torch.float32, 1e-3)):
        found = POINTWISE(*columns(rows, dtype)).item()
        assert found == pytest.approx(expected, rel=tolerance, abs=tolerance)


@settings(deadline=None)
@given(samples)
def test_the_listwise_loss_is_the_weighted_cross_entropy_of_each_list_s_softmax(
    rows: Samples,
) -> None:
    found = LISTWISE(*columns(rows, torch.float32)).item()
    assert found == pytest.approx(plain_listwise(rows), rel=1e-4, abs=1e-4)


@settings(deadline=None, max_examples=30)
@given(samples)
def test_the_gradients_are_those_of_the_formulas(rows: Samples) -> None:
    z, targets = columns(rows)
    z.requires_grad_()
    assert torch.autograd.gradcheck(lambda logit: POINTWISE(logit, targets), (z,))
    z, targets = columns(rows, torch.float32)
    z.requires_grad_()
    LISTWISE(z, targets).backward()  # type: ignore[no-untyped-call]
    assert z.grad is not None
    for i in range(len(rows)):
        up, down = (plain_listwise(moved(rows, i, h)) for h in (1e-5, -1e-5))
        assert z.grad[i].item() == pytest.approx((up - down) / 2e-5, rel=1e-2, abs=1e-3)


def moved(rows: Samples, place: int, by: float) -> Samples:
    """Rows with one logit changed."""
    return [(z + (by if i == place else 0.0), *rest) for i, (z, *rest) in enumerate(rows)]  # type: ignore[misc]


@settings(deadline=None)
@given(samples, st.integers(0, 2**32 - 1))
def test_the_order_of_a_step_s_samples_does_not_count(rows: Samples, seed: int) -> None:
    place = torch.from_numpy(np.random.default_rng(seed).permutation(len(rows)))
    for loss, dtype, tolerance in (
        (POINTWISE, torch.float64, 1e-9),
        (LISTWISE, torch.float32, 1e-4),
    ):
        z, targets = columns(rows, dtype)
        shuffled = loss(z[place], targets.at(place)).item()
        expected = loss(z, targets).item()
        assert shuffled == pytest.approx(expected, rel=tolerance, abs=tolerance)


def test_extreme_logits_lose_a_finite_amount_and_push_back() -> None:
    for z, y in ((80.0, 0), (-80.0, 1), (500.0, 0)):
        logit, targets = columns([(z, 1.0, y, 1.0, 0)], torch.float32)
        logit.requires_grad_()
        loss = POINTWISE(logit, targets)
        loss.backward()  # type: ignore[no-untyped-call]
        assert logit.grad is not None
        assert math.isfinite(loss.item())
        assert torch.isfinite(logit.grad).all()


def test_a_list_without_a_positive_and_no_sample_at_all_add_nothing() -> None:
    rows: Samples = [(1.0, 2.0, 0, 1.0, 0), (3.0, 2.0, 0, 0.5, 0)]
    assert LISTWISE(*columns(rows, torch.float32)).item() == 0
    assert LISTWISE(*no_samples()).item() == 0
    assert POINTWISE(*no_samples()).item() == 0


def test_a_task_takes_its_own_loss_or_the_configured_one() -> None:
    for configured in LOSSES:
        losses = losses_of(TASKS, configured=configured)
        assert losses == {CLICK: LOSSES[configured], PURCHASE: POINTWISE}
    assert [loss.whole_lists for loss in (POINTWISE, LISTWISE)] == [False, True]


def test_discounts_do_not_move_what_the_listwise_loss_learns() -> None:
    """At the true logits the expected gradient is zero, whatever was seen how often before."""
    logit = torch.tensor([0.3, -0.7, 1.1, 0.0], dtype=torch.float64)
    examination = torch.tensor([1.0, 0.5, 0.3, 0.2], dtype=torch.float64)
    discount = torch.tensor([1.0, 0.2, 0.6, 0.0], dtype=torch.float64)
    chosen = torch.softmax(logit + torch.log(examination), dim=0)
    for weight, expected in ((discount, True), (torch.ones(4, dtype=torch.float64), False)):
        z = logit.clone().requires_grad_()
        total = torch.zeros((), dtype=torch.float64)
        for i, p in enumerate(chosen.tolist()):
            clicked = torch.eye(4, dtype=torch.float64)[i]
            targets = Targets(
                a=discount * clicked,
                b=discount * (1 - clicked),
                examination=examination,
                discount=weight,
                list_id=torch.zeros(4, dtype=torch.long),
                num_lists=1,
            )
            total = total + p * LISTWISE(z, targets)
        total.backward()  # type: ignore[no-untyped-call]
        assert z.grad is not None
        assert (z.grad.abs().max().item() < 1e-9) == expected
