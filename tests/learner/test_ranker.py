"""The ranker starts at the cosine; only learned residuals move a ranking."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from learner import arithmetic
from learner.encoder.encoder import Encoder
from learner.encoder.load import load_pretrained
from learner.encoder.tokens import Texts
from learner.losses.loss import Sampled, Targets
from learner.losses.registry import LOSSES
from learner.passes.forward import Ids
from learner.ranker import PairLogits, Ranker
from learner.residual import QueryResidual
from tests.learner.training import text
from weighting.tasks import CLICK, PURCHASE, TASKS

ITEMS = [text(i) for i in range(0, 400, 20)]
INTERACTIONS = ["bi_encoder", "cross_encoder"]


def ranker(interaction: str = "bi_encoder", *, make: type[Encoder] = Encoder) -> Ranker:
    arithmetic.use(1)
    model, tokenizer, _ = load_pretrained("random:2x64")
    encoder = make(model, tuning="full")
    texts = Texts(tokenizer, max_tokens=24)
    residual = QueryResidual(encoder.width)
    return Ranker(encoder, texts, residual, interaction=interaction, logit_scale=8.0).eval()


def scored(own: Ranker, query: str) -> PairLogits:
    """Every item under one query."""
    found: PairLogits = own([query] * len(ITEMS), ITEMS)
    return found


def head(own: Ranker, name: str) -> Tensor:
    return own.heads()[name].detach()


def order(own: Ranker, query: str) -> list[int]:
    with torch.inference_mode():
        click = scored(own, query).by_task[CLICK]
    return [int(i) for i in np.argsort(-click.numpy(), kind="stable")]


def learn(own: Ranker, query: str, clicked: int) -> None:
    """Teach the query's residual that one item is clicked and no other."""
    with torch.no_grad():
        found = scored(own, query)
    clicks = [50.0 if i == clicked else 0.0 for i in range(len(ITEMS))]
    exposure = [50.0] * len(ITEMS)
    base = found.base.double().numpy()
    vectors, lists = found.items.numpy(), ("list 1", "list 2")
    own.residual.learn(query, ITEMS, vectors, base, clicks, exposure, lists=lists, time_us=0)


@pytest.mark.parametrize("interaction", INTERACTIONS)
def test_a_query_never_seen_keeps_exactly_the_order_and_the_logits_of_the_encoder(
    interaction: str,
) -> None:
    untouched, taught = ranker(interaction), ranker(interaction)
    worst = order(taught, "red shoe")[-1]
    for _ in range(20):
        learn(taught, "red shoe", worst)
    assert order(taught, "red shoe")[0] == worst
    with torch.inference_mode():
        found, expected = (scored(own, "blue lamp").by_task for own in (taught, untouched))
        assert torch.equal(found[CLICK], expected[CLICK])
        bases = [scored(own, "red shoe").base for own in (taught, untouched)]
        assert torch.equal(*bases)


@pytest.mark.parametrize("interaction", INTERACTIONS)
def test_both_interactions_start_as_the_cosine(interaction: str) -> None:
    own = ranker(interaction)
    with torch.no_grad():
        found = scored(own, "red shoe")
        query = own.encoder([own.texts.ids("red shoe")])[0]
        items = own.encoder([own.texts.ids(item) for item in ITEMS])
    cosine = items @ query
    click = 8.0 * cosine + head(own, "bias")
    purchase = head(own, "purchase_scale") * cosine + head(own, "purchase_bias")
    torch.testing.assert_close(found.by_task[CLICK], click)
    torch.testing.assert_close(found.by_task[PURCHASE], purchase)
    torch.testing.assert_close(found.items, items)


def test_a_pair_read_together_moves_its_head_from_the_first_step_on() -> None:
    own = ranker("cross_encoder")
    scored(own, "red shoe").by_task[CLICK].sum().backward()  # type: ignore[no-untyped-call]
    weight = own.heads()["cross.weight"]
    assert weight.grad is not None
    assert weight.grad[0].abs().sum() > 0
    with torch.no_grad():
        weight[0] = torch.linspace(-5, 5, own.encoder.width)
        found = scored(own, "red shoe")
        cosine = found.items @ own.encoder([own.texts.ids("red shoe")])[0]
        added = found.by_task[CLICK] - 8.0 * cosine - head(own, "bias")
        assert added.abs().max() > 0.01


def taught(interaction: str) -> Ranker:
    """A ranker whose residual, and whose head where it has one, say something."""
    own = ranker(interaction)
    learn(own, "red shoe", 3)
    if "cross.weight" in own.heads():
        weight = own.heads()["cross.weight"]
        with torch.no_grad():
            weight.copy_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(0)))
    return own


@pytest.mark.parametrize("interaction", INTERACTIONS)
def test_a_pair_has_one_logit_whatever_it_is_scored_with(interaction: str) -> None:
    own, again, fresh = taught(interaction), taught(interaction), taught(interaction)
    queries = ["red shoe", "blue lamp"]
    asked = (queries * len(ITEMS), [item for item in ITEMS for _ in queries])
    with torch.inference_mode():
        together, repeated = own(*asked).by_task, again(*asked).by_task
        alone = [fresh([q], [item]).by_task for q, item in zip(*asked, strict=True)]
    for task in TASKS:
        assert torch.equal(together[task], repeated[task])
        one_by_one = torch.cat([logits[task] for logits in alone])
        assert torch.equal(together[task], one_by_one)


def test_no_pair_has_no_logit() -> None:
    own = ranker()
    with torch.inference_mode():
        assert own([], []).by_task[CLICK].shape == (0,)
    assert own([], []).items.shape == (0, 64)


class Elsewhere(Encoder):
    """An encoder on the meta device, whose tensors have no values."""

    def forward(self, texts: Sequence[Ids]) -> Tensor:
        return torch.ones(len(texts), self.width, device="meta", requires_grad=True)


@pytest.mark.parametrize("interaction", INTERACTIONS)
@pytest.mark.parametrize("loss", LOSSES)
def test_nothing_between_the_encoder_and_the_loss_comes_back_to_the_host(
    interaction: str, loss: str
) -> None:
    own = ranker(interaction, make=Elsewhere).to("meta")
    found = scored(own, "red shoe")
    column = torch.ones(len(ITEMS), device="meta")
    targets = Targets(
        a=column,
        b=column,
        examination=column,
        discount=column,
        prior=column,
        list_id=column.long(),
        num_lists=len(ITEMS),
        longest_list=len(ITEMS),
        sampled=Sampled(column.long(), column.long(), column),
    )
    rows = column.long()
    across = LOSSES[loss].across_lists
    total = LOSSES[loss](found.across(rows) if across else found.by_task[CLICK], targets)
    total.backward()  # type: ignore[no-untyped-call]
    assert total.device.type == "meta"
    if not across:
        assert own.heads()["bias"].grad is not None
