"""Operator commands on the versions of a store: list, show, compare, promote, prune, verify."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from deploy.admin import lineage
from deploy.errors import Unsafe, UsageError
from deploy.process.terminal import Output, table
from deploy.settings.units import format_time
from learner import version_layout as layout
from learner.artifact import Corrupt, Store, Version
from learner.errors import StoreFailed
from learner.store.blobs import Disk
from learner.store.manifest import CHECKPOINT, RunState
from learner.store.retention import expired, protected, retire

ANNOUNCED = "@announced"
_SHOWN = (
    "format",
    "kind",
    "version",
    "epoch",
    "seq",
    "parent",
    "step",
    "samples",
    "offsets",
    "fit",
    "journal",
    "timeline",
    "watermark",
)
_GUARANTEES = ("bit_exact", "gaps", "resets", "quarantine", "exclusions", "orders_taken", "replay")


def find(store: Store, name: str) -> Version:
    """Return a version by name, alias, or `@announced`.

    Raises:
        VersionMissing: there is none; names the known ones.
    """
    return store.version(store.announced() or name if name == ANNOUNCED else name)


def list_(store: Store, out: Output) -> int:
    """Write every version, newest last, with its aliases; a superseded one is marked so."""
    living, names = _living(store), _names(store)
    rows, facts = [], []
    for version in store.versions():
        marks = [*names.get(version.name, ())] + ([] if version.name in living else ["superseded"])
        refusal = store.refusal(version.name)
        marks += ["refused"] if refusal else []
        size = _num_bytes(version)
        newest_event = None if version.event_time_us is None else format_time(version.event_time_us)
        facts.append(
            {
                "version": version.name,
                "created": format_time(version.created_us),
                "step": version.step,
                "samples": version.num_samples,
                "event_time": newest_event,
                "bytes": size,
                "evaluation": version.evaluation,
                "aliases": names.get(version.name, []),
                "superseded": version.name not in living,
                "refused": refusal.reason if refusal else None,
            }
        )
        rows.append(
            (
                version.name,
                format_time(version.created_us),
                version.step,
                version.num_samples,
                newest_event,
                size,
                " ".join(marks),
            )
        )
    header = ("VERSION", "CREATED", "STEP", "SAMPLES", "NEWEST EVENT", "BYTES", "")
    damaged = store.damaged()
    lines = table(header, rows) if rows else [f"{store.root}: no version yet"]
    out.give(
        {"versions": facts, "damaged": damaged},
        [*lines, *(f"{name}: damaged: {reason}" for name, reason in damaged.items())],
    )
    return 0


def show(store: Store, name: str, out: Output, *, path: bool = False) -> int:
    """Write one version by its manifest; with `path`, only its folder."""
    version = find(store, name)
    if path:
        out.give({"path": str(version.path)}, [str(version.path)])
        return 0
    manifest, aliases = version.manifest, _names(store).get(version.name, [])
    keys = [key for key in (*_SHOWN, *_GUARANTEES) if key in manifest]
    lines = [f"{key}: {_text(manifest[key])}" for key in keys]
    lines += [f"evaluation.{key}: {value:.6g}" for key, value in sorted(version.evaluation.items())]
    base = _base(version)
    lines += [f"base: {base['file']}, sha256 {base['sha256']}"] if base else []
    lines += [f"aliases: {' '.join(aliases) or 'none'}", f"path: {version.path}"]
    refusal = store.refusal(version.name)
    if refusal:
        when = f"{refusal.server} at {format_time(refusal.at_us)}"
        lines.append(f"refused by {when}: {refusal.reason}")
    refused = msgspec.to_builtins(refusal)
    facts = {"base": base, "path": str(version.path), "aliases": aliases, "refused": refused}
    out.give(manifest | facts, lines)
    return 0


def diff(store: Store, first: str, second: str, out: Output) -> int:
    """Write the difference of two versions: records, steps, outcomes, evaluation, manifests."""
    a, b = find(store, first), find(store, second)
    rows, outcomes = _offset_rows(a, b), _outcomes_between(a, b)
    evaluation = {
        key: [a.evaluation.get(key), b.evaluation.get(key)]
        for key in sorted({*a.evaluation, *b.evaluation})
    }
    other = {
        key: [a.manifest.get(key), b.manifest.get(key)]
        for key in ("config_sha256", "fingerprint", "weighting", *_GUARANTEES)
        if a.manifest.get(key) != b.manifest.get(key)
    }
    columns = ("topic", "partition", a.name, b.name, "delta")
    facts = {
        "versions": [a.name, b.name],
        "step": b.step - a.step,
        "samples": b.num_samples - a.num_samples,
        "seconds": (b.created_us - a.created_us) / 1e6,
        "offsets": [dict(zip(columns, row, strict=True)) for row in rows],
        "outcomes": outcomes,
        "evaluation": evaluation,
        "differs": other,
    }
    num_samples = b.num_samples - a.num_samples
    lines = [f"{a.name} -> {b.name}: {b.step - a.step:+,} steps, {num_samples:+,} samples"]
    lines += table(("TOPIC", "PART", a.name, b.name, "DELTA"), rows)
    lines += [f"outcome {word}: {count:+,}" for word, count in sorted(outcomes.items()) if count]
    lines += [
        f"evaluation.{key}: {_text(before)} -> {_text(after)}"
        for key, (before, after) in evaluation.items()
    ]
    lines += [f"{key}: {_text(before)} -> {_text(after)}" for key, (before, after) in other.items()]
    out.give(facts, lines)
    return 0


def promote(
    store: Store, name: str, out: Output, *, alias: str = "champion", yes: bool = False
) -> int:
    """Move an alias to a version; a server takes a new champion at its next poll and stays on it.

    Returns:
        The exit code.

    Raises:
        UsageError: there is no such alias, or nobody to ask.
        Corrupt: the version is damaged; nothing was moved.
    """
    if alias not in ("champion", "challenger"):
        raise UsageError(f"--alias: got {alias!r}, expected champion or challenger")
    version = find(store, name)
    return _move(store, version, out, alias=alias, yes=yes)


def rollback(store: Store, out: Output, *, to: str = "@previous", yes: bool = False) -> int:
    """Move the champion back to an older version; a server takes it and stays on it.

    Returns:
        The exit code.

    Raises:
        Unsafe: there is no previous version, or `to` is not older than what serves.
    """
    aliases = store.aliases()
    if to == "@previous" and aliases["previous"] is None:
        raise Unsafe(
            "no version served before this one: there is no way back. `steelyard checkpoints "
            "list` shows what there is."
        )
    version, champion = find(store, to), aliases["champion"]
    if champion is not None and version.name >= champion:
        raise Unsafe(
            f"{version.name} is not older than {champion}, which serves. Further back: steelyard "
            "checkpoints rollback --to VERSION; forwards: steelyard checkpoints promote "
            f"{version.name}"
        )
    return _move(store, version, out, alias="champion", yes=yes)


def prune(
    store: Store,
    out: Output,
    *,
    keep: int | None = None,
    superseded: bool = False,
    yes: bool = False,
    clock: Callable[[], float] = time.time,
    disk: Disk | None = None,
) -> int:
    """Retire versions beyond the newest `keep`, or superseded ones. Return the exit code.

    The rule is the learner's own (`learner.store.retention`): what an alias, the announcement, a
    command that is not over or the newest state needs, stays. Commit mark first, then files, by
    rename into `trash/`, which the learner empties a minute later; journal segments that nothing
    needs any more go with its next pass.

    Raises:
        UsageError: not exactly one of the two, or nobody to ask.
        StoreFailed: some are not retired; the next call does the rest.
    """
    if (keep is None) == (not superseded):
        raise UsageError("prune: expected exactly one of --keep N, --superseded")
    disk = disk or Disk()
    manifests = store.manifests()
    run_state = manifests[-1].run_state if manifests else RunState()
    stays = protected(store, disk, manifests, run_state)
    if keep is not None:
        old = [found for found in expired(manifests, keep, run_state) if found.kind == CHECKPOINT]
    else:
        living = _living(store)
        old = [version for version in store.versions() if version.name not in living]
    retired = [version for version in old if version.name not in stays]
    names = [version.name for version in retired]
    size = sum(digest.size for version in retired for digest in version.files.values())
    if not retired:
        out.give({"retired": [], "bytes": 0}, ["nothing to retire"])
        return 0
    if not out.confirmed(
        f"Retire {len(names)} versions, {size:,} bytes: {', '.join(names)}?", yes=yes
    ):
        return 1
    try:
        for version in retired:
            retire(store.root, disk, version, int(clock() * 1e6))
    except OSError as error:
        raise StoreFailed(step="prune", path=store.root / "trash", cause=error) from error
    out.give(
        {"retired": names, "bytes": size},
        [f"{len(names)} versions retired, {size:,} bytes: {', '.join(names)}"],
    )
    return 0


def verify(store: Store, name: str | None, out: Output) -> int:
    """Read every file of one version, or of all, and compare digests. Return the exit code."""
    damaged = {}
    versions = [find(store, name)] if name else store.versions()
    with out.progress("bytes read", sum(map(_num_bytes, versions))) as advance:
        for version in versions:
            try:
                store.verify(version)
            except Corrupt as error:
                damaged[version.name] = str(error)
            advance(_num_bytes(version))
    if not name:
        damaged |= store.damaged()
    lines = [f"{version}: {reason}" for version, reason in damaged.items()] or [
        f"{len(versions)} versions whole"
    ]
    out.give({"versions": [version.name for version in versions], "damaged": damaged}, lines)
    return 1 if damaged else 0


def _move(store: Store, version: Version, out: Output, *, alias: str, yes: bool) -> int:
    store.verify(version)
    before = store.aliases()
    now = before[alias] or "none"
    refusal = store.refusal(version.name) if alias == "champion" else None
    if refusal:
        out.aside().text([f"{version.name} was refused by {refusal.server}: {refusal.reason}"])
    if not out.confirmed(f"Let {alias} be {version.name} (now {now})?", yes=yes):
        return 1
    store.promote(version, alias=alias, by_operator=True)
    after = store.aliases()
    lines = [f"{alias}: {now} -> {after[alias]}"]
    lines += ["its refusal is withdrawn"] if refusal else []
    if alias == "champion":
        pinned = after["pinned"]
        follows = "serving follows what the learner announces"
        stays = f"serving stays on {pinned} until: steelyard checkpoints promote {ANNOUNCED}"
        lines.append(stays if pinned else follows)
    out.give({"aliases": after, "before": before}, lines)
    return 0


def _base(version: Version) -> dict[str, str | int] | None:
    """Return file, digest and size of what training never moves beside a part that it does."""
    name = layout.base_file(version.files)
    if name is None:
        return None
    return {"file": name, **msgspec.structs.asdict(version.files[name])}


def _names(store: Store) -> dict[str, list[str]]:
    names: dict[str, list[str]] = {}
    for alias, name in {**store.aliases(), "announced": store.announced()}.items():
        if name is not None:
            names.setdefault(name, []).append(f"@{alias}")
    return names


def _living(store: Store) -> set[str]:
    """Return the names of the versions that the newest state went through."""
    head = lineage.newest(store)
    return {version.name for version in lineage.lineage(store, head)} if head else set()


def _num_bytes(version: Version) -> int:
    return sum(digest.size for digest in version.files.values())


def _offset_rows(a: Version, b: Version) -> list[tuple[str | int | None, ...]]:
    """Return (topic, partition, offset in a, offset in b, difference) of every partition."""
    rows: list[tuple[str | int | None, ...]] = []
    for tp in sorted({*a.next_offsets, *b.next_offsets}):
        before, after = a.next_offsets.get(tp), b.next_offsets.get(tp)
        delta = None if before is None or after is None else after - before
        rows.append((*tp, before, after, delta))
    return rows


def _outcomes_between(a: Version, b: Version) -> Counter[str]:
    """Return how many more records of each outcome b contains."""
    outcomes = Counter[str]()
    for audit in lineage.audits(b).values():
        outcomes.update(audit.outcomes)
    for audit in lineage.audits(a).values():
        outcomes.subtract(audit.outcomes)
    return outcomes


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_text(part)}" for key, part in value.items()) or "none"
    return "none" if value is None or value == [] else str(value)
