"""Plan of `replay`: the version to restore, and what is read again after it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from consumers import codec
from consumers.errors import Invalid
from consumers.events import ItemUpdate
from consumers.exclusion import ExclusionList, Exclusions
from deploy.admin import exclusions, lineage
from deploy.admin.offsets import targets
from deploy.admin.replay import version as versions
from deploy.admin.replay.request import ANEW, AS_IT_WAS, LIVE, Log, ReplayRequest
from deploy.admin.work import Work, journaled, num_beyond, work
from deploy.errors import Unsafe
from deploy.process.terminal import Output, table
from deploy.settings.units import format_time
from deploy.verification.reread import between
from learner.artifact import Store, Version
from learner.store import commands
from learner.store.blobs import Disk
from weighting.provenance import TopicPartition

_HEADER = ("TOPIC", "PART", "CURRENT", "RESTART", "RE-READ", "RETAINED FROM")


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One partition of a plan.

    Attributes:
        topic: its topic.
        partition: its number.
        current: next offset of the newest manifest.
        restart: next offset of the version.
        end: the offset up to which it is read.
        retained_from: the oldest offset that the log has.
    """

    topic: str
    partition: int
    current: int | None
    restart: int
    end: int
    retained_from: int

    @property
    def num_records(self) -> int:
        """Number of records that were consumed and are read again."""
        return max((self.current or self.restart) - self.restart, 0)

    @property
    def cells(self) -> tuple[str | int | None, ...]:
        """The row as it is printed."""
        offsets = self.current, self.restart, self.num_records, self.retained_from
        return (self.topic, self.partition, *offsets)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A version to restore, and offsets to read again.

    Attributes:
        version: the version.
        mode: AS_IT_WAS or ANEW.
        into: LIVE or SHADOW.
        rows: one for each partition.
        excluded: what is left out.
        work: steps and samples to be learned.
        superseded: names of versions that the restored state does not come from.
        cancels: number of the command that this one undoes.
    """

    version: Version
    mode: str
    into: str
    rows: Sequence[Row]
    excluded: ExclusionList | None
    work: Work
    superseded: Sequence[str]
    cancels: int | None = None

    @property
    def restart(self) -> dict[TopicPartition, int]:
        """Next offsets of the version."""
        return {(row.topic, row.partition): row.restart for row in self.rows}

    @property
    def until(self) -> dict[TopicPartition, int]:
        """Offsets up to which the log is read."""
        return {(row.topic, row.partition): row.end for row in self.rows}

    @property
    def command(self) -> dict[str, Any]:
        """The operator command; its digest is the plan's."""
        return {
            "version": self.version.name,
            "self": self.version.manifest["self"],
            "mode": self.mode,
            "into": self.into,
            "restart": targets.plan_json(self.restart),
            "until": targets.plan_json(self.until),
            "exclude": self.excluded.digest() if self.excluded else None,
            "num_excluded": self.excluded.num if self.excluded else 0,
            "cancels": self.cancels,
            "since": self.version.num_samples,
            "samples": self.work.num_samples,
        }

    @property
    def digest(self) -> str:
        """Digest of the command."""
        return commands.digest(self.command)

    @property
    def num_records(self) -> int:
        """Number of records that are read again."""
        return sum(row.num_records for row in self.rows)

    def to_json(self) -> dict[str, Any]:
        """Return it as plain values."""
        return {
            **self.command,
            "digest": self.digest,
            "created": format_time(self.version.created_us),
            "partitions": [{**asdict(row), "records": row.num_records} for row in self.rows],
            "records_to_reread": self.num_records,
            **self.work.to_json(),
            "superseded": list(self.superseded),
        }

    def lines(self) -> list[str]:
        """Return it as lines for a person."""
        how = "the log in its own order, up to the end offsets of now"
        if self.mode == AS_IT_WAS:
            how = "the journal, bit by bit"
        into = "a shadow (the live store is left alone)"
        if self.into == LIVE:
            into = "live (serving stays on its version)"
        created = format_time(self.version.created_us)
        num_partitions = sum(row.num_records > 0 for row in self.rows)
        return [
            f"PLAN  restore {self.version.name} ({created}), then read {how}"
            f"    digest {self.digest[:8]}",
            "RESTORES model, optimizer, random numbers, estimators, joins, dedup ids, offsets"
            f"        INTO {into}",
            *table(_HEADER, [row.cells for row in self.rows]),
            f"Re-reads {self.num_records:,} records in {num_partitions} partitions.",
            f"Learns {self.work.text()}.",
            *self._consequences(),
        ]

    def _consequences(self) -> list[str]:
        lines = []
        if self.excluded:
            lines += [
                f"EXCLUDES the records that {self.excluded.num} entries name (list "
                f"{self.excluded.digest()[:8]}): nowhere from {self.version.name} on.",
                "         What retention took, backups, mirrors and offline data are not reached "
                "by this.",
            ]
        if self.superseded:
            first, last = self.superseded[-1], self.superseded[0]
            lines.append(f"Versions {first} to {last} stay listed, marked superseded.")
        return lines


def make_plan(
    request: ReplayRequest, log: Log, store: Store, out: Output, *, now_us: int, disk: Disk
) -> Plan:
    """Return what would be restored and read again.

    Nothing is written but, with exclusions, the key of their hashes.

    Raises:
        Unsafe: no version is old enough, or the log does not have what comes after it.
        UsageError: the request is not one.
    """
    request.check()
    head = lineage.newest(store)
    if head is None:
        raise Unsafe(f"{store.root} has no checkpoint yet: there is nothing to go back to.")
    excluded = exclusions_of(head, store, disk)
    first_excluded: Mapping[TopicPartition, int] = {}
    if request.exclude is not None:
        key = exclusions.key_of(store.root, disk)
        excluded = exclusions.read_file(request.exclude, key, excluded)
        first_excluded = _first_excluded(Exclusions(excluded, key), log, out)
    version = versions.choose(request, log, store, head, first_excluded, now_us=now_us)
    mode = request.mode or (ANEW if request.exclude is not None else AS_IT_WAS)
    if mode == AS_IT_WAS:
        versions.refuse_without_journal(version, head, store)
    return plan_for(version, log, store, head, mode=mode, into=request.into, excluded=excluded)


def plan_for(
    version: Version,
    log: Log,
    store: Store,
    head: Version,
    *,
    mode: str,
    into: str,
    excluded: ExclusionList | None,
    until: Mapping[TopicPartition, int] | None = None,
    cancels: int | None = None,
) -> Plan:
    """Return the plan that goes back to a chosen version.

    Args:
        version: the version.
        log: what is retained.
        store: the versions.
        head: the newest manifest.
        mode: AS_IT_WAS or ANEW.
        into: LIVE or SHADOW.
        excluded: what is left out.
        until: offsets up to which the log is read; the end offsets of now where None.
        cancels: number of the command that this one undoes.
    """
    topics = sorted({topic for topic, _ in version.next_offsets})
    begins = log.brokers.beginning_offsets(topics)
    ends = until or log.brokers.end_offsets(topics)
    rows = [
        Row(
            topic=topic,
            partition=p,
            current=head.next_offsets.get((topic, p)),
            restart=offset,
            end=ends.get((topic, p), offset),
            retained_from=begins[topic, p],
        )
        for (topic, p), offset in sorted(version.next_offsets.items())
    ]
    chain = lineage.lineage(store, head)
    superseded = [kept.name for kept in chain if kept.seq > version.seq]
    return Plan(
        version=version,
        mode=mode,
        into=into,
        rows=rows,
        excluded=excluded,
        work=_work(version, store, head, rows, log, mode=mode, into=into),
        superseded=superseded if into == LIVE else [],
        cancels=cancels,
    )


def _work(
    version: Version,
    store: Store,
    head: Version,
    rows: Sequence[Row],
    log: Log,
    *,
    mode: str,
    into: str,
) -> Work:
    """Return what is learned: the journal as it was, or the records up to the end in other order.

    The samples of records are known up to the newest version; beyond, they are estimated.
    """
    chain = lineage.lineage(store, head)
    events = [row for row in rows if row.topic in log.events]
    until = {(row.topic, row.partition): row.end for row in events}
    reached = {
        (row.topic, row.partition): row.restart if row.current is None else row.current
        for row in events
    }
    num_steps = max(0, head.step - version.step)
    num_samples = max(0, head.num_samples - version.num_samples)
    found = journaled(store, version, head) if mode == AS_IT_WAS else None
    if found is not None:
        num_steps, num_samples, ends = found
        reached = {tp: max(offset, ends.get(tp, offset)) for tp, offset in reached.items()}
    num_records = num_beyond(until, reached) if mode == ANEW or into != LIVE else 0
    return work(
        chain, log.events, num_records=num_records, num_steps=num_steps, num_samples=num_samples
    )


def exclusions_of(version: Version, store: Store, disk: Disk) -> ExclusionList | None:
    """Return what a version leaves out, and so must everything that is read again after it."""
    written = version.manifest.get("exclusions")
    return exclusions.load(store.root, disk, written["sha256"]) if written else None


def _first_excluded(excluded: Exclusions, log: Log, out: Output) -> dict[TopicPartition, int]:
    """Return the first retained record of each partition to be left out; reads the whole log."""
    begins = log.brokers.beginning_offsets(log.events)
    ends = log.brokers.end_offsets(log.events)
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
    if first:
        out.report(f"--exclude names {num_records:,} of the records that are retained")
    else:
        out.report("no retained record is named by --exclude")
    return first
