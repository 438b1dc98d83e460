"""Reset of a consumer group: show the plan, then move its offsets exactly as planned.

A foreign group is moved in Kafka, while it has no members, and read back. For the group of our
learner the checkpoint decides, and what Kafka has is advisory: it is moved by an operator command,
which keeps the state and so voids "once" for the records in between.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from deploy.admin import lineage
from deploy.admin.brokers import Brokers
from deploy.admin.offsets import scopes, targets
from deploy.admin.offsets.plan import Group, Plan, ResetRequest, make_plan
from deploy.errors import Unsafe
from deploy.process.terminal import Output
from learner.artifact import Store
from learner.store import commands
from learner.store.blobs import Disk

_NO_MEMBERS = ("Empty", "Dead")


def reset(
    request: ResetRequest,
    group: Group,
    brokers: Brokers,
    store: Store,
    out: Output,
    *,
    clock: Callable[[], float] = time.time,
    disk: Disk | None = None,
) -> int:
    """Plan, show, and with `execute` move.

    Returns:
        The exit code: 1 if a foreign group does not hold afterwards what was proposed.

    Raises:
        Unsafe: it cannot be known where to, or the group has members; nothing was written.
        UsageError: the request is not one.
    """
    now_us = int(clock() * 1e6)
    plan = make_plan(request, group, brokers, store, now_us=now_us)
    if request.export:
        for line in scopes.to_csv(plan.proposed):
            out.write(line)
    show = out.aside() if request.export else out
    if not request.execute:
        hint = "nothing written. Add --execute to apply, --export > plan.csv to keep it."
        show.give(plan.to_json() | {"executed": False}, [*plan.lines(), hint])
        return 0
    show.text(plan.lines())
    if all(move.delta == 0 for move in plan.moves):
        unchanged = ["nothing written: these are its offsets already"]
        show.give(plan.to_json() | {"executed": False}, unchanged)
        return 0
    if not group.ours:
        _refuse_members(brokers, group.name)
    question = f"Execute plan {plan.digest[:8]} for group {group.name}?"
    if not out.confirmed(question, yes=request.yes):
        return 1
    if group.ours:
        return _command(plan, store, show, disk or Disk(), now_us)
    return _commit(plan, brokers, show)


def _refuse_members(brokers: Brokers, group: str) -> None:
    state, num_members = brokers.group_state(group)
    if state not in _NO_MEMBERS:
        raise Unsafe(
            f"group {group} is {state} with {num_members} members, which would overwrite it. Stop "
            "them first. Nothing was written."
        )


def _command(plan: Plan, store: Store, out: Output, disk: Disk, now_us: int) -> int:
    """Leave the plan as an operator command for our learner."""
    after = lineage.commands_taken(lineage.newest(store))
    command = commands.write(store.root, disk, "reset", plan.command, now_us=now_us, after=after)
    out.give(plan.to_json() | {"executed": True, "order": command.id}, [commands.given(command)])
    return 0


def _commit(plan: Plan, brokers: Brokers, out: Output) -> int:
    """Move a foreign group in Kafka, and read back what it holds."""
    name, proposed = plan.group.name, plan.proposed
    brokers.commit(name, proposed)
    stored = brokers.committed(name)
    wrong = sorted(tp for tp, offset in proposed.items() if stored.get(tp) != offset)
    held = {tp: stored[tp] for tp in proposed if tp in stored}
    facts = {"executed": True, "stored": targets.plan_json(held), "ok": not wrong}
    lines = [f"written and read back: all {len(proposed)} partitions hold what was proposed"]
    if wrong:
        lines = [
            f"{scopes.printed([tp])}: proposed {proposed[tp]}, stored {stored.get(tp)}"
            for tp in wrong
        ]
    out.give(plan.to_json() | facts, lines)
    return 1 if wrong else 0
