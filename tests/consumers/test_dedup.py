from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from consumers.joining.dedup import Dedup

WINDOW_US = 1600


def test_an_id_is_seen_once() -> None:
    dedup = Dedup(WINDOW_US)
    assert [dedup.seen(i, 0, 0) for i in (b"a", b"b", b"a", b"b")] == [False, False, True, True]
    assert len(dedup) == 2


@given(st.integers(0, 10_000), st.integers(0, 4000))
def test_an_id_is_remembered_for_the_window_at_least_and_a_sixteenth_more_at_most(
    at: int, after: int
) -> None:
    dedup = Dedup(WINDOW_US)
    dedup.seen(b"a", at, at)
    seen = dedup.seen(b"a", at + after, at + after)
    if after <= WINDOW_US:
        assert seen
    if after >= WINDOW_US + 2 * WINDOW_US // 16:
        assert not seen


def test_memory_is_bounded_by_the_window() -> None:
    dedup = Dedup(WINDOW_US)
    for n in range(100_000):
        dedup.seen(b"%d" % n, n, n)
    assert len(dedup) <= WINDOW_US + 2 * WINDOW_US // 16


@given(
    st.lists(st.tuples(st.binary(min_size=1, max_size=2), st.integers(0, 5000)), max_size=60),
    st.integers(0, 60),
)
def test_a_restored_window_answers_as_the_first_would(
    events: list[tuple[bytes, int]], cut: int
) -> None:
    whole, first, second = Dedup(WINDOW_US), Dedup(WINDOW_US), Dedup(WINDOW_US)
    answers = [whole.seen(i, t, t) for i, t in events]
    before = [first.seen(i, t, t) for i, t in events[:cut]]
    second.restore(first.snapshot())
    assert second.snapshot() == first.snapshot()
    assert before + [second.seen(i, t, t) for i, t in events[cut:]] == answers
