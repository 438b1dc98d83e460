"""A step's samples are divided into micro-batches of about equal size, lists whole where asked."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from learner.training.micro_batches import micro_batches, within_tokens
from tests.learner.training import lists
from weighting.sample import Sample
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


def num_tokens(sample: Sample) -> dict[str, int]:
    """Texts as long as they are."""
    return {sample.query: len(sample.query), sample.text: len(sample.text)}


@settings(deadline=None)
@given(st.integers(0, len(SAMPLES)), st.integers(1, 200), st.booleans())
def test_no_micro_batch_encodes_more_tokens_than_fit(num: int, budget: int, whole: bool) -> None:
    samples, lists_of = SAMPLES[:num], {CLICK} if whole else set()
    parts = within_tokens(samples, range(num), budget, num_tokens, whole_lists=lists_of)
    assert sorted(place for part in parts for place in part) == list(range(num))
    for part in parts:
        texts = {text: n for i in part for text, n in num_tokens(samples[i]).items()}
        assert sum(texts.values()) <= budget or len(part) == 1


def test_a_list_is_divided_only_if_it_exceeds_the_budget_alone() -> None:
    names = list(dict.fromkeys(s.list_id for s in SAMPLES if s.task == CLICK))

    def texts(name: str) -> dict[str, int]:
        own = [s for s in SAMPLES if (s.task, s.list_id) == (CLICK, name)]
        return {text: n for s in own for text, n in num_tokens(s).items()}

    largest = max(sum(texts(name).values()) for name in names)
    for budget, divided in ((largest, False), (largest - 1, True)):
        parts = within_tokens(SAMPLES, range(len(SAMPLES)), budget, num_tokens, whole_lists={CLICK})
        found = [{(SAMPLES[i].task, SAMPLES[i].list_id) for i in part} for part in parts]
        num_parts = [sum((CLICK, name) in lists for lists in found) for name in names]
        assert (max(num_parts) > 1) == divided
