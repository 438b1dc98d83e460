"""Operator commands as a learner carries them out: when it starts, and exactly as planned.

A command that cannot be carried out as planned is refused with a reason, and nothing of it is done.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal, TypeVar

import msgspec

from deploy.admin import exclusions
from deploy.admin.brokers import Brokers
from deploy.errors import Unsafe
from learner.artifact import Store, Version
from learner.errors import Corrupt, Diverged, VersionMissing
from learner.publish import Identity
from learner.store import commands, manifest
from learner.store.blobs import Disk
from learner.store.commands import Command
from learner.store.manifest import RunState
from learner.store.recovery.plan import RecoveryPlan
from weighting.provenance import Offsets, TopicPartition

log = logging.getLogger("steelyard.learner")
_POLL_SECONDS = 1.0
_P = TypeVar("_P")


class ReplayPlan(msgspec.Struct, frozen=True, kw_only=True, rename={"digest": "self"}):
    """Plan of a replay command: a version to restore, and how the log is read after it."""

    version: str
    digest: str
    mode: Literal["as-it-was", "anew"]
    into: Literal["live", "shadow"]
    until: dict[str, dict[int, int]]
    exclude: str | None
    num_excluded: int
    cancels: int | None
    since: int = 0
    samples: int = 0


class ResetPlan(msgspec.Struct, frozen=True, kw_only=True):
    """Plan of a reset command: next offsets, under the state as it is."""

    offsets: dict[str, dict[int, int]]


class CommandInbox:
    """The operator commands of one store, as its learner takes and answers them."""

    def __init__(
        self, root: Path, disk: Disk, clock: Callable[[], float], *, num_ranks: int
    ) -> None:
        """Keep the store, a clock in seconds since the Unix epoch, and the number of ranks."""
        self._root = root
        self._disk = disk
        self._clock = clock
        self._num_ranks = num_ranks
        self._polled = float("-inf")
        self.waiting = False  #: whether a command waits for the next term

    def poll(self, commands_taken: int) -> bool:
        """Return whether a command is waiting; looks about once a second, until one is."""
        now = self._clock()
        if not self.waiting and now - self._polled >= _POLL_SECONDS:
            self._polled = now
            pending = commands.pending(self._root, commands_taken, self._disk)
            self.waiting = pending is not None
        return self.waiting

    def take(self, store: Store, identity: Identity, brokers: Brokers) -> Command | None:
        """Take the oldest command that can be carried out as planned; refuse those before it."""
        newest = store.newest() if self._root.exists() else None
        while newest is not None:
            command = commands.pending(self._root, newest.run_state.commands_taken, self._disk)
            if command is None:
                return None
            reason = self._why_not(command, store, newest, identity, brokers)
            if reason:
                log.error("command refused", extra={"command": command.id, "reason": reason})
                self._answer(command.id, commands.REFUSED, reason=reason)
            elif commands.take(self._root, command.id, self._disk):
                return command
        return None

    def settle(self, run_state: RunState) -> None:
        """Answer the command taken last: taken or done; again at every start, after a crash too."""
        command_id = run_state.commands_taken
        if not command_id:
            return
        replay = run_state.replay
        state = commands.TAKEN if replay and replay.command == command_id else commands.DONE
        answered = (commands.answered(self._root, command_id, self._disk) or {}).get("state")
        if answered not in (commands.DONE, state):
            self._answer(command_id, state)

    def settle_cut_short(self, before: RunState | None, now: RunState) -> None:
        """Answer a replay that another command ended before it was over."""
        ended = before.replay if before else None
        if ended and ended.command != (now.replay or ended).command:
            reason = f"command {now.commands_taken} came before it was over"
            self._answer(ended.command, commands.WITHDRAWN, reason=reason)

    def _answer(self, command_id: int, state: str, **facts: object) -> None:
        commands.answer(self._root, command_id, {"state": state, **facts}, self._disk)

    def _why_not(
        self, command: Command, store: Store, newest: Version, identity: Identity, brokers: Brokers
    ) -> str | None:
        """Return the reason to refuse a command, None if it can be carried out."""
        try:
            if command.kind == "reset":
                wanted = Offsets.from_nested(_plan(command, ResetPlan).offsets)
                return _not_in_log(wanted, brokers)
            plan = _plan(command, ReplayPlan)
            version = store.version(plan.version)
            if version.manifest["self"] != plan.digest:
                return f"{version.name} is not the one that was planned with"
            store.verify(version)
            if plan.exclude is not None:
                exclusions.load(self._root, self._disk, plan.exclude)
        except (Corrupt, VersionMissing, msgspec.ValidationError) as error:
            return str(error)
        if plan.into == "shadow" and self._num_ranks > 1:
            return "a shadow is learned by one rank"
        if plan.mode == "as-it-was" and (reason := self._not_as_it_was(version, newest, identity)):
            return f"as it was cannot be repeated: {reason}"
        return _not_in_log(version.next_offsets, brokers)

    def _not_as_it_was(self, version: Version, newest: Version, identity: Identity) -> str | None:
        """Return what keeps the journal from being replayed step by step, None if nothing does."""
        settings = {version.manifest["config_sha256"], newest.manifest["config_sha256"]}
        same_settings = settings == {identity.config_sha256}
        if not same_settings or newest.run_state.world_size != self._num_ranks:
            return f"settings or number of ranks differ from those of {version.name}"
        start = version.journal
        if start is None or not any(span.holds(start.place) for span in newest.timeline):
            return f"the journal does not continue {version.name}"
        return None


def recovery_plan(command: Command, newest: Version) -> RecoveryPlan | None:
    """Return what a start does to carry out a command, None if the newest manifest contains it."""
    if command.id <= newest.run_state.commands_taken:
        return None
    if command.kind == "reset":
        offsets = Offsets.from_nested(_plan(command, ResetPlan).offsets)
        return RecoveryPlan(kind="reset", offsets=offsets, commands_taken=command.id)
    plan = _plan(command, ReplayPlan)
    excluded = None
    if plan.exclude is not None:
        excluded = manifest.Exclusions(
            sha256=plan.exclude, num=plan.num_excluded, command=command.id
        )
    return RecoveryPlan(
        kind="restore",
        version=plan.version,
        as_it_was=plan.mode == "as-it-was",
        commands_taken=command.id,
        exclusions=excluded,
        undo=plan.cancels is not None,
        replay=manifest.Replay(
            mode=plan.mode,
            until=plan.until,
            command=command.id,
            into=plan.into,
            since=plan.since,
            samples=plan.samples,
        ),
    )


def back_from_divergence(store: Store, newest: Version, diverged: Diverged) -> RecoveryPlan:
    """Return the plan that restores the newest checkpoint before the model diverged.

    Raises:
        Unsafe: no checkpoint is that old.
    """
    last = newest.name if newest.kind == manifest.CHECKPOINT else newest.parent
    if last is None:
        raise Unsafe(
            "the model diverged before its first checkpoint; mend the settings (learner.lr) and "
            "start with an empty store."
        )
    good = [version for version in store.lineage(last) if version.step < diverged.first_step]
    if not good:
        raise Unsafe(
            f"{diverged} No checkpoint is older than that; mend the settings (learner.lr) and "
            "start with an empty store."
        )
    return RecoveryPlan(
        kind="restore",
        version=good[0].name,
        quarantine=((diverged.first_step, diverged.last_step + 1),),
        replay=newest.run_state.replay,
    )


def _plan(command: Command, kind: type[_P]) -> _P:
    return msgspec.convert(command.plan, kind, strict=False, str_keys=True)


def _not_in_log(offsets: Mapping[TopicPartition, int], brokers: Brokers) -> str | None:
    """Return which of these next offsets the log does not have, None if it has all."""
    topics = sorted({topic for topic, _ in offsets})
    begins, ends = brokers.beginning_offsets(topics), brokers.end_offsets(topics)
    for (topic, p), offset in sorted(offsets.items()):
        begin, end = begins.get((topic, p)), ends.get((topic, p))
        if not (begin or 0) <= offset <= (-1 if end is None else end):
            return f"{topic}[{p}]: offset {offset} is not between {begin} and {end}"
    return None
