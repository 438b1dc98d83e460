"""The whole job, saved as one or not at all, and found again after a crash by one owner at a time.

The steps are those of RELIABILITY 3 and 5, under the same numbers. Acquiring:

- A1 claim the next owner epoch, by a file that only one can create.
- A2 the next number to use is above every commit mark, readable or not.
- A3 the timeline is that of the newest readable manifest. A newer owner made it: fenced.
- A4 state is the newest checkpoint on its chain of which every file has its digest; what is passed over goes to ``quarantine/``.
- A5 the timeline is closed at the last whole journal record.
- A6 a ``fence`` manifest takes the next number, by C7 to C10. Taken: back to A2.
- A7 the owner's own journal segment.

Saving:

- C4 enough free space; then each file under a temporary name, fsync, rename. The digest is of the bytes that were meant.
- C5 fsync of every folder touched, up to ``blobs/``.
- C7 the manifest likewise, and fsync of its folder.
- C8 a newer claim: fenced.
- C9 the commit mark, by `link`: the compare-and-swap. Taken: fenced.
- C10 fsync of ``man/``. Only now is it durable, and only now does anyone hear of it.
- C11 announce.

Killed before C9 leaves a folder that no manifest names, for the next owner to sweep; killed later leaves the new checkpoint.
From A6 on every number that an older owner could use is taken, so one that wakes up can make nothing that counts.

The chain of a manifest is what it went on from: every older checkpoint that is not in its `superseded`. A start that passes over a newer
checkpoint, or goes back by order, supersedes what lies between. A fence without a parent is the origin: it stands for the state before
the first checkpoint, so that even with all of them damaged the journal gives everything again, as long as it reaches back that far.

A file of at least 1 MiB that the checkpoint before holds with the same digest, such as a frozen encoder, is not written again: it gets a
second name by `link`. What damages such a file damages every version that shares it (each one's digest tells), so at most four do: of the
five versions that are always kept, two are independent.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec

from learner.artifact import Store, Version
from learner.errors import Corrupt, Fenced, StoreError, StoreFailed
from learner.store import aliases, blobs, manifest, manifest_codec
from learner.store.blobs import Digest, Disk
from learner.store.journal.records import FOLDER as JOURNAL
from learner.store.journal.records import (
    JournalPosition,
    JournalRange,
    JournalRecord,
    Step,
    segment_name,
    truncate,
)
from learner.store.journal.tail import Tail, read_tail
from learner.store.journal.writer import Journal
from learner.store.manifest import (
    CheckpointMetadata,
    Exclusions,
    Manifest,
    Parent,
    Replay,
    Reset,
    ResumePoint,
    RunState,
)
from learner.store.retention import Retention, needed
from weighting.provenance import Gap, Offsets

MAX_SHARED = 4
_SHARED_BYTES = 1 << 20
_FOLDERS = ("epoch", "man", "blobs", "journal", "control", "quarantine", "trash")


@dataclass(frozen=True, slots=True, kw_only=True)
class Skipped:
    """A checkpoint or journal segment that was passed over, to be logged loudly; it stays where it is, linked to ``quarantine/``."""

    name: str  #: of the version or segment
    reason: str
    path: str  #: of the damaged file, below the root


@dataclass(frozen=True, slots=True, kw_only=True)
class RecoveryPlan:
    """What a start shall do other than go on: an order that it takes, or the way back from a divergence."""

    kind: Literal["fence", "restore", "reset"]  #: fence: go on, with these changes
    version: str | None = None  #: whose state is taken; None for the newest
    as_it_was: bool = (
        True  #: of a restore: the whole timeline is replayed, else it ends at the version's cut
    )
    offsets: Mapping[str, Mapping[int, int]] | None = (
        None  #: of a reset: topic -> partition -> next offset
    )
    commands_taken: int | None = None
    quarantine: tuple[tuple[int, int], ...] = ()  #: added
    gaps: tuple[Gap, ...] = ()  #: added
    exclusions: Exclusions | None = None  #: None: as they were
    undo: bool = False  #: of a restore: exclusions are those of the version
    replay: Replay | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What a start would go on from (A2 to A5)."""

    newest: Version | None  #: manifest of any kind that gives the timeline; None in a new store
    version: Version | None  #: whose state it is; None before the first checkpoint
    skipped: tuple[Skipped, ...]  #: what is damaged and newer, newest first
    tail: list[
        tuple[JournalPosition, JournalRecord]
    ]  #: journal records to do again, with the place behind each
    cut: CheckpointMetadata  #: where the state stands; its offsets are the first ones that are not in the state
    journal: (
        ResumePoint | None
    )  #: where the tail begins; None: at the beginning of the next owner's own segment
    resets: tuple[Reset, ...]  #: offsets to move during the tail, or behind it if it ends before
    run_state: RunState  #: with the timeline closed
    resumed_by: RecoveryPlan | None
    next_seq: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Acquired:
    """What a start finds, now that the store is its own."""

    epoch: int
    version: Version | None  #: whose state to take; None: the state before the first checkpoint
    skipped: tuple[Skipped, ...]  #: what is damaged and newer, newest first
    tail: list[
        tuple[JournalPosition, JournalRecord]
    ]  #: journal records to do again, with the place behind each
    next_offsets: Offsets  #: of the state, or where a reset moved them
    journal: ResumePoint  #: where the state stands in the journal, and how many turns of the next record it contains
    resets: tuple[Reset, ...]  #: offsets to move during the tail, or behind it if it ends before
    run_state: RunState
    resumed_by: RecoveryPlan | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Saved:
    """How a save in the background ended. A version with an error is durable; what failed came after."""

    version: Version | None  #: None: nothing changed, the checkpoint before is in force
    error: StoreError | None


class Checkpointer:
    """Saves, finds and retires the checkpoints of one owner; used by one thread at a time.

    Resumes after the cut that `acquire` returns: its next offsets are the first ones that are not in the state, its tail is what was
    journaled behind it.
    """

    def __init__(self, store_root: Path, disk: Disk, clock: Callable[[], float]) -> None:
        """Take collaborators and do nothing.

        Args:
            store_root: one local POSIX file system; made by `acquire` if it is not there.
            disk: the file system, or a test's.
            clock: seconds since the Unix epoch; for `created` and for the age of the trash only.
        """
        self.store = Store(store_root, disk=disk)
        self._root = store_root
        self._disk = disk
        self._clock = clock
        self._epoch = 0
        self._next_seq = 0
        self._parent: Version | None = None
        self._journal: Journal | None = None
        self._run_state = RunState()
        self._retention = Retention(
            store=self.store,
            disk=disk,
            now_us=self._now_us,
            run_state=lambda: self.run_state,
            refuse_if_fenced=self._refuse_if_fenced,
        )

    def look(
        self,
        *,
        initial: CheckpointMetadata,
        recovery_plan: Callable[[Version | None], RecoveryPlan | None] = lambda newest: None,
        world_size: int = 1,
        keep_tail: bool = True,
    ) -> Found:
        """Return what `acquire` with the same arguments would find; changes nothing, so a start can be refused before it claims.

        Raises:
            Corrupt, FormatUnknown, VersionMissing, StoreFailed: as `acquire`.
        """
        with self._step("A4", self._root / "man"):
            return self._find(initial, recovery_plan, world_size, keep_tail)

    def acquire(
        self,
        journal: Journal,
        *,
        initial: CheckpointMetadata,
        recovery_plan: Callable[[Version | None], RecoveryPlan | None] = lambda newest: None,
        world_size: int = 1,
        keep_tail: bool = True,
    ) -> Acquired:
        """Become the owner of the store (A1 to A7): every earlier owner is fenced from here on.

        Args:
            journal: not started yet.
            initial: where a store without a checkpoint begins; its fingerprint and settings are those of now, whatever is found.
            recovery_plan: asked with the newest manifest what to do other than go on; again if another owner came in between.
            world_size: ranks; records of another number of them are not replayed.
            keep_tail: false to go on from the cut of the state, without what was journaled behind it.

        Raises:
            Fenced: there is a newer owner.
            Corrupt: no checkpoint is wholly valid any more, and the journal does not reach back to the beginning.
            FormatUnknown: a newer release wrote one of the manifests; nothing older is taken in its place.
            VersionMissing: the directive names a version that is not there.
            StoreFailed: the store could not be made, written or read for a reason that is no damage, so nothing older is taken either.
            JournalFailed: the owner's own segment could not be made.
        """
        self._epoch = 0
        self._epoch = self._claim()  # A1
        while True:
            try:
                found = self.look(
                    initial=initial,
                    recovery_plan=recovery_plan,
                    world_size=world_size,
                    keep_tail=keep_tail,
                )
            finally:  # what is missing may have been retired by a newer owner: that is no damage
                with self._step("C8", self._root / "epoch"):
                    self._refuse_if_fenced()
            self._keep_evidence(found.skipped)
            self._journal, self._run_state, self._parent = journal, found.run_state, found.version
            journaled = found.journal or ResumePoint(segment=segment_name(self._epoch, 0), byte=0)
            if self._fence(found, journaled, initial.config_sha256):  # A6
                break
        self._next_seq = found.next_seq + 1
        journal.start(self._epoch, initial.fingerprint)  # A7
        return Acquired(
            epoch=self._epoch,
            version=found.version,
            skipped=found.skipped,
            tail=found.tail,
            next_offsets=found.cut.next_offsets,
            journal=journaled,
            resets=found.resets,
            run_state=self.run_state,
            resumed_by=found.resumed_by,
        )

    @property
    def run_state(self) -> RunState:
        """What the next checkpoint will say of itself, with the timeline as it is now."""
        own = self._journal.spans if self._journal is not None else []
        return msgspec.structs.replace(
            self._run_state, timeline=self._retention.trimmed((*self._run_state.timeline, *own))
        )

    def stand(self, **changes: Any) -> None:
        """Change what the next checkpoints say of themselves, by the fields of `Standing`; by the thread that submits them."""
        self._run_state = msgspec.structs.replace(self._run_state, **changes)

    def read(self, version: Version, path: str) -> bytes:
        """Return a file of a version, checked against its digest; Corrupt if it does not hold or is not named (`Store.read`).

        Raises:
            Fenced: it does not hold, and there is a newer owner, who may have retired it: that is no damage.
        """
        try:
            return self.store.read(version, path)
        except Corrupt:
            with self._step("C8", self._root / "epoch"):
                self._refuse_if_fenced()
            raise

    def save(
        self, files: Mapping[str, bytes], cut: CheckpointMetadata, run_state: RunState | None = None
    ) -> Version:
        """Make a checkpoint durable (C4 to C10), the next in number; nothing outside hears of it before `announce`.

        Args:
            files: path inside the version's folder (such as ``training/rng.safetensors``) -> bytes.
            cut: where in the log and in training these bytes stand.
            run_state: as it was at the cut; None: as it is now.

        Raises:
            StoreFailed: nothing changed, the checkpoint before is in force, what was written is removed where possible. After C9 the
                new one may be there without being durable; its number is not used again.
            Fenced: there is another owner; nothing was touched after that was seen.
            ValueError: a path is not one, a number in `cut` is not finite, or its place in the journal is not on the timeline.
        """
        assert self._next_seq, "acquire() first"
        run_state = run_state or self.run_state
        _check_files(files)
        _check_place(cut, run_state)
        seq = self._next_seq
        relative = manifest.folder_name(self._epoch, seq)
        folder, mark = self._root / relative, self._root / manifest.mark_name(seq)
        try:
            with self._step("C4", folder):
                digests, folders = self._write(folder, files)
            with self._step("C5", folder):
                for touched in folders:
                    self._disk.fsync_folder(touched)
            named = {f"{relative}/{path}": digest for path, digest in digests.items()}
            whole = self._manifest(manifest.CHECKPOINT, seq, cut, run_state, named)
            with self._step("C7", folder):
                written = manifest_codec.encode(whole)
                version = self.store.describe(*manifest_codec.decode(written, where=relative))
                blobs.put(self._disk, folder / manifest.MANIFEST, written)
                self._disk.fsync_folder(folder)
            with self._step("C8", self._root / "epoch"):
                self._refuse_if_fenced()
        except (StoreFailed, ValueError):
            self._discard(folder)
            raise
        self._next_seq = (
            seq + 1
        )  # from here on it counts as used, unless it is proven that it is not

        def undo() -> None:
            self._next_seq = seq
            self._discard(folder)

        with self._step("C9", mark):
            if not self._link(folder / manifest.MANIFEST, mark, undo):
                raise Fenced(
                    root=self._root, epoch=self._epoch, found=f"{mark.name} is another owner's"
                )
        with self._step("C10", mark.parent):
            self._disk.fsync_folder(mark.parent)
        self._parent = version
        return version

    def announce(self, version: Version) -> None:
        """Tell serving that a durable version is there (C11); repeating it is harmless, and a start repeats it (R7).

        Raises:
            Fenced: there is a newer owner.
            StoreFailed: serving keeps what was announced before.
        """
        with self._step("C11", self._root / "control"):
            self._refuse_if_fenced()
            aliases.announce(self._disk, self._root, version.name)

    def sweep(self) -> list[str]:
        """Remove what crashes left behind (R6); as `Retention.sweep`, with StoreFailed for what the system refuses."""
        with self._step("R6", self._root / "blobs"):
            return self._retention.sweep()

    def prune(self, keep: int) -> list[str]:
        """Retire what is not needed any more; as `Retention.prune`, with StoreFailed for what the system refuses."""
        with self._step("C11", self._root / "trash"):
            return self._retention.prune(keep)

    def _claim(self) -> int:
        """A1. Nothing is read back from the file: its name is the claim."""
        with self._step("A1", self._root):
            if self._make_folder(self._root):
                self._disk.fsync_folder(self._root.parent)
            for name in _FOLDERS:
                self._make_folder(self._root / name)
            self._disk.fsync_folder(self._root)
            claimed, content = 0, f"{os.uname().nodename} {os.getpid()} {self._now_us()}\n".encode()
            while not claimed:
                wanted = max(self._claims(), default=0) + 1
                with contextlib.suppress(
                    FileExistsError
                ):  # another owner was quicker: the next number
                    blobs.write_new(self._disk, self._root / "epoch" / f"{wanted:06d}", content)
                    claimed = wanted
            self._disk.fsync_folder(self._root / "epoch")
        return claimed

    def _find(
        self,
        new: CheckpointMetadata,
        recovery_plan: Callable[[Version | None], RecoveryPlan | None],
        world_size: int,
        keep_tail: bool,
    ) -> Found:
        """A2 to A5; see `Found`."""
        seqs = self.store.seqs()  # A2
        readable, skipped = self._readable(seqs)
        newest = readable[0] if readable else None  # A3
        if newest is not None and self._epoch and newest.epoch > self._epoch:
            raise Fenced(
                root=self._root,
                epoch=self._epoch,
                found=f"{newest.name} was made by owner epoch {newest.epoch}",
            )
        ordered = recovery_plan(newest)
        target = self.store.version(ordered.version) if ordered and ordered.version else newest
        state = self._state(readable, target, skipped)  # A4
        next_seq = max(seqs, default=0) + 1
        if newest is None or target is None or state is None:
            if seqs:
                reasons = "; ".join(each.reason for each in skipped)
                raise Corrupt(
                    "man",
                    expected="one wholly valid checkpoint",
                    found=f"{len(skipped)} damaged ones: {reasons}",
                )
            run_state = RunState(
                world_size=world_size, commands_taken=(ordered and ordered.commands_taken) or 0
            )
            return Found(
                newest=None, version=None, skipped=(), tail=[], cut=new, journal=None, resets=(), run_state=run_state,
                resumed_by=ordered, next_seq=next_seq,
            )  # fmt: skip
        stands_on = newest.kind != manifest.CHECKPOINT and newest.parent == (
            state.name if state.kind == manifest.CHECKPOINT else None
        )
        journaled = newest.journal if stands_on else state.journal
        timeline, before = newest.timeline, newest.run_state
        if ordered is not None and (ordered.kind == "reset" or not ordered.as_it_was):
            until = target.journal if ordered.version and target.seq != state.seq else journaled
            timeline = truncate(timeline, until.place) if until else ()
            if ordered.kind == "restore":  # what came behind the version never was
                kept = target.run_state.exclusions if ordered.undo else before.exclusions
                before = msgspec.structs.replace(
                    target.run_state, commands_taken=before.commands_taken, exclusions=kept
                )
        with self._step("A5", self._root / JOURNAL):
            tail = self._tail(timeline, journaled, world_size, keep_tail)
        if tail.damage is not None:
            segment = tail.damage.place.segment
            skipped.append(
                Skipped(
                    name=segment,
                    reason=f"@{tail.damage.place.byte}: {tail.damage.reason}",
                    path=f"{JOURNAL}/{segment}",
                )
            )
        cut = manifest_codec.metadata(state.manifest)
        last_step = max([state.step, *(record.step for _, record in tail.records)])
        run_state = msgspec.structs.replace(
            before,
            timeline=needed(tail.timeline, readable),
            resets=tuple(reset for reset in before.resets if reset.step <= last_step),
            bit_exact=before.bit_exact
            and newest.run_state.world_size == world_size
            and cut.fingerprint == new.fingerprint,
            world_size=world_size,
            superseded=_supersede(state, readable, seqs, next_seq),
        )
        pending = [reset for reset in run_state.resets if reset not in state.run_state.resets]
        skip = journaled.skip if journaled else ()
        due = [
            reset
            for reset in pending
            if not tail.records or (reset.step, sum(reset.skip)) <= (state.step, sum(skip))
        ]
        for reset in due:
            cut = _moved(cut, reset)
        if ordered is not None:
            run_state = _changed(run_state, ordered, cut, skip)
            if ordered.kind == "reset":
                cut = _moved(cut, run_state.resets[-1])
        quarantine = tuple(
            (first, min(end, last_step + 1))
            for first, end in run_state.quarantine
            if first <= last_step
        )
        run_state = msgspec.structs.replace(run_state, quarantine=quarantine)
        return Found(
            newest=newest,
            version=state if state.kind == manifest.CHECKPOINT else None,
            skipped=tuple(skipped),
            tail=tail.records,
            cut=cut,
            journal=journaled,
            resets=tuple(reset for reset in pending if reset not in due),
            run_state=run_state,
            resumed_by=ordered,
            next_seq=next_seq,
        )

    def _readable(self, seqs: Sequence[int]) -> tuple[list[Version], list[Skipped]]:
        """Return the whole manifests, newest first, and the others."""
        readable, skipped = [], []
        for seq in reversed(seqs):
            try:
                readable.append(self.store.read_manifest(seq))
            except FileNotFoundError:
                continue  # an older owner retired it just now
            except Corrupt as error:
                skipped.append(
                    Skipped(name=manifest.version_name(seq), reason=str(error), path=error.path)
                )
        return readable, skipped

    def _state(
        self, readable: Sequence[Version], target: Version | None, skipped: list[Skipped]
    ) -> Version | None:
        """A4: the newest wholly valid checkpoint on the chain of `target`, else the origin. Damaged ones that are newer are added."""
        if target is None:
            return None
        chain = [
            found
            for found in readable
            if found.seq <= target.seq and not target.run_state.leaves_out(found.seq)
        ]
        damaged, state = list(skipped), None
        for version in [found for found in chain if found.kind == manifest.CHECKPOINT]:
            try:
                self.store.verify(version)
            except Corrupt as error:
                damaged.append(Skipped(name=version.name, reason=str(error), path=error.path))
                continue
            state = version
            break
        state = state or next(
            (
                found
                for found in chain
                if found.kind != manifest.CHECKPOINT and found.parent is None
            ),
            None,
        )
        newer = [
            each
            for each in damaged
            if state is None
            or (manifest.version_seq(each.name) or 0) > state.seq
            or each not in skipped
        ]
        skipped[:] = sorted(
            newer, key=lambda each: manifest.version_seq(each.name) or 0, reverse=True
        )
        return state

    def _tail(
        self,
        timeline: Sequence[JournalRange],
        journaled: ResumePoint | None,
        world_size: int,
        keep_tail: bool,
    ) -> Tail:
        """A5. Without a tail that can be replayed the timeline begins anew where the state stands."""
        place = journaled.place if journaled else None
        if keep_tail and place is not None and any(span.holds(place) for span in timeline):
            tail = read_tail(self._root, self._disk, timeline, place)
            if all(
                len(record.parts) == world_size
                for _, record in tail.records
                if isinstance(record, Step)
            ):
                return tail
        return Tail(
            records=[],
            timeline=(JournalRange(place.segment, place.byte, place.byte),) if place else (),
            damage=None,
        )

    def _keep_evidence(self, skipped: Sequence[Skipped]) -> None:
        """Give what is damaged a second name that retention does not take away; as far as that works."""
        for each in skipped:
            with contextlib.suppress(OSError):
                self._disk.link(
                    self._root / each.path, self._root / "quarantine" / each.path.replace("/", "+")
                )
                self._disk.fsync_folder(self._root / "quarantine")

    def _fence(self, found: Found, journaled: ResumePoint, config_sha256: str) -> bool:
        """A6: a manifest without files, by C7 to C10; false if another owner took the number.

        The settings that it names are those of the journal records that follow.
        """
        kind = found.resumed_by.kind if found.resumed_by else "fence"
        own = JournalRange(segment_name(self._epoch, 0), 0, None)
        run_state = msgspec.structs.replace(
            found.run_state, timeline=(*found.run_state.timeline, own)
        )
        cut = msgspec.structs.replace(
            found.cut, journal=journaled, fresh_events=(), config_sha256=config_sha256
        )
        folder, mark = self._root / "man", self._root / manifest.mark_name(found.next_seq)
        temporary = folder / f".{self._disk.token()}.tmp"
        with self._step("A6", folder):
            try:
                blobs.write_new(
                    self._disk,
                    temporary,
                    manifest_codec.encode(self._manifest(kind, found.next_seq, cut, run_state, {})),
                )
                self._refuse_if_fenced()
                if linked := self._link(temporary, mark):
                    self._disk.fsync_folder(folder)
            finally:
                with contextlib.suppress(OSError):
                    self._disk.unlink(temporary)
        return linked

    def _write(
        self, folder: Path, files: Mapping[str, bytes]
    ) -> tuple[dict[str, Digest], list[Path]]:
        """C4. Returns the digests, and the folders touched: deepest first, ``blobs/`` last."""
        needed = 2 * sum(map(len, files.values()))
        if (free := self._disk.free_bytes(self._root)) < needed:
            raise OSError(
                errno.ENOSPC,
                f"{free} bytes free, {needed} wanted (twice the checkpoint)",
                str(self._root),
            )
        blobs.remove_tree(
            self._disk, folder
        )  # what a failed attempt could not remove; no manifest names it
        folders = {folder}
        for path in files:
            folders.update(
                parent for parent in (folder / path).parents if parent.is_relative_to(folder)
            )
        deepest_last = sorted(folders)
        for made in deepest_last:
            self._disk.mkdir(made)
        digests = {
            path: self._share(folder, path, files[path])
            or blobs.put(self._disk, folder / path, files[path])
            for path in sorted(files)
        }
        return digests, [*reversed(deepest_last), folder.parent]

    def _share(self, folder: Path, path: str, data: bytes) -> Digest | None:
        """Give a large file that the checkpoint before has a second name; None where it must be written."""
        if self._parent is None or len(data) < _SHARED_BYTES or path not in self._parent.files:
            return None
        same = self._parent.path / path
        meant = blobs.digest(data)
        try:
            if self._parent.files[path] != meant or self._disk.num_links(same) >= MAX_SHARED:
                return None
            self._disk.link(same, folder / path)
        except OSError:
            return None  # no link to be had: the bytes are here
        return meant

    def _manifest(
        self,
        kind: str,
        seq: int,
        cut: CheckpointMetadata,
        run_state: RunState,
        files: dict[str, Digest],
    ) -> Manifest:
        parent = self._parent
        return Manifest(
            format=manifest.FORMAT,
            kind=kind,
            version=manifest.version_name(seq),
            epoch=self._epoch,
            seq=seq,
            parent=Parent(version=parent.name, digest=parent.manifest["self"]) if parent else None,
            created_us=self._now_us(),
            files=files,
            run_state=run_state,
            **msgspec.structs.asdict(cut),
        )

    def _link(self, written: Path, mark: Path, undo: Callable[[], None] = lambda: None) -> bool:
        """C9: whether the mark is ours now. After an error the link count decides; `undo` is called if it says no."""
        try:
            self._disk.link(written, mark)
        except FileExistsError:
            return False
        except OSError:
            if self._disk.num_links(written) != 2:
                undo()
                raise
        return True

    def _refuse_if_fenced(self) -> int:
        """C8. The own epoch; anyone who claimed later is the owner now."""
        if self._epoch and (newest := max(self._claims(), default=0)) > self._epoch:
            raise Fenced(
                root=self._root, epoch=self._epoch, found=f"epoch {newest} was claimed after it"
            )
        return self._epoch

    @contextlib.contextmanager
    def _step(self, number: str, path: Path) -> Iterator[None]:
        """An error in a numbered step; but what an owner trips over because its successor has swept it away is no fault of the disk."""
        try:
            yield
        except OSError as error:
            with contextlib.suppress(OSError):
                self._refuse_if_fenced()
            raise StoreFailed(step=number, path=path, cause=error) from error

    def _discard(self, folder: Path) -> None:
        with contextlib.suppress(OSError):
            blobs.remove_tree(self._disk, folder)

    def _make_folder(self, path: Path) -> bool:
        try:
            self._disk.mkdir(path)
        except FileExistsError:
            return False
        return True

    def _claims(self) -> list[int]:
        return [int(name) for name in self._disk.listdir(self._root / "epoch") if name.isdecimal()]

    def _now_us(self) -> int:
        return int(self._clock() * 1_000_000)


class BackgroundWriter:
    """Saves, announces and prunes in a thread of its own, one checkpoint at a time; from the first `submit` on the checkpointer is its."""

    def __init__(self, checkpointer: Checkpointer, *, keep: int = 20) -> None:
        """Take the checkpointer (acquired) and how many versions to keep; the thread starts with the first `submit`."""
        self._checkpointer = checkpointer
        self._keep = keep
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint-writer")
        self._pending: Future[Saved] | None = None

    def submit(
        self,
        files: Callable[[], Mapping[str, bytes]],
        cut: CheckpointMetadata,
        *,
        gaps: Sequence[Gap] = (),
        live: bool = True,
    ) -> bool:
        """Hand copies over; False, with nothing done, while one is in flight or its outcome has not been polled.

        Args:
            files: makes those of `Checkpointer.save`, in the thread that writes them.
            cut: where they stand.
            gaps: records found lost since the last one; every later checkpoint names them.
            live: whether a replay, if there was one, is over; until then nothing is announced.
        """
        if self._pending is not None:
            return False
        run_state = self._checkpointer.run_state
        if gaps:
            self._checkpointer.stand(gaps=(*run_state.gaps, *gaps))
        if live and run_state.replay is not None:
            self._checkpointer.stand(replay=None)
        self._pending = self._executor.submit(self._run, files, cut, self._checkpointer.run_state)
        return True

    def poll(self, *, timeout_seconds: float | None = 0.0) -> Saved | None:
        """Return how the one in flight ended, once; None while it has not, or if there is none.

        Args:
            timeout_seconds: how long to wait for it; None for as long as it takes.

        Raises:
            Fenced: there is another owner.
        """
        if self._pending is None:
            return None
        done, _ = wait([self._pending], timeout_seconds)
        if not done:
            return None
        (ended,), self._pending = done, None
        return ended.result()

    def close(self) -> Saved | None:
        """Wait for the one in flight, end the thread, and return its outcome as `poll` would."""
        self._executor.shutdown(wait=True)
        return self.poll(timeout_seconds=None)

    def _run(
        self, files: Callable[[], Mapping[str, bytes]], cut: CheckpointMetadata, run_state: RunState
    ) -> Saved:
        version = None
        try:
            version = self._checkpointer.save(files(), cut, run_state)
            if run_state.replay is None:
                self._checkpointer.announce(version)
            self._checkpointer.prune(self._keep)
        except Fenced:
            raise
        except StoreError as error:
            return Saved(version=version, error=error)
        return Saved(version=version, error=None)


def _supersede(
    state: Version, readable: Sequence[Version], seqs: Sequence[int], next_seq: int
) -> tuple[tuple[int, int], ...]:
    """Return what the chain of `state` leaves out, with what lies between it and the next manifest, if that is more than fences."""
    fences = {found.seq for found in readable if found.kind != manifest.CHECKPOINT}
    passed = [seq for seq in seqs if seq > state.seq and seq not in fences]
    before = [span for span in state.run_state.superseded if span[1] > min(seqs)]
    return (*before, (state.seq + 1, next_seq)) if passed else tuple(before)


def _changed(
    run_state: RunState, ordered: RecoveryPlan, cut: CheckpointMetadata, skip: tuple[int, ...]
) -> RunState:
    """Return a standing with the changes of a directive that is taken at `cut`."""
    changes: dict[str, Any] = {
        "quarantine": tuple(dict.fromkeys((*run_state.quarantine, *ordered.quarantine))),
        "gaps": tuple(dict.fromkeys((*run_state.gaps, *ordered.gaps))),
    }
    if ordered.commands_taken is not None:
        changes["commands_taken"] = ordered.commands_taken
    if ordered.exclusions is not None:
        changes["exclusions"] = ordered.exclusions
    if ordered.kind != "fence":
        changes["replay"] = ordered.replay
    if ordered.kind == "reset":
        moved = {
            topic: {
                p: (cut.offsets.get(topic, {}).get(p, offset), offset)
                for p, offset in parts.items()
            }
            for topic, parts in (ordered.offsets or {}).items()
        }
        changes["resets"] = (
            *run_state.resets,
            Reset(command=ordered.commands_taken or 0, step=cut.step, skip=skip, offsets=moved),
        )
    return msgspec.structs.replace(run_state, **changes)


def _moved(cut: CheckpointMetadata, reset: Reset) -> CheckpointMetadata:
    offsets = {topic: dict(parts) for topic, parts in cut.offsets.items()}
    for topic, parts in reset.offsets.items():
        offsets.setdefault(topic, {}).update(
            {partition: after for partition, (_, after) in parts.items()}
        )
    return msgspec.structs.replace(cut, offsets=offsets)


def _check_place(cut: CheckpointMetadata, run_state: RunState) -> None:
    if cut.journal is not None and not any(
        span.holds(cut.journal.place) for span in run_state.timeline
    ):
        place = cut.journal.place
        raise ValueError(
            f"checkpoint: journal: {place.segment}@{place.byte} is not on the timeline {run_state.timeline}"
        )


def _check_files(files: Mapping[str, bytes]) -> None:
    for path in files:
        if path == manifest.MANIFEST:
            raise ValueError(f"checkpoint file {path!r}: the name belongs to the manifest")
        if wrong := manifest.check_path(path):
            raise ValueError(
                f"checkpoint file {path!r}: expected a normalised path inside the version's folder, got one that is {wrong}"
            )
