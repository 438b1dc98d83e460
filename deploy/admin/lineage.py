"""Which versions a store has, which came from which, where each stands in the log, and how fast that went."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from consumers.source import TopicPartition
from learner.artifact import Corrupt, Store, Version, VersionMissing
from learner.store.blobs import Disk
from learner.store.journal.records import JournalPosition, Step
from learner.store.journal.tail import read_tail
from learner.store.manifest import ResumePoint
from weighting.provenance import Audit, Poll, Slice


def newest(store: Store) -> Version | None:
    """Return the newest readable manifest of any kind: its offsets, and what it says of orders, are in force."""
    return store.newest()


def lineage(store: Store, version: Version) -> list[Version]:
    """Return the checkpoints that a manifest's state went through, newest first, itself included where it is one; ends at what is gone."""
    found = [version] if version.kind == "checkpoint" else []
    if version.parent is not None:
        with contextlib.suppress(VersionMissing, Corrupt):
            found += store.lineage(version.parent)
    return found


def cut(versions: Iterable[Version], at_most: Mapping[TopicPartition, int]) -> Version | None:
    """Return the newest version that contains nothing at or above these offsets, None where each does."""
    fit = [
        v
        for v in versions
        if all(v.next_offsets.get(tp, 0) <= offset for tp, offset in at_most.items())
    ]
    return max(fit, key=lambda version: version.seq, default=None)


def retained(version: Version, begins: Mapping[TopicPartition, int]) -> bool:
    """Say whether the log still has all that comes after a version."""
    return all(offset >= begins[tp] for tp, offset in version.next_offsets.items() if tp in begins)


def per_second(versions: Sequence[Version], topics: Iterable[str]) -> float | None:
    """Return the fastest that records were consumed between two versions, one the parent of the other; None without such a pair."""
    names = set(topics)
    rates = []
    for later, earlier in itertools.pairwise(versions):
        num_records = sum(
            offset - earlier.next_offsets.get(tp, 0)
            for tp, offset in later.next_offsets.items()
            if tp[0] in names
        )
        seconds = (later.created_us - earlier.created_us) / 1e6
        if seconds > 0 and num_records > 0:
            rates.append(num_records / seconds)
    return max(rates, default=None)


def about(num_records: int, rate: float | None) -> str:
    """Return how long that many records take, as the end of a sentence."""
    return (
        ""
        if rate is None
        else f", about {num_records / rate:,.0f} s at the measured {rate:,.0f} records/s"
    )


def commands_taken(version: Version | None) -> int:
    """Return the number of the newest order that a manifest contains; 0 before the first."""
    return version.run_state.commands_taken if version else 0


def audits(version: Version) -> dict[TopicPartition, Audit]:
    """Return what a version consumed of every partition; empty for one of before there were audits."""
    written: Mapping[str, Mapping[str, Mapping[str, Any]]] = version.manifest.get("audit") or {}
    found = {}
    for topic, parts in written.items():
        for partition, fields in parts.items():
            last = fields.get("last")
            found[topic, int(partition)] = Audit(
                num_records=fields["num_records"],
                sum64=int(fields["sum64"]),
                outcomes=dict(fields["outcomes"]),
                last=(int(last[0]), int(last[1])) if last else None,
            )
    return found


def slices(store: Store, since: Version, version: Version) -> list[Slice]:
    """Return what the journal says was consumed between two versions, in order; empty where there is no journal from the one to the other.

    Raises:
        Corrupt: a frame between them does not hold.
    """
    start, end = since.journal, version.journal
    if (
        start is None
        or end is None
        or not any(span.holds(start.place) for span in version.timeline)
    ):
        return []
    tail = read_tail(store.root, Disk(), version.timeline, start.place)
    if tail.damage is not None and _place(tail.damage.place) < _place(end.place):
        where = tail.damage.place
        raise Corrupt(
            f"journal/{where.segment}",
            expected=f"whole records up to {end.segment}@{end.byte}",
            found=tail.damage.reason,
        )
    steps = [(_place(place), record) for place, record in tail.records if isinstance(record, Step)]
    num_within = sum(place <= _place(end.place) for place, _ in steps)
    polls: list[Poll] = []
    for number, (_, step) in enumerate(steps[: num_within + 1]):
        for rank, part in enumerate(step.parts):
            first = _skipped(start, rank) if number == 0 else 0
            last = _skipped(end, rank) if number == num_within else len(part.polls)
            polls += part.polls[first:last]
    return [part for poll in polls for part in poll.slices]


def _skipped(at: ResumePoint, rank: int) -> int:
    """How many turns of the next record a state contains already."""
    return at.skip[rank] if rank < len(at.skip) else 0


def _place(place: JournalPosition) -> tuple[str, int]:
    """Later owners and later segments have greater names."""
    return place.segment, place.byte
