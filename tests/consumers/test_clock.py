from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from consumers.joining.clock import BEGINNING_US, Watermarks

A, B = ("clicks", 0), ("exposures", 0)


def clocks(grace_us: int = 10) -> Watermarks:
    return Watermarks([A, B], grace_us=grace_us, idle_timeout_us=30_000_000, now=0.0)


def test_the_watermark_is_the_least_of_the_partitions() -> None:
    marks = clocks()
    marks.observe(A, 1000, 0)
    assert marks.advance() == BEGINNING_US
    marks.observe(B, 500, 0)
    assert marks.advance() == 490


def test_an_event_behind_its_own_partition_is_late_and_its_key_is_monotone() -> None:
    marks = clocks()
    assert marks.observe(A, 1000, 0)[0] == 1000
    assert marks.observe(A, 995, 0)[0] == 995
    assert marks.observe(A, 900, 0)[0] == 990


def test_an_idle_partition_is_left_out_until_its_next_event_and_the_watermark_never_goes_back() -> (
    None
):
    marks = clocks()
    marks.observe(A, 1000, 0)
    marks.observe(B, 500, 0)
    assert marks.quiet(29.9) == []
    assert marks.quiet(30.0) == [A, B]
    marks.set_idle(B)
    assert marks.advance() == 990
    assert marks.observe(B, 600, 31)[0] == 990, "behind what was processed, so it comes next"
    assert marks.advance() == 990


def test_when_all_are_idle_the_most_advanced_one_decides() -> None:
    marks = clocks()
    marks.observe(A, 1000, 0)
    marks.observe(B, 500, 0)
    marks.set_idle(A)
    marks.set_idle(B)
    assert marks.advance() == 990


@given(
    st.lists(st.tuples(st.sampled_from([A, B]), st.integers(0, 1000)), max_size=50),
    st.integers(0, 100),
)
def test_no_key_is_ever_below_what_was_processed(
    events: list[tuple[tuple[str, int], int]], grace_us: int
) -> None:
    marks = clocks(grace_us)
    for partition, time_us in events:
        done = marks.advance()
        key_us, own_us = marks.observe(partition, time_us, 0)
        assert key_us >= max(done, time_us)
        assert own_us >= time_us - grace_us
        assert marks.advance() >= done


def test_restored_clocks_go_on_where_they_were() -> None:
    marks = clocks()
    marks.observe(A, 1000, 0)
    marks.set_idle(A)
    again = clocks()
    again.restore(0, marks.snapshot(0), 5.0)
    assert again.snapshot(0) == marks.snapshot(0)
    assert again.observe(A, 900, 6)[0] == 990
