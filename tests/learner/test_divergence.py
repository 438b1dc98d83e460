"""A loss is judged by the recent ones and by its number of samples."""

from __future__ import annotations

import doctest
import math

import msgspec
import numpy as np
import pytest

import learner.training.divergence
from learner.errors import Diverged
from learner.training.divergence import LossWatch


def watched(number: int, *, num_samples: int = 320, seed: int = 0) -> LossWatch:
    """A watch after steps of losses around 0.5, means over samples of deviation 1."""
    draw, watch = np.random.default_rng(seed), LossWatch()
    for step in range(number):
        watch.judge(step + 1, 0.5 + draw.normal() / math.sqrt(num_samples), num_samples=num_samples)
    return watch


def test_the_example_is_true() -> None:
    assert doctest.testmod(learner.training.divergence, optionflags=doctest.ELLIPSIS).failed == 0


def test_mean_and_variance_are_those_of_the_recent_losses() -> None:
    watch = watched(2000)
    assert watch.mean == pytest.approx(0.5, abs=0.02)
    assert watch.variance == pytest.approx(1.0, rel=0.4)


def test_nothing_is_judged_before_a_hundred_steps() -> None:
    watched(99).judge(100, 50.0, num_samples=320)
    with pytest.raises(Diverged, match="step 101"):
        watched(100).judge(101, 50.0, num_samples=320)


def test_noise_is_not_taken_for_a_spike_whatever_the_size_of_a_batch() -> None:
    draw = np.random.default_rng(5)
    watch = watched(200)
    for step in range(201, 3000):
        n = int(draw.choice([1, 8, 40, 320]))
        watch.judge(step, 0.5 + draw.normal() / math.sqrt(n), num_samples=n)


def test_a_loss_that_creeps_is_followed_and_one_that_jumps_is_refused() -> None:
    watch = watched(200)
    for step in range(201, 1200):
        watch.judge(step, 0.5 + (step - 200) / 1000, num_samples=320)
    with pytest.raises(Diverged):
        watch.judge(1201, 7.0, num_samples=320)


def test_the_worst_batch_that_a_healthy_learner_met_in_five_thousand_is_no_spike() -> None:
    watch = LossWatch()
    for step in range(1, 1043):
        watch.judge(step, 0.653 * (1 + 0.3 * (-1) ** step), num_samples=32)
    watch.judge(1043, 1.81, num_samples=32)


def test_a_loss_that_is_low_is_never_a_spike() -> None:
    watched(200).judge(201, -5.0, num_samples=320)


def test_what_is_not_finite_counts_only_in_a_row() -> None:
    watch = watched(5)
    for step, loss in enumerate((math.nan, math.inf, 0.5, math.nan, -math.inf), 6):
        watch.judge(step, loss, num_samples=320)
    with pytest.raises(Diverged) as refused:
        watch.judge(11, math.nan, num_samples=320)
    assert (refused.value.first_step, refused.value.last_step) == (9, 11)


def test_a_restored_watch_judges_as_the_one_before() -> None:
    watch = watched(150)
    again = msgspec.json.decode(msgspec.json.encode(watch), type=LossWatch)
    for own in (watch, again):
        own.judge(151, 0.51, num_samples=100)
    assert again == watch
