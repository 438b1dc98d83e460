"""The doctor's estimate of the memory of the join."""

from __future__ import annotations

import dataclasses

import pytest

from consumers import codec
from consumers.events import Event, Kind, encode_click, encode_exposure
from consumers.joining.join import JoinConfig
from consumers.source import Record
from deploy.doctor.join_state import events_per_second, join_state

START_US, SECOND = 1_700_000_000_000_000, 1_000_000
JOIN = JoinConfig(attribution_window_us=86_400 * SECOND)


def records(kind: Kind, *, num: int = 21, seconds_between: float = 0.1) -> list[Record]:
    """Records of two partitions, each with this time between two."""
    made = []
    for n in range(num):
        time_us = START_US + int(n * seconds_between * SECOND)
        value = (
            encode_exposure(
                query_id=f"q-{n}",
                client_id="c",
                time_us=time_us,
                user_query="shoes",
                hits=[f"{n}-{i}" for i in range(10)],
            )
            if kind is Kind.EXPOSURE
            else encode_click(client_id="c", object_id="A", time_us=time_us)
        )
        made += [Record("topic", p, n, time_us, b"c", value, ()) for p in range(2)]
    return made


def decoded(kind: Kind, of: list[Record]) -> list[tuple[Record, Event]]:
    return [(record, codec.decode(kind, record)) for record in of]


def test_the_rate_is_that_of_all_partitions() -> None:
    assert events_per_second(records(Kind.CLICK)) == pytest.approx(20)
    assert events_per_second(records(Kind.CLICK, num=1)) is None
    assert events_per_second([]) is None


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        (
            Kind.EXPOSURE,
            "open lists will need about 1,020 MB of memory at 20.0 events/s for 1 d",
        ),
        (Kind.CLICK, "open clicks will need about 2,600 MB of memory at 20.0 events/s for 2 d"),
    ],
)
def test_the_estimate_is_rate_times_window_times_size(kind: Kind, text: str) -> None:
    join = dataclasses.replace(JOIN, max_pending=10**9 if kind is Kind.EXPOSURE else 2_000_000)
    (found,) = join_state("topic", kind, decoded(kind, records(kind)), join)
    assert text in found.text
    assert found.mark == ("ok" if kind is Kind.EXPOSURE else "!")


def test_entries_beyond_the_bound_are_marked_with_how_long_they_are_kept() -> None:
    join = dataclasses.replace(JOIN, max_pending=864_000)
    kind = Kind.EXPOSURE
    (found,) = join_state("topic", kind, decoded(kind, records(kind)), join)
    assert "join.max_pending evicts them after 0.5 d" in found.text
    assert "shorten join.attribution_window" in found.remedy


def test_purchases_leave_nothing_open() -> None:
    kind = Kind.PURCHASE
    assert list(join_state("topic", kind, decoded(Kind.CLICK, records(Kind.CLICK)), JOIN)) == []
