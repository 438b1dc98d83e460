"""L = 1/N sum w_i loss_i, against loops that spell the formula out."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import fields

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from learner.losses.label_smoothing import LabelSmoothing
from learner.losses.loss import Loss, Targets
from learner.losses.registry import LOSSES, losses_of
from learner.losses.task_weights import TaskWeights
from weighting.tasks import CLICK, PURCHASE, TASKS

POINTWISE, LISTWISE = LOSSES["pointwise"], LOSSES["listwise"]
SQUARED, PAIRWISE = LOSSES["squared_error"], LOSSES["pairwise"]
SHOWN = {name: loss for name, loss in LOSSES.items() if not loss.across_lists}
"""Losses of what was shown; for the others see `test_in_batch_softmax`."""
PRIOR = 0.3
Samples = list[tuple[float, float, int, float, int]]
"""Logit, weight, label, examination probability, list."""
samples = st.lists(
    st.tuples(
        st.floats(-8, 8),
        st.one_of(st.just(0.0), st.floats(0.01, 5)),
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
        prior=torch.full((len(z),), PRIOR, dtype=dtype),
        list_id=torch.tensor(of, dtype=torch.long),
        num_lists=4,
        longest_list=max(Counter(of).values()),
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


def plain_squared(rows: Samples) -> float:
    total = 0.0
    for z, w, y, examination, _ in rows:
        total += w * (y - examination / (1 + math.exp(-z))) ** 2
    return total


def plain_pairwise(rows: Samples) -> float:
    total = 0.0
    for z, w, y, examination, of in rows:
        left = [(e, other) for other, v, x, e, at in rows if at == of and v > 0 and not x]
        for e, other in left if y else ():
            ours, theirs = examination * math.exp(z), e * math.exp(other)
            total += w / len(left) * -math.log(ours / (ours + theirs))
    return total


PLAIN = {
    "pointwise": plain_pointwise,
    "squared_error": plain_squared,
    "pairwise": plain_pairwise,
    "listwise": plain_listwise,
}
"""The formulas, spelled out."""


@settings(deadline=None, max_examples=30)
@given(samples)
def test_the_squared_error_is_that_of_each_sample_s_probability(rows: Samples) -> None:
    expected = pytest.approx(plain_squared(rows), rel=1e-6, abs=1e-9)
    assert SQUARED(*columns(rows)).item() == expected


@settings(deadline=None, max_examples=30)
@given(samples)
def test_the_pairwise_loss_is_the_mean_over_what_was_not_clicked_beside_each_click(
    rows: Samples,
) -> None:
    expected = pytest.approx(plain_pairwise(rows), rel=1e-6, abs=1e-9)
    assert PAIRWISE(*columns(rows)).item() == expected


@settings(deadline=None, max_examples=30)
@given(samples)
def test_the_pointwise_loss_is_the_sum_of_each_sample_s_own_weighted_cross_entropy(
    rows: Samples,
) -> None:
    expected = plain_pointwise(rows)
    for dtype, tolerance in ((torch.float64, 1e-6), (torch.float32, 1e-3)):
        found = POINTWISE(*columns(rows, dtype)).item()
        assert found == pytest.approx(expected, rel=tolerance, abs=tolerance)


@settings(deadline=None, max_examples=30)
@given(samples)
def test_the_listwise_loss_is_the_weighted_cross_entropy_of_each_list_s_softmax(
    rows: Samples,
) -> None:
    found = LISTWISE(*columns(rows, torch.float32)).item()
    assert found == pytest.approx(plain_listwise(rows), rel=1e-4, abs=1e-4)


@settings(deadline=None, max_examples=15)
@given(samples)
def test_the_gradients_are_those_of_the_formulas(rows: Samples) -> None:
    z, targets = columns(rows)
    z.requires_grad_()
    assert torch.autograd.gradcheck(lambda logit: POINTWISE(logit, targets), (z,))
    for name, plain in PLAIN.items():
        z, targets = columns(rows, torch.float32)
        z.requires_grad_()
        LOSSES[name](z, targets).backward()  # type: ignore[no-untyped-call]
        assert z.grad is not None
        for i in range(len(rows)):
            up, down = (plain(moved(rows, i, h)) for h in (1e-5, -1e-5))
            assert z.grad[i].item() == pytest.approx((up - down) / 2e-5, rel=1e-2, abs=1e-3), name


def moved(rows: Samples, place: int, by: float) -> Samples:
    """Rows with one logit changed."""
    return [(z + (by if i == place else 0.0), *rest) for i, (z, *rest) in enumerate(rows)]  # type: ignore[misc]


@settings(deadline=None, max_examples=30)
@given(samples, st.integers(0, 2**32 - 1))
def test_the_order_of_a_step_s_samples_does_not_count(rows: Samples, seed: int) -> None:
    place = torch.from_numpy(np.random.default_rng(seed).permutation(len(rows)))
    for loss in SHOWN.values():
        z, targets = columns(rows)
        shuffled = loss(z[place], targets.at(place)).item()
        expected = loss(z, targets).item()
        assert shuffled == pytest.approx(expected, rel=1e-9, abs=1e-9)


@settings(deadline=None, max_examples=30)
@given(samples)
def test_twice_the_weights_are_twice_the_loss(rows: Samples) -> None:
    twice: Samples = [(z, 2 * w, y, e, of) for z, w, y, e, of in rows]
    for loss in SHOWN.values():
        expected = pytest.approx(2 * loss(*columns(rows)).item(), rel=1e-9, abs=1e-12)
        assert loss(*columns(twice)).item() == expected


@settings(deadline=None, max_examples=30)
@given(samples, st.data())
def test_a_sample_that_counts_nothing_is_as_good_as_absent(
    rows: Samples, data: st.DataObject
) -> None:
    """Its weight and its discount are 0: the softmax of a list is of what its discounts leave."""
    out = data.draw(st.integers(0, len(rows) - 1))
    z, targets = columns(
        [(*row[:1], 0.0 if i == out else row[1], *row[2:]) for i, row in enumerate(rows)]
    )
    targets.discount[out] = 0.0
    others = torch.tensor([i for i in range(len(rows)) if i != out], dtype=torch.long)
    for name, loss in SHOWN.items():
        muted = z.clone().requires_grad_()
        found = loss(muted, targets)
        expected = loss(z[others], targets.at(others)).item()
        assert found.item() == pytest.approx(expected, rel=1e-6, abs=1e-6), name
        (gradient,) = torch.autograd.grad(found, muted)
        assert abs(gradient[out].item()) < 1e-6, name


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
    for loss in SHOWN.values():
        assert loss(*no_samples()).item() == 0
        if not loss.learns_bias:
            assert loss(*columns(rows, torch.float32)).item() == 0


@settings(deadline=None, max_examples=30)
@given(samples, st.floats(-3, 3))
def test_a_loss_that_compares_items_does_not_learn_the_bias(rows: Samples, by: float) -> None:
    for name, loss in SHOWN.items():
        z, targets = columns(rows)
        bias = torch.tensor(by, dtype=torch.float64, requires_grad=True)
        (gradient,) = torch.autograd.grad(loss(z + bias, targets), bias)
        expected = loss.learns_bias and any(w > 0 for _, w, _, _, _ in rows)
        assert (abs(gradient.item()) > 1e-9) <= expected, name


def test_what_is_badly_wrong_pulls_less_under_the_squared_error_and_more_under_cross_entropy() -> (
    None
):
    def pull(loss: Loss, z: float) -> float:
        logit, targets = columns([(z, 1.0, 1, 1.0, 0)])
        logit.requires_grad_()
        (gradient,) = torch.autograd.grad(loss(logit, targets), logit)
        return -gradient.item()

    assert pull(SQUARED, -6.0) < pull(SQUARED, -1.0)
    assert pull(POINTWISE, -6.0) > pull(POINTWISE, -1.0)


def test_a_task_takes_its_own_loss_or_the_configured_one() -> None:
    for configured in LOSSES:
        losses = losses_of(TASKS, configured=configured)
        assert losses == {CLICK: LOSSES[configured], PURCHASE: POINTWISE}
    assert {name for name, loss in LOSSES.items() if loss.whole_lists} == {
        "pairwise",
        "listwise",
        "in_batch_softmax",
    }


@pytest.mark.parametrize("loss", [PAIRWISE, LISTWISE], ids=["pairwise", "listwise"])
def test_discounts_and_places_do_not_move_what_a_loss_of_lists_learns(loss: Loss) -> None:
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
                prior=weight,
                list_id=torch.zeros(4, dtype=torch.long),
                num_lists=1,
                longest_list=4,
            )
            total = total + p * loss(z, targets)
        total.backward()  # type: ignore[no-untyped-call]
        assert z.grad is not None
        assert (z.grad.abs().max().item() < 1e-9) == expected


def plain_smoothed(name: str, rows: Samples, share: float) -> float:
    """The formula with each label replaced by its expectation, spelled out."""
    if name in ("pointwise", "squared_error"):
        soft = 0.0
        for z, w, _, examination, of in rows:
            for label, chance in ((1, PRIOR * examination), (0, 1 - PRIOR * examination)):
                soft += chance * PLAIN[name]([(z, w, label, examination, of)])
    else:
        soft = 0.0
        for listed in range(4):
            own = [row for row in rows if row[4] == listed]
            counting = [row for row in own if row[1] > 0]
            clicks = sum(w * y for _, w, y, _, _ in own)
            total = sum(e for _, _, _, e, _ in counting)
            for chosen in counting:
                one: Samples = [
                    (
                        z,
                        (clicks * e / total if row is chosen else float(w > 0)),
                        int(row is chosen),
                        e,
                        of,
                    )
                    for row in own
                    for z, w, _, e, of in [row]
                ]
                soft += PLAIN[name](one) if clicks else 0.0
    return (1 - share) * PLAIN[name](rows) + share * soft


@settings(deadline=None, max_examples=30)
@given(samples, st.sampled_from([0.05, 0.3]))
def test_a_smoothed_loss_is_that_of_the_labels_and_of_what_was_expected_of_them(
    rows: Samples, share: float
) -> None:
    for name, loss in SHOWN.items():
        found = LabelSmoothing(loss, share)(*columns(rows)).item()
        assert found == pytest.approx(plain_smoothed(name, rows, share), rel=1e-6, abs=1e-9), name


def test_labels_are_smoothed_only_where_it_is_asked_for() -> None:
    for configured in SHOWN:
        smoothed = losses_of(TASKS, configured=configured, label_smoothing=0.1)
        for task, plain in losses_of(TASKS, configured=configured).items():
            assert isinstance(smoothed[task], LabelSmoothing)
            assert smoothed[task].whole_lists == plain.whole_lists
            assert smoothed[task].learns_bias == plain.learns_bias
            assert not isinstance(plain, LabelSmoothing)


def test_every_task_has_a_weight_and_today_s_sum_is_the_default() -> None:
    assert {entry.name for entry in fields(TaskWeights)} == {*TASKS, "purchase_over_all", "value"}
    assert TaskWeights().purchase_over_all == TaskWeights().value == 0
    assert all(TaskWeights().of(task) == 1.0 for task in TASKS)
