from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from consumers.joining.dedup import Dedup

WINDOW_US = 1600


def seen(dedup: Dedup, identity: bytes, time_us: int, *, number: int = 0, lag_us: int = 0) -> bool:
    """Ask at a watermark, and forget behind a global one."""
    dedup.forget(time_us - lag_us)
    return dedup.seen(identity, number, time_us, time_us)


def test_an_id_is_seen_once() -> None:
    dedup = Dedup(WINDOW_US)
    assert [seen(dedup, i, 0) for i in (b"a", b"b", b"a", b"b")] == [False, False, True, True]
    assert len(dedup) == 2


@given(st.integers(0, 10_000), st.integers(0, 4000))
def test_an_id_is_remembered_for_the_window_at_least_and_a_sixteenth_more_at_most(
    at: int, after: int
) -> None:
    dedup = Dedup(WINDOW_US)
    seen(dedup, b"a", at)
    again = seen(dedup, b"a", at + after)
    if after <= WINDOW_US:
        assert again
    if after >= WINDOW_US + 2 * WINDOW_US // 16:
        assert not again


def test_memory_is_bounded_by_the_window() -> None:
    dedup = Dedup(WINDOW_US)
    for n in range(100_000):
        seen(dedup, b"%d" % n, n)
    assert len(dedup) <= WINDOW_US + 2 * WINDOW_US // 16


@given(
    st.lists(st.tuples(st.binary(min_size=1, max_size=2), st.integers(0, 5000)), max_size=60),
    st.integers(0, 60),
)
def test_a_restored_window_answers_as_the_first_would(
    events: list[tuple[bytes, int]], cut: int
) -> None:
    events.sort(key=lambda event: event[1])  # a watermark does not go back
    whole, first, second = Dedup(WINDOW_US), Dedup(WINDOW_US), Dedup(WINDOW_US)
    answers = [seen(whole, i, t) for i, t in events]
    before = [seen(first, i, t) for i, t in events[:cut]]
    now = max((t for _, t in events[:cut]), default=0)
    second.restore(0, first.snapshot(0, now))
    assert second.snapshot(0, now) == first.snapshot(0, now)
    assert before + [seen(second, i, t) for i, t in events[cut:]] == answers


def test_the_partitions_of_a_topic_share_their_ids_and_are_restored_one_by_one() -> None:
    dedup = Dedup(WINDOW_US)
    assert not seen(dedup, b"a", 100, number=0)
    assert not seen(dedup, b"b", 100, number=1)
    assert seen(dedup, b"a", 110, number=1)
    restored = Dedup(WINDOW_US)
    for number in (1, 0):
        restored.restore(number, dedup.snapshot(number, 110))
    assert [restored.snapshot(n, 110) for n in (0, 1)] == [dedup.snapshot(n, 110) for n in (0, 1)]
    assert seen(restored, b"b", 110, number=0)


def test_a_partition_forgets_by_its_own_time_while_others_lag_behind() -> None:
    dedup = Dedup(WINDOW_US)
    later = 2 * WINDOW_US
    assert not seen(dedup, b"a", 0)
    assert not seen(dedup, b"a", later, lag_us=later)
    assert seen(dedup, b"a", later + 1, lag_us=later)


def test_what_one_partition_does_not_find_any_more_another_one_finds_after_a_restart() -> None:
    dedup = Dedup(WINDOW_US)
    assert not dedup.seen(b"a", 0, 0, 0)
    assert not dedup.seen(b"b", 0, 3 * WINDOW_US, 3 * WINDOW_US)
    restored = Dedup(WINDOW_US)
    restored.restore(0, dedup.snapshot(0, 0))
    assert dedup.seen(b"a", 1, 10, 10)
    assert restored.seen(b"a", 1, 10, 10)


def test_an_id_of_a_fast_clock_is_forgotten_like_the_others() -> None:
    dedup = Dedup(WINDOW_US)
    assert not dedup.seen(b"a", 0, 10**15, 1000)
    dedup.forget(10 * WINDOW_US)
    assert not len(dedup)
