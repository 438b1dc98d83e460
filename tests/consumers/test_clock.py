"""Watermarks of partitions: which clocks move them, which are left out, and what is corrected."""

from __future__ import annotations

from random import Random

from hypothesis import given
from hypothesis import strategies as st

from consumers.joining.clock import BEGINNING_US, Correction, Watermarks
from consumers.joining.partition_clock import NUM_CLIENTS

SECOND = 1_000_000
GRACE_US, IDLE_US = 10 * SECOND, 30 * SECOND
A, B = ("clicks", 0), ("exposures", 0)


def clocks() -> Watermarks:
    return Watermarks(
        [A, B],
        grace_us=GRACE_US,
        attribution_us=600 * SECOND,
        idle_timeout_us=IDLE_US,
        now=0.0,
    )


def see(
    marks: Watermarks,
    at: float,
    client: str,
    tp: tuple[str, int] = A,
    now: float = 0,
    offset: int = 0,
) -> tuple[float, float, float]:
    times_us = marks.observe(tp, client, offset, int(at * SECOND), now)
    time, key, own = (time_us / SECOND for time_us in times_us)
    return time, key, own


def crowd(marks: Watermarks, at: float, tp: tuple[str, int] = A, size: int = 3) -> None:
    for n in range(size):
        see(marks, at, f"crowd-{n}", tp)


# --- one partition --------------------------------------------------------------------------------


def test_one_clock_alone_moves_nothing_and_two_move_it_to_the_older() -> None:
    marks = clocks()
    see(marks, 1000, "a")
    assert marks.own_watermark(A) == BEGINNING_US
    see(marks, 1004, "b")
    assert marks.own_watermark(A) == 990 * SECOND


def test_stream_time_is_the_second_newest_client_in_ordinary_traffic() -> None:
    marks = clocks()
    for n in range(40):
        see(marks, 1000 + n / 2, f"c-{n}")
    assert marks.own_watermark(A) == 1009 * SECOND


def test_a_minority_of_wrong_clocks_moves_the_watermark_by_half_of_the_grace_at_most() -> None:
    marks = clocks()
    for n in range(100):
        wrong = n % 3 == 0
        see(marks, 1000 + 3600 * wrong, f"c-{n}")
        assert marks.own_watermark(A) <= (1005 - 10) * SECOND


def test_after_a_quiet_night_most_of_the_clients_move_time_and_no_event_is_corrected() -> None:
    marks = clocks()
    crowd(marks, 1000, size=NUM_CLIENTS)
    for n in range(NUM_CLIENTS // 2):
        assert see(marks, 9000 + n, f"morning-{n}")[1] == 9000 + n, "its own time is its key"
        assert marks.own_watermark(A) <= 995 * SECOND
    see(marks, 9010, "morning")
    assert marks.own_watermark(A) >= 8990 * SECOND
    assert marks.corrections == []


def test_an_event_behind_its_own_partition_is_late_and_its_key_is_monotone() -> None:
    marks = clocks()
    crowd(marks, 1000)
    assert see(marks, 995, "late")[:2] == (995, 995)
    assert see(marks, 900, "late")[:2] == (900, 990)


def test_an_event_older_than_the_attribution_window_gets_the_stream_time() -> None:
    marks = clocks()
    crowd(marks, 1000)
    assert see(marks, 390, "old")[0] == 390
    assert see(marks, 389, "older")[0] == 1000


# --- events ahead ---------------------------------------------------------------------------------


def test_an_event_ahead_is_corrected_once_the_clients_after_it_contradict_it() -> None:
    marks = clocks()
    crowd(marks, 1000, size=6)
    assert see(marks, 8000, "fast", offset=7)[1] == 8000
    for n in range(4):
        assert marks.corrections == []
        see(marks, 1001 + n, f"crowd-{n}")
    (correction,) = marks.corrections
    assert correction == Correction(A, 7, 8000 * SECOND, 1000 * SECOND, 1000 * SECOND)


def test_a_burst_of_one_client_is_neither_a_crowd_nor_a_witness() -> None:
    marks = clocks()
    crowd(marks, 1000, size=6)
    for n in range(500):
        see(marks, 8000 + n, "fast")
    assert marks.own_watermark(A) == 990 * SECOND
    assert marks.corrections == []
    see(marks, 9000, "honest")
    for _ in range(500):
        see(marks, 1000, "slow")
    assert marks.corrections == []


def test_an_event_ahead_is_right_if_one_client_after_it_is_wrong() -> None:
    marks = clocks()
    crowd(marks, 1000, size=6)
    see(marks, 8000, "right")
    see(marks, 0, "wrong")
    for n in range(20):
        see(marks, 8001 + n, f"c-{n}")
    assert marks.corrections == []


# --- all partitions -------------------------------------------------------------------------------


def test_the_watermark_is_the_least_of_the_partitions() -> None:
    marks = clocks()
    crowd(marks, 1000)
    assert marks.advance() == BEGINNING_US
    crowd(marks, 500, B)
    assert marks.advance() == 490 * SECOND


def test_an_idle_partition_is_left_out_until_its_next_event() -> None:
    marks = clocks()
    crowd(marks, 1000)
    crowd(marks, 500, B)
    assert marks.quiet(29.9) == []
    assert marks.quiet(30.0) == [A, B]
    marks.set_idle(B)
    assert marks.advance() == 990 * SECOND
    assert see(marks, 600, "one", B, now=31)[1] == 990, "behind what was processed"
    assert marks.advance() == 990 * SECOND, "it never goes back"
    assert marks.num_busy == 2
    assert marks.quiet(31) == [A, B], "one client moves no watermark, and holds none back for long"
    see(marks, 700, "one", B, now=31)
    see(marks, 700, "other", B, now=31)
    assert marks.quiet(31) == [A]


def test_when_all_are_idle_the_most_advanced_one_decides() -> None:
    marks = clocks()
    crowd(marks, 1000)
    crowd(marks, 500, B)
    marks.set_idle(A)
    marks.set_idle(B)
    assert marks.advance() == 990 * SECOND


def test_when_all_are_idle_the_wall_clock_vouches_for_one_client_on_time() -> None:
    marks = clocks()
    see(marks, 1000, "one")
    see(marks, 5000, "ahead", B)
    marks.set_idle(A)
    marks.set_idle(B)
    assert marks.advance() == BEGINNING_US
    assert marks.on_time_us(999 * SECOND) == BEGINNING_US, "nothing on time is in the future"
    assert marks.on_time_us(1071 * SECOND) == BEGINNING_US, "nor older than grace and waits"
    assert marks.advance(1070 * SECOND) == 990 * SECOND


@given(st.integers(0, 10_000), st.integers(0, 100))
def test_no_key_is_ever_below_what_was_processed_or_above_its_time_without_reason(
    seed: int, num_wrong: int
) -> None:
    marks, random = clocks(), Random(seed)
    for n in range(100):
        done = marks.advance()
        tp, client = random.choice([A, B]), f"c-{random.randrange(20)}"
        time_us = (1000 + n) * SECOND - random.randrange(GRACE_US)
        if n < num_wrong and client == "c-0":
            time_us = random.randrange(10**10)
        _, key_us, own_us = marks.observe(tp, client, n, time_us, 0)
        assert key_us >= max(done, own_us)
        assert client == "c-0" or key_us == time_us, "nobody else is ever late"
        assert marks.advance() >= done


def test_restored_clocks_go_on_where_they_were() -> None:
    marks = clocks()
    crowd(marks, 1000)
    see(marks, 5000, "ahead")
    marks.set_idle(A)
    again = clocks()
    again.restore(0, marks.snapshot(0), 5.0)
    assert again.snapshot(0) == marks.snapshot(0)
    for each in (marks, again):
        crowd(each, 1001, size=6)
    assert again.corrections == marks.corrections != []
    assert again.snapshot(0) == marks.snapshot(0)
