"""Contributions of lists: bounded, counted, and forgotten only when no more can come."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from learner.errors import Corrupt
from learner.training.contributions import Contributions
from tests.weighting.streams import SECOND, sample
from weighting.sample import Sample
from weighting.tasks import CLICK, PURCHASE

DAY = 86_400 * SECOND


def shown(list_id: str, *, at: int = 0, task: str = CLICK, window: int = SECOND) -> Sample:
    """A sample with windows of that length."""
    found = sample(0, at=at)
    return msgspec.structs.replace(
        found,
        list_id=list_id,
        task=task,
        window_us=window,
        attribution_us=window,
        elapsed_us=window,
        sample_id=f"{list_id}{at}{task}",
    )


@settings(deadline=None, max_examples=60)
@given(st.lists(st.sets(st.integers(0, 5)), max_size=20), st.integers(1, 4), st.integers(0, 19))
def test_no_list_adds_to_more_steps_than_it_may_and_all_others_are_counted(
    steps: list[set[int]], most: int, cut: int
) -> None:
    own, added, offered = Contributions(most), dict.fromkeys(range(6), 0), 0
    for number, names in enumerate(steps):
        if number == cut:  # a restart
            other = Contributions(most)
            other.restore(own.snapshot())
            own = other
        order = sorted(names)
        admitted = own.admit([[shown(f"list-{i}")] for i in order])
        offered += len(order)
        for i, found in zip(order, admitted, strict=True):
            assert found == (added[i] < most)
            added[i] += found
    assert max(added.values()) <= most
    assert own.num_dropped == offered - sum(added.values())


def test_samples_without_a_list_are_each_their_own() -> None:
    own = Contributions(1)
    assert own.admit([[shown("")], [shown("")]]) == [True, True]
    assert (len(own), own.num_dropped) == (0, 0)


def test_a_list_is_kept_until_its_last_sample_can_have_come() -> None:
    own, window = Contributions(1), 2 * DAY
    own.admit([[shown("known", window=window), shown("known", task=PURCHASE, window=window)]])
    # Both windows and a day after the step that it added to, but for a microsecond
    last = 5 * DAY
    assert own.admit([[shown("a", at=last, window=window)]]) == [True]
    assert own.admit([[shown("known", at=last, window=window)]]) == [False]
    own.admit([[shown("b", at=2 * last + 1, window=window)]])
    assert len(own) == 1


def test_a_task_that_has_not_come_yet_may_still_come_late() -> None:
    own = Contributions(1)
    own.admit([[shown("known")]])
    own.admit([[shown("other", at=20 * DAY)]])
    late = shown("known", at=20 * DAY, task=PURCHASE)
    assert own.admit([[late]]) == [False]


def test_a_snapshot_of_another_format_is_refused() -> None:
    with pytest.raises(Corrupt, match="format 1"):
        Contributions(1).restore(msgspec.msgpack.encode((9, 0, {}, [], 0)))
