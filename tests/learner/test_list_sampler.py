"""Lists drawn by importance: unbiased sums, the share asked for, the same in any replay."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray

from learner.trainer import Trainer
from learner.training.list_sampler import ListSampler
from learner.version_layout import PROGRESS
from tests.learner.training import batches, lists, reader, trainer, weights_of
from weighting.config import WeigherConfig
from weighting.sample import CopyKind
from weighting.tasks import CLICK, PURCHASE, TASKS
from weighting.weigher import Weigher
from weighting.weighted import WeightedBatch

COMPARES = {CLICK: True, PURCHASE: False}


def stream(number: int) -> list[WeightedBatch]:
    """Weighed batches of 50 lists of five, one click each."""
    weigher = Weigher(WeigherConfig())
    return [weigher.weigh(lists(50, seed=i, start=50 * i)) for i in range(number)]


def drawn(sampler: ListSampler, found: list[WeightedBatch]) -> list[NDArray[np.float64]]:
    return [sampler.draw(weighted) for weighted in found]


@pytest.mark.parametrize("share", [0.1, 0.3, 0.7])
def test_the_encoder_is_given_the_share_that_was_asked_for(share: float) -> None:
    factors = drawn(ListSampler(share, whole_lists=COMPARES), stream(60))
    given = np.mean(np.concatenate(factors[20:]) > 0)
    assert given == pytest.approx(share, rel=0.15)


@pytest.mark.parametrize("share", [0.1, 0.3])
def test_what_is_drawn_counts_for_what_is_not(share: float) -> None:
    """Within four standard errors: a list that is drawn with chance pi counts 1 / pi."""
    found = stream(60)
    factors = drawn(ListSampler(share, whole_lists=COMPARES), found)
    kept, alike = np.concatenate(factors), np.concatenate([w.a for w in found]).astype(np.float64)
    error = np.sqrt(np.sum((kept * alike) ** 2))
    assert abs(np.sum(kept * alike) - alike.sum()) < 4 * error
    assert kept.max() <= 4 / share + 1e-9


def test_lists_are_drawn_whole_and_the_same_for_copies_that_come_later() -> None:
    weigher, sampler = Weigher(WeigherConfig()), ListSampler(0.3, whole_lists=COMPARES)
    samples = [s for s in lists(200) if s.task == CLICK]
    factor = sampler.draw(weigher.weigh(samples))
    by_list: dict[str, set[float]] = {}
    for s, own in zip(samples, factor.tolist(), strict=True):
        by_list.setdefault(s.list_id, set()).add(own)
    assert all(len(own) == 1 for own in by_list.values())
    changes = {"label": 1, "copy_kind": CopyKind.LATE_POSITIVE}
    first = [s for s in samples if s.position == 1]
    late = [msgspec.structs.replace(s, sample_id=f"late {s.sample_id}", **changes) for s in first]
    again = sampler.draw(weigher.weigh(late))
    certain = [
        0.3 * 0.25 > ListSampler(0.3, whole_lists=COMPARES)._uniform(f"click/{s.list_id}")
        for s in late
    ]
    assert any(certain)
    for s, own, always in zip(late, again.tolist(), certain, strict=True):
        if always:
            assert own > 0, "drawn at any probability"
            assert by_list[s.list_id] != {0.0}


def test_where_few_lists_can_teach_they_are_drawn_and_the_level_comes_back() -> None:
    """One list in twenty has a click, later each has."""
    sampler, weigher = ListSampler(0.3, whole_lists=COMPARES), Weigher(WeigherConfig())
    samples = [s for s in lists(2_000) if s.task == CLICK]
    rare = [
        msgspec.structs.replace(s, label=s.label if int(s.list_id[5:]) % 20 == 0 else 0)
        for s in samples
    ]
    given = sampler.draw(weigher.weigh(rare)) > 0
    clicked = np.array([int(s.list_id[5:]) % 20 == 0 for s in rare], dtype=bool)
    assert given[clicked][-200:].all()
    assert given.mean() < 0.3
    after = [
        sampler.draw(weigher.weigh([s for s in lists(100, seed=i, start=9_000 + 100 * i)])) > 0
        for i in range(12)
    ]
    assert np.mean(np.concatenate(after[-4:])) == pytest.approx(0.3, rel=0.25)


def test_another_seed_draws_other_lists() -> None:
    (weighted,) = stream(1)
    one, other = (ListSampler(0.5, seed=s, whole_lists=COMPARES).draw(weighted) for s in (0, 1))
    assert ((one > 0) != (other > 0)).any()


def test_a_list_with_a_surprising_click_is_drawn_more_often_than_one_without_a_click() -> None:
    samples = [s for s in lists(400) if s.task == CLICK]
    none = {f"list-{i}" for i in range(0, 400, 2)}
    quiet = [msgspec.structs.replace(s, label=0) if s.list_id in none else s for s in samples]
    sampler, weigher = ListSampler(0.3, whole_lists=COMPARES), Weigher(WeigherConfig())
    factor = sampler.draw(weigher.weigh(quiet))
    kept = {True: [], False: []}  # type: dict[bool, list[float]]
    for s, own in zip(quiet[1000:], factor[1000:].tolist(), strict=True):
        kept[s.list_id in none].append(own > 0)
    assert np.mean(kept[False]) > 2 * np.mean(kept[True]) > 0


def test_a_share_of_1_takes_everything_as_it_is() -> None:
    (weighted,) = stream(1)
    sampler = ListSampler(1.0, whole_lists=COMPARES)
    assert (sampler.draw(weighted) == 1).all()
    assert sampler.log_level == 0


def test_only_what_is_drawn_is_encoded_with_a_gradient() -> None:
    counted: list[int] = []
    own = trainer(loss="listwise", compute_share=0.3)
    own.components.gradient._scoring = counted.append
    for samples in batches(60):
        own.step(samples)
    total = sum(len(samples) for samples in batches(60))
    assert 0 < sum(counted) < 0.5 * total
    assert own.num_samples == total


def test_what_is_left_out_is_neither_evaluated_nor_a_reason_to_refuse_the_step() -> None:
    own = trainer(loss="listwise", compute_share=0.3)
    steps = batches(40)
    reports = [own.step(samples) for samples in steps]
    assert {report.result for report in reports} == {"ok"}
    found = own.evaluation()
    assert all(np.isfinite(list(found.values())))
    num_left_out = sum(report.num_left_out for report in reports)
    num_drawn = sum(len(samples) for samples in steps) - num_left_out
    assert 0 < num_drawn == sum(found[f"{task}_num_samples"] for task in TASKS)


def learned_and_restored(share: float) -> tuple[Trainer, Trainer]:
    """A learner after eight steps, and another that was restored from its files."""
    own, again = (trainer(loss="listwise", compute_share=share) for _ in range(2))
    for samples in batches(8):
        own.step(samples)
    again.restore(reader(own.files()))
    return own, again


def test_a_restored_learner_draws_and_learns_on_the_same() -> None:
    own, again = learned_and_restored(0.4)
    for samples in batches(6, seed=50):
        own.step(samples)
        again.step(samples)
    assert again.files()[PROGRESS] == own.files()[PROGRESS]
    for name, value in weights_of(own).items():
        assert value.equal(weights_of(again)[name]), name


def test_a_step_of_nothing_drawn_is_the_same_after_a_restore() -> None:
    """Momentum moves the parameters in it, whether they have had a gradient since or not."""
    own, again = learned_and_restored(0.2)
    uniform = own.components.sampler._uniform
    numbers = [n for n in range(500, 900) if uniform(f"{CLICK}/list-{n}") > 0.99]
    unlikely = [[s for s in lists(1, start=n) if s.task == CLICK] for n in numbers]
    for samples in [*unlikely[:2], *batches(6, seed=70)]:
        one, other = own.step(samples), again.step(samples)
        assert one.num_left_out == len(samples) or samples not in unlikely
        assert one.loss == other.loss
    for name, value in weights_of(own).items():
        assert value.equal(weights_of(again)[name]), name


def test_every_task_has_a_loss_that_the_sampler_knows() -> None:
    own = trainer(loss="listwise")
    assert own.components.sampler._whole_lists.keys() == TASKS.keys()
