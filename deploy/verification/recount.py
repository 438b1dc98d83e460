"""Did each record count once? Recomputed from Kafka, not believed: the difference of two manifests is the digest of what lies between.

1. Manifest, chain and files of the version. 2. The journal between the two. 3. Their audits against the log, read again by a reader of
our own. 4. Conservation: every record has exactly one outcome. 5. Where asked for, the state, learned again from the journal.
"""

from __future__ import annotations

import time
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from consumers.audit import Hasher
from consumers.errors import OffsetLost
from consumers.source import Record, Source
from deploy.admin import checkpoints, lineage
from deploy.process.terminal import Output
from deploy.verification.reread import between
from learner.artifact import Corrupt, Store, Version
from learner.store import verdict
from learner.store.blobs import Disk
from weighting.provenance import Audit, Slice, TopicPartition

_MODULUS = 1 << 64
_SIGNS = {"equal": "ok", "differs": "X", "undecided": "?"}
EQUAL, DIFFERS, UNDECIDED = 0, 1, 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One thing that was looked at."""

    step: Literal["files", "journal", "log", "conservation", "state"]
    outcome: Literal["equal", "differs", "undecided"]
    text: str
    partition: str | None = None  #: `clicks[0]`
    offsets: tuple[int, int] | None = (
        None  #: the smallest range ``[start, end)`` that holds the difference
    )
    num_compared: int | None = None  #: versions whose state was compared
    versions: tuple[str, ...] = ()  #: those that differ


@dataclass(frozen=True, slots=True, kw_only=True)
class Log:
    """How the log is asked."""

    topics: Sequence[str]  #: of events; a compacted topic has nothing to recount
    beginning_offsets: Callable[[Iterable[str]], Mapping[TopicPartition, int]]
    open: Callable[[], AbstractContextManager[Source]]
    pace: Callable[[], None] = lambda: None  #: called before each record; waits where it should


Journal = Callable[[Version, Version], Sequence[Slice]]
"""The slices that a journal has between two versions, in order; raises Corrupt where a frame does not hold."""

Deep = Callable[[Version, Version], Check]
"""Learns again from the journal what lies between two versions, and compares the state."""


def run(
    store: Store,
    log: Log,
    out: Output,
    *,
    name: str | None = None,
    since: str | None = None,
    journal: Journal | None = None,
    deep: Deep | None = None,
    clock: Callable[[], float] = time.time,
    disk: Disk | None = None,
) -> int:
    """Verify a version, the newest by default, against the log since an earlier one. Return 0 equal, 1 different, 3 undecided.

    What is decided is left in the store (`learner.verdict`), where that can be written to.

    Args:
        store: whose versions.
        log: read again.
        out: where to tell.
        name: of the version.
        since: of the earlier one; left out, the oldest that it came from whose next offsets are still retained.
        journal: narrows a difference down; without it the versions in between do.
        deep: step 5.
        clock: seconds since the Unix epoch, for what is left in the store.
        disk: to leave it with.

    Raises:
        VersionMissing: a version is not there.
    """
    version = checkpoints.find(store, name) if name else next(iter(store.versions()[::-1]), None)
    if version is None:
        return _report(
            out,
            None,
            None,
            [Check(step="files", outcome="undecided", text=f"{store.root}: no version yet")],
        )
    checks = [_files(store, version)]
    checks += [
        Check(step="files", outcome="differs", text=f"{damaged}: {reason}")
        for damaged, reason in store.damaged().items()
    ]
    chain = lineage.lineage(store, version)
    begins = log.beginning_offsets(log.topics)
    start, why = _start(store, version, chain, begins, since)
    slices: Sequence[Slice] = ()
    if start is None:
        checks.append(Check(step="log", outcome="undecided", text=why))
    else:
        if journal is not None:
            slices, check = _journal(journal, start, version)
            checks.append(check)
        between_them = [kept for kept in reversed(chain) if start.seq <= kept.seq <= version.seq]
        checks += _log(log, start, version, between_them, slices, out)
        if deep is not None:
            checks.append(deep(start, version))
    checks += _conservation(version)
    code = _report(out, start, version, checks)
    if code != UNDECIDED:
        _leave(store.root, disk or Disk(), start, version, checks, int(clock() * 1e6), out)
    return code


def _files(store: Store, version: Version) -> Check:
    """Step 1."""
    try:
        store.verify(version)
        known = {mark.name: mark for mark in store.versions()}
        for child in lineage.lineage(store, version):
            parent = child.manifest["parent"]
            kept = known.get(parent["version"]) if parent else None
            if kept is not None and kept.manifest["self"] != parent["self"]:
                raise Corrupt(
                    kept.name,
                    expected=f"self {parent['self']}, as {child.name} has it",
                    found=f"self {kept.manifest['self']}",
                )
    except Corrupt as error:
        return Check(step="files", outcome="differs", text=str(error))
    return Check(
        step="files",
        outcome="equal",
        text=f"{version.name}: {len(version.files)} files and its chain have their digests",
    )


def _start(
    store: Store,
    version: Version,
    chain: Sequence[Version],
    begins: Mapping[TopicPartition, int],
    since: str | None,
) -> tuple[Version | None, str]:
    """The version to count from, or why there is none."""
    if since is not None:
        start = checkpoints.find(store, since)
        if start.name not in {kept.name for kept in chain}:
            return (
                None,
                f"{version.name} did not come from {start.name}: what lies between them was counted in another timeline",
            )
        why = _uncountable(start, version, begins)
        return (start, "") if why is None else (None, why)
    for start in reversed(chain):
        if start.seq < version.seq and _uncountable(start, version, begins) is None:
            return start, ""
    return (
        None,
        f"no version that {version.name} came from has an audit and all that follows it still in the log",
    )


def _uncountable(
    start: Version, version: Version, begins: Mapping[TopicPartition, int]
) -> str | None:
    if not lineage.audits(start) or not lineage.audits(version):
        return f"{start.name if not lineage.audits(start) else version.name} has no audit: an earlier release wrote it"
    if len(start.manifest.get("resets") or ()) != len(version.manifest.get("resets") or ()):
        return f"offsets were reset between {start.name} and {version.name}: records in between count twice or never, as its manifest says"
    lost = [
        f"{t}[{p}]@{offset} (retained from {begins[t, p]})"
        for (t, p), offset in start.next_offsets.items()
        if offset < begins.get((t, p), 0)
    ]
    return f"retention took records behind {start.name}: {', '.join(lost)}" if lost else None


def _journal(journal: Journal, start: Version, version: Version) -> tuple[Sequence[Slice], Check]:
    """Step 2."""
    try:
        slices = journal(start, version)
    except Corrupt as error:
        return (), Check(step="journal", outcome="differs", text=str(error))
    return slices, Check(
        step="journal",
        outcome="equal",
        text=f"{len(slices)} slices between {start.name} and {version.name}, frames whole",
    )


def _log(
    log: Log,
    start: Version,
    version: Version,
    kept: Sequence[Version],
    slices: Sequence[Slice],
    out: Output,
) -> list[Check]:
    """Step 3."""
    events = set(log.topics)
    starts = {tp: offset for tp, offset in start.next_offsets.items() if tp[0] in events}
    ends = {tp: offset for tp, offset in version.next_offsets.items() if tp in starts}
    before, after, nothing = lineage.audits(start), lineage.audits(version), Audit()
    expected = {tp: _between(before.get(tp, nothing), after.get(tp, nothing)) for tp in ends}
    found = {tp: (0, 0) for tp in ends}
    skipped = _gaps(start, version)
    total = sum(ends[tp] - starts[tp] for tp in ends)
    try:
        with log.open() as source, out.progress("offsets re-read", total) as advance:
            found |= _sums(between(source, starts, ends, advance, pace=log.pace), skipped)
        wrong = [tp for tp in sorted(ends) if found[tp] != expected[tp]]
        if not wrong:
            num_records = sum(count for count, _ in found.values())
            text = f"{num_records:,} records in {len(ends)} partitions since {start.name}, read again: as many, with the same sum64"
            return [Check(step="log", outcome="equal", text=text)]
        with log.open() as source:
            return [
                _narrowed(
                    source, log.pace, tp, expected[tp], found[tp], _steps(tp, kept, slices), skipped
                )
                for tp in wrong
            ]
    except OffsetLost as error:
        return [
            Check(step="log", outcome="undecided", text=f"retention went on meanwhile: {error}")
        ]


def _between(before: Audit, after: Audit) -> tuple[int, int]:
    return after.num_records - before.num_records, (after.sum64 - before.sum64) % _MODULUS


def _sums(
    records: Iterable[Record], skipped: Mapping[TopicPartition, Sequence[tuple[int, int]]]
) -> dict[TopicPartition, tuple[int, int]]:
    hashers: dict[TopicPartition, Hasher] = {}
    sums: dict[TopicPartition, tuple[int, int]] = {}
    for record in records:
        tp = (record.topic, record.partition)
        hasher = hashers.get(tp) or hashers.setdefault(tp, Hasher(*tp))
        if not any(first <= record.offset < last for first, last in skipped.get(tp, ())):
            count, total = sums.get(tp, (0, 0))
            sums[tp] = count + 1, (total + hasher(record)) % _MODULUS
    return sums


def _steps(tp: TopicPartition, kept: Sequence[Version], slices: Sequence[Slice]) -> list[Slice]:
    """The finest division of a partition whose parts have known sums: the journal's slices where they cover it, else the kept versions."""
    own = [part for part in slices if (part.topic, part.partition) == tp]
    start, end = kept[0].next_offsets[tp], kept[-1].next_offsets[tp]
    own = [part for part in own if start <= part.start and part.end <= end]
    if own and sum(part.end - part.start for part in own) == end - start:
        return sorted(own)
    audits = [lineage.audits(version).get(tp, Audit()) for version in kept]
    bounds = [version.next_offsets[tp] for version in kept]
    pairs = zip(bounds, bounds[1:], audits, audits[1:], strict=False)
    return [
        Slice(*tp, first, last, *_between(before, after))
        for first, last, before, after in pairs
        if last > first
    ]


def _narrowed(
    source: Source,
    pace: Callable[[], None],
    tp: TopicPartition,
    expected: tuple[int, int],
    found: tuple[int, int],
    steps: Sequence[Slice],
    skipped: Mapping[TopicPartition, Sequence[tuple[int, int]]],
) -> Check:
    """Read one partition once more, part by part, and name the smallest range that holds the difference."""
    firsts, hasher = [part.start for part in steps], Hasher(*tp)
    sums = [(0, 0)] * len(steps)
    for record in between(source, {tp: steps[0].start}, {tp: steps[-1].end}, pace=pace):
        if not any(first <= record.offset < last for first, last in skipped.get(tp, ())):
            index = bisect_right(firsts, record.offset) - 1
            sums[index] = sums[index][0] + 1, (sums[index][1] + hasher(record)) % _MODULUS
    wrong = [
        part
        for part, total in zip(steps, sums, strict=True)
        if total != (part.num_records, part.sum64)
    ]
    first, last = (wrong[0].start, wrong[-1].end) if wrong else (steps[0].start, steps[-1].end)
    name = f"{tp[0]}[{tp[1]}]"
    text = (
        f"{name}@{first}-{last}: the log has {found[0]:,} records with sum64 {found[1]:016x} where {expected[0]:,} with {expected[1]:016x} "
        f"were consumed; {len(wrong)} of {len(steps)} parts of it differ"
    )
    return Check(step="log", outcome="differs", text=text, partition=name, offsets=(first, last))


def _gaps(start: Version, version: Version) -> dict[TopicPartition, list[tuple[int, int]]]:
    """Records that were never consumed, as the later manifest says, though the log may have them again."""
    found: dict[TopicPartition, list[tuple[int, int]]] = {}
    known = len(start.manifest.get("gaps") or ())
    for gap in (version.manifest.get("gaps") or ())[known:]:
        topic, partition, first, last = (
            (gap["topic"], gap["partition"], gap["start"], gap["end"])
            if isinstance(gap, dict)
            else gap[:4]
        )
        found.setdefault((topic, int(partition)), []).append((first, last))
    return found


def _conservation(version: Version) -> list[Check]:
    """Step 4."""
    wrong = [
        Check(
            step="conservation",
            outcome="differs",
            text=f"{topic}[{partition}]: {audit.num_records:,} records, {sum(audit.outcomes.values()):,} outcomes: {audit.outcomes}",
            partition=f"{topic}[{partition}]",
        )
        for (topic, partition), audit in sorted(lineage.audits(version).items())
        if audit.num_unaccounted
    ]
    if wrong:
        return wrong
    total = sum(audit.num_records for audit in lineage.audits(version).values())
    return [
        Check(
            step="conservation",
            outcome="equal",
            text=f"all {total:,} records consumed so far have exactly one outcome",
        )
    ]


def _leave(
    root: Path,
    disk: Disk,
    start: Version | None,
    version: Version,
    checks: Sequence[Check],
    now_us: int,
    out: Output,
) -> None:
    num_differences, since = (
        sum(check.outcome == "differs" for check in checks),
        start.name if start else None,
    )
    try:
        verdict.leave(
            root,
            disk,
            version=version.name,
            since=since,
            num_differences=num_differences,
            now_us=now_us,
        )
    except OSError as error:
        out.tell(
            f"{root / verdict.FILE}: {error.strerror or error}: the verdict is not left in the store; /metrics keeps the one before"
        )


def _report(
    out: Output, start: Version | None, version: Version | None, checks: Sequence[Check]
) -> int:
    outcomes = {check.outcome for check in checks}
    code = DIFFERS if "differs" in outcomes else UNDECIDED if "undecided" in outcomes else EQUAL
    word = {EQUAL: "equal", DIFFERS: "different", UNDECIDED: "undecided"}[code]
    said: dict[str, Any] = {
        "version": version and version.name,
        "since": start and start.name,
        "result": word,
    }
    lines = [f"{_SIGNS[check.outcome]:<2} {check.step}: {check.text}" for check in checks]
    out.give(said | {"checks": [asdict(check) for check in checks]}, [*lines, word])
    return code
