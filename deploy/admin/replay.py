"""Go back and read again: state and offsets together, so that each record counts once in the new timeline.

1. Plan: the version to go back to, its offsets, what is still retained. 2. Execute: exactly that plan, as an order. The learner makes its
last checkpoint, which is the way back, restores the version, and reads up to the end offsets of the plan; serving answers meanwhile.
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from consumers import codec
from consumers.errors import Invalid
from consumers.events import ItemUpdate, Kind
from consumers.exclusion import ExclusionList, Exclusions
from consumers.source import Source
from deploy.admin import checkpoints, exclusions, lineage, targets
from deploy.admin.targets import Target
from deploy.errors import Unsafe, UsageError
from deploy.process.terminal import Output, table
from deploy.roles import shadow
from deploy.settings.units import format_time
from deploy.verification.reread import between
from learner.artifact import Corrupt, Store, Version
from learner.store import commands
from learner.store.blobs import Disk
from weighting.provenance import TopicPartition

AS_IT_WAS, ANEW = "as-it-was", "anew"
LIVE, SHADOW = "live", "shadow"


class Admin(targets.Admin, Protocol):
    """What we ask of the brokers."""

    def topic_ids(self) -> dict[str, str]:
        """Return the id of every topic."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayRequest:
    """What `replay` was asked; exactly one of version, target and (alone) exclude says how far back."""

    version: str | None = None
    target: Target | None = None
    exclude: Path | None = None
    mode: str | None = None
    into: str = LIVE
    shadow_root: Path | None = None
    execute: bool = False
    export: bool = False
    yes: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Log:
    """How the log is asked."""

    kinds: Mapping[str, Kind]  #: of every topic that the learner reads
    admin: Admin
    open: Callable[[], AbstractContextManager[Source]]  #: the topics of events

    @property
    def events(self) -> list[str]:
        """Return the topics of events; the others are compacted."""
        return [topic for topic, kind in self.kinds.items() if kind is not Kind.ITEM]


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One partition of a plan."""

    topic: str
    partition: int
    current: int | None  #: next offset of the newest manifest
    restart: int
    end: int
    retained_from: int

    @property
    def num_records(self) -> int:
        """Return how many records that were consumed are read again."""
        return max((self.current or self.restart) - self.restart, 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What would be restored and read again."""

    version: Version
    mode: str
    into: str
    rows: Sequence[Row]
    excluded: ExclusionList | None
    per_second: float | None
    superseded: Sequence[str]
    cancels: int | None = None

    @property
    def order(self) -> dict[str, Any]:
        """Return what is ordered; its digest is the plan's."""
        restart = {(row.topic, row.partition): row.restart for row in self.rows}
        return {
            "version": self.version.name,
            "self": self.version.manifest["self"],
            "mode": self.mode,
            "into": self.into,
            "restart": targets.by_topic(restart),
            "until": targets.by_topic({(row.topic, row.partition): row.end for row in self.rows}),
            "exclude": self.excluded.digest() if self.excluded else None,
            "num_excluded": self.excluded.num if self.excluded else 0,
            "cancels": self.cancels,
        }

    @property
    def num_records(self) -> int:
        """Return how many records are read again."""
        return sum(row.num_records for row in self.rows)

    def to_json(self) -> dict[str, Any]:
        """Return it as plain values."""
        return {
            **self.order,
            "digest": commands.digest(self.order),
            "created": format_time(self.version.created_us),
            "partitions": [{**asdict(row), "records": row.num_records} for row in self.rows],
            "records_to_reread": self.num_records,
            "seconds": None if self.per_second is None else self.num_records / self.per_second,
            "superseded": list(self.superseded),
        }

    def lines(self) -> list[str]:
        """Return it for a person."""
        how = (
            "the journal, bit by bit"
            if self.mode == AS_IT_WAS
            else "the log in its own order, up to the end offsets of now"
        )
        into = (
            "live (serving stays on its version)"
            if self.into == LIVE
            else "a shadow (the live store is left alone)"
        )
        said = [
            f"PLAN  restore {self.version.name} ({format_time(self.version.created_us)}), then read {how}"
            f"    digest {commands.digest(self.order)[:8]}",
            f"RESTORES model, optimizer, random numbers, estimators, joins, dedup ids, offsets        INTO {into}",
        ]
        rows = [
            (r.topic, r.partition, r.current, r.restart, r.num_records, r.retained_from)
            for r in self.rows
        ]
        said += table(("TOPIC", "PART", "CURRENT", "RESTART", "RE-READ", "RETAINED FROM"), rows)
        partitions = sum(row.num_records > 0 for row in self.rows)
        said.append(
            f"Re-reads {self.num_records:,} records in {partitions} partitions{lineage.about(self.num_records, self.per_second)}."
        )
        if self.excluded:
            said.append(
                f"EXCLUDES whom {self.excluded.num} entries name (list {self.excluded.digest()[:8]}): nowhere from {self.version.name} on."
            )
            said.append(
                "         What retention took, backups, mirrors and offline data are not reached by this."
            )
        if self.superseded:
            said.append(
                f"Versions {self.superseded[-1]} to {self.superseded[0]} stay listed, marked superseded."
            )
        return said


def run(
    request: ReplayRequest,
    log: Log,
    store: Store,
    out: Output,
    *,
    learn: str = "steelyard learn",
    clock: Callable[[], float] = time.time,
    disk: Disk | None = None,
) -> int:
    """Plan, show, and with `execute` order exactly that. Return the exit code.

    Raises:
        Unsafe: no version is old enough, or the log does not have what comes after it; names the oldest version that still works.
        UsageError: the request is not one.
    """
    disk = disk or Disk()
    now_us = int(clock() * 1e6)
    plan = make_plan(request, log, store, out, now_us=now_us, disk=disk)
    show = out.aside() if request.export else out
    if request.export:
        for line in targets.to_csv({(row.topic, row.partition): row.restart for row in plan.rows}):
            out.write(line)
    if not request.execute:
        show.give(
            plan.to_json() | {"executed": False},
            [*plan.lines(), "nothing written. Add --execute to apply exactly this plan."],
        )
        return 0
    return _execute(plan, request, store, show, learn, now_us, disk)


def cancel(
    store: Store,
    log: Log,
    out: Output,
    *,
    yes: bool = False,
    clock: Callable[[], float] = time.time,
    disk: Disk | None = None,
) -> int:
    """End the replay that is ordered or goes on: withdraw the order, or go back to the last checkpoint before it. Return the exit code.

    Raises:
        Unsafe: there is no replay, or its way back is gone.
    """
    disk, now_us = disk or Disk(), int(clock() * 1e6)
    head = lineage.newest(store)
    taken = lineage.commands_taken(head)
    pending = commands.pending(store.root, taken, disk)
    if pending is not None and pending.kind == "replay":
        if not out.confirmed(
            f"Withdraw order {pending.id}, which has not been taken yet?", yes=yes
        ):
            return 1
        if (
            commands.withdraw(store.root, pending.id, disk)
            and lineage.commands_taken(lineage.newest(store)) < pending.id
        ):
            out.give(
                {"order": pending.id, "state": commands.WITHDRAWN},
                [f"order {pending.id} withdrawn: nothing changes"],
            )
            return 0
        raise Unsafe(
            f"order {pending.id} was taken in this moment. Look again: steelyard offsets describe; then cancel once more."
        )
    going_on = head.manifest.get("replay") if head else None
    if head is None or not going_on:
        raise Unsafe(
            "no replay is ordered or goes on. To go back from one that has ended: steelyard replay --from-checkpoint VERSION"
        )
    order_id = int(going_on["order"])
    way_back = next(
        (
            version
            for version in reversed(store.versions())
            if lineage.commands_taken(version) < order_id
        ),
        None,
    )
    if way_back is None:
        raise Unsafe(
            f"the last checkpoint before order {order_id} is gone: let the replay end, or name a version with --from-checkpoint."
        )
    store.verify(way_back)
    plan = _plan(
        way_back,
        ANEW,
        LIVE,
        log,
        store,
        head,
        excluded=_in_force(way_back, store, disk),
        until=way_back.next_offsets,
        cancels=order_id,
    )
    request = ReplayRequest(execute=True, yes=yes)
    return _execute(plan, request, store, out, "", now_us, disk)


def make_plan(
    request: ReplayRequest, log: Log, store: Store, out: Output, *, now_us: int, disk: Disk
) -> Plan:
    """Return what would be restored and read again; nothing is written but, with exclusions, the key of their hashes.

    Raises:
        Unsafe, UsageError: as `run`.
    """
    _check(request)
    head = lineage.newest(store)
    if head is None:
        raise Unsafe(f"{store.root} has no checkpoint yet: there is nothing to go back to.")
    excluded = _in_force(head, store, disk)
    first_excluded: Mapping[TopicPartition, int] = {}
    if request.exclude is not None:
        key = exclusions.key_of(store.root, disk)
        excluded = exclusions.read_file(request.exclude, key, excluded)
        first_excluded = _first_excluded(Exclusions(excluded, key), log, out)
    version = _version(request, log, store, head, first_excluded, now_us)
    mode = request.mode or (ANEW if request.exclude is not None else AS_IT_WAS)
    if mode == AS_IT_WAS:
        _refuse_without_journal(version, head, store)
    return _plan(version, mode, request.into, log, store, head, excluded=excluded)


def _check(request: ReplayRequest) -> None:
    given = {
        "--from-checkpoint": request.version is not None,
        "--to-datetime": request.target is not None and request.target.name == "to-datetime",
        "--by-duration": request.target is not None and request.target.name == "by-duration",
    }
    named = [name for name, there in given.items() if there]
    if len(named) > 1 or (not named and request.exclude is None):
        raise UsageError(targets.one_of("how far back", named, [*given, "--exclude alone"]))
    for option, value, known in (
        ("--mode", request.mode, (AS_IT_WAS, ANEW)),
        ("--into", request.into, (LIVE, SHADOW)),
    ):
        if value is not None and value not in known:
            raise UsageError(f"{option}: got {value!r}, expected {' or '.join(known)}")
    if request.exclude is not None and request.mode == AS_IT_WAS:
        raise UsageError("--mode: as-it-was repeats every record; with --exclude the mode is anew")
    if request.shadow_root is not None and request.into != SHADOW:
        raise UsageError("--shadow-root: only with --into shadow")


def _version(
    request: ReplayRequest,
    log: Log,
    store: Store,
    head: Version,
    first_excluded: Mapping[TopicPartition, int],
    now_us: int,
) -> Version:
    """The version to go back to: whole, and all that comes after it still in the log."""
    begins, ends = log.admin.beginning_offsets(log.events), log.admin.end_offsets(log.events)
    chain = lineage.lineage(store, head)
    if request.version is not None:
        version = checkpoints.find(store, request.version)
        if version.kind != "checkpoint":
            raise Unsafe(
                f"{version.name} is a {version.manifest['kind']} and no state of its own. `steelyard checkpoints list` shows versions."
            )
        at_most: Mapping[TopicPartition, int] = first_excluded
        if lineage.cut([version], at_most) is None:
            raise Unsafe(
                f"{version.name} contains records that are to be left out. {_or(lineage.cut(chain, at_most), 'newest')}"
            )
    else:
        at_most = dict(first_excluded)
        if request.target is not None:
            at_most = _at_most(request.target, log, ends, chain, first_excluded, now_us)
        found = lineage.cut(chain, at_most)
        if found is None:
            raise Unsafe(_none_old_enough(chain, begins))
        version = found
    if not lineage.retained(version, begins):
        raise Unsafe(_not_retained(version, begins, chain))
    beyond = [tp for tp, offset in version.next_offsets.items() if offset > ends.get(tp, offset)]
    if beyond:
        raise Unsafe(
            f"{version.name} goes on behind the end of {targets.listed(beyond)}: the log was truncated, or is another one."
        )
    _refuse_other_topics(version, log)
    try:
        store.verify(version)
    except Corrupt as error:
        older = [kept for kept in chain if kept.seq < version.seq]
        raise Unsafe(
            f"{version.name} is damaged: {error} {_or(older[0] if older else None, 'newest')}"
        ) from error
    return version


def _at_most(
    target: Target,
    log: Log,
    ends: Mapping[TopicPartition, int],
    chain: Sequence[Version],
    first_excluded: Mapping[TopicPartition, int],
    now_us: int,
) -> dict[TopicPartition, int]:
    """Per partition, the first record at or after a time; a partition without one is a refusal."""
    time_us = targets.parse_when(target, now_us)
    found = targets.offsets_at(log.admin, sorted(ends), time_us)
    known = {
        tp: min(at[0], first_excluded.get(tp, at[0])) for tp, at in found.items() if at is not None
    }
    if unknown := [tp for tp in sorted(ends) if found.get(tp) is None]:
        raise Unsafe(
            f"{target.shown()}: no record at or after {format_time(time_us)} in {targets.listed(unknown)}, so there is no offset for it: "
            f"that is taken neither for the end nor for the beginning. By the others: {_or(lineage.cut(chain, known), 'newest')}"
        )
    return known


def _first_excluded(excluded: Exclusions, log: Log, out: Output) -> dict[TopicPartition, int]:
    """The first retained record of each partition that is to be left out; reads the whole log."""
    begins, ends = log.admin.beginning_offsets(log.events), log.admin.end_offsets(log.events)
    first: dict[TopicPartition, int] = {}
    num_records = 0
    total = sum(ends[tp] - begins[tp] for tp in ends)
    with log.open() as source, out.progress("offsets searched", total) as advance:
        for record in between(source, begins, ends, advance):
            try:
                event = codec.decode(log.kinds[record.topic], record)
            except Invalid:
                continue
            if not isinstance(event, ItemUpdate) and excluded.covers(event):
                first.setdefault((record.topic, record.partition), record.offset)
                num_records += 1
    out.tell(
        f"--exclude names {num_records:,} of the records that are retained"
        if first
        else "no retained record is named by --exclude"
    )
    return first


def _plan(
    version: Version,
    mode: str,
    into: str,
    log: Log,
    store: Store,
    head: Version,
    *,
    excluded: ExclusionList | None,
    until: Mapping[TopicPartition, int] | None = None,
    cancels: int | None = None,
) -> Plan:
    topics = sorted({topic for topic, _ in version.next_offsets})
    begins, ends = log.admin.beginning_offsets(topics), until or log.admin.end_offsets(topics)
    rows = [
        Row(
            topic=t,
            partition=p,
            current=head.next_offsets.get((t, p)),
            restart=offset,
            end=ends.get((t, p), offset),
            retained_from=begins[t, p],
        )
        for (t, p), offset in sorted(version.next_offsets.items())
    ]
    chain = lineage.lineage(store, head)
    return Plan(
        version=version,
        mode=mode,
        into=into,
        rows=rows,
        excluded=excluded,
        per_second=lineage.per_second(chain, log.events),
        superseded=[kept.name for kept in chain if kept.seq > version.seq] if into == LIVE else [],
        cancels=cancels,
    )


def _execute(
    plan: Plan,
    request: ReplayRequest,
    store: Store,
    out: Output,
    learn: str,
    now_us: int,
    disk: Disk,
) -> int:
    if not out.as_json:
        for line in plan.lines():
            out.write(line)
    into = "live" if plan.into == LIVE else "a shadow"
    if not out.confirmed(
        f"Execute plan {commands.digest(plan.order)[:8]} into {into}?", yes=request.yes
    ):
        return 1
    root, said = store.root, plan.to_json() | {"executed": True}
    lines = []
    if plan.excluded is not None:
        exclusions.write(store.root, disk, plan.excluded)
    if plan.into == SHADOW:
        root = request.shadow_root or store.root.with_name(f"{store.root.name}-shadow")
        shadow.make(store, plan.version, root, disk)
        command = f"{learn} --set {shlex.quote(f'store.root={root}')} --set kafka.group_id=steelyard-shadow --set observability.metrics_port=0"
        said |= {"shadow_root": str(root), "command": command}
        lines = [f"shadow in {root}; run it until the end offsets of the plan with", f"  {command}"]
    after = lineage.commands_taken(lineage.newest(Store(root)))
    order = commands.write(root, disk, "replay", plan.order, now_us=now_us, after=after)
    out.give(said | {"order": order.id}, [commands.given(order, shadow=plan.into != LIVE), *lines])
    return 0


def _in_force(version: Version, store: Store, disk: Disk) -> ExclusionList | None:
    """What a version leaves out, and so must whatever is read again after it."""
    written = version.manifest.get("exclusions")
    return exclusions.load(store.root, disk, written["sha256"]) if written else None


def _refuse_without_journal(version: Version, head: Version, store: Store) -> None:
    """As it was needs the journal from the version on, and nothing decided since that changes what counts."""
    missing = None
    if not version.manifest.get("journal"):
        missing = f"{version.name} has no place in a journal"
    elif version.manifest.get("exclusions") != head.manifest.get("exclusions"):
        missing = f"since {version.name} exclusions came into force"
    elif version.name not in {kept.name for kept in lineage.lineage(store, head)}:
        missing = (
            f"{version.name} is superseded: the journal that goes on from it is of another timeline"
        )
    else:
        names = [span[0] for span in head.manifest.get("timeline") or ()]
        start = version.manifest["journal"]["segment"]
        needed = names[names.index(start) :] if start in names else [start]
        if gone := [name for name in needed if not (store.root / "journal" / name).is_file()]:
            missing = f"journal segment {gone[0]} is gone"
    if missing:
        raise Unsafe(
            f"as it was cannot be repeated: {missing}. Add --mode anew: each record still counts once, in the log's own order."
        )


def _refuse_other_topics(version: Version, log: Log) -> None:
    ids = log.admin.topic_ids()
    for topic, known in (version.manifest.get("inputs") or {}).items():
        if topic in ids and known.get("id") not in (None, "", ids[topic]):
            raise Unsafe(
                f"{topic} was recreated since {version.name}: its offsets mean other records now."
            )


def _not_retained(
    version: Version, begins: Mapping[TopicPartition, int], chain: Sequence[Version]
) -> str:
    lost = [
        f"{t}[{p}]@{offset} (retained from {begins[t, p]})"
        for (t, p), offset in version.next_offsets.items()
        if offset < begins.get((t, p), 0)
    ]
    oldest = min(
        (kept for kept in chain if lineage.retained(kept, begins)),
        key=lambda kept: kept.seq,
        default=None,
    )
    return f"{version.name} would go on with records that retention took: {', '.join(lost)}. {_or(oldest)}"


def _none_old_enough(chain: Sequence[Version], begins: Mapping[TopicPartition, int]) -> str:
    oldest = min(
        (kept for kept in chain if lineage.retained(kept, begins)),
        key=lambda kept: kept.seq,
        default=None,
    )
    return f"no kept version is that old. {_or(oldest)}"


def _or(version: Version | None, which: str = "oldest") -> str:
    if version is None:
        return "No kept version works: what is in all of them is only got rid of by learning anew in an empty store. Nothing was written."
    return f"The {which} version that still works: steelyard replay --from-checkpoint {version.name}. Nothing was written."
