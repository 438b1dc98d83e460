"""Description of a consumer group: next, committed and end offsets of its partitions."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from deploy.admin import lineage
from deploy.admin.brokers import Brokers
from deploy.admin.offsets.plan import Group
from deploy.process.terminal import Output, table
from deploy.settings.units import format_time
from learner.artifact import Store, Version
from learner.store import commands
from learner.store.blobs import Disk
from weighting.provenance import TopicPartition

WATCH_SECONDS = 2.0
_COLUMNS = (
    "topic",
    "partition",
    "next",
    "committed",
    "end",
    "lag",
    "beginning",
    "waiting_for_transaction",
)
_HEADER = ("TOPIC", "PART", "NEXT", "COMMITTED", "END", "LAG", "BEGINNING", "WAITING")


def describe(
    group: Group,
    brokers: Brokers,
    store: Store,
    out: Output,
    *,
    watch: bool = False,
    wait: Callable[[float], object] = time.sleep,
    disk: Disk | None = None,
) -> int:
    """Write the offsets of a group, once or (`watch`) every two seconds until interrupted.

    Returns:
        The exit code: 1 if there is no such group.
    """
    while True:
        code = _describe_once(group, brokers, store, out, disk or Disk())
        if code or not watch:
            return code
        wait(WATCH_SECONDS)


def _describe_once(group: Group, brokers: Brokers, store: Store, out: Output, disk: Disk) -> int:
    version = lineage.newest(store) if group.ours else None
    offsets = version.next_offsets if version else {}
    state, num_members = brokers.group_state(group.name)
    committed = brokers.committed(group.name)
    if not offsets and not committed and state == "Dead":
        facts: dict[str, Any] = {"group": group.name, "state": state, "partitions": []}
        out.give(facts, [f"group {group.name} does not exist"])
        return 1
    rows = _rows(brokers, offsets, committed)
    command = _newest_command(store, disk, version) if group.ours else None
    facts = {
        "group": group.name,
        "ours": group.ours,
        "state": state,
        "members": num_members,
        "checkpoint": version and version.name,
        "order": command,
        "partitions": [dict(zip(_COLUMNS, row, strict=True)) for row in rows],
    }
    lines = [f"group {group.name}: {state}, {num_members} members"]
    if group.ours:
        decides = "no checkpoint yet"
        if version:
            decides = f"{version.name} of {format_time(version.created_us)} decides"
        lines = [
            f"group {group.name}: our learner's; {decides}, committed offsets are for lag tools"
        ]
    lines += table(_HEADER, rows)
    if command:
        lines.append(f"command {command['id']}: {command['kind']}, {command['state']}")
    out.give(facts, lines)
    return 0


def _rows(
    brokers: Brokers,
    offsets: Mapping[TopicPartition, int],
    committed: Mapping[TopicPartition, int],
) -> list[tuple[str | int | None, ...]]:
    """Return one row of _COLUMNS for each partition."""
    topics = sorted({topic for topic, _ in (*offsets, *committed)} & set(brokers.topics()))
    begins, ends = brokers.beginning_offsets(topics), brokers.end_offsets(topics)
    stable = brokers.stable_offsets(topics)
    # Partitions that were added and are not read yet have all of their records as lag.
    partitions = sorted({*offsets, *committed, *ends})
    rows: list[tuple[str | int | None, ...]] = []
    for tp in partitions:
        at, end = offsets.get(tp, committed.get(tp, begins.get(tp))), ends.get(tp)
        waiting = None if end is None else max(end - stable.get(tp, end), 0)
        lag = None if at is None or end is None else max(end - at, 0)
        rows.append((*tp, offsets.get(tp), committed.get(tp), end, lag, begins.get(tp), waiting))
    return rows


def _newest_command(store: Store, disk: Disk, version: Version | None) -> dict[str, Any] | None:
    command = commands.newest(store.root, disk)
    if command is None:
        return None
    taken = lineage.commands_taken(version) >= command.id
    state = commands.TAKEN if taken else "pending"
    answer = commands.answered(store.root, command.id, disk) or {}
    return {"id": command.id, "kind": command.kind, "state": answer.get("state", state)}
