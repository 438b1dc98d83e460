"""Rates: read with their unit, and kept on the clock that is given."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy.admin.rate import Throttle, parse
from deploy.errors import UsageError
from tests.fakes.clock import ManualClock


@pytest.mark.parametrize("text", ["100", "0/s", "-1/s", "1/m", "many/s"])
def test_a_rate_without_its_unit_is_a_usage_error(text: str) -> None:
    with pytest.raises(
        UsageError, match=f"--rate-limit: got '{text}', expected a number a second, such as 100/s"
    ):
        parse(text, "--rate-limit")


def test_a_rate_is_read() -> None:
    assert parse("2.5/s", "--rate") == 2.5
    assert parse(None, "--rate") is None


@given(
    per_second=st.integers(1, 50),
    pauses=st.lists(st.sampled_from([0.0, 0.001, 0.3, 60.0]), max_size=60),
)
def test_in_any_second_no_more_pass_than_the_rate_and_a_tenth_of_it_whatever_pauses_there_were(
    per_second: int, pauses: list[float]
) -> None:
    clock, passed = ManualClock(0.0), list[float]()
    throttle = Throttle(per_second, clock=clock, sleep=clock.advance)
    for pause in pauses:
        clock.advance(pause)
        throttle.wait()
        passed.append(clock.seconds)
    for start in passed:
        assert sum(start <= at < start + 1 for at in passed) <= 1.1 * per_second + 1


def test_a_rate_is_reached() -> None:
    clock = ManualClock(0.0)
    throttle = Throttle(
        4, clock=clock, sleep=lambda seconds: clock.advance(seconds * 1.01)
    )  # a sleep ends late
    for _ in range(401):
        throttle.wait()
    assert 100 <= clock.seconds < 100.1


def test_without_a_rate_nothing_waits() -> None:
    throttle = Throttle(None, clock=ManualClock(), sleep=lambda seconds: pytest.fail("waited"))
    throttle.wait()
