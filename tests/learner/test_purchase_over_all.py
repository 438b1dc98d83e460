"""Purchases over all shown items: the formula, what it recovers, and what a sample adds to it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import logsigmoid

from learner.losses.purchase_over_all import Outcomes, PurchaseOverAll
from learner.losses.task_weights import TaskWeights
from learner.training.columns import outcomes_of
from tests.learner import training
from tests.learner.training import lists, trainer, weights_of
from tests.weighting.streams import SECOND, sample
from weighting.caps import CapsConfig
from weighting.config import WeigherConfig
from weighting.constraints import SettingError
from weighting.sample import CopyKind, Sample
from weighting.tasks import CLICK, PURCHASE
from weighting.weigher import Weigher

LOSS = PurchaseOverAll()
CPU = torch.device("cpu")
Rows = list[tuple[float, float, float, float, float]]
"""Logits of click and purchase, weights of bought and left, examination probability."""
rows = st.lists(
    st.tuples(
        st.floats(-6, 6),
        st.floats(-6, 6),
        st.one_of(st.just(0.0), st.floats(0.01, 5)),
        st.one_of(st.just(0.0), st.floats(0.01, 5)),
        st.sampled_from([1.0, 0.5, 0.1, 0.03]),
    ),
    min_size=1,
    max_size=12,
)


def columns(given: Rows) -> tuple[Tensor, Tensor, Outcomes]:
    click, purchase, bought, left, theta = torch.tensor(given, dtype=torch.float64).T
    return click, purchase, Outcomes(bought, left, theta)


@settings(deadline=None, max_examples=30)
@given(rows)
def test_the_loss_is_the_cross_entropy_of_click_times_purchase_times_examination(
    given: Rows,
) -> None:
    total = 0.0
    for click, purchase, bought, left, theta in given:
        f = theta / (1 + math.exp(-click)) / (1 + math.exp(-purchase))
        total -= bought * math.log(f) + left * math.log(1 - f)
    assert LOSS(*columns(given)).item() == pytest.approx(total, rel=1e-9, abs=1e-9)


@settings(deadline=None, max_examples=15)
@given(rows)
def test_the_gradients_of_both_logits_are_the_finite_differences(given: Rows) -> None:
    click, purchase, outcomes = columns(given)
    logits = click.requires_grad_(), purchase.requires_grad_()
    assert torch.autograd.gradcheck(lambda c, p: LOSS(c, p, outcomes), logits)


def test_extreme_logits_lose_a_finite_amount_and_push_back() -> None:
    ends = torch.tensor([-80.0, -80.0, 80.0, 80.0], requires_grad=True)
    other = torch.tensor([-80.0, 80.0, -80.0, 80.0], requires_grad=True)
    ones = torch.ones(4)
    loss = LOSS(ends, other, Outcomes(ones, ones, ones))
    loss.backward()  # type: ignore[no-untyped-call]
    assert math.isfinite(loss.item())
    for grad in (ends.grad, other.grad):
        assert grad is not None
        assert grad.isfinite().all()
    assert ends.grad is not None
    assert ends.grad[0] < 0 < ends.grad[3]  # a purchase against f = 0, none against f = 1


# --- recovery -----------------------------------------------------------------------------------

P_CLICK, P_PURCHASE = np.array([0.8, 0.1]), np.array([0.1, 0.6])
"""Of two kinds of item, if examined: one is clicked often and seldom bought, one the reverse."""
NUM_PLACES = 3


def shop(num_lists: int, *, seed: int = 0) -> list[Sample]:
    """Samples of shown lists, as the join emits them; place k is examined with probability 1/k.

    Six of ten purchases come after the first copy of their sample.
    """
    draw, samples, awaited = np.random.default_rng(seed), [], []
    for i in range(num_lists):
        kinds = draw.integers(2, size=NUM_PLACES).tolist()
        shown, bought = [], []
        for place, kind in enumerate(kinds, 1):
            clicked = draw.random() < P_CLICK[kind] / place
            name = f"kind {kind}"
            one = sample(int(clicked), item_id=name, text=name, position=place, at=i * SECOND)
            one = msgspec.structs.replace(one, list_id=f"list {i}", list_size=NUM_PLACES)
            shown.append(msgspec.structs.replace(one, attribution_us=one.window_us))  # final
            if clicked:
                first = msgspec.structs.replace(one, task=PURCHASE, label=0)
                label, late = int(draw.random() < P_PURCHASE[kind]), draw.random() < 0.6
                bought.append(msgspec.structs.replace(first, label=int(label and not late)))
                if label and late:
                    kinds_late = {"label": 1, "copy_kind": CopyKind.LATE_POSITIVE}
                    awaited.append((i + 50, msgspec.structs.replace(first, **kinds_late)))
        samples += shown + bought + [s for due, s in awaited if due == i]
    return samples + [s for due, s in awaited if due >= num_lists]


UNCAPPED = CapsConfig(client_item=0, client=0, item=1.0)


def outcomes(samples: list[Sample]) -> Outcomes:
    batch = Weigher(WeigherConfig(caps=UNCAPPED)).weigh(samples)
    found = outcomes_of(batch, range(len(samples)), np.ones(len(samples)))
    return Outcomes(*(column.double() for column in found))


def fitted(loss: Callable[[Tensor], Tensor], size: int) -> Tensor:
    """Return the probabilities whose logits make a loss least."""
    logit = torch.zeros(size, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS([logit], max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimiser.zero_grad()
        found = loss(logit)
        found.backward()  # type: ignore[no-untyped-call]
        return found

    optimiser.step(closure)  # type: ignore[no-untyped-call]
    return torch.sigmoid(logit).detach()


def test_what_is_clicked_and_bought_is_recovered_where_learning_from_clicks_alone_is_biased() -> (
    None
):
    """A click head that cannot tell the kinds: clicks select one of them, and it does not know.

    Purchases told by their click are right among what was clicked, and their product with p(click)
    is far off over what was shown: it has the two kinds in the wrong order.
    """
    samples = shop(4000)
    own = outcomes(samples)
    kind = torch.tensor([int(s.item_id[-1]) for s in samples])
    level = torch.full((len(samples),), 0.0, dtype=torch.float64)
    p_click = 0.45
    level += math.log(p_click / (1 - p_click))
    over_all = p_click * fitted(lambda logit: LOSS(level, logit[kind], own), 2)
    is_purchase = torch.tensor([s.task == PURCHASE for s in samples])

    def of_clicks(logit: Tensor) -> Tensor:
        z = logit[kind]
        loss = own.bought * logsigmoid(z) + own.not_bought * logsigmoid(-z)
        return -(loss * is_purchase).sum()

    selected = p_click * fitted(of_clicks, 2)
    truth = torch.from_numpy(P_CLICK * P_PURCHASE)
    torch.testing.assert_close(over_all, truth, atol=0.015, rtol=0)
    torch.testing.assert_close(selected, p_click * torch.from_numpy(P_PURCHASE), atol=0.03, rtol=0)
    assert truth[0] > truth[1]
    assert selected[0] < selected[1] - 0.1


def test_both_probabilities_are_recovered_from_late_purchases_at_places_seldom_examined() -> None:
    samples = shop(4000, seed=1)
    own = outcomes(samples)
    kind = torch.tensor([int(s.item_id[-1]) for s in samples])
    is_click = torch.tensor([s.task == CLICK for s in samples])
    clicked = torch.tensor([s.label for s in samples]).double() * is_click

    def loss(logit: Tensor) -> Tensor:
        click, purchase = logit[:2][kind], logit[2:][kind]
        f = own.examination * torch.sigmoid(click)
        entropy = -(clicked * torch.log(f) + (1 - clicked) * torch.log(1 - f)) * is_click
        return LOSS(click, purchase, own) + entropy.sum()

    found = fitted(loss, 4)
    np.testing.assert_allclose(found[:2], P_CLICK, atol=0.03)
    np.testing.assert_allclose(found[2:], P_PURCHASE, atol=0.06)


def test_every_shown_item_counts_once_whenever_its_purchase_came() -> None:
    """In the mean over late purchases, by the delay correction."""
    samples = shop(4000, seed=2)
    own = outcomes(samples)
    num_shown = sum(s.task == CLICK for s in samples)
    assert (own.bought + own.not_bought).sum().item() == pytest.approx(num_shown, rel=0.005)
    num_bought = sum(s.task == PURCHASE and s.label for s in samples)
    assert own.bought.sum().item() == pytest.approx(num_bought)


# --- a learner ----------------------------------------------------------------------------------


def over_all(weight: float = 1.0) -> dict[str, Any]:
    weights = TaskWeights(click=0.0, purchase=0.0, purchase_over_all=weight)
    return {"task_weights": weights}


def test_the_loss_of_a_step_is_the_mean_of_every_outcome_s_weighted_cross_entropy() -> None:
    batch = lists(6)
    own = trainer(**over_all(2.0))
    with torch.no_grad():
        logits = own.ranker([s.query for s in batch], [s.text for s in batch]).by_task
    weighted = Weigher().weigh(batch)
    expected = 0.0
    for i, s in enumerate(batch):
        if s.task == CLICK and s.label:
            continue  # its purchase tells
        f = weighted.shown_examination[i]
        f *= torch.sigmoid(logits[CLICK][i]).item() * torch.sigmoid(logits[PURCHASE][i]).item()
        bought = s.task == PURCHASE and s.label
        expected -= float(weighted.weight[i]) * math.log(f if bought else 1 - f)
    assert own.step(batch).loss == pytest.approx(2 * expected / len(batch), rel=1e-5)


def test_what_was_not_clicked_moves_the_purchase_s_head() -> None:
    left = [s for s in lists(6) if s.task == CLICK and not s.label]
    own = trainer(weight_decay=0.0, **over_all())
    before = weights_of(own)
    own.step(left)
    moved = {name for name, p in weights_of(own).items() if not torch.equal(p, before[name])}
    assert {"bias", "purchase_bias", "purchase_scale"} <= moved


def test_a_step_in_parts_has_the_same_loss() -> None:
    batch = lists(6)
    whole, parts = trainer(**over_all()), trainer(**over_all())
    parts.num_micro_batches = 4
    assert parts.step(batch).loss == pytest.approx(whole.step(batch).loss, rel=1e-5)


def test_clicks_and_purchases_of_no_known_list_are_no_outcomes() -> None:
    own = trainer(weight_decay=0.0, **over_all())
    before = weights_of(own)
    clicked = [s for s in lists(6) if s.task == CLICK and s.label]
    orphans = [
        msgspec.structs.replace(s, list_size=0, position=None)
        for s in lists(6)
        if s.task == PURCHASE
    ]
    assert own.step(clicked + orphans).loss == 0
    assert training.same(weights_of(own), before)


@pytest.mark.parametrize(
    "weighting", [WeigherConfig(exponent=1.0), WeigherConfig(scheme="class_balanced")]
)
def test_importance_weights_are_refused_beside_it(weighting: WeigherConfig) -> None:
    with pytest.raises(SettingError, match=r"purchase_over_all: got .* with weighting"):
        trainer(weighting, **over_all())
