"""The watchdog: when it asks, when it ends the process, and when it must not."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from threading import Event

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deploy.process.lifecycle import STALLED, Progress, Watchdog
from deploy.roles.batch_stream import time_reading
from tests.fakes.clock import ManualClock
from weighting.provenance import TopicPartition

A: TopicPartition = ("clicks", 0)
B: TopicPartition = ("clicks", 1)


class Kennel:
    """A watchdog on a clock moved by hand, and what it did."""

    def __init__(self, stall_seconds: float = 60) -> None:
        self.clock = ManualClock()
        self.ended: list[int] = []
        self.progress = Progress(self.clock)
        self.watchdog = Watchdog(self.progress, stall_seconds, end=self.ended.append)

    def stay(
        self,
        seconds: int,
        next_offsets: Mapping[TopicPartition, int],
        ends: Mapping[TopicPartition, int],
        paused: tuple[TopicPartition, ...] = (),
    ) -> bool:
        """Every second the loop tells and the watchdog looks; return whether it asked."""
        asked = False
        for _ in range(seconds):
            self.clock.advance(1)
            self.progress.observe(next_offsets, ends, paused)
            self.watchdog.look()
            asked |= self.watchdog.asks()
        return asked


def test_a_stall_is_answered_by_a_new_consumer_and_then_by_the_end_of_the_process(
    caplog: pytest.LogCaptureFixture,
) -> None:
    kennel = Kennel()
    assert not kennel.stay(60, {A: 5}, {A: 9})
    assert kennel.stay(2, {A: 5}, {A: 9})
    assert not kennel.stay(58, {A: 5}, {A: 9}), "it asks once"
    assert not kennel.ended
    with caplog.at_level(logging.CRITICAL):
        kennel.stay(3, {A: 5}, {A: 9})
    assert kennel.ended[0] == STALLED == 75
    assert "records wait" in caplog.records[0].message


def test_it_acts_though_the_loop_hangs_and_tells_nothing() -> None:
    kennel = Kennel()
    kennel.stay(1, {A: 5}, {A: 9})
    for seconds, asks, ended in ((59, False, []), (1, True, []), (59, False, []), (1, False, [75])):
        kennel.clock.advance(seconds)
        kennel.watchdog.look()
        assert (kennel.watchdog.asks(), kennel.ended) == (asks, ended)


def test_one_partition_that_stands_still_among_others_is_a_stall() -> None:
    kennel = Kennel()
    asked = False
    for n in range(65):
        asked |= kennel.stay(1, {A: n, B: 3}, {A: 1000, B: 4})
    assert asked


def test_moving_after_the_first_answer_is_the_end_of_the_stall() -> None:
    kennel = Kennel()
    assert kennel.stay(62, {A: 5}, {A: 9})
    kennel.stay(58, {A: 6}, {A: 9})
    assert not kennel.ended
    assert kennel.stay(10, {A: 6}, {A: 9}), "the next stall is a stall of its own"
    assert not kennel.ended


@settings(deadline=None, max_examples=30)
@given(
    steps=st.lists(st.tuples(st.integers(1, 50), st.booleans(), st.booleans()), max_size=30),
)
def test_nothing_happens_while_all_is_read_or_paused_or_moves(
    steps: list[tuple[int, bool, bool]],
) -> None:
    kennel, offset = Kennel(), 0
    for seconds, caught_up, paused in steps:
        offset += 1
        ends = {A: offset if caught_up else offset + 7}
        assert not kennel.stay(seconds, {A: offset}, ends, (A,) if paused else ())
        assert not kennel.stay(200, {A: offset}, {A: offset})
        assert not kennel.stay(200, {A: offset}, {A: offset + 9}, (A,))
        assert not kennel.stay(seconds, {A: offset}, {A: offset + 9})
    assert not kennel.ended


def test_a_loop_that_says_it_rests_is_left_alone() -> None:
    kennel = Kennel()
    kennel.stay(50, {A: 5}, {A: 9})
    kennel.progress.rest()
    kennel.clock.advance(1000)
    kennel.watchdog.look()
    assert not kennel.watchdog.asks()
    assert not kennel.stay(60, {A: 5}, {A: 9}), "time began anew"
    assert kennel.stay(2, {A: 5}, {A: 9})


def test_a_process_that_slept_is_asked_before_it_is_ended() -> None:
    kennel = Kennel()
    kennel.stay(1, {A: 5}, {A: 9})
    kennel.clock.advance(100_000)
    kennel.watchdog.look()
    assert kennel.watchdog.asks()
    assert not kennel.ended


def test_the_thread_looks_by_itself_and_ends_with_close() -> None:
    ended, progress = Event(), Progress()
    watchdog = Watchdog(progress, 0.05, end=lambda code: ended.set()).start()
    progress.observe({A: 5}, {A: 9})
    assert ended.wait(30)
    watchdog.close()
    watchdog.close()


def test_a_learner_on_a_backlog_is_left_alone_however_long_its_steps_are() -> None:
    kennel = Kennel(stall_seconds=5)
    with kennel.progress.reading():
        kennel.progress.observe({A: 5}, {A: 10_000})
    for _ in range(50):  # steps on what one poll brought
        with kennel.progress.working():
            for _ in range(100):
                kennel.clock.advance(1)
                kennel.watchdog.look()
        with kennel.progress.reading():
            kennel.clock.advance(0.05)
            kennel.watchdog.look()
        assert not kennel.watchdog.asks(), "a healthy client is kept"
    assert not kennel.ended
    with kennel.progress.reading():
        assert kennel.stay(6, {A: 5}, {A: 10_000}), "time spent on reading does count"
        kennel.stay(6, {A: 5}, {A: 10_000})
    assert kennel.ended


def test_a_consumer_that_stands_still_beside_a_step_is_found() -> None:
    kennel = Kennel()
    with kennel.progress.working(), kennel.progress.reading():
        assert kennel.stay(61, {A: 5}, {A: 9})
        assert not kennel.ended
        kennel.stay(61, {A: 5}, {A: 9})
    assert kennel.ended


def test_a_step_that_hangs_while_the_next_batches_are_read_ends_the_process() -> None:
    kennel = Kennel()
    with kennel.progress.working():
        for n in range(700):
            with kennel.progress.reading():
                assert not kennel.stay(1, {A: n}, {A: 10_000})
            with kennel.progress.working():  # the samples are weighed
                kennel.watchdog.look()
            if kennel.ended:
                break
    assert kennel.ended[0] == STALLED
    assert n == 659


def test_steps_one_after_the_other_beside_reading_are_no_hung_step() -> None:
    kennel = Kennel()
    for n in range(20):
        with kennel.progress.working():
            with kennel.progress.reading():
                assert not kennel.stay(30, {A: n}, {A: 10_000})
            kennel.clock.advance(570)
            kennel.watchdog.look()
        kennel.watchdog.look()
    assert not kennel.ended


def test_a_step_that_hangs_ends_the_process_after_a_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    kennel = Kennel()
    looks: tuple[tuple[int, int, list[int]], ...] = (
        (599, 0, []),
        (1, 1, []),
        (59, 1, []),
        (1, 2, [STALLED]),
    )
    with kennel.progress.working():
        for seconds, num_logged, ended in looks:
            kennel.clock.advance(seconds)
            kennel.watchdog.look()
            assert (len(caplog.records), kennel.ended) == (num_logged, ended)
    assert "learner.step_timeout" in caplog.text


def test_a_process_that_slept_in_a_step_goes_on_with_it() -> None:
    kennel = Kennel()
    with kennel.progress.working():
        kennel.clock.advance(100_000)
        kennel.watchdog.look()
        kennel.clock.advance(59)
        kennel.watchdog.look()
    kennel.watchdog.look()
    assert not kennel.ended


def test_the_clock_of_reading_runs_while_an_item_is_waited_for() -> None:
    clock = ManualClock()
    progress = Progress(clock)

    def read() -> Iterator[int]:
        for item in range(3):
            clock.advance(1)
            assert progress.working_seconds() == 0
            yield item

    begun = progress.reading_seconds()
    for _ in time_reading(read(), progress):
        with progress.working():
            clock.advance(100)
            assert progress.working_seconds() == 100
    assert progress.reading_seconds() - begun == 3
