"""Offsets of consumer groups: look at them, plan to move them, move them exactly as planned.

A group of somebody else is moved in Kafka, while it has no members, and read back. For the group of our learner the checkpoint is the
truth, and what Kafka has is advisory: it is moved by an order, which keeps the state and so voids "once" for the records in between.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from deploy.admin import lineage, targets
from deploy.admin.targets import Admin, Move, Scope, Target
from deploy.errors import Unsafe
from deploy.process.terminal import Output, table
from deploy.settings.units import format_time
from learner.artifact import Store, Version
from learner.store import commands
from learner.store.blobs import Disk

WATCH_SECONDS = 2.0
_NO_MEMBERS = ("Empty", "Dead")


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Whose offsets, and what the learner's own group is."""

    name: str
    own: str
    own_topics: Sequence[str]  #: that the learner reads

    @property
    def ours(self) -> bool:
        """Whether it is the learner's, for which the checkpoint decides."""
        return self.name == self.own


@dataclass(frozen=True, slots=True, kw_only=True)
class ResetRequest:
    """What `offsets reset` was asked; without a target the file has the offsets."""

    scope: Scope
    target: Target | None
    execute: bool = False
    export: bool = False
    yes: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Where each partition goes, and what that does to our learner."""

    group: Group
    moves: Sequence[Move]
    warnings: Sequence[str]
    replay: str | None  #: the command that would count nothing twice
    per_second: float | None  #: records, measured

    @property
    def order(self) -> dict[str, Any]:
        """Return what is ordered; its digest is the plan's."""
        after = targets.by_topic(
            {(move.topic, move.partition): move.proposed for move in self.moves}
        )
        before = {
            (move.topic, move.partition): move.current
            for move in self.moves
            if move.current is not None
        }
        return {"group": self.group.name, "offsets": after, "current": targets.by_topic(before)}

    @property
    def num_reread(self) -> int:
        """Return how many records would be read again."""
        return sum(max(-(move.delta or 0), 0) for move in self.moves)

    @property
    def num_skipped(self) -> int:
        """Return how many records would never be read."""
        return sum(max(move.delta or 0, 0) for move in self.moves)

    def to_json(self) -> dict[str, Any]:
        """Return it as plain values."""
        seconds = None if self.per_second is None else self.num_reread / self.per_second
        return {
            "group": self.group.name,
            "ours": self.group.ours,
            "digest": commands.digest(self.order),
            "partitions": [move.to_json() for move in self.moves],
            "records_to_reread": self.num_reread,
            "records_to_skip": self.num_skipped,
            "seconds": seconds,
            "warnings": list(self.warnings),
            "replay": self.replay,
        }

    def lines(self) -> list[str]:
        """Return it for a person."""
        whose = (
            "our learner's: it will end its term, move and go on"
            if self.group.ours
            else "moved in Kafka, and read back"
        )
        rows = [
            (
                m.topic,
                m.partition,
                m.current,
                m.proposed,
                m.delta,
                m.clamped,
                max(-(m.delta or 0), 0),
                m.time_us and format_time(m.time_us),
            )
            for m in self.moves
        ]
        said = [
            f"PLAN  group {self.group.name} ({whose})    digest {commands.digest(self.order)[:8]}"
        ]
        said += table(
            ("TOPIC", "PART", "CURRENT", "PROPOSED", "DELTA", "CLAMPED", "RE-READ", "AT"), rows
        )
        said.append(
            f"Re-reads {self.num_reread:,} records{lineage.about(self.num_reread, self.per_second)}; skips {self.num_skipped:,}."
        )
        said += [f"WARNING  {warning}" for warning in self.warnings]
        return [*said, f"         {self.replay}"] if self.replay else said


def describe(
    group: Group,
    admin: Admin,
    store: Store,
    out: Output,
    *,
    watch: bool = False,
    wait: Callable[[float], object] = time.sleep,
    disk: Disk | None = None,
) -> int:
    """Write where a group stands, once or (`watch`) every two seconds until interrupted; exit code 1 if there is no such group."""
    while True:
        version = lineage.newest(store) if group.ours else None
        offsets = dict(version.next_offsets) if version else {}
        state, num_members = admin.group_state(group.name)
        committed = admin.committed(group.name)
        if not offsets and not committed and state == "Dead":
            out.give(
                {"group": group.name, "state": state, "partitions": []},
                [f"group {group.name} does not exist"],
            )
            return 1
        partitions = sorted({*offsets, *committed})
        topics = sorted({topic for topic, _ in partitions} & set(admin.topics()))
        begins, ends = admin.beginning_offsets(topics), admin.end_offsets(topics)
        rows = []
        for tp in partitions:
            at, end = offsets.get(tp, committed.get(tp)), ends.get(tp)
            lag = None if at is None or end is None else max(end - at, 0)
            rows.append((*tp, offsets.get(tp), committed.get(tp), end, lag, begins.get(tp)))
        names = ("topic", "partition", "next", "committed", "end", "lag", "beginning")
        order = _order(store, disk or Disk(), version) if group.ours else None
        said = {
            "group": group.name,
            "ours": group.ours,
            "state": state,
            "members": num_members,
            "checkpoint": version and version.name,
            "order": order,
            "partitions": [dict(zip(names, row, strict=True)) for row in rows],
        }
        header = f"group {group.name}: {state}, {num_members} members"
        if group.ours:
            decides = (
                f"{version.name} of {format_time(version.created_us)} decides"
                if version
                else "no checkpoint yet"
            )
            header = (
                f"group {group.name}: our learner's; {decides}, committed offsets are for lag tools"
            )
        lines = [
            header,
            *table(("TOPIC", "PART", "NEXT", "COMMITTED", "END", "LAG", "BEGINNING"), rows),
        ]
        if order:
            lines.append(f"order {order['id']}: {order['kind']}, {order['state']}")
        out.give(said, lines)
        if not watch:
            return 0
        wait(WATCH_SECONDS)


def reset(
    request: ResetRequest,
    group: Group,
    admin: Admin,
    store: Store,
    out: Output,
    *,
    clock: Callable[[], float] = time.time,
    disk: Disk | None = None,
) -> int:
    """Plan, show, and with `execute` move. Return the exit code: 1 if a foreign group does not hold afterwards what was proposed.

    Raises:
        Unsafe: it cannot be known where to, or the group has members; nothing was written.
        UsageError: the request is not one.
    """
    now_us = int(clock() * 1e6)
    plan = make_plan(request, group, admin, store, now_us=now_us)
    proposed = {(move.topic, move.partition): move.proposed for move in plan.moves}
    if request.export:
        for line in targets.to_csv(proposed):
            out.write(line)
    show = out.aside() if request.export else out
    if not request.execute:
        show.give(
            plan.to_json() | {"executed": False},
            [
                *plan.lines(),
                "nothing written. Add --execute to apply, --export > plan.csv to keep it.",
            ],
        )
        return 0
    if not out.as_json:
        for line in plan.lines():
            show.write(line)
    if all(move.delta == 0 for move in plan.moves):
        show.give(
            plan.to_json() | {"executed": False}, ["nothing written: it stands there already"]
        )
        return 0
    if not group.ours:
        _refuse_members(admin, group.name)
    if not out.confirmed(
        f"Execute plan {commands.digest(plan.order)[:8]} for group {group.name}?", yes=request.yes
    ):
        return 1
    if group.ours:
        return _order_it(plan, store, show, disk or Disk(), now_us)
    admin.commit(group.name, proposed)
    stored = admin.committed(group.name)
    wrong = sorted(tp for tp, offset in proposed.items() if stored.get(tp) != offset)
    said = plan.to_json() | {
        "executed": True,
        "stored": targets.by_topic({tp: stored[tp] for tp in proposed if tp in stored}),
        "ok": not wrong,
    }
    held = [
        f"{topic}[{partition}]: proposed {proposed[topic, partition]}, stored {stored.get((topic, partition))}"
        for topic, partition in wrong
    ]
    show.give(
        said,
        held or [f"written and read back: all {len(proposed)} partitions hold what was proposed"],
    )
    return 1 if wrong else 0


def make_plan(
    request: ResetRequest, group: Group, admin: Admin, store: Store, *, now_us: int
) -> Plan:
    """Return where each partition would go.

    Raises:
        Unsafe: an offset cannot be known.
        UsageError: the request is not one.
    """
    version = lineage.newest(store) if group.ours else None
    if group.ours and version is None:
        raise Unsafe(
            f"group {group.name} is our learner's, and {store.root} has no checkpoint yet: there is nothing to move."
        )
    current = dict(version.next_offsets) if version else admin.committed(group.name)
    counts = {
        topic: count
        for topic, count in admin.topics().items()
        if not group.ours or topic in group.own_topics
    }
    if request.scope.from_file is not None:
        wanted = targets.read_csv(request.scope.from_file, group.name)
        names = tuple(sorted({f"{topic}:{partition}" for topic, partition in wanted}))
        targets.partitions_of(Scope(topics=names), counts, ())
        topics = sorted({topic for topic, _ in wanted})
        found = targets.moves(
            current, wanted, admin.beginning_offsets(topics), admin.end_offsets(topics)
        )
    else:
        assert request.target is not None, "without a file there is a target"
        partitions = targets.partitions_of(request.scope, counts, current)
        found = targets.plan(admin, current, partitions, request.target, now_us)
    if version is None:
        return Plan(group=group, moves=found, warnings=(), replay=None, per_second=None)
    warnings, replay = _consequences(request, found, version, store)
    versions = lineage.lineage(store, version)
    return Plan(
        group=group,
        moves=found,
        warnings=warnings,
        replay=replay,
        per_second=lineage.per_second(versions, group.own_topics),
    )


def _consequences(
    request: ResetRequest, found: Sequence[Move], version: Version, store: Store
) -> tuple[list[str], str | None]:
    """What a reset that keeps the state does to the guarantee, and the command that would not."""
    warnings, replay = [], None
    if any((move.delta or 0) < 0 for move in found):
        warnings.append(
            "state is kept: records read again count twice in p(y), p(y|x) and training, but for ids still in the dedup window."
        )
        replay = _replay(request, found, version, store)
    if any((move.delta or 0) > 0 for move in found):
        warnings.append(
            "records that are skipped never count; every later manifest names them as a gap."
        )
    return warnings, replay


def _replay(
    request: ResetRequest, found: Sequence[Move], version: Version, store: Store
) -> str | None:
    if request.target is not None and request.target.name in ("to-datetime", "by-duration"):
        return f"steelyard replay {request.target.shown()}    restores state and offsets together: each record counts once"
    back = lineage.cut(
        lineage.lineage(store, version),
        {(move.topic, move.partition): move.proposed for move in found},
    )
    if back is None:
        return "no kept checkpoint is old enough for `steelyard replay`, which would count each record once"
    return f"steelyard replay --from-checkpoint {back.name}    restores state and offsets together: each record counts once"


def _refuse_members(admin: Admin, group: str) -> None:
    state, num_members = admin.group_state(group)
    if state not in _NO_MEMBERS:
        raise Unsafe(
            f"group {group} is {state} with {num_members} members, which would overwrite it. Stop them first. Nothing was written."
        )


def _order_it(plan: Plan, store: Store, out: Output, disk: Disk, now_us: int) -> int:
    order = commands.write(
        store.root,
        disk,
        "reset",
        plan.order,
        now_us=now_us,
        after=lineage.commands_taken(lineage.newest(store)),
    )
    out.give(plan.to_json() | {"executed": True, "order": order.id}, [commands.given(order)])
    return 0


def _order(store: Store, disk: Disk, version: Version | None) -> dict[str, Any] | None:
    order = commands.newest(store.root, disk)
    if order is None:
        return None
    taken = version is not None and lineage.commands_taken(version) >= order.id
    answer = commands.answered(store.root, order.id, disk) or {}
    return {
        "id": order.id,
        "kind": order.kind,
        "state": answer.get("state", commands.TAKEN if taken else "pending"),
    }
