"""Retention: which versions stay, and how the others leave the store.

One rule holds for the learner (`Checkpointer.prune`) and for an operator's ``checkpoints prune``:
`expired` says which manifests are beyond the newest ones that are kept, `protected` which versions
stay all the same because something names them. What leaves is renamed into ``trash/``, out of
sight of readers at once, and deleted in the first pass a minute later.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from learner.artifact import Store, Version
from learner.store import blobs, commands, manifest
from learner.store.blobs import Disk
from learner.store.journal.records import FOLDER as JOURNAL
from learner.store.journal.records import JournalRange, segment_epoch
from learner.store.manifest import CHECKPOINT, RunState
from learner.store.ownership import Ownership
from learner.store.recovery.decision import needed

MIN_KEEP = 5
#: How long what was retired stays in ``trash/``, at least.
TRASH_US = 60 * 1_000_000


@dataclass(slots=True, kw_only=True)
class Retention:
    """Retires versions for one owner; used by one thread at a time.

    Attributes:
        store: whose versions.
        disk: the file system, or a test's.
        now_us: microseconds since the Unix epoch, for the age of the trash.
        ownership: looked at before anything leaves.
        first_segment: the oldest of the journal that the last `prune` found needed.
    """

    store: Store
    disk: Disk
    now_us: Callable[[], int]
    ownership: Ownership
    first_segment: str = ""

    def trimmed(self, timeline: tuple[JournalRange, ...]) -> tuple[JournalRange, ...]:
        """Return a timeline from the oldest needed segment on."""
        for index, span in enumerate(timeline):
            if span.segment == self.first_segment:
                return timeline[index:]
        return timeline

    def prune(self, keep: int, run_state: Callable[[], RunState]) -> list[str]:
        """Retire expired versions that are not protected, and unneeded segments.

        Args:
            keep: number of checkpoints, at least 5.
            run_state: returns that of the next checkpoint.

        Returns:
            The names of the versions that were retired.

        Raises:
            Fenced: there is a newer owner.
            OSError: the next pass does the rest.
        """
        if keep < MIN_KEEP:
            raise ValueError(f"keep: got {keep}, expected at least {MIN_KEEP}")
        self.ownership.refuse_if_fenced()
        now_us = self.now_us()
        self._empty_trash(now_us)
        # Listed before the run state is taken: a segment that the journal begins meanwhile is
        # then on the timeline, and not on the list of those that may go.
        segments = self.disk.listdir(self.store.root / JOURNAL)
        state = run_state()
        manifests = self.store.manifests()
        named = protected(self.store, self.disk, manifests, state)
        old = [found for found in expired(manifests, keep, state) if found.name not in named]
        for version in old:
            self.ownership.refuse_if_fenced()
            retire(self.store.root, self.disk, version, now_us)
        kept = [version for version in manifests if version not in old]
        self._retire_segments(segments, state.timeline, kept, now_us)
        return [version.name for version in old if version.kind == CHECKPOINT]

    def _retire_segments(
        self,
        segments: Sequence[str],
        timeline: tuple[JournalRange, ...],
        kept: Sequence[Version],
        now_us: int,
    ) -> None:
        """Retire segments that no timeline names, of now or of a kept manifest."""
        self.first_segment = next((span.segment for span in needed(timeline, kept)), "")
        timelines = [timeline, *(version.timeline for version in kept)]
        named = {span.segment for spans in timelines for span in spans}
        for segment in segments:
            is_old = 0 < segment_epoch(segment) <= self.ownership.token
            if is_old and segment not in named:
                self.ownership.refuse_if_fenced()
                _throw(self.store.root, self.disk, now_us, self.store.root / JOURNAL / segment)

    def _empty_trash(self, now_us: int) -> None:
        for name in self.disk.listdir(self.store.root / "trash"):
            thrown_us, path = name.partition("-")[0], self.store.root / "trash" / name
            if not thrown_us.isdecimal() or now_us - int(thrown_us) < TRASH_US:
                continue
            if path.is_dir():
                blobs.remove_tree(self.disk, path)
            else:
                self.disk.unlink(path)


def expired(manifests: Sequence[Version], keep: int, run_state: RunState) -> list[Version]:
    """Return the manifests beyond the newest `keep` checkpoints.

    The newest of the chain are kept, and the newest of all. A checkpoint stays as long as a kept
    fence stands on it. A fence goes once `keep` checkpoints of the chain are newer, or at once if
    the next manifest is a fence that stands on the same state. The newest checkpoint of the chain
    is wholly valid: its owner verified or saved it.

    Args:
        manifests: all that are whole, newest last.
        keep: number of checkpoints.
        run_state: tells the chain.

    Returns:
        Checkpoints, then fences, each oldest first.
    """
    versions = [found for found in manifests if found.kind == CHECKPOINT]
    chain = [version for version in versions if not run_state.leaves_out(version.seq)]
    floor = chain[-keep].seq if len(chain) > keep else 0
    fences = _expired_fences(manifests, floor)
    kept = {version.name for version in (*chain[-keep:], *versions[-keep:])}
    kept_fences = [found for found in manifests if found not in (*versions, *fences)]
    kept |= {fence.parent or "" for fence in kept_fences}
    return [*(version for version in versions if version.name not in kept), *fences]


def protected(
    store: Store, disk: Disk, manifests: Sequence[Version], run_state: RunState
) -> set[str]:
    """Return the names of versions that stay however few are kept.

    These are the newest version, the newest state, and what an alias, the announcement, a command
    that is still to be carried out or the way back from a replay names.

    Args:
        store: whose aliases and announcement.
        disk: to read commands with.
        manifests: all that are whole, newest last.
        run_state: tells which commands were taken, and whether a replay goes on.
    """
    versions = [found for found in manifests if found.kind == CHECKPOINT]
    names = [*store.aliases().values(), store.announced()]
    names += [version.name for version in versions[-1:]]
    names += [newest.parent for newest in manifests[-1:] if newest.kind != CHECKPOINT]
    for command in commands.waiting(store.root, run_state.commands_taken, disk):
        named = command.plan.get("version")
        names += [named] if isinstance(named, str) else []
    if run_state.replay is not None:
        first = run_state.replay.command
        before = [found for found in versions if found.run_state.commands_taken < first]
        names += [version.name for version in before[-1:]]
    return {name for name in names if name is not None}


def retire(root: Path, disk: Disk, version: Version, now_us: int) -> None:
    """Take a version out of sight.

    Its commit mark goes first, so that no reader finds it without files.

    Raises:
        OSError: it is not retired, or not durably.
    """
    leaving = [root / manifest.mark_name(version.seq)]
    if version.files:
        leaving.append(version.path)
    _throw(root, disk, now_us, *leaving)


def _expired_fences(manifests: Sequence[Version], floor: int) -> list[Version]:
    """Return fences below `floor`, and those that another one on the same state follows."""
    expired = []
    for fence, after in itertools.pairwise(manifests):
        if fence.kind == CHECKPOINT:
            continue
        is_replaced = after.kind != CHECKPOINT and after.parent == fence.parent
        if is_replaced or fence.seq < floor:
            expired.append(fence)
    return expired


def _throw(root: Path, disk: Disk, now_us: int, *sources: Path) -> None:
    for source in sources:
        with contextlib.suppress(FileNotFoundError):  # somebody else was quicker
            disk.rename(source, root / "trash" / f"{now_us}-{source.name}")
        disk.fsync_folder(source.parent)
    disk.fsync_folder(root / "trash")
