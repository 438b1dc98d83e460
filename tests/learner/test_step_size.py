"""Steps per sample: a stream teaches the same whatever the sizes of the steps it is cut into."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import cycle

import numpy as np
import pytest
import torch

from learner.training import adamw_formula
from learner.training.adamw import AdamW, Group
from learner.training.optimizer import Optimizer
from tests.learner.training import lists, trainer, weights_of
from weighting.config import WeigherConfig
from weighting.tasks import CLICK

CUTS = [(1,), (32,), (320,), (960,), (1, 32, 640, 8)]
NUM_SAMPLES = 5760


def sizes(cut: Sequence[int], total: int) -> Iterator[int]:
    """Sizes of the steps that a stream of `total` samples is cut into."""
    left = total
    for size in cycle(cut):
        yield min(size, left)
        left -= min(size, left)
        if not left:
            return


def logistic(cut: Sequence[int], *, reference: int = 320, lr: float = 0.01) -> tuple[float, float]:
    """Loss and distance after a stationary stream of click-like labels, one in nine positive."""
    draw = torch.Generator().manual_seed(3)
    truth = 0.3 * torch.randn(24, generator=draw)
    x = torch.randn(NUM_SAMPLES, 24, generator=draw)
    truth[0], x[:, 0] = -2.2, 1.0
    y = torch.bernoulli(torch.sigmoid(x @ truth), generator=draw)
    moving = torch.nn.Parameter(torch.zeros(24))
    optimizer = AdamW([Group(parameters=[moving], lr=lr)], reference)
    at = 0
    for size in sizes(cut, NUM_SAMPLES):
        rows = slice(at, at := at + size)
        optimizer.zero_grad()
        _loss(x[rows] @ moving, y[rows]).backward()  # type: ignore[no-untyped-call]
        optimizer.step(size)
    return float(_loss(x @ moving.detach(), y)), float(moving.detach().norm())


def _loss(logit: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.binary_cross_entropy_with_logits(logit, label)


def test_a_step_of_the_reference_size_is_a_step_of_adamw() -> None:
    draw = torch.Generator().manual_seed(0)
    start, gradients = torch.randn(7, generator=draw), torch.randn(20, 7, generator=draw)
    ours, theirs = (torch.nn.Parameter(start.clone()) for _ in range(2))
    own = AdamW([Group(parameters=[ours], lr=0.01, weight_decay=0.1)], reference_batch_size=64)
    reference = torch.optim.AdamW([theirs], lr=0.01, weight_decay=0.1)
    for gradient in gradients:
        ours.grad, theirs.grad = gradient.clone(), gradient.clone()
        own.step(64)
        reference.step()
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("lr", [0.001, 0.01])
def test_a_stationary_stream_teaches_the_same_per_sample_under_every_cut(lr: float) -> None:
    """Within 2 % of the loss and 20 % of the distance, where steps of AdamW differ ninefold.

    The fifth is the start: the first steps of one sample know no signal apart from noise.
    """
    found = np.array([logistic(cut, lr=lr) for cut in CUTS])
    loss, distance = found[CUTS.index((320,))]
    np.testing.assert_allclose(found[:, 0], loss, rtol=0.02)
    np.testing.assert_allclose(found[:, 1], distance, rtol=0.2)


def learned(cut: Sequence[int], memory: float = 0.0) -> tuple[float, float]:
    """Distance of the encoder from its start, and loss on lists never shown, under a cut."""
    own = trainer(
        WeigherConfig(exponent=0.0),
        model="random:1x32",
        reference_batch_size=40,
        lr=1e-4,
        head_lr=1e-3,
        l2_sp_samples=memory,
    )
    stream, unseen = (
        [s for s in lists(number, seed=seed, start=start) if s.task == CLICK]
        for number, seed, start in ((288, 1, 0), (80, 2, 500))
    )
    start, at = weights_of(own), 0
    for size in sizes(cut, len(stream)):
        own.step(stream[at : at + size])
        at += size
    with torch.no_grad():
        scored = own.ranker([s.query for s in unseen], [s.text for s in unseen])
    moved = weights_of(own)
    names = [name for name in start if name.startswith("encoder.")]
    distance = sum(float((moved[name] - start[name]).square().sum()) for name in names) ** 0.5
    label = torch.tensor([float(s.label) for s in unseen])
    return distance, float(_loss(scored.base, label))


@pytest.mark.parametrize("memory", [0.0, 1500.0])
def test_an_encoder_learns_the_same_per_sample_under_every_cut_into_whole_lists(
    memory: float,
) -> None:
    """Steps of a quarter of the reference to three times it: 3 % of the loss, 20 % of the way.

    Not of parts of lists: with one click in each, the samples of a list are not independent.
    """
    distance, loss = zip(
        *(learned(cut, memory) for cut in [(40,), (10,), (120,), (5, 160, 40)]), strict=True
    )
    np.testing.assert_allclose(loss, loss[0], rtol=0.03)
    np.testing.assert_allclose(distance, distance[0], rtol=0.2)


@pytest.mark.parametrize("cut", [(8,), (32,), (320,), (960,), (7, 640)])
def test_the_pull_lets_the_distance_fade_with_the_samples_under_every_cut(
    cut: Sequence[int],
) -> None:
    own = trainer(model="random:1x32", l2_sp_samples=1000.0, weight_decay=0.0)
    optimizer = Optimizer(own.config, own.ranker, own.process_group)
    with torch.no_grad():
        encoder = own.ranker.encoder.trainable_parameters()
        start = [p.detach().clone() for p in encoder]
        for p in encoder:
            p.grad = torch.zeros_like(p)
            p.add_(1.0)
        for size in sizes(cut, 1920):
            optimizer.step(size)
    for p, before in zip(encoder, start, strict=True):
        torch.testing.assert_close(p.detach() - before, torch.full_like(p, np.exp(-1.92)))


def test_the_bound_of_the_gradient_is_that_of_the_reference_size() -> None:
    """The noise of a mean over 80 samples is half of that over 320; its bound is, too."""
    own = trainer(model="random:1x32", max_grad_norm=0.5)
    optimizer = Optimizer(own.config, own.ranker, own.process_group)
    for size, bound in ((320, 0.5), (80, 1.0), (1280, 0.25)):
        for p in optimizer.parameters():
            p.grad = torch.ones_like(p)
        norm = optimizer.clip(size)
        left = sum(
            float(p.grad.square().sum()) for p in optimizer.parameters() if p.grad is not None
        )
        assert norm > 1
        assert left**0.5 == pytest.approx(bound, rel=1e-4)


def test_a_parameter_moves_alike_whole_and_in_pieces() -> None:
    """On a CPU a parameter is moved in pieces, or by one kernel; else it is moved whole."""
    shape = (1100, 257)
    start, *gradients = torch.randn(6, *shape, generator=torch.Generator().manual_seed(0))
    pieces = torch.nn.Parameter(start.clone())
    whole = torch.nn.Parameter(start.t().contiguous().t())
    assert start.numel() > 2 * adamw_formula._PIECE
    assert not whole.is_contiguous()
    optimizers = [
        AdamW([Group(parameters=[p], lr=0.01, weight_decay=0.1)], 64) for p in (pieces, whole)
    ]
    for size, gradient in zip((64, 17, 640, 1, 64), gradients, strict=True):
        for parameter, optimizer in zip((pieces, whole), optimizers, strict=True):
            parameter.grad = gradient.clone()
            optimizer.step(size)
    torch.testing.assert_close(pieces, whole, rtol=1e-6, atol=1e-7)
    assert not torch.allclose(pieces, start)
