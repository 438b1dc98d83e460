"""Softmax against clicks of other lists: the formula, the frequencies, and one loss's state."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from learner.errors import Corrupt
from learner.losses.loss import Sampled, Targets
from learner.losses.registry import LOSSES
from learner.training.item_frequency import ItemFrequency
from tests.learner.training import batches, lists, reader, trainer, weights_of
from weighting.tasks import CLICK

LOSS = LOSSES["in_batch_softmax"]
Samples = list[tuple[float, int, float, int, int, int]]
"""Weight, label, examination, list, query, item."""
samples = st.lists(
    st.tuples(
        st.one_of(st.just(0.0), st.floats(0.01, 5)),
        st.integers(0, 1),
        st.sampled_from([1.0, 0.5, 0.03]),
        st.integers(0, 3),
        st.integers(0, 2),
        st.integers(0, 5),
    ),
    min_size=1,
    max_size=9,
)
FREQUENCY = [0.4, 0.3, 0.1, 0.1, 0.05, 0.05]


def columns(rows: Samples, seed: int) -> tuple[torch.Tensor, Targets]:
    """Logits (n, n) and targets of rows."""
    w, y, examination, listed, query, item = (list(column) for column in zip(*rows, strict=True))
    weight = torch.tensor(w, dtype=torch.float64)
    label = torch.tensor(y, dtype=torch.float64)
    ids = [torch.tensor(column, dtype=torch.long) for column in (listed, query, item)]
    log_frequency = torch.tensor([math.log(FREQUENCY[i]) for i in item], dtype=torch.float64)
    targets = Targets(
        a=weight * label,
        b=weight * (1 - label),
        examination=torch.tensor(examination, dtype=torch.float64),
        discount=torch.ones_like(weight),
        prior=torch.ones_like(weight),
        list_id=ids[0],
        num_lists=4,
        longest_list=len(rows),
        sampled=Sampled(ids[1], ids[2], log_frequency),
    )
    draw = torch.Generator().manual_seed(seed)
    return 3 * torch.randn(len(rows), len(rows), generator=draw, dtype=torch.float64), targets


def plain(rows: Samples, logit: torch.Tensor) -> float:
    total = 0.0
    for i, (w, y, examination, listed, query, item) in enumerate(rows):
        if not (w and y):
            continue
        drawn = [
            (j, other)
            for j, (v, x, _, in_list, under, other) in enumerate(rows)
            if v and x and in_list != listed and under != query
        ]
        others = [math.exp(logit[i, j].item()) / FREQUENCY[o] for j, o in drawn if o != item]
        own = math.exp(logit[i, i].item())
        z = own + sum(others) / max(len(drawn), 1)
        total += w / max(examination, 0.1) * -math.log(own / z)
    return total


@settings(deadline=None, max_examples=50)
@given(samples, st.integers(0, 100))
def test_the_loss_and_its_gradient_are_those_of_the_formula(rows: Samples, seed: int) -> None:
    z, targets = columns(rows, seed)
    assert LOSS(z, targets).item() == pytest.approx(plain(rows, z), rel=1e-6, abs=1e-9)
    assert torch.autograd.gradcheck(lambda logit: LOSS(logit, targets), (z.requires_grad_(),))


@settings(deadline=None, max_examples=50)
@given(samples, st.data())
def test_a_sample_of_weight_zero_or_without_a_click_is_as_good_as_absent(
    rows: Samples, data: st.DataObject
) -> None:
    out = data.draw(st.integers(0, len(rows) - 1))
    for w, y in ((0.0, 1), (2.0, 0)):
        muted = [(w, y, *row[2:]) if i == out else row for i, row in enumerate(rows)]
        z, targets = columns(muted, 1)
        others = torch.tensor([i for i in range(len(rows)) if i != out], dtype=torch.long)
        found = LOSS(z.requires_grad_(), targets)
        expected = LOSS(z[others][:, others], targets.at(others))
        assert found.item() == pytest.approx(expected.item(), rel=1e-9, abs=1e-12)
        (gradient,) = torch.autograd.grad(found, z)
        assert not gradient[out].any()
        assert not gradient[:, out].any()


def test_the_correction_makes_it_the_softmax_over_all_items_however_many_are_drawn() -> None:
    draw = np.random.default_rng(0)
    score = torch.tensor([0.2, 1.0, -0.5, 2.0, 0.7, -1.0], dtype=torch.float64)
    expected = float(1 / torch.softmax(score, 0)[0])
    for number, repeats in ((1, 1000), (20, 100), (200, 10)):
        found = []
        for _ in range(repeats):
            items = [0, *draw.choice(6, size=number, p=FREQUENCY).tolist()]
            rows: Samples = [(1e-12, 1, 1.0, i, i, item) for i, item in enumerate(items)]
            _, targets = columns(rows, 0)
            targets.list_id[:] = torch.arange(len(rows))
            targets.a[0] = 1.0
            z = score[torch.tensor(items)].expand(len(rows), -1)
            found.append(math.exp(LOSS(z, targets).item()))
        assert np.mean(found) == pytest.approx(expected, rel=0.15), number


def test_frequencies_are_those_of_the_clicks_whatever_the_cut_and_follow_a_change() -> None:
    draw = np.random.default_rng(0)
    stream = [f"item {i}" for i in draw.choice(6, size=3000, p=FREQUENCY)]
    whole, parts = ItemFrequency(), ItemFrequency()
    whole.learn(stream)
    for start in range(0, len(stream), 7):
        parts.learn(stream[start : start + 7])
    assert whole.snapshot() == parts.snapshot()
    names = [f"item {i}" for i in range(6)]
    np.testing.assert_allclose(np.exp(whole.log_frequency(names)), FREQUENCY, rtol=0.35)
    assert np.exp(whole.log_frequency(["never"]))[0] == pytest.approx(1 / 3001)
    whole.learn(["item 5"] * 1000)
    assert np.exp(whole.log_frequency(["item 5"]))[0] > 0.9


def test_frequencies_go_on_behind_a_snapshot_and_what_is_none_is_refused() -> None:
    own, again = ItemFrequency(), ItemFrequency()
    own.learn(["a", "b", "a"])
    again.restore(own.snapshot())
    for frequency in (own, again):
        frequency.learn(["b", "c"])
    assert own.snapshot() == again.snapshot()
    again.restore(b"")
    assert again.snapshot() == ItemFrequency().snapshot()
    for bad in (b"\x00", own.snapshot()[:-3]):
        with pytest.raises(Corrupt):
            again.restore(bad)


def test_a_learner_counts_its_clicks_and_no_other_loss_keeps_any() -> None:
    own, plain_one = trainer(loss="in_batch_softmax"), trainer(loss="listwise")
    for batch in batches(2):
        own.step(batch)
        plain_one.step(batch)
    expected = ItemFrequency()
    clicks = [s for batch in batches(2) for s in batch if s.task == CLICK and s.label]
    expected.learn([s.item_id for s in clicks])
    assert own.components.gradient.frequency is not None
    assert own.components.gradient.frequency.snapshot() == expected.snapshot()
    again = trainer(loss="in_batch_softmax")
    again.restore(reader(own.files()))
    assert again.files() == own.files()
    assert again.components.gradient.frequency is not None
    assert again.components.gradient.frequency.snapshot() == expected.snapshot()
    assert plain_one.components.gradient.frequency is None
    again.restore(reader(plain_one.files()))  # its clicks were not counted
    assert again.components.gradient.frequency.snapshot() == ItemFrequency().snapshot()


def test_a_step_of_one_list_has_no_negatives_and_a_micro_batch_has_its_own() -> None:
    still: dict[str, Any] = {"loss": "in_batch_softmax", "weight_decay": 0.0, "l2_sp_samples": 0.0}
    own = trainer(**still)
    before = weights_of(own)
    own.step([s for s in lists(1) if s.task == CLICK])
    moved = {name for name, p in weights_of(own).items() if not torch.equal(p, before[name])}
    assert moved == {"bias"}
    batch = [s for s in lists(8) if s.task == CLICK]
    own.step(batch)
    moved = {name for name, p in weights_of(own).items() if not torch.equal(p, before[name])}
    assert any(name.startswith("encoder.") for name in moved)
    losses = []
    for number in (1, 2):
        fresh = trainer(**still)
        fresh.num_micro_batches = number
        losses.append(fresh.step(batch).loss)
    assert losses[0] != losses[1]
