"""A task is data: what is declared in one place holds everywhere in the folder."""

from __future__ import annotations

import msgspec
import pytest

from tests.weighting.streams import sample
from weighting.config import WeigherConfig
from weighting.errors import WeightError
from weighting.estimators.conditional import ConditionalConfig
from weighting.estimators.task import TaskConfig
from weighting.features import FieldConfig
from weighting.provenance import Position
from weighting.tasks import TASKS
from weighting.weigher import Weigher

SMALL = ConditionalConfig(fields=FieldConfig(hash_bits=12))


def weigher() -> Weigher:
    return Weigher(WeigherConfig(conditional=SMALL))


def test_a_parent_stands_before_its_children() -> None:
    names = list(TASKS)
    for name, task in TASKS.items():
        assert task.name == name
        assert task.parent is None or names.index(task.parent) < names.index(name)


def test_every_task_has_settings_under_its_name() -> None:
    for name in TASKS:
        assert isinstance(WeigherConfig().of(name), TaskConfig)


@pytest.mark.parametrize("task", TASKS)
def test_a_task_starts_at_its_own_prior(task: str) -> None:
    initial = WeigherConfig().of(task).prior.initial
    assert weigher().prior(task) == pytest.approx(initial)
    assert weigher().weigh([sample(1, task=task)]).p_positive == pytest.approx([initial])


@pytest.mark.parametrize("task", TASKS)
def test_only_where_the_position_matters_is_it_examined_less(task: str) -> None:
    batch = weigher().weigh([sample(0, task=task, position=k) for k in (1, 10)])
    first, tenth = batch.examination
    assert first == 1
    assert (tenth < 1) == TASKS[task].position_matters


def test_a_sample_of_an_unknown_task_is_refused_with_its_position_and_nothing_is_learned() -> None:
    fresh = weigher()
    before = fresh.snapshot()
    unknown = msgspec.structs.replace(sample(0, offset=17), task="rating")
    with pytest.raises(WeightError, match=r"clicks\[3\]@17: task: got 'rating'") as caught:
        fresh.weigh([sample(1), unknown])
    assert caught.value.expected == "one of click, purchase"
    assert caught.value.where == Position("clicks", 3, 17)
    assert fresh.snapshot() == before
