"""Adversarial training: where the tokens go, what gradient is left, and where there is none."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from learner.training.adversarial import Adversarial
from tests.learner.training import lists, same, trainer, weights_of


class Toy:
    """L = sum w (x - c)^2 of tokens x (n, T, D), with what each pass was given."""

    def __init__(self, seed: int, *, trainable: bool) -> None:
        draw = torch.Generator().manual_seed(seed)
        self.entrance = nn.Identity()
        self.x = torch.randn(2, 3, 4, generator=draw, dtype=torch.float64)
        self.x[1, 2] = 0.0  # padding
        self.x.requires_grad_(trainable)
        self.c = torch.randn(2, 3, 4, generator=draw, dtype=torch.float64)
        self.mask = torch.ones(2, 3, 1, dtype=torch.float64)
        self.mask[1, 2] = 0.0
        self.w = nn.Parameter(torch.rand(4, generator=draw, dtype=torch.float64) + 0.5)
        self.given: list[Tensor] = []

    def loss(self, x: Tensor) -> Tensor:
        return (self.w * (x - self.c).square() * self.mask).sum()

    def score(self) -> tuple[Tensor, str]:
        parts = [self.entrance(self.x[i : i + 1]) for i in range(2)]
        x = torch.cat(parts)
        self.given.append(x.detach().clone())
        return self.loss(x), "scored"


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 1000), st.integers(1, 4), st.floats(0.01, 0.5), st.booleans())
def test_tokens_stay_within_their_radius_and_what_is_padding_stays(
    seed: int, steps: int, radius: float, trainable: bool
) -> None:
    toy = Toy(seed, trainable=trainable)
    loss, scored = Adversarial(toy.entrance, steps=steps, radius=radius).backward(toy.score)
    assert scored == "scored"
    clean = toy.given[0]
    assert loss.item() == pytest.approx(toy.loss(clean).item())
    assert torch.equal(clean, toy.x.detach())
    assert len(toy.given) == 1 + steps
    for x in toy.given[1:]:
        moved, length = (x - clean).norm(dim=-1), clean.norm(dim=-1)
        assert (moved <= radius * length * (1 + 1e-9)).all()
        assert torch.equal(x[1, 2], clean[1, 2])
    assert toy.loss(toy.given[-1]).item() > loss.item()


@pytest.mark.parametrize("trainable", [True, False])
def test_one_step_is_fgm_and_the_gradient_is_half_of_each(trainable: bool) -> None:
    toy = Toy(0, trainable=trainable)
    Adversarial(toy.entrance, steps=1, radius=0.1).backward(toy.score)
    x = toy.x.detach()
    g = 2 * toy.w.detach() * (x - toy.c) * toy.mask
    expected = x + 0.1 * x.norm(dim=-1, keepdim=True) * g / g.norm(dim=-1, keepdim=True).clamp_min(
        1e-30
    )
    torch.testing.assert_close(toy.given[1], expected)
    squares = ((x - toy.c).square() + (expected - toy.c).square()) * toy.mask
    torch.testing.assert_close(toy.w.grad, squares.sum((0, 1)) / 2)
    if trainable:  # of the embeddings themselves: both passes reach them
        both = 2 * toy.w.detach() * ((x - toy.c) + (expected - toy.c)) * toy.mask / 2
        torch.testing.assert_close(toy.x.grad, both)


def test_more_steps_do_more_harm_than_one_where_the_loss_bends() -> None:
    harm = []
    for steps in (1, 10):
        toy = Toy(3, trainable=False)
        Adversarial(toy.entrance, steps=steps, radius=0.5).backward(toy.score)
        harm.append(toy.loss(toy.given[-1]).item())
    assert harm[1] >= harm[0]


def test_nothing_is_moved_outside_a_pass() -> None:
    toy = Toy(0, trainable=True)
    Adversarial(toy.entrance, steps=2, radius=0.1).backward(toy.score)
    assert torch.equal(toy.entrance(toy.x), toy.x)


@pytest.mark.parametrize("interaction", ["bi_encoder", "cross_encoder"])
@pytest.mark.parametrize("tuning", ["top:1", "full"])
def test_an_encoder_learns_from_moved_tokens_and_is_judged_on_its_own(
    tuning: str, interaction: str
) -> None:
    kind: dict[str, Any] = {"tuning": tuning, "interaction": interaction, "loss": "listwise"}
    plain, moved = (trainer(adversarial_steps=steps, **kind) for steps in (0, 1))
    near = trainer(adversarial_steps=1, adversarial_radius=1e-6, **kind)
    batch = lists(4)
    reports = [own.step(batch) for own in (plain, moved, near)]
    assert reports[0].loss == reports[1].loss == reports[2].loss
    assert reports[2].gradient_norm == pytest.approx(reports[0].gradient_norm, rel=1e-3)
    if interaction == "bi_encoder":  # a head that starts at zero has no gradient to give
        assert reports[1].gradient_norm != pytest.approx(reports[0].gradient_norm, rel=1e-4)
    for _ in range(2):
        plain.step(batch)
        moved.step(batch)
    assert not same(weights_of(plain), weights_of(moved))


def test_only_an_encoder_that_moves_has_an_entrance() -> None:
    entrances = {name: trainer(tuning=name).ranker.encoder.tuning for name in ("full", "frozen")}
    assert entrances["frozen"].entrance is None
    assert isinstance(entrances["full"].entrance, nn.Embedding)
