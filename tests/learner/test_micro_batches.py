"""A step's samples are divided into micro-batches of about equal size, lists whole where asked."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from learner.training.micro_batches import micro_batches
from tests.learner.training import lists
from weighting.tasks import CLICK

SAMPLES = lists(6)


@settings(deadline=None)
@given(st.integers(0, len(SAMPLES)), st.integers(1, 40), st.booleans())
def test_every_sample_is_in_one_micro_batch_in_order(num: int, number: int, whole: bool) -> None:
    samples = SAMPLES[:num]
    parts = micro_batches(samples, number, whole_lists={CLICK} if whole else set())
    assert sorted(place for part in parts for place in part) == list(range(num))
    assert all(part == sorted(part) for part in parts)
    assert len(parts) <= min(number, num)
    if not whole and parts:
        sizes = [len(part) for part in parts]
        assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("number", [1, 2, 3, 50])
def test_lists_of_a_task_stay_whole_and_other_samples_need_not(number: int) -> None:
    parts = micro_batches(SAMPLES, number, whole_lists={CLICK})
    for name in {s.list_id for s in SAMPLES}:
        places = {i for i, s in enumerate(SAMPLES) if s.task == CLICK and s.list_id == name}
        assert [part for part in parts if places & set(part)] == [
            part for part in parts if places <= set(part)
        ]
