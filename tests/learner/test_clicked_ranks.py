"""Ranks of clicked items wait for their purchase, in bounded room and without favour."""

from __future__ import annotations

import msgspec
import pytest

from learner.errors import Corrupt
from learner.evaluation.clicked_ranks import ClickedRanks, Ranks
from learner.evaluation.query_frequency import QueryFrequency

DAY = 86_400_000_000
RANKS = Ranks(2.0, 1.0, 0.5, 1.0, 0.25)


def kept(table: ClickedRanks, name: str, *, final_us: int = DAY, time_us: int = 0) -> None:
    table.keep(name, "SKU", RANKS, num_earlier=7, final_us=final_us, time_us=time_us)


def test_a_purchase_finds_its_click_once() -> None:
    table = ClickedRanks()
    kept(table, "q1")
    assert table.take("q1", "other") is None
    assert table.take("q2", "SKU") is None
    assert table.take("q1", "SKU") == (RANKS, 7)
    assert table.take("q1", "SKU") is None


def test_what_can_no_longer_be_bought_is_dropped() -> None:
    table = ClickedRanks()
    kept(table, "old")
    kept(table, "on the last moment", time_us=DAY)
    assert len(table) == 2
    kept(table, "new", final_us=2 * DAY, time_us=DAY + 1)
    assert len(table) == 1
    assert table.take("new", "SKU") is not None


def test_beyond_the_bound_a_random_share_stays_however_long_it_waits() -> None:
    """Were the oldest dropped, late purchases would be missing from the figures."""
    table, number = ClickedRanks(max_entries=400), 6400
    for i in range(number):
        kept(table, f"q{i}")
        assert len(table) <= 400
    waiting = [i for i in range(number) if table.take(f"q{i}", "SKU") is not None]
    first, second = (sum(low <= i < low + number // 2 for i in waiting) for low in (0, number // 2))
    assert len(waiting) >= 150
    assert 0.7 < first / second < 1.4


def test_the_share_grows_again_when_there_is_room() -> None:
    table = ClickedRanks(max_entries=64)
    for i in range(1000):
        kept(table, f"burst {i}")
    assert msgspec.msgpack.decode(table.snapshot())["halvings"] > 2
    for i in range(20):
        kept(table, f"calm {i}", final_us=(i + 3) * DAY, time_us=(i + 2) * DAY)
    assert msgspec.msgpack.decode(table.snapshot())["halvings"] == 0
    kept(table, "then", final_us=90 * DAY, time_us=80 * DAY)
    assert table.take("then", "SKU") is not None


def test_a_restored_table_has_the_same_bytes_and_goes_on_alike() -> None:
    table, other = ClickedRanks(max_entries=64), ClickedRanks(max_entries=64)
    for i in range(200):
        kept(table, f"q{i}", final_us=DAY + i)
    other.restore(table.snapshot())
    for each in (table, other):
        kept(each, "later", final_us=3 * DAY, time_us=DAY + 100)
    assert other.snapshot() == table.snapshot()
    assert len(other) == len(table) > 0


@pytest.mark.parametrize("owner", [ClickedRanks, QueryFrequency])
def test_a_snapshot_of_another_format_is_refused(
    owner: type[ClickedRanks | QueryFrequency],
) -> None:
    state = msgspec.msgpack.decode(owner().snapshot()) | {"format": 99}
    with pytest.raises(Corrupt, match="format 1"):
        owner().restore(msgspec.msgpack.encode(state))


def test_queries_that_come_often_keep_their_count_among_many_that_do_not() -> None:
    frequency = QueryFrequency()
    for i in range(40_000):
        frequency.learn(f"once {i}")
        if i % 20 == 0:
            frequency.learn("Shoes")
    assert 1900 < frequency.get("shoes") <= 2000
    assert sum(frequency.get(f"once {i}") > 1 for i in range(2_000)) == 0
