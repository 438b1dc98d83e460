"""Plan of `offsets reset`: where each partition goes, and what that does to the guarantee."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from deploy.admin import lineage
from deploy.admin.brokers import Brokers
from deploy.admin.offsets import scopes, targets
from deploy.admin.offsets.scopes import Scope
from deploy.admin.offsets.targets import Move, Target
from deploy.admin.work import Work, work
from deploy.errors import Unsafe
from deploy.process.terminal import table
from deploy.settings.units import format_time
from learner.artifact import Store, Version
from learner.store import commands
from weighting.provenance import Offsets

_HEADER = ("TOPIC", "PART", "CURRENT", "PROPOSED", "DELTA", "CLAMPED", "RE-READ", "AT")
_ONCE = "restores state and offsets together: each record counts once"


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """A consumer group, beside the learner's own.

    Attributes:
        name: of the group.
        own: name of the learner's group.
        own_topics: topics that the learner reads.
    """

    name: str
    own: str
    own_topics: Sequence[str]

    @property
    def ours(self) -> bool:
        """True for the learner's group, whose offsets the checkpoint decides."""
        return self.name == self.own


@dataclass(frozen=True, slots=True, kw_only=True)
class ResetRequest:
    """Options of `offsets reset`; without a target the file has the offsets."""

    scope: Scope
    target: Target | None
    execute: bool = False
    export: bool = False
    yes: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Moves of one group.

    Attributes:
        group: whose offsets.
        moves: one for each partition.
        warnings: what the moves do to the guarantee of our learner.
        replay: the command that would count nothing twice.
        work: steps and samples that the records read again should bring; None of other groups.
    """

    group: Group
    moves: Sequence[Move]
    warnings: Sequence[str]
    replay: str | None
    work: Work | None

    @property
    def proposed(self) -> Offsets:
        """Next offsets to move to."""
        return Offsets(((move.topic, move.partition), move.proposed) for move in self.moves)

    @property
    def command(self) -> dict[str, Any]:
        """The operator command; its digest is the plan's."""
        current = {
            (move.topic, move.partition): move.current
            for move in self.moves
            if move.current is not None
        }
        return {
            "group": self.group.name,
            "offsets": targets.plan_json(self.proposed),
            "current": targets.plan_json(current),
        }

    @property
    def digest(self) -> str:
        """Digest of the command."""
        return commands.digest(self.command)

    @property
    def num_reread(self) -> int:
        """Number of records that would be read again."""
        return sum(move.num_reread for move in self.moves)

    @property
    def num_skipped(self) -> int:
        """Number of records that would never be read."""
        return sum(move.num_skipped for move in self.moves)

    def to_json(self) -> dict[str, Any]:
        """Return it as plain values."""
        work = self.work.to_json() if self.work else {"seconds": None}
        return {
            "group": self.group.name,
            "ours": self.group.ours,
            "digest": self.digest,
            "partitions": [move.to_json() for move in self.moves],
            "records_to_reread": self.num_reread,
            "records_to_skip": self.num_skipped,
            **work,
            "warnings": list(self.warnings),
            "replay": self.replay,
        }

    def lines(self) -> list[str]:
        """Return it as lines for a person."""
        owner = "moved in Kafka, and read back"
        if self.group.ours:
            owner = "our learner's: it will end its term, move and go on"
        learns = f" to learn {self.work.text()}" if self.work else ""
        lines = [
            f"PLAN  group {self.group.name} ({owner})    digest {self.digest[:8]}",
            *table(_HEADER, [_row(move) for move in self.moves]),
            f"Re-reads {self.num_reread:,} records{learns}; skips {self.num_skipped:,}.",
            *(f"WARNING  {warning}" for warning in self.warnings),
        ]
        return [*lines, f"         {self.replay}"] if self.replay else lines


def make_plan(
    request: ResetRequest, group: Group, brokers: Brokers, store: Store, *, now_us: int
) -> Plan:
    """Return where each partition would go.

    Raises:
        Unsafe: an offset cannot be known.
        UsageError: the request is not one.
    """
    version = lineage.newest(store) if group.ours else None
    if group.ours and version is None:
        raise Unsafe(
            f"group {group.name} is our learner's, and {store.root} has no checkpoint yet: there "
            "is nothing to move."
        )
    current = Offsets(version.next_offsets if version else brokers.committed(group.name))
    moves = _moves(request, group, brokers, current, now_us)
    if version is None:
        return Plan(group=group, moves=moves, warnings=(), replay=None, work=None)
    back = any(move.num_reread for move in moves)
    versions = lineage.lineage(store, version)
    return Plan(
        group=group,
        moves=moves,
        warnings=_warnings(moves),
        replay=_replay(request, moves, versions) if back else None,
        work=work(versions, group.own_topics, num_records=sum(m.num_reread for m in moves)),
    )


def _moves(
    request: ResetRequest, group: Group, brokers: Brokers, current: Offsets, now_us: int
) -> list[Move]:
    counts = brokers.topics()
    if group.ours:
        counts = {topic: count for topic, count in counts.items() if topic in group.own_topics}
    if request.scope.from_file is None:
        assert request.target is not None, "without a file there is a target"
        partitions = scopes.partitions_of(request.scope, counts, current)
        return targets.plan(brokers, current, partitions, request.target, now_us)
    wanted = scopes.read_csv(request.scope.from_file, group.name)
    names = tuple(sorted({f"{topic}:{partition}" for topic, partition in wanted}))
    scopes.partitions_of(Scope(topics=names), counts, ())
    topics = sorted({topic for topic, _ in wanted})
    begins, ends = brokers.beginning_offsets(topics), brokers.end_offsets(topics)
    return targets.moves(current, wanted, begins, ends)


def _warnings(moves: Sequence[Move]) -> list[str]:
    """Return what a reset that keeps the state does to the guarantee."""
    warnings = []
    if any(move.num_reread for move in moves):
        warnings.append(
            "state is kept: records read again count twice in p(y), p(y|x) and training, but for "
            "ids still in the dedup window."
        )
    if any(move.num_skipped for move in moves):
        warnings.append(
            "records that are skipped never count; every later manifest names them as a gap."
        )
    return warnings


def _replay(request: ResetRequest, moves: Sequence[Move], versions: Sequence[Version]) -> str:
    """Return the command that goes back without counting twice, or that there is none."""
    if request.target is not None and request.target.name in ("to-datetime", "by-duration"):
        return f"steelyard replay {request.target.shown()}    {_ONCE}"
    proposed = {(move.topic, move.partition): move.proposed for move in moves}
    back = lineage.newest_within(versions, proposed)
    if back is None:
        return (
            "no kept checkpoint is old enough for `steelyard replay`, which would count each "
            "record once"
        )
    return f"steelyard replay --from-checkpoint {back.name}    {_ONCE}"


def _row(move: Move) -> tuple[str | int | None, ...]:
    at = move.time_us and format_time(move.time_us)
    place = move.topic, move.partition, move.current, move.proposed
    return (*place, move.delta, move.clamped, move.num_reread, at)
