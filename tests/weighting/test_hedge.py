"""Hedge keeps its regret bounds against sequences made to break them; a choice has hysteresis."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from weighting.errors import WeightError
from weighting.estimators.choice import Choice
from weighting.estimators.hedge import Hedge, best_rate, mix_regret

Array = NDArray[np.float64]
Adversary = Callable[[Array, int, np.random.Generator], Array]


def one_hot(pi: Array, expert: int) -> Array:
    found: Array = np.eye(len(pi))[expert]
    return found


def against_the_leader(pi: Array, t: int, draw: np.random.Generator) -> Array:
    """All loss to the most probable expert."""
    return one_hot(pi, int(pi.argmax()))


def against_all_but_the_last(pi: Array, t: int, draw: np.random.Generator) -> Array:
    return 1 - one_hot(pi, int(pi.argmin()))


def at_random(pi: Array, t: int, draw: np.random.Generator) -> Array:
    return draw.random(len(pi))


def in_turns(pi: Array, t: int, draw: np.random.Generator) -> Array:
    """One expert loses nothing, for 50 rounds, then another."""
    return 1 - one_hot(pi, t // 50 % len(pi))


ADVERSARIES = (against_the_leader, against_all_but_the_last, at_random, in_turns)
every_adversary = pytest.mark.parametrize("adversary", ADVERSARIES, ids=lambda a: a.__name__)


def play(
    hedge: Hedge, adversary: Adversary, num_rounds: int, seed: int = 0
) -> tuple[Array, float, float]:
    """Losses (T, N), and what hedge lost: the mean losses, and the mix losses."""
    draw, losses, mean, mix = np.random.default_rng(seed), [], 0.0, 0.0
    for t in range(num_rounds):
        pi = hedge.get()
        loss = adversary(pi, t, draw)
        losses.append(loss)
        mean += float(pi @ loss)
        mix += hedge.mix_loss(loss)
        hedge.update(loss)
    return np.array(losses), mean, mix


def best_with_changes(losses: Array, num_changes: int) -> float:
    """Loss of the best sequence of experts with at most k changes, by dynamic programming."""
    best = np.full((num_changes + 1, losses.shape[1]), np.inf)
    best[0] = 0.0
    for loss in losses:
        before = best.copy()
        for k in range(num_changes + 1):
            stay = before[k]
            change = before[k - 1].min() if k else np.inf
            best[k] = np.minimum(stay, change) + loss
    return float(best.min())


@every_adversary
@given(st.integers(2, 8), st.integers(10, 400), st.integers(0, 10))
@settings(max_examples=25, deadline=None)
def test_never_worse_than_the_best_expert_by_more_than_the_bound(
    adversary: Adversary, num_experts: int, num_rounds: int, seed: int
) -> None:
    """sqrt(T / 2 log N), at the rate for T rounds."""
    hedge = Hedge(num_experts, rate=best_rate(num_experts, num_rounds), share=0.0)
    losses, lost, _ = play(hedge, adversary, num_rounds, seed)
    bound = math.sqrt(num_rounds / 2 * math.log(num_experts))
    assert lost - losses.sum(axis=0).min() <= bound + 1e-9


@every_adversary
@pytest.mark.parametrize("num_changes", [0, 1, 3, 7])
@pytest.mark.parametrize("rate", [0.1, 1.0])
def test_with_fixed_share_never_worse_than_the_best_sequence_of_experts(
    adversary: Adversary, num_changes: int, rate: float
) -> None:
    hedge = Hedge(4, rate=rate, share=0.02)
    losses, mean, mix = play(hedge, adversary, 400)
    regret = mix_regret(4, 400, rate=rate, share=0.02, num_changes=num_changes)
    best = best_with_changes(losses, num_changes)
    assert mix - best <= regret + 1e-9
    assert mean - best <= regret + rate * 400 / 8 + 1e-9


def test_without_fixed_share_a_change_is_followed_too_late() -> None:
    """So the bound above is not one that anything would keep."""
    losses, _, mix = play(Hedge(4, rate=1.0, share=0.0), in_turns, 400)
    bound = mix_regret(4, 400, rate=1.0, share=0.02, num_changes=7)
    assert mix - best_with_changes(losses, 7) > bound


@given(st.integers(0, 1000), st.integers(2, 6))
@settings(max_examples=30, deadline=None)
def test_a_mixture_of_predictions_loses_at_most_log_n_nats_more_than_the_best(
    seed: int, num_experts: int
) -> None:
    draw, hedge, lost = np.random.default_rng(seed), Hedge(num_experts, rate=1.0, share=0.0), 0.0
    total = np.zeros(num_experts)
    for _ in range(100):
        p = draw.uniform(0.01, 0.99, num_experts)
        q = p if draw.random() < 0.3 else 1 - p
        mixture = float(hedge.get() @ q)
        assert -math.log(mixture) == pytest.approx(hedge.mix_loss(-np.log(q)))
        lost -= math.log(mixture)
        total -= np.log(q)
        hedge.update(-np.log(q))
    assert lost - total.min() <= math.log(num_experts) + 1e-9


@pytest.mark.parametrize("share", [0.01, 1e-4])
def test_after_a_change_the_new_best_leads_within_a_stated_number_of_rounds(share: float) -> None:
    """log(N / alpha) / eta of loss makes up for any past, however long."""
    hedge = Hedge(3, rate=0.5, share=share)
    for _ in range(5000):
        hedge.update(np.array([0.0, 1.0, 1.0]))
    rounds = math.ceil(math.log(3 / share) / 0.5) + 1
    for _ in range(rounds):
        hedge.update(np.array([1.0, 1.0, 0.0]))
    assert hedge.get().argmax() == 2


def test_huge_losses_leave_probabilities_that_are_ones() -> None:
    hedge = Hedge(3, rate=1.0, share=1e-4)
    for _ in range(3):
        hedge.update(np.array([1e6, 0.0, -1e6]))
    assert hedge.get().sum() == pytest.approx(1)
    assert hedge.get().min() >= 1e-4 / 3 * 0.999


def test_a_loss_that_is_no_number_is_refused_and_nothing_is_learned() -> None:
    hedge = Hedge(2, rate=1.0, share=0.1)
    with pytest.raises(WeightError, match="loss: got nan"):
        hedge.update(np.array([0.0, np.nan]))
    assert hedge.get().tolist() == pytest.approx([0.5, 0.5])


@every_adversary
@given(st.floats(0.5, 5), st.integers(0, 30), st.integers(0, 10))
@settings(max_examples=25, deadline=None)
def test_a_choice_is_never_worse_than_any_expert_by_more_than_its_bound(
    adversary: Adversary, margin: float, min_samples: int, seed: int
) -> None:
    hedge, choice = Hedge(4, rate=0.7, share=0.0), Choice(margin=margin, min_samples=min_samples)
    draw, total, lost, changes = np.random.default_rng(seed), np.zeros(4), 0.0, 0
    for t in range(300):
        mine = np.eye(4)[choice.expert]
        loss = adversary(0.01 * hedge.get() + mine, t, draw)  # aimed at the choice
        lost += float(mine @ loss)
        total += loss
        hedge.update(loss)
        changes += choice.update(hedge.log_probability(), 1)
    overshoot = 0.7 * max(min_samples, 1)  # losses of a round differ by at most 1
    assert lost - total.min() <= (changes + 1) * (margin + overshoot) / 0.7 + 1e-9


def test_a_choice_waits_for_the_margin_and_for_the_samples() -> None:
    choice = Choice(margin=2.0, min_samples=100)
    assert not choice.update(np.array([-2.0, -0.1]), 100)  # a lead of 1.9
    assert choice.update(np.array([-2.1, -0.1]), 1)
    assert choice.expert == 1
    assert not choice.update(np.array([-0.1, -9.0]), 99)  # too soon
    assert choice.update(np.array([-0.1, -9.0]), 1)
    assert choice.expert == 0


def test_of_two_that_are_alike_none_displaces_the_other() -> None:
    draw, hedge = np.random.default_rng(1), Hedge(2, rate=1.0, share=1e-3)
    choice, changes = Choice(margin=5.0, min_samples=0), 0
    for _ in range(5000):
        both = draw.random()
        hedge.update(both + draw.normal(0, 0.01, 2))
        changes += choice.update(hedge.log_probability(), 10)
    assert changes == 0
