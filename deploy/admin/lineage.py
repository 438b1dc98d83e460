"""Lineage of versions: their parents, what they consumed, and how fast."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping
from typing import Any

from learner.artifact import Corrupt, Store, Version, VersionMissing
from learner.store.blobs import Disk
from learner.store.journal.records import JournalPosition, Step
from learner.store.journal.tail import read_tail
from learner.store.manifest import ResumePoint
from weighting.provenance import Audit, Poll, Slice, TopicPartition


def newest(store: Store) -> Version | None:
    """Return the newest readable manifest of any kind; its offsets and commands are in force."""
    return store.newest()


def lineage(store: Store, version: Version) -> list[Version]:
    """Return the checkpoints that a state went through, newest first; ends at what is gone.

    A manifest that is a checkpoint is one of its own.
    """
    found = [version] if version.kind == "checkpoint" else []
    if version.parent is not None:
        with contextlib.suppress(VersionMissing, Corrupt):
            found += store.lineage(version.parent)
    return found


def newest_within(
    versions: Iterable[Version], at_most: Mapping[TopicPartition, int]
) -> Version | None:
    """Return the newest version that contains nothing at or above these offsets."""
    fit = [
        v
        for v in versions
        if all(v.next_offsets.get(tp, 0) <= offset for tp, offset in at_most.items())
    ]
    return max(fit, key=lambda version: version.seq, default=None)


def retained(version: Version, begins: Mapping[TopicPartition, int]) -> bool:
    """Return whether the log still has all that comes after a version."""
    return all(offset >= begins[tp] for tp, offset in version.next_offsets.items() if tp in begins)


def commands_taken(version: Version | None) -> int:
    """Return the number of the newest command that a manifest contains; 0 before the first."""
    return version.run_state.commands_taken if version else 0


def audits(version: Version) -> dict[TopicPartition, Audit]:
    """Return the audit of every partition; empty for a version older than audits."""
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
    """Return what was consumed between two versions, in order, by the journal.

    Empty where no journal leads from the one to the other.

    Raises:
        Corrupt: a frame between them is damaged.
    """
    start, end = since.journal, version.journal
    if start is None or end is None:
        return []
    if not any(span.holds(start.place) for span in version.timeline):
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
    """Return the number of polls of the next record that a state contains already."""
    return at.skip[rank] if rank < len(at.skip) else 0


def _place(place: JournalPosition) -> tuple[str, int]:
    """Return a sort key: later owners and later segments have greater names."""
    return place.segment, place.byte
