"""The snapshot's parts: which are read, which are refused, and how those of ranks are merged."""

from __future__ import annotations

import msgspec
import pytest

from consumers import state
from consumers.errors import SnapshotRefused
from consumers.events import Purchase
from consumers.joining.entries import Positive
from consumers.state import FORMAT, RankState, merged
from tests.consumers.bench import Bench
from tests.consumers.shop import shop
from tests.weighting.streams import sample
from weighting.provenance import Offsets, Poll, Position, Slice
from weighting.sample import Sample


def rank(watermark_us: int, item_offset: int, text: str) -> RankState:
    return RankState(
        format=FORMAT,
        watermark_us=watermark_us,
        now_us=watermark_us - 1,
        last_turn=(watermark_us - 1, item_offset),
        samples=[],
        polls=[Poll((Slice("clicks", 0, 0, 1, 1, 7),))],
        items={"A": (text, {})},
        pending_items=[],
        item_offsets=[("items", 0, item_offset)],
        item_audits=[],
        breaker=b"state of the breaker",
    )


def test_ranks_merge_to_the_least_watermark_and_the_items_read_least_far() -> None:
    found = merged([rank(20, 5, "old"), rank(10, 9, "new")], [0])
    assert (found.watermark_us, found.now_us) == (10, 9)
    assert found.last_turn == (19, 5)
    assert (found.items, found.item_offsets) == ({"A": ("old", {})}, [("items", 0, 5)])
    assert (found.polls, found.breaker) == ([], b"")


def test_a_merged_sample_belongs_to_the_reader_of_its_partition() -> None:
    samples = [sample for batch in Bench(shop(1, 400)).live() for sample in batch.samples]
    each = [rank(1, 1, ""), rank(1, 1, "")]
    for of_rank, part in zip(each, (samples[::2], samples[1::2]), strict=True):
        of_rank.samples.extend(part)
    kept = [merged(each, [number]).samples for number in (0, 1)]
    assert [{s.positions[0].partition for s in part} for part in kept] == [{0}, {1}]
    assert sum(map(len, kept)) == len(samples)


def test_offsets_of_items_are_the_rank_s_own_where_there_are_several() -> None:
    parts = {f"rank-{n}": state.encode(rank(1, 5 + n, "")) for n in range(2)}
    assert state.read(parts, [], 1, same_ranks=True).item_offsets == Offsets({("items", 0): 6})
    assert state.read(parts, [], 0, same_ranks=False).item_offsets == Offsets({("items", 0): 5})
    del parts["rank-1"]
    assert state.read(parts, [], 0, same_ranks=True).item_offsets == Offsets()


def test_a_part_that_is_missing_is_named() -> None:
    parts = {"rank-0": state.encode(rank(1, 1, ""))}
    with pytest.raises(SnapshotRefused, match=r"the log needs \['part-3', 'rank-0'\]"):
        state.read(parts, [3], 0, same_ranks=True)


def test_the_polls_of_a_rank_are_those_in_no_batch() -> None:
    assert state.polls_of(state.encode(rank(1, 1, ""))) == rank(1, 1, "").polls


class _PositiveOfBefore(msgspec.Struct, array_like=True):
    """As it was written before purchases had a value."""

    time_us: int
    position: Position
    inferred: bool


def test_a_snapshot_of_before_purchases_had_a_value_is_read() -> None:
    position = Position("purchases", 0, 7)
    old = msgspec.msgpack.encode(_PositiveOfBefore(5, position, False))
    assert msgspec.msgpack.decode(old, type=Positive) == Positive(5, position, False, None)
    purchase = Purchase("q", "c", "A", 5, position, None, False, 9.5)
    written = msgspec.msgpack.decode(msgspec.msgpack.encode(purchase))
    assert msgspec.convert(written, Purchase) == purchase
    del written["value"]
    assert msgspec.convert(written, Purchase) == msgspec.structs.replace(purchase, value=None)
    bought = msgspec.structs.replace(sample(1, task="purchase"), value=9.5)
    written = msgspec.msgpack.decode(msgspec.msgpack.encode(bought))
    assert msgspec.convert(written, Sample) == bought
    del written["value"]
    assert msgspec.convert(written, Sample) == msgspec.structs.replace(bought, value=None)
