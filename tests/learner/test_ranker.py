"""The encoder's side of a score starts at the cosine, and only what learned a query moves its ranking."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from learner.encoder.model import Encoder, load_pretrained
from learner.encoder.tokens import Texts
from learner.ranker import Ranker
from learner.residual import QueryResidual
from tests.learner.training import text

ITEMS = [text(i) for i in range(0, 400, 20)]


def ranker(interaction: str = "bi_encoder", *, tuning: str = "full") -> Ranker:
    torch.set_num_threads(1)
    model, tokenizer, _ = load_pretrained("random:2x64")
    encoder = Encoder(model, tuning=tuning)
    return Ranker(
        encoder,
        Texts(tokenizer, max_tokens=24),
        QueryResidual(encoder.width),
        interaction=interaction,
        scale=8.0,
    ).eval()


def order(own: Ranker, query: str) -> list[int]:
    with torch.inference_mode():
        scored = own([query] * len(ITEMS), ITEMS)
    return [int(i) for i in np.argsort(-scored.click.numpy(), kind="stable")]


def learn(own: Ranker, query: str, clicked: int) -> None:
    """The query's residual learns that one item is what is clicked."""
    with torch.no_grad():
        scored = own([query] * len(ITEMS), ITEMS)
    clicks = [50.0 if i == clicked else 0.0 for i in range(len(ITEMS))]
    own.residual.learn(
        query,
        ITEMS,
        scored.items.numpy(),
        scored.base.double().numpy(),
        clicks,
        [50.0] * len(ITEMS),
    )


@pytest.mark.parametrize("interaction", ["bi_encoder", "cross_encoder"])
def test_a_query_never_seen_keeps_exactly_the_order_and_the_logits_of_the_encoder(
    interaction: str,
) -> None:
    untouched, taught = ranker(interaction), ranker(interaction)
    worst = order(taught, "red shoe")[-1]
    for _ in range(20):
        learn(taught, "red shoe", worst)
    assert order(taught, "red shoe")[0] == worst
    with torch.inference_mode():
        asked = ["blue lamp"] * len(ITEMS)
        assert torch.equal(taught(asked, ITEMS).click, untouched(asked, ITEMS).click)
        assert torch.equal(
            taught(["red shoe"] * len(ITEMS), ITEMS).base,
            untouched(["red shoe"] * len(ITEMS), ITEMS).base,
        )


@pytest.mark.parametrize("interaction", ["bi_encoder", "cross_encoder"])
def test_both_interactions_start_as_the_cosine(interaction: str) -> None:
    own = ranker(interaction)
    with torch.no_grad():
        scored = own(["red shoe"] * len(ITEMS), ITEMS)
        query = own.encoder([own.texts.ids("red shoe")])[0]
        items = own.encoder([own.texts.ids(item) for item in ITEMS])
    cosine = items @ query
    torch.testing.assert_close(scored.click, 8.0 * cosine + own.bias.detach())
    torch.testing.assert_close(
        scored.purchase, own.purchase_scale.detach() * cosine + own.purchase_bias.detach()
    )
    torch.testing.assert_close(scored.items, items)


def test_a_pair_read_together_moves_its_head_from_the_first_step_on() -> None:
    own = ranker("cross_encoder")
    own(["red shoe"] * len(ITEMS), ITEMS).click.sum().backward()
    assert own.cross is not None
    assert own.cross.weight.grad is not None
    assert own.cross.weight.grad[0].abs().sum() > 0
    with torch.no_grad():
        own.cross.weight[0] = torch.linspace(-5, 5, own.encoder.width)
        scored = own(["red shoe"] * len(ITEMS), ITEMS)
        cosine = scored.items @ own.encoder([own.texts.ids("red shoe")])[0]
        assert (scored.click - 8.0 * cosine - own.bias).abs().max() > 0.01


def taught(interaction: str) -> Ranker:
    """One whose residual, and whose head where it has one, say something."""
    own = ranker(interaction)
    learn(own, "red shoe", 3)
    if own.cross is not None:
        with torch.no_grad():
            own.cross.weight.copy_(
                torch.randn(own.cross.weight.shape, generator=torch.Generator().manual_seed(0))
            )
    return own


def test_a_pair_has_one_logit_whatever_it_is_scored_with() -> None:
    for interaction in ("bi_encoder", "cross_encoder"):
        own, fresh = taught(interaction), taught(interaction)
        with torch.inference_mode():
            together = own(
                ["red shoe", "blue lamp"] * len(ITEMS), [item for item in ITEMS for _ in range(2)]
            )
            alone = [fresh([q], [item]) for item in ITEMS for q in ("red shoe", "blue lamp")]
        assert torch.equal(together.click, torch.cat([one.click for one in alone]))
        assert torch.equal(together.purchase, torch.cat([one.purchase for one in alone]))


def test_no_pair_has_no_logit() -> None:
    own = ranker()
    with torch.inference_mode():
        assert own([], []).click.shape == (0,)
    assert own([], []).items.shape == (0, 64)
