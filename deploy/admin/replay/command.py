"""Go back and read again: state and offsets together, so each record counts once from there on.

1. Plan: the version to go back to, its offsets, what is still retained. 2. Execute: exactly that
plan, as an operator command. The learner makes its last checkpoint, which is the way back, restores
the version, and reads up to the end offsets of the plan; serving answers meanwhile.
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from deploy.admin import exclusions, lineage
from deploy.admin.offsets import scopes
from deploy.admin.replay import shadow
from deploy.admin.replay.plan import Plan, exclusions_of, make_plan, plan_for
from deploy.admin.replay.request import ANEW, LIVE, SHADOW, Log, ReplayRequest
from deploy.errors import Unsafe
from deploy.process.terminal import Output
from learner.artifact import Store, Version
from learner.store import commands
from learner.store.blobs import Disk


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
    """Plan, show, and with `execute` leave exactly that as a command. Return the exit code.

    Raises:
        Unsafe: no version is old enough, or the log does not have what comes after it; names the
            oldest version that still works.
        UsageError: the request is not one.
    """
    disk = disk or Disk()
    now_us = int(clock() * 1e6)
    plan = make_plan(request, log, store, out, now_us=now_us, disk=disk)
    show = out.aside() if request.export else out
    if request.export:
        for line in scopes.to_csv(plan.restart):
            out.write(line)
    if not request.execute:
        hint = "nothing written. Add --execute to apply exactly this plan."
        show.give(plan.to_json() | {"executed": False}, [*plan.lines(), hint])
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
    """End a replay: withdraw its command, or go back to the last checkpoint before it.

    Returns:
        The exit code.

    Raises:
        Unsafe: there is no replay, or its way back is gone.
    """
    disk, now_us = disk or Disk(), int(clock() * 1e6)
    head = lineage.newest(store)
    pending = commands.pending(store.root, lineage.commands_taken(head), disk)
    if pending is not None and pending.kind == "replay":
        return _withdraw(pending.id, store, out, disk, yes=yes)
    going_on = head.manifest.get("replay") if head else None
    if head is None or not going_on:
        raise Unsafe(
            "no replay waits or goes on. To go back from one that has ended: steelyard replay "
            "--from-checkpoint VERSION"
        )
    command_id = int(going_on["order"])
    way_back = _way_back(store, command_id)
    plan = plan_for(
        way_back,
        log,
        store,
        head,
        mode=ANEW,
        into=LIVE,
        excluded=exclusions_of(way_back, store, disk),
        until=way_back.next_offsets,
        cancels=command_id,
    )
    request = ReplayRequest(execute=True, yes=yes)
    return _execute(plan, request, store, out, "", now_us, disk)


def _withdraw(command_id: int, store: Store, out: Output, disk: Disk, *, yes: bool) -> int:
    question = f"Withdraw command {command_id}, which has not been taken yet?"
    if not out.confirmed(question, yes=yes):
        return 1
    withdrawn = commands.withdraw(store.root, command_id, disk)
    if withdrawn and lineage.commands_taken(lineage.newest(store)) < command_id:
        facts = {"order": command_id, "state": commands.WITHDRAWN}
        out.give(facts, [f"command {command_id} withdrawn: nothing changes"])
        return 0
    raise Unsafe(
        f"command {command_id} was taken in this moment. Look again: steelyard offsets describe; "
        "then cancel once more."
    )


def _way_back(store: Store, command_id: int) -> Version:
    """Return the last checkpoint before a command was taken, verified."""
    for version in reversed(store.versions()):
        if lineage.commands_taken(version) < command_id:
            store.verify(version)
            return version
    raise Unsafe(
        f"the last checkpoint before command {command_id} is gone: let the replay end, or name a "
        "version with --from-checkpoint."
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
    out.text(plan.lines())
    into = "live" if plan.into == LIVE else "a shadow"
    if not out.confirmed(f"Execute plan {plan.digest[:8]} into {into}?", yes=request.yes):
        return 1
    if plan.excluded is not None:
        exclusions.write(store.root, disk, plan.excluded)
    facts: dict[str, Any] = plan.to_json() | {"executed": True}
    root, lines = store.root, []
    if plan.into == SHADOW:
        root = request.shadow_root or store.root.with_name(f"{store.root.name}-shadow")
        shadow.make(store, plan.version, root, disk)
        start = _start_of_shadow(learn, root)
        facts |= {"shadow_root": str(root), "command": start}
        lines = [f"shadow in {root}; run it until the end offsets of the plan with", f"  {start}"]
    after = lineage.commands_taken(lineage.newest(Store(root)))
    command = commands.write(root, disk, "replay", plan.command, now_us=now_us, after=after)
    written = commands.given(command, shadow=plan.into != LIVE)
    out.give(facts | {"order": command.id}, [written, *lines])
    return 0


def _start_of_shadow(learn: str, root: Path) -> str:
    """Return the command line of the shadow's learner."""
    sets = (
        shlex.quote(f"store.root={root}"),
        "kafka.group_id=steelyard-shadow",
        "observability.metrics_port=0",
    )
    return " ".join([learn, *(f"--set {text}" for text in sets)])
