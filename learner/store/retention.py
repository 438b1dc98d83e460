"""Which versions stay, and how the others leave: out of sight first, gone an hour later; and what crashes left behind.

Only the owner comes here (`Checkpointer.prune`, `Checkpointer.sweep`), and looks each time whether it still is the owner.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from learner.artifact import Store, Version
from learner.errors import Corrupt
from learner.store import blobs, manifest
from learner.store.blobs import Disk
from learner.store.journal.records import FOLDER as JOURNAL
from learner.store.journal.records import JournalRange, segment_epoch
from learner.store.manifest import CHECKPOINT, RunState

MIN_KEEP = 5
_MAX_CLAIMS = 100
_MAX_ORDER_BYTES = 1 << 20
_LEFTOVER_US = 3600 * 1_000_000


@dataclass(slots=True, kw_only=True)
class Retention:
    """Retires and sweeps for one owner; used by one thread at a time."""

    store: Store
    disk: Disk
    now_us: Callable[
        [], int
    ]  #: since the Unix epoch; for the age of what was thrown away or left behind
    run_state: Callable[[], RunState]  #: of the next checkpoint
    refuse_if_fenced: Callable[
        [], int
    ]  #: returns the own epoch; raises Fenced if there is a newer owner
    first_segment: str = ""  #: the oldest that the last `prune` found needed

    def trimmed(self, timeline: tuple[JournalRange, ...]) -> tuple[JournalRange, ...]:
        """Return a timeline from the oldest segment on that the last `prune` found needed."""
        first = next(
            (index for index, span in enumerate(timeline) if span.segment == self.first_segment), 0
        )
        return timeline[first:]

    def sweep(self) -> list[str]:
        """Remove what crashes left behind (R6).

        That is: folders of older owners that no manifest names, temporary files that are an hour old, all but the newest 100 claims. A
        folder whose number has a damaged commit mark stays, as evidence.

        Returns:
            The names of the folders that were removed, below the root.

        Raises:
            Fenced: there is a newer owner.
            OSError: something could not be removed; the next sweep tries again.
        """
        own_epoch, root, manifests = (
            self.refuse_if_fenced(),
            self.store.root,
            self.store.manifests(),
        )
        named = {found.path.name for found in manifests}
        damaged = set(self.store.seqs()) - {found.seq for found in manifests}
        swept = []
        for name in self.disk.listdir(root / "blobs"):
            epoch, _, seq = name.partition("-")
            ours_to_judge = epoch.isdecimal() and seq.isdecimal() and int(epoch) < own_epoch
            if ours_to_judge and name not in named and int(seq) not in damaged:
                try:
                    blobs.remove_tree(self.disk, root / "blobs" / name)
                    swept.append(f"blobs/{name}")
                except OSError as error:  # these two: its owner has woken up and is at work in it; left to the next sweep
                    if error.errno not in (errno.ENOENT, errno.ENOTEMPTY):
                        raise
        for folder in (root / "control", root / "man"):
            for path in [
                folder / name for name in self.disk.listdir(folder) if name.endswith(".tmp")
            ]:
                if self.now_us() - self.disk.modified_us(path) >= _LEFTOVER_US:
                    self.disk.unlink(path)
        claims = [name for name in self.disk.listdir(root / "epoch") if name.isdecimal()]
        for name in sorted(claims, key=int)[:-_MAX_CLAIMS]:
            self.disk.unlink(root / "epoch" / name)
        return swept

    def prune(self, keep: int) -> list[str]:
        """Retire what is not needed any more in two phases: into ``trash/`` now, gone in a pass at least an hour later.

        Kept are the newest `keep` checkpoints of the chain and of all; the newest wholly valid one; every one that an alias, the
        announcement, a pin, an order not yet taken or a kept manifest's state names; and damaged ones. Other manifests go once `keep`
        checkpoints are newer, or at once if the next one stands on the same state. Journal segments go when no kept manifest's timeline
        names them.

        Args:
            keep: at least 5.

        Returns:
            The names of the versions that were retired.

        Raises:
            Fenced: there is a newer owner.
            OSError: the next pass goes on from there.
        """
        if keep < MIN_KEEP:
            raise ValueError(f"keep: got {keep}, expected at least {MIN_KEEP}")
        own_epoch, now_us = self.refuse_if_fenced(), self.now_us()
        self._empty_trash(now_us)
        segments = self.disk.listdir(self.store.root / JOURNAL)
        run_state = self.run_state()  # behind the listing: the journal may begin a segment meanwhile, and then it is not on the list
        manifests = self.store.manifests()
        old = self._old(manifests, keep, run_state)
        for version in old:
            self.refuse_if_fenced()
            retire(self.store.root, self.disk, version, now_us)
        kept = [version for version in manifests if version not in old]
        self.first_segment = next((span.segment for span in needed(run_state.timeline, kept)), "")
        named = {
            span.segment
            for timeline in (run_state.timeline, *(version.timeline for version in kept))
            for span in timeline
        }
        for segment in segments:
            if segment not in named and 0 < segment_epoch(segment) <= own_epoch:
                self.refuse_if_fenced()
                _throw(self.store.root, self.disk, now_us, self.store.root / JOURNAL / segment)
        return [version.name for version in old if version.kind == CHECKPOINT]

    def _old(self, manifests: Sequence[Version], keep: int, run_state: RunState) -> list[Version]:
        """What `prune` may take, oldest first. The newest of the chain is wholly valid: this process verified or saved it."""
        versions = [found for found in manifests if found.kind == CHECKPOINT]
        chain = [version for version in versions if not run_state.leaves_out(version.seq)]
        floor = chain[-keep].seq if len(chain) > keep else 0
        old = [
            found
            for found, after in itertools.pairwise(manifests)
            if found.kind != CHECKPOINT
            and (found.seq < floor or (after.kind != CHECKPOINT and after.parent == found.parent))
        ]
        named = {
            *self.store.aliases().values(),
            self.store.announced(),
            *self._named_by_operators(run_state.commands_taken),
        }
        named |= {
            found.parent for found in manifests if found.kind != CHECKPOINT and found not in old
        }
        kept = [*chain[-keep:], *versions[-keep:]]
        return [
            *(version for version in versions if version not in kept and version.name not in named),
            *old,
        ]

    def _named_by_operators(self, commands_taken: int) -> set[str]:
        """Versions that a pin, or an order that is still to be taken, names."""
        names: set[str] = set()
        with contextlib.suppress(FileNotFoundError):
            names |= set(self.disk.listdir(self.store.root / "control" / "pins"))
        with contextlib.suppress(FileNotFoundError):
            for name in self.disk.listdir(self.store.root / "control" / "orders"):
                number, _, ending = name.partition(".")
                if ending == "json" and number.isdecimal() and int(number) > commands_taken:
                    with contextlib.suppress(Corrupt, msgspec.DecodeError):
                        data = blobs.read_small(
                            self.disk,
                            self.store.root,
                            f"control/orders/{name}",
                            max_bytes=_MAX_ORDER_BYTES,
                        )
                        names.add(msgspec.json.decode(data, type=_Order).plan.version)
        return names

    def _empty_trash(self, now_us: int) -> None:
        for name in self.disk.listdir(self.store.root / "trash"):
            thrown_us, path = name.partition("-")[0], self.store.root / "trash" / name
            if thrown_us.isdecimal() and now_us - int(thrown_us) >= _LEFTOVER_US:
                if path.is_dir():
                    blobs.remove_tree(self.disk, path)
                else:
                    self.disk.unlink(path)


class _Plan(msgspec.Struct):
    version: str = ""


class _Order(msgspec.Struct):
    plan: _Plan


def needed(timeline: Sequence[JournalRange], kept: Sequence[Version]) -> tuple[JournalRange, ...]:
    """Return a timeline from the oldest place on that one of these goes on from."""
    places = [found.journal.place for found in kept if found.journal is not None]
    first = next(
        (
            index
            for index, span in enumerate(timeline)
            if any(span.holds(place) for place in places)
        ),
        0,
    )
    return tuple(timeline[first:])


def retire(root: Path, disk: Disk, version: Version, now_us: int) -> None:
    """Take a version out of sight: commit mark first, then files, so that no reader finds a version without them.

    Raises:
        OSError: it is not retired, or not durably.
    """
    _throw(
        root,
        disk,
        now_us,
        root / manifest.mark_name(version.seq),
        *([version.path] if version.files else []),
    )


def _throw(root: Path, disk: Disk, now_us: int, *sources: Path) -> None:
    for source in sources:
        with contextlib.suppress(FileNotFoundError):  # somebody else was quicker
            disk.rename(source, root / "trash" / f"{now_us}-{source.name}")
        disk.fsync_folder(source.parent)
    disk.fsync_folder(root / "trash")
