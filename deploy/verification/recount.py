"""Recount of a version: does the log contain exactly what its manifest records?

The difference of two manifests is the digest of what lies between them. 1. Manifest, chain and
files of the version. 2. The journal between the two. 3. Their audits against the log, read again
by a reader of our own. 4. Conservation: every record has exactly one outcome. 5. Where asked for,
the state, learned again from the journal.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from deploy.admin import checkpoints, lineage
from deploy.process.terminal import Output
from deploy.verification import log_sums
from deploy.verification.check import UNDECIDED, Check, report
from deploy.verification.log_sums import Log
from learner.artifact import Corrupt, Store, Version
from learner.store import verdict
from learner.store.blobs import Disk
from weighting.provenance import Slice, TopicPartition

Journal = Callable[[Version, Version], Sequence[Slice]]
"""Slices of a journal between two versions, in order; raises Corrupt where a frame is damaged."""

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
    """Verify a version against the log since an earlier one.

    A verdict is left in the store (`learner.store.verdict`), where that can be written to.

    Args:
        store: the versions.
        log: read again.
        out: takes the checks.
        name: of the version; the newest by default.
        since: of the earlier one; by default, the oldest that it came from whose next offsets are
            still retained.
        journal: narrows a difference down; without it the versions in between do.
        deep: step 5.
        clock: seconds since the Unix epoch, for the verdict.
        disk: writes the verdict.

    Returns:
        The exit code: 0 equal, 1 different, 3 undecided.

    Raises:
        VersionMissing: a version is not there.
    """
    version = checkpoints.find(store, name) if name else next(iter(store.versions()[::-1]), None)
    if version is None:
        text = f"{store.root}: no version yet"
        return report(out, None, None, [Check(step="files", outcome="undecided", text=text)])
    checks = [_files(store, version)]
    for damaged, reason in store.damaged().items():
        checks.append(Check(step="files", outcome="differs", text=f"{damaged}: {reason}"))
    chain = lineage.lineage(store, version)
    begins = log.beginning_offsets(log.topics)
    start, why = _start(store, version, chain, begins, since)
    if not version.next_offsets:
        text = f"{version.name} contains no record of the log: it was learned from a file"
        checks.append(Check(step="log", outcome="equal", text=text))
    elif start is None:
        checks.append(Check(step="log", outcome="undecided", text=why))
    else:
        slices: Sequence[Slice] = ()
        if journal is not None:
            slices, check = _journal(journal, start, version)
            checks.append(check)
        passed = [kept for kept in reversed(chain) if start.seq <= kept.seq <= version.seq]
        checks += log_sums.compare(log, passed, slices, out)
        if deep is not None:
            checks.append(deep(start, version))
    checks += _conservation(version)
    code = report(out, start, version, checks)
    if code != UNDECIDED:
        _leave(store.root, disk or Disk(), start, version, checks, int(clock() * 1e6), out)
    return code


def _files(store: Store, version: Version) -> Check:
    """Step 1: files and chain."""
    try:
        store.verify(version)
        known = {mark.name: mark for mark in store.versions()}
        for child in lineage.lineage(store, version):
            parent = child.manifest["parent"]
            kept = known.get(parent["version"]) if parent else None
            if kept is not None and kept.manifest["self"] != parent["self"]:
                expected = f"self {parent['self']}, as {child.name} has it"
                raise Corrupt(kept.name, expected=expected, found=f"self {kept.manifest['self']}")
    except Corrupt as error:
        return Check(step="files", outcome="differs", text=str(error))
    text = f"{version.name}: {len(version.files)} files and its chain have their digests"
    return Check(step="files", outcome="equal", text=text)


def _start(
    store: Store,
    version: Version,
    chain: Sequence[Version],
    begins: Mapping[TopicPartition, int],
    since: str | None,
) -> tuple[Version | None, str]:
    """Return the version to count from, or the reason why there is none."""
    if since is not None:
        start = checkpoints.find(store, since)
        if start.name not in {kept.name for kept in chain}:
            return None, (
                f"{version.name} did not come from {start.name}: what lies between them was "
                "counted in another timeline"
            )
        why = _uncountable(start, version, begins)
        return (start, "") if why is None else (None, why)
    for start in reversed(chain):
        if start.seq < version.seq and _uncountable(start, version, begins) is None:
            return start, ""
    return None, (
        f"no version that {version.name} came from has an audit and all that follows it still in "
        "the log"
    )


def _uncountable(
    start: Version, version: Version, begins: Mapping[TopicPartition, int]
) -> str | None:
    """Return why the records between two versions cannot be counted, None if they can."""
    for each in (start, version):
        if each.next_offsets and not lineage.audits(each):
            return f"{each.name} has no audit: an earlier release wrote it"
    if len(start.manifest.get("resets") or ()) != len(version.manifest.get("resets") or ()):
        return (
            f"offsets were reset between {start.name} and {version.name}: records in between "
            "count twice or never, as its manifest says"
        )
    lost = [
        f"{topic}[{p}]@{offset} (retained from {begins[topic, p]})"
        for (topic, p), offset in _starts(start, version).items()
        if offset < begins.get((topic, p), 0)
    ]
    return f"retention took records behind {start.name}: {', '.join(lost)}" if lost else None


def _starts(start: Version, version: Version) -> dict[TopicPartition, int]:
    """Return the first offsets behind `start`: 0 of partitions that were added after it."""
    return {**dict.fromkeys(version.next_offsets, 0), **start.next_offsets}


def _journal(journal: Journal, start: Version, version: Version) -> tuple[Sequence[Slice], Check]:
    """Step 2: the journal."""
    try:
        slices = journal(start, version)
    except Corrupt as error:
        return (), Check(step="journal", outcome="differs", text=str(error))
    text = f"{len(slices)} slices between {start.name} and {version.name}, frames whole"
    return slices, Check(step="journal", outcome="equal", text=text)


def _conservation(version: Version) -> list[Check]:
    """Step 4: outcomes add up to records."""
    wrong, total = [], 0
    for (topic, p), audit in sorted(lineage.audits(version).items()):
        total += audit.num_records
        if audit.num_unaccounted:
            place, num_outcomes = f"{topic}[{p}]", sum(audit.outcomes.values())
            text = (
                f"{place}: {audit.num_records:,} records, {num_outcomes:,} outcomes: "
                f"{audit.outcomes}"
            )
            wrong.append(Check(step="conservation", outcome="differs", text=text, partition=place))
    text = f"all {total:,} records consumed so far have exactly one outcome"
    return wrong or [Check(step="conservation", outcome="equal", text=text)]


def _leave(
    root: Path,
    disk: Disk,
    start: Version | None,
    version: Version,
    checks: Sequence[Check],
    now_us: int,
    out: Output,
) -> None:
    """Leave the verdict in the store, for `/metrics`."""
    try:
        verdict.write(
            root,
            disk,
            version=version.name,
            since=start.name if start else None,
            num_differences=sum(check.outcome == "differs" for check in checks),
            now_us=now_us,
        )
    except OSError as error:
        out.report(
            f"{root / verdict.FILE}: {error.strerror or error}: the verdict is not left in the "
            "store; /metrics keeps the one before"
        )
