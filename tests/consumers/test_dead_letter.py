"""Dead letters: the policies, and the breaker that ends them."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from consumers.dead_letter import WINDOW_RECORDS, DeadLetters, Policy
from consumers.errors import DeadLetterFlood, Invalid, SnapshotRefused, Unreadable
from consumers.source import Record
from consumers.telemetry import Telemetry
from deploy.cli.exit_codes import UNSAFE, exit_code
from tests.fakes.log import Shelf
from weighting.provenance import Position

MAX_UNREADABLE = WINDOW_RECORDS // 20


def letters(policy: Policy = "data") -> tuple[DeadLetters, Shelf]:
    shelf = Shelf()
    return DeadLetters(shelf, "dead", Telemetry(CollectorRegistry()), policy), shelf


def unreadable(
    offset: int, *, topic: str = "clicks", reason: str = "not_json"
) -> tuple[Record, Invalid]:
    invalid = Invalid(
        stage="decode", reason=reason, error="it is torn", position=Position(topic, 0, offset)
    )
    return Record(topic, 0, offset, 0, b"c", b"{"), invalid


def feed(dead: DeadLetters, verdicts: list[bool], poll: int, *, start: int = 0) -> int | None:
    """Put records, True where unreadable, in polls; return the offset at which it ended."""
    for begin in range(0, len(verdicts), poll):
        part = verdicts[begin : begin + poll]
        dead.seen("clicks", len(part))
        for n, bad in enumerate(part):
            if bad:
                try:
                    dead.put(*unreadable(start + begin + n))
                except DeadLetterFlood:
                    return start + begin + n
    return None


def test_reading_stops_at_the_first_unreadable_record_where_none_may_be_set_aside() -> None:
    dead, shelf = letters("none")
    dead.seen("clicks", 10)
    with pytest.raises(
        Unreadable,
        match=r"clicks\[0\]@3: it is torn\. Reading has stopped there.*kafka\.dead_letters is none",
    ) as raised:
        dead.put(*unreadable(3))
    assert not shelf.sent
    assert exit_code(raised.value) == UNSAFE


@pytest.mark.parametrize("poll", [1, 7, 500, 3000])
def test_a_flood_of_half_the_records_ends_reading_within_ten_thousand(poll: int) -> None:
    dead, shelf = letters()
    random = Random(3)
    assert feed(dead, [False] * 20_000, poll) is None
    ended = feed(dead, [random.random() < 0.5 for _ in range(WINDOW_RECORDS)], poll, start=20_000)
    assert ended is not None
    assert ended < 20_000 + 2000
    assert MAX_UNREADABLE <= len(shelf.sent) < MAX_UNREADABLE * 1.3


def test_the_error_names_topic_share_reason_example_and_remedy() -> None:
    dead, _ = letters()
    dead.seen("clicks", 2_000)
    for n in range(200):
        dead.put(*unreadable(n, reason="schema"))
    for n in range(200, MAX_UNREADABLE):
        dead.put(*unreadable(n))
    with pytest.raises(DeadLetterFlood) as raised:
        dead.put(*unreadable(777))
    text = str(raised.value)
    assert "topic 'clicks': 501 of the last 2000 records cannot be read (25.1%)" in text
    assert "for the reason not_json; the last is clicks[0]@777: it is torn" in text
    assert "kafka.dead_letters: all" in text
    assert exit_code(raised.value) == UNSAFE


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 1000), poll=st.integers(1, 900))
def test_less_than_one_in_twenty_never_ends_reading_and_a_little_more_does(
    seed: int, poll: int
) -> None:
    first = Random(seed).randrange(18)
    assert feed(letters()[0], [n % 21 == first for n in range(25_000)], poll) is None
    assert feed(letters()[0], [n % 19 == first for n in range(25_000)], poll) is not None


def test_what_was_long_ago_does_not_count() -> None:
    dead, _ = letters()
    for _ in range(3):
        assert feed(dead, [True] * MAX_UNREADABLE + [False] * WINDOW_RECORDS, 50) is None


def test_each_topic_has_its_own_window() -> None:
    dead, _ = letters()
    for topic in ("clicks", "purchases"):
        dead.seen(topic, 1000)
        for n in range(MAX_UNREADABLE):
            dead.put(*unreadable(n, topic=topic))
    with pytest.raises(DeadLetterFlood, match="purchases"):
        dead.put(*unreadable(0, topic="purchases"))


def test_all_may_be_set_aside_where_an_operator_says_so() -> None:
    dead, shelf = letters("all")
    assert feed(dead, [True] * 3000, 100) is None
    assert len(shelf.sent) == 3000


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 1000), cut=st.integers(0, 60), share=st.sampled_from([0.02, 0.06, 0.2]))
def test_a_restored_breaker_opens_where_an_unbroken_one_does(
    seed: int, cut: int, share: float
) -> None:
    random = Random(seed)
    verdicts = [random.random() < share for _ in range(12_000)]
    whole, _ = letters()
    ended = feed(whole, verdicts, 200)
    first, _ = letters()
    stopped = feed(first, verdicts[: cut * 200], 200)
    if stopped is not None:
        assert stopped == ended
        return
    second, _ = letters()
    second.restore(first.snapshot())
    assert second.snapshot() == first.snapshot()
    assert feed(second, verdicts[cut * 200 :], 200, start=cut * 200) == ended
    assert second.snapshot() == whole.snapshot()


def test_the_snapshot_stays_small_and_does_not_depend_on_the_order_of_reasons() -> None:
    one, _ = letters("all")
    other, _ = letters("all")
    reasons = ["schema", "not_json", "too_deep"]
    for dead, order in ((one, reasons), (other, reasons[::-1])):
        for _ in range(500):
            dead.seen("clicks", 100)
            for reason in order:
                dead.put(*unreadable(1, reason=reason))
    assert one.snapshot() == other.snapshot()
    assert len(one.snapshot()) < 10_000


@pytest.mark.parametrize("data", [b"", b"\x92\x63\x80", b"\x93\x01\x02\x03"])
def test_state_of_another_format_is_refused(data: Any) -> None:
    with pytest.raises(SnapshotRefused, match="breaker"):
        letters()[0].restore(data)
