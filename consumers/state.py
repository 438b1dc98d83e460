"""Snapshot of a pipeline, in parts per partition number and per rank."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TypeVar

import msgspec

from consumers.errors import SnapshotRefused
from consumers.events import ItemUpdate
from consumers.joining.dedup import DedupState
from consumers.joining.join import OpenPart
from consumers.joining.partition_clock import PartitionClockState
from weighting.provenance import Audit, Offsets, Poll
from weighting.sample import Attribute, Sample

#: Format of the snapshots.
FORMAT = 5


class PartitionState(msgspec.Struct, array_like=True):
    """State of one partition number, whoever reads it.

    Attributes:
        clocks: topic -> clock.
        dedup: topic -> event ids of its partition of that number.
        audits: topic -> audit.
    """

    format: int
    clocks: dict[str, PartitionClockState]
    dedup: dict[str, DedupState]
    open: OpenPart
    audits: dict[str, Audit]


class RankState(msgspec.Struct, array_like=True):
    """State of one pipeline beside its partitions.

    Attributes:
        samples: emitted and not yet in a batch.
        polls: consumed and not yet in a batch.
        items: object id -> text, attributes.
        item_offsets: topic, partition and next offset.
        last_turn: key and number of the click that was opened last.
        breaker: state of the dead letters.
        grown: topic -> partition count before, and event time up to which that matters.
    """

    format: int
    watermark_us: int
    now_us: int
    last_turn: tuple[int, int]
    samples: list[Sample]
    polls: list[Poll]
    items: dict[str, tuple[str, dict[str, Attribute]]]
    pending_items: list[tuple[int, ItemUpdate]]
    item_offsets: list[tuple[str, int, int]]
    item_audits: list[tuple[str, int, Audit]]
    breaker: bytes
    grown: dict[str, tuple[int, int]] = {}


class _Head(msgspec.Struct, array_like=True):
    """What every state begins with, whatever its format."""

    format: int


_S = TypeVar("_S", PartitionState, RankState)


class Snapshot(msgspec.Struct, frozen=True):
    """State that one rank restores.

    Attributes:
        partitions: state by partition number.
        rank: state of this rank, or merged from all.
        item_offsets: next offsets of the items topic, where they differ from the manifest's.
    """

    partitions: dict[int, PartitionState]
    rank: RankState
    item_offsets: Offsets


def encode(state: PartitionState | RankState) -> bytes:
    """Return a state as bytes; equal states give equal bytes."""
    return msgspec.msgpack.encode(state)


def read(
    parts: Mapping[str, bytes], numbers: Collection[int], rank: int, *, same_ranks: bool
) -> Snapshot:
    """Read what one rank restores from the parts of all ranks.

    Args:
        parts: name -> bytes, as `Pipeline.snapshot` returned them.
        numbers: partition numbers of this rank.
        rank: its number.
        same_ranks: whether the snapshot was taken by as many ranks as there are now.

    Raises:
        SnapshotRefused: a part is missing or of another format.
    """
    names = sorted(name for name in parts if name.startswith("rank-"))
    needed = {f"part-{number}" for number in numbers}
    needed |= {f"rank-{rank}"} if same_ranks else set(names[:1])
    if not needed <= set(parts):
        raise SnapshotRefused(
            f"the snapshot has the parts {sorted(parts)} and the log needs {sorted(needed)}. "
            "Topics and partition counts must be those of the checkpoint."
        )
    partitions = {number: _decode(parts[f"part-{number}"], PartitionState) for number in numbers}
    if same_ranks:
        state = _decode(parts[f"rank-{rank}"], RankState)
    else:
        state = merged([_decode(parts[name], RankState) for name in names], numbers)
    own = state.item_offsets if len(names) > 1 else []  # the manifest has the least of all ranks
    offsets = Offsets(((topic, p), offset) for topic, p, offset in own)
    return Snapshot(partitions, state, offsets)


def merged(ranks: Sequence[RankState], numbers: Collection[int]) -> RankState:
    """Merge the states of all ranks for one of another number of ranks.

    Watermarks, items and their offsets are the least of all; samples go to the reader of their
    partition. Polls are dropped, and the breaker counts anew.
    """
    least = min(ranks, key=lambda rank: [offset for _, _, offset in rank.item_offsets])
    samples = [
        sample
        for rank in ranks
        for sample in rank.samples
        if sample.positions[0].partition in numbers
    ]
    return RankState(
        format=FORMAT,
        watermark_us=min(rank.watermark_us for rank in ranks),
        now_us=min(rank.now_us for rank in ranks),
        last_turn=max(rank.last_turn for rank in ranks),
        samples=samples,
        polls=[],
        items=least.items,
        pending_items=least.pending_items,
        item_offsets=least.item_offsets,
        item_audits=least.item_audits,
        breaker=b"",
        grown={topic: at for rank in ranks for topic, at in rank.grown.items()},
    )


def polls_of(part: bytes) -> list[Poll]:
    """Return the polls of a `rank-<r>` part that are in no batch yet.

    Raises:
        SnapshotRefused: the part is of another format.
    """
    return _decode(part, RankState).polls


def _decode(data: bytes, kind: type[_S]) -> _S:
    try:
        written = msgspec.msgpack.decode(data, type=_Head).format
        if written == FORMAT:
            return msgspec.msgpack.decode(data, type=kind)
    except msgspec.DecodeError as error:
        raise SnapshotRefused(f"a snapshot of {kind.__name__} cannot be read: {error}") from error
    raise SnapshotRefused(
        f"a snapshot has the format {written}, and this release reads {FORMAT}. Begin with a new "
        "store, or go on with the release that wrote this one."
    )
