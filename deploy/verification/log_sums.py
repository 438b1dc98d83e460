"""Step 3 of a verification: number and sum64 of records, read again and compared with audits."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TypeAlias

from consumers.audit import Hasher
from consumers.errors import OffsetLost
from consumers.source import Record, Source
from deploy.admin import lineage
from deploy.process.terminal import Output
from deploy.verification.check import Check
from deploy.verification.reread import between
from learner.artifact import Version
from weighting.provenance import Audit, Slice, TopicPartition

_MODULUS = 1 << 64

Sum: TypeAlias = tuple[int, int]
"""Number of records, and the sum of their hashes modulo 2^64."""

_Gaps: TypeAlias = Mapping[TopicPartition, Sequence[tuple[int, int]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Log:
    """Access to the log.

    Attributes:
        topics: of events; a compacted topic has nothing to recount.
        beginning_offsets: returns the oldest retained offsets of topics.
        open: opens a reader of the topics.
        pace: called before each record; waits where it should.
    """

    topics: Sequence[str]
    beginning_offsets: Callable[[Iterable[str]], Mapping[TopicPartition, int]]
    open: Callable[[], AbstractContextManager[Source]]
    pace: Callable[[], None] = lambda: None


def compare(
    log: Log, chain: Sequence[Version], slices: Sequence[Slice], out: Output
) -> list[Check]:
    """Read the log between the first and the last version again, and compare with their audits.

    Args:
        log: read again.
        chain: versions from the first to the last, each the parent of the next.
        slices: of the journal between them; narrow a difference down where there are any.
        out: takes the progress.
    """
    start, version = chain[0], chain[-1]
    ends = {tp: offset for tp, offset in version.next_offsets.items() if tp[0] in log.topics}
    # Partitions that were added in between were read from their beginning.
    starts = {tp: start.next_offsets.get(tp, 0) for tp in ends}
    before, after, nothing = lineage.audits(start), lineage.audits(version), Audit()
    expected = {tp: _between(before.get(tp, nothing), after.get(tp, nothing)) for tp in ends}
    found = {tp: (0, 0) for tp in ends}
    gaps = _gaps(start, version)
    total = sum(ends[tp] - starts[tp] for tp in ends)
    try:
        with log.open() as source, out.progress("offsets re-read", total) as advance:
            found |= _sums(between(source, starts, ends, advance, pace=log.pace), gaps)
        wrong = [tp for tp in sorted(ends) if found[tp] != expected[tp]]
        if not wrong:
            return [_equal(sum(count for count, _ in found.values()), len(ends), start)]
        checks = []
        with log.open() as source:
            for tp in wrong:
                parts = _parts(tp, chain, slices)
                sums = _sums_of_parts(source, log.pace, tp, parts, gaps)
                checks.append(_difference(tp, expected[tp], found[tp], parts, sums))
        return checks
    except OffsetLost as error:
        text = f"retention went on meanwhile: {error}"
        return [Check(step="log", outcome="undecided", text=text)]


def _equal(num_records: int, num_partitions: int, start: Version) -> Check:
    text = (
        f"{num_records:,} records in {num_partitions} partitions since {start.name}, read again: "
        "as many, with the same sum64"
    )
    return Check(step="log", outcome="equal", text=text)


def _between(before: Audit, after: Audit) -> Sum:
    return after.num_records - before.num_records, (after.sum64 - before.sum64) % _MODULUS


def _in_gap(record: Record, gaps: _Gaps) -> bool:
    of_partition = gaps.get((record.topic, record.partition), ())
    return any(first <= record.offset < last for first, last in of_partition)


def _sums(records: Iterable[Record], gaps: _Gaps) -> dict[TopicPartition, Sum]:
    hashers: dict[TopicPartition, Hasher] = {}
    sums: dict[TopicPartition, Sum] = {}
    for record in records:
        tp = (record.topic, record.partition)
        hasher = hashers.get(tp) or hashers.setdefault(tp, Hasher(*tp))
        if not _in_gap(record, gaps):
            count, total = sums.get(tp, (0, 0))
            sums[tp] = count + 1, (total + hasher(record)) % _MODULUS
    return sums


def _parts(tp: TopicPartition, chain: Sequence[Version], slices: Sequence[Slice]) -> list[Slice]:
    """Return the finest division of a partition whose parts have known sums.

    The journal's slices where they cover it, else what lies between two versions of the chain.
    """
    start, end = chain[0].next_offsets.get(tp, 0), chain[-1].next_offsets[tp]
    own = [part for part in slices if (part.topic, part.partition) == tp]
    own = [part for part in own if start <= part.start and part.end <= end]
    if own and sum(part.end - part.start for part in own) == end - start:
        return sorted(own)
    audits = [lineage.audits(version).get(tp, Audit()) for version in chain]
    bounds = [version.next_offsets.get(tp, 0) for version in chain]
    pairs = zip(bounds, bounds[1:], audits, audits[1:], strict=False)
    return [
        Slice(*tp, first, last, *_between(before, after))
        for first, last, before, after in pairs
        if last > first
    ]


def _sums_of_parts(
    source: Source,
    pace: Callable[[], None],
    tp: TopicPartition,
    parts: Sequence[Slice],
    gaps: _Gaps,
) -> list[Sum]:
    """Read one partition once more, and return the sum of each part."""
    starts, hasher = [part.start for part in parts], Hasher(*tp)
    sums = [(0, 0)] * len(parts)
    for record in between(source, {tp: starts[0]}, {tp: parts[-1].end}, pace=pace):
        if not _in_gap(record, gaps):
            index = bisect_right(starts, record.offset) - 1
            count, total = sums[index]
            sums[index] = count + 1, (total + hasher(record)) % _MODULUS
    return sums


def _difference(
    tp: TopicPartition, expected: Sum, found: Sum, parts: Sequence[Slice], sums: Sequence[Sum]
) -> Check:
    """Name the smallest range that holds a difference."""
    pairs = zip(parts, sums, strict=True)
    wrong = [part for part, total in pairs if total != (part.num_records, part.sum64)]
    first, last = parts[0].start, parts[-1].end
    if wrong:
        first, last = wrong[0].start, wrong[-1].end
    name = f"{tp[0]}[{tp[1]}]"
    text = (
        f"{name}@{first}-{last}: the log has {found[0]:,} records with sum64 {found[1]:016x} where "
        f"{expected[0]:,} with {expected[1]:016x} were consumed; {len(wrong)} of {len(parts)} "
        "parts of it differ"
    )
    return Check(step="log", outcome="differs", text=text, partition=name, offsets=(first, last))


def _gaps(start: Version, version: Version) -> dict[TopicPartition, list[tuple[int, int]]]:
    """Return ranges never consumed, by the later manifest; the log may have them again."""
    found: dict[TopicPartition, list[tuple[int, int]]] = {}
    known = len(start.manifest.get("gaps") or ())
    for gap in (version.manifest.get("gaps") or ())[known:]:
        names = ("topic", "partition", "start", "end")
        fields = [gap[name] for name in names] if isinstance(gap, dict) else gap[:4]
        topic, partition, first, last = fields
        found.setdefault((topic, int(partition)), []).append((first, last))
    return found
