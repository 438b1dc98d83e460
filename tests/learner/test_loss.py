"""L = 1/N sum w_i loss_i, against loops that spell the formula out."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from learner.loss import listwise, pointwise

Samples = list[tuple[float, float, int, float, int]]  # logit, weight, label, seen, list
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


def columns(
    rows: Samples, dtype: torch.dtype = torch.float64
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, list[str]]:
    z, w, y, seen, of = (list(column) for column in zip(*rows, strict=True))
    weight, label = torch.tensor(w, dtype=dtype), torch.tensor(y, dtype=dtype)
    return (
        torch.tensor(z, dtype=dtype),
        weight * label,
        weight * (1 - label),
        torch.tensor(seen, dtype=dtype),
        [f"list-{i}" for i in of],
    )


def plain_pointwise(rows: Samples) -> float:
    total = 0.0
    for z, w, y, seen, _ in rows:
        f = seen / (1 + math.exp(-z))  # clicked = looked at and found worth it
        total += w * (-math.log(f) if y else -math.log(1 - f))
    return total


def plain_listwise(rows: Samples) -> float:
    total = 0.0
    for z, w, y, seen, of in rows:
        everyone = sum(
            other_seen * math.exp(other_z)
            for other_z, _, _, other_seen, other in rows
            if other == of
        )
        total += w * y * -math.log(seen * math.exp(z) / everyone)
    return total


@settings(deadline=None)
@given(samples)
def test_the_pointwise_loss_is_the_sum_of_each_sample_s_own_weighted_cross_entropy(
    rows: Samples,
) -> None:
    z, a, b, seen, _ = columns(rows)
    assert pointwise(z, a, b, seen).item() == pytest.approx(
        plain_pointwise(rows), rel=1e-6, abs=1e-6
    )
    z, a, b, seen, _ = columns(rows, torch.float32)
    assert pointwise(z, a, b, seen).item() == pytest.approx(
        plain_pointwise(rows), rel=1e-3, abs=1e-3
    )


@settings(deadline=None)
@given(samples)
def test_the_listwise_loss_is_the_weighted_cross_entropy_of_each_list_s_softmax(
    rows: Samples,
) -> None:
    z, a, _, seen, of = columns(rows, torch.float32)
    assert listwise(z, a, seen, of).item() == pytest.approx(
        plain_listwise(rows), rel=1e-4, abs=1e-4
    )


@settings(deadline=None, max_examples=30)
@given(samples)
def test_the_gradients_are_those_of_the_formulas(rows: Samples) -> None:
    z, a, b, seen, of = columns(rows)
    z.requires_grad_()
    assert torch.autograd.gradcheck(lambda logit: pointwise(logit, a, b, seen), (z,))
    z, a, _, seen, of = columns(rows, torch.float32)
    z.requires_grad_()
    listwise(z, a, seen, of).backward()  # type: ignore[no-untyped-call]
    assert z.grad is not None
    for i in range(len(rows)):
        up, down = (
            [(r[0] + (h if j == i else 0.0), *r[1:]) for j, r in enumerate(rows)]
            for h in (1e-5, -1e-5)
        )
        assert z.grad[i].item() == pytest.approx(
            (plain_listwise(up) - plain_listwise(down)) / 2e-5, rel=1e-2, abs=1e-3
        )


@settings(deadline=None)
@given(samples, st.integers(0, 2**32 - 1))
def test_the_order_of_a_step_s_samples_does_not_count(rows: Samples, seed: int) -> None:
    z, a, b, seen, of = columns(rows)
    place = np.random.default_rng(seed).permutation(len(rows)).tolist()
    assert pointwise(z[place], a[place], b[place], seen[place]).item() == pytest.approx(
        pointwise(z, a, b, seen).item(), abs=1e-9
    )
    z, a, b, seen, of = columns(rows, torch.float32)
    assert listwise(
        z[place], a[place], seen[place], [of[i] for i in place]
    ).item() == pytest.approx(listwise(z, a, seen, of).item(), rel=1e-4, abs=1e-4)


def test_extreme_logits_lose_a_finite_amount_and_push_back() -> None:
    for z, y in ((80.0, 0), (-80.0, 1), (500.0, 0)):
        logit, a, b, seen, _ = columns([(z, 1.0, y, 1.0, 0)], torch.float32)
        logit.requires_grad_()
        loss = pointwise(logit, a, b, seen)
        loss.backward()  # type: ignore[no-untyped-call]
        assert logit.grad is not None
        assert math.isfinite(loss.item())
        assert torch.isfinite(logit.grad).all()


def test_a_list_without_a_positive_and_no_sample_at_all_add_nothing() -> None:
    z, a, _, seen, of = columns([(1.0, 2.0, 0, 1.0, 0), (3.0, 2.0, 0, 0.5, 0)], torch.float32)
    assert listwise(z, a, seen, of).item() == 0
    empty = torch.zeros(0)
    assert listwise(empty, empty, empty, []).item() == 0
    assert pointwise(empty, empty, empty, empty).item() == 0
