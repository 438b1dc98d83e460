"""Rehearsal: a uniform, bounded memory of past lists, of which the encoder alone learns again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import chain
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from learner import version_layout as layout
from learner.errors import Corrupt
from learner.losses.registry import losses_of
from learner.trainer import Trainer
from learner.training.rehearsal import Rehearsal, RehearsalConfig
from tests.learner.training import batches, lists, reader, text, trainer
from tests.weighting.streams import SECOND, sample
from weighting.config import WeigherConfig
from weighting.sample import Sample
from weighting.tasks import CLICK, PURCHASE, TASKS
from weighting.weigher import Weigher
from weighting.weighted import WeightedBatch

SIZE = 100_000
ON = RehearsalConfig(size_bytes=SIZE, share=0.5)
MOVES = {layout.MODEL, layout.MOVING, layout.OPTIMIZER}


def memory(loss: str = "listwise", **changes: Any) -> Rehearsal:
    own = RehearsalConfig(**{"size_bytes": SIZE, "share": 0.5, **changes})
    return Rehearsal(own, seed=0, losses=losses_of(TASKS, configured=loss))


def weighed(samples: Sequence[Sample]) -> WeightedBatch:
    return Weigher(WeigherConfig()).weigh(samples)


def kept(own: Rehearsal) -> set[str]:
    """Names of the lists that are kept."""
    state = msgspec.msgpack.decode(own.snapshot())
    return {msgspec.msgpack.decode(data)[1] for _, of_list in state[2] for data in of_list}


@settings(max_examples=8, deadline=None)
@given(
    cuts=st.lists(st.integers(1, 40), min_size=1, max_size=8),
    size=st.sampled_from([SIZE, 2 * SIZE]),
    seed=st.integers(0, 5),
)
def test_what_is_kept_is_bounded_and_does_not_depend_on_the_steps(
    cuts: list[int], size: int, seed: int
) -> None:
    whole, cut = memory(size_bytes=size), memory(size_bytes=size)
    number = sum(cuts)
    stream = [s for s in lists(10 * number, seed=seed) if s.task == CLICK]
    weighted = weighed(stream)
    whole.learn(weighted)
    at = 0
    for lists_of_step in cuts:
        until = at + 50 * lists_of_step
        part = {name: getattr(weighted, name)[at:until] for name in ("a", "b", "label", "p_y")}
        rest = {name: getattr(weighted, name)[at:until] for name in ("examination", "discount")}
        cut.learn(replace(weighted, samples=tuple(stream[at:until]), **part, **rest))
        at = until
    assert cut.snapshot() == whole.snapshot()
    assert len(whole.snapshot()) <= size
    assert whole.num_bytes <= size


def test_lists_are_kept_with_one_probability_however_old_they_are() -> None:
    """Tenths of the stream within four standard errors of each other's mean."""
    own, number = memory(), 2_000
    for start in range(0, number, 100):
        own.learn(weighed([s for s in lists(100, seed=start, start=start) if s.task == CLICK]))
    names = [int(name.removeprefix("list-")) for name in kept(own)]
    assert 100 < len(names) < number / 3, "otherwise this shows nothing"
    assert own.num_bytes > 0.97 * SIZE
    counts, expected = np.bincount(np.array(names) // 200, minlength=10), len(names) / 10
    assert np.abs(counts - expected).max() < 4 * expected**0.5


def test_a_list_is_kept_with_the_purchases_that_come_later_and_drawn_with_them() -> None:
    own, stream = memory(), lists(40)
    own.learn(weighed([s for s in stream if s.task == CLICK]))
    num_clicks = own.num_bytes
    own.learn(weighed([s for s in stream if s.task == PURCHASE]))
    assert own.num_bytes > num_clicks
    drawn = own.draw(weighed(stream), np.ones(len(stream)), step=1)
    assert drawn is not None
    by_list: dict[str, list[str]] = {}
    for past in drawn.samples:
        by_list.setdefault(past.list_id, []).append(past.task)
    bought = {s.list_id for s in stream if s.task == PURCHASE}
    assert by_list.keys() & bought
    for name, tasks in by_list.items():
        assert tasks.count(CLICK) == 5
        assert tasks.count(PURCHASE) == (name in bought)


def test_a_purchase_of_a_list_that_made_room_is_not_kept_alone() -> None:
    own, stream = memory(size_bytes=SIZE + 150), lists(600)
    own.learn(weighed([s for s in stream if s.task == CLICK]))
    before = kept(own)
    assert 100 < len(before) < 500
    assert own.num_bytes < SIZE - 50, "room for a purchase"
    late = [s for s in stream if s.task == PURCHASE and s.list_id not in before]
    own.learn(weighed(late))
    assert late
    assert kept(own) == before


def test_the_share_is_that_of_the_settings_in_the_mean() -> None:
    own = memory(share=0.2)
    own.learn(weighed([s for s in lists(80) if s.task == CLICK]))
    one = weighed([s for s in lists(3, start=200) if s.task == CLICK])
    numbers = [
        0 if (found := own.draw(one, np.ones(15), step=step)) is None else len(found.samples)
        for step in range(600)
    ]
    assert np.mean(numbers) == pytest.approx(15 / 4, rel=0.1)


@pytest.mark.parametrize(
    ("loss", "teaches"), [("listwise", False), ("in_batch_softmax", False), ("pointwise", True)]
)
def test_lists_without_a_gradient_are_neither_kept_nor_counted(loss: str, teaches: bool) -> None:
    own = memory(loss)
    quiet = [msgspec.structs.replace(s, label=0) for s in lists(30) if s.task == CLICK]
    own.learn(weighed(quiet))
    assert own.num_lists == (30 if teaches else 0)
    own.learn(weighed([s for s in lists(30, start=100) if s.task == CLICK]))
    mixed = [*quiet[:100], *(s for s in lists(4, start=300) if s.task == CLICK)]
    drawn = own.draw(weighed(mixed), np.ones(120), step=1)
    assert drawn is not None
    assert drawn.own_share == pytest.approx(0.5, abs=0.12)
    num_own = 120 if teaches else 20
    assert len(drawn.samples) == pytest.approx(num_own, abs=5)
    assert drawn.divisor == pytest.approx(120 * (num_own + len(drawn.samples)) / num_own)


def test_a_list_too_large_for_the_memory_pushes_nothing_out_and_is_counted() -> None:
    own = memory()
    own.learn(weighed([s for s in lists(50) if s.task == CLICK]))
    before = kept(own)
    long = [msgspec.structs.replace(s, text=s.text * 2_000) for s in lists(1, start=900)]
    own.learn(weighed([s for s in long if s.task == CLICK]))
    assert kept(own) == before
    assert own.num_too_large == 1
    again = memory()
    again.restore(own.snapshot())
    assert again.num_too_large == 1


def test_a_smaller_size_after_a_restore_keeps_a_part_of_the_same() -> None:
    own, small = memory(size_bytes=4 * SIZE), memory()
    own.learn(weighed([s for s in lists(800) if s.task == CLICK]))
    small.restore(own.snapshot())
    straight = memory()
    straight.learn(weighed([s for s in lists(800) if s.task == CLICK]))
    assert small.snapshot() == straight.snapshot()
    assert kept(small) < kept(own)


@pytest.mark.parametrize("data", [b"x", b"\x93\x01\x00\x91\x92\x05\x91\xc4\x01x"])
def test_a_snapshot_that_is_none_is_refused(data: bytes) -> None:
    with pytest.raises(Corrupt, match="lists to rehearse"):
        memory().restore(data)


def gradients(own: Trainer) -> dict[str, torch.Tensor]:
    named = own.ranker.named_parameters()
    return {name: p.grad.clone() for name, p in named if p.grad is not None}


@pytest.mark.parametrize("loss", ["listwise", "pointwise", "in_batch_softmax"])
@pytest.mark.parametrize("num_micro_batches", [1, 3])
def test_the_encoder_moves_along_the_mean_of_both_and_the_levels_along_the_stream(
    loss: str, num_micro_batches: int
) -> None:
    own = trainer(loss=loss, rehearsal=ON, model="random:1x32")
    assert own.rehearsal is not None
    past = own.step([s for s in lists(8) if s.task == CLICK]).weighted
    assert own.ranker.residual.get(past.samples[0].query).any(), "which past lists are without"
    if loss != "in_batch_softmax":  # of which the negatives are those of the micro-batch
        own.num_micro_batches = num_micro_batches
    now = own.weigher.weigh([s for s in lists(6, start=50) if s.task == CLICK])
    factor = np.ones(len(now.samples))
    rehearsed = own.rehearsal.draw(now, factor, step=7)
    assert rehearsed is not None
    names = {s.list_id for s in rehearsed.samples}
    again = [s for s in past.samples if s.list_id in names]
    assert 0 < len(again) == len(rehearsed.samples)

    def run(weighted: WeightedBatch, factor: Any, **more: Any) -> dict[str, torch.Tensor]:
        if own.components.gradient.frequency is not None:  # it learns in each run
            own.components.gradient.frequency.restore(b"")
        own.components.gradient.run(
            weighted, range(len(weighted.samples)), step=7, factor=factor, **more
        )
        return gradients(own)

    both = run(now, factor, rehearsed=rehearsed)
    alone = run(now, factor)
    drawn = np.array([s.list_id in names for s in past.samples], dtype=float)
    before = run(past, drawn, residuals=False)
    num_now, num_past = len(now.samples), len(again)
    for name, found in both.items():
        expected = alone[name]
        if name.startswith("encoder."):
            mean_past = before[name] * len(past.samples) / num_past
            expected = (num_now * expected + num_past * mean_past) / (num_now + num_past)
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-6, msg=name)
    moved = [n for n in both if n.startswith("encoder.") and not both[n].equal(alone[n])]
    assert moved


def test_a_step_that_rehearses_changes_the_encoder_and_nothing_else() -> None:
    live = trainer(loss="listwise", rehearsal=ON)
    stream = batches(6)
    for samples in stream[:5]:
        live.step(samples)
    files = live.files()
    other = trainer(loss="listwise")
    other.restore(reader(files))
    assert live.step(stream[5]).num_rehearsed > 0
    assert other.step(stream[5]).num_rehearsed == 0
    found, expected = live.files(), other.files()
    differing = {name for name in expected if found[name] != expected[name]}
    assert layout.MODEL in differing
    assert differing <= MOVES | {layout.SHOWN}, "estimators, parts, residuals, evaluation"
    clicked = [msgspec.msgpack.decode(own[layout.SHOWN]) for own in (found, expected)]
    assert clicked[0][:2] == clicked[1]


def test_estimators_learn_each_sample_once_whatever_is_rehearsed() -> None:
    first, second = trainer(loss="listwise", rehearsal=ON), trainer(loss="listwise")
    for samples in batches(8):
        first.step(samples)
        second.step(samples)
    assert first.files()[layout.ESTIMATORS] == second.files()[layout.ESTIMATORS]
    assert first.trained == second.trained
    assert first.num_samples == second.num_samples


def test_what_was_refused_or_left_out_is_not_kept_and_a_repeat_rehearses_nothing() -> None:
    own = trainer(loss="listwise", rehearsal=ON)
    steps = batches(4)
    assert own.rehearsal is not None
    report = own.step(steps[0])
    names = kept(own.rehearsal)
    with torch.no_grad():
        bias = own.ranker.bias.clone()
        own.ranker.bias.fill_(float("nan"))
    assert own.step(steps[1]).result == "nonfinite"
    with torch.no_grad():
        own.ranker.bias.copy_(bias)
    own.skip(steps[2])
    assert kept(own.rehearsal) == names
    asked: list[int] = []
    own.components.gradient._scoring = asked.append
    assert own.repeat(report.weighted) is not None
    assert sum(asked) == len(report.weighted.samples)


def test_with_a_share_of_the_compute_all_lists_can_be_kept() -> None:
    own = trainer(loss="listwise", compute_share=0.3, rehearsal=ON)
    asked: list[int] = []
    own.components.gradient._scoring = asked.append
    reports = [own.step(samples) for samples in batches(30)]
    assert own.rehearsal is not None
    clicked = {s.list_id for samples in batches(30) for s in samples}
    assert kept(own.rehearsal) == clicked, "drawn or not"
    num_given = sum(len(r.weighted.samples) - r.num_left_out for r in reports)
    num_rehearsed = sum(r.num_rehearsed for r in reports)
    assert sum(asked) == num_given + num_rehearsed
    assert num_rehearsed == pytest.approx(num_given, rel=0.25)


# --- forgetting -----------------------------------------------------------------------------------


def taught(number: int, *, first: int, start: int) -> list[list[Sample]]:
    """Steps of lists: each of four queries clicks on one item of its own."""
    draw = np.random.default_rng(start)
    stream = []
    for i in range(start, start + number):
        query = first + int(draw.integers(4))
        shown = draw.permutation(np.arange(first, first + 4)).tolist()
        stream.append(
            [
                msgspec.structs.replace(
                    sample(
                        int(item == query),
                        query=f"query {text(500 + query)}",
                        item_id=f"SKU-{item}",
                        text=text(item * 37),
                        position=place,
                        at=i * SECOND,
                        offset=100 * i + place,
                    ),
                    list_id=f"list-{i}",
                )
                for place, item in enumerate(shown, 1)
            ]
        )
    return [list(chain.from_iterable(stream[at : at + 8])) for at in range(0, number, 8)]


def loss_on(own: Trainer, steps: Sequence[Sequence[Sample]]) -> float:
    """Listwise loss of the encoder alone."""
    total = []
    for samples in steps:
        with torch.no_grad():
            found = own.ranker([s.query for s in samples], [s.text for s in samples])
        logit = found.base.reshape(-1, 4)
        label = torch.tensor([s.label for s in samples]).reshape(-1, 4)
        total.append(-(torch.log_softmax(logit, 1)[label > 0]).mean().item())
    return float(np.mean(total))


def test_what_the_stream_no_longer_shows_is_forgotten_less() -> None:
    first, second = taught(240, first=0, start=0), taught(240, first=4, start=1000)
    kept_loss = {}
    for name, rehearsal in (("off", RehearsalConfig()), ("on", ON)):
        own = trainer(loss="listwise", rehearsal=rehearsal, l2_sp_samples=0.0)
        for samples in first:
            own.step(samples)
        learned = loss_on(own, first)
        for samples in second:
            own.step(samples)
        kept_loss[name] = loss_on(own, first)
        assert learned < kept_loss[name] or name == "on"
    assert kept_loss["on"] < 0.8 * kept_loss["off"], kept_loss
