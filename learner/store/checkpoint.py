"""Checkpoints of the whole job, saved as one or not at all.

There is one owner at a time. The steps are those of RELIABILITY 3 and 5, under the same numbers.
Acquiring:

- A1 claim the next fencing token (`ownership`).
- A2 to A5 find where to go on (`recovery.evidence` reads, `recovery.decision` decides).
- A6 a ``fence`` manifest takes the next number, by C7 to C10. Taken: back to A2.
- A7 the owner's own journal segment.

Saving:

- C4 enough free space; then each file under a temporary name, fsync, rename. The digest is of the
  bytes that were meant.
- C5 fsync of every folder touched, up to ``blobs/``.
- C7 the manifest likewise, and fsync of its folder.
- C8 a newer claim: fenced.
- C9 the commit mark, by `link`: the compare-and-swap. Taken: fenced.
- C10 fsync of ``man/``. Only now is it durable, and only now does anyone hear of it.
- C11 announce.

Killed before C9 leaves a folder that no manifest names, for the next owner to sweep; killed later
leaves the new checkpoint. From A6 on every number that an older owner could use is taken, so one
that wakes up can make nothing that counts.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from learner.artifact import Store, Version
from learner.errors import Corrupt, StoreFailed
from learner.store import aliases, blobs, manifest, manifest_codec, sweep
from learner.store.blobs import Digest, Disk
from learner.store.journal.records import FOLDER as JOURNAL
from learner.store.journal.records import JournalRange, segment_name
from learner.store.journal.tail import Tail, read_tail
from learner.store.journal.writer import Journal
from learner.store.manifest import CheckpointMetadata, Manifest, Parent, RunState
from learner.store.ownership import Ownership
from learner.store.recovery import evidence
from learner.store.recovery.decision import Choice, choose, recover
from learner.store.recovery.plan import RecoveryPlan
from learner.store.recovery.point import RecoveryPoint, begin
from learner.store.retention import Retention
from learner.store.version_files import Known, VersionFiles, check_paths


class Checkpointer:
    """Acquires a store, saves and retires its checkpoints, for one owner.

    Used by one thread at a time.
    Resumes after the recovery point that `acquire` returns: its next offsets are the first ones
    that the state does not contain, its tail is what was journaled behind it.
    """

    def __init__(self, store_root: Path, disk: Disk, clock: Callable[[], float]) -> None:
        """Take collaborators and do nothing.

        Args:
            store_root: one local POSIX file system; made by `acquire` if it is not there.
            disk: the file system, or a test's.
            clock: seconds since the Unix epoch; for `created` and the age of the trash only.
        """
        self.store = Store(store_root, disk=disk)
        self._root = store_root
        self._disk = disk
        self._clock = clock
        self._ownership = Ownership(store_root, disk, self._now_us)
        self._next_seq = 0
        self._parent: Version | None = None
        self._shared: Version | None = None  # the checkpoint before the parent
        self._known: Known = {}
        self._journal: Journal | None = None
        self._run_state = RunState()
        self._retention = Retention(
            store=self.store, disk=disk, now_us=self._now_us, ownership=self._ownership
        )

    def look(
        self,
        *,
        initial: CheckpointMetadata,
        recovery_plan: Callable[[Version | None], RecoveryPlan | None] = lambda newest: None,
        world_size: int = 1,
        keep_tail: bool = True,
    ) -> RecoveryPoint:
        """Return what `acquire` with the same arguments would; change nothing.

        So a start can be refused before it claims.

        Raises:
            Corrupt, FormatUnknown, VersionMissing, StoreFailed: as `acquire`.
        """
        with self._ownership.step("A4", self._root / "man"):
            manifests = evidence.read_manifests(self.store)  # A2, A3
            newest, token = manifests.newest, self._ownership.token
            if newest is not None and 0 < token < newest.epoch:
                found = f"{newest.name} was made by owner epoch {newest.epoch}"
                raise self._ownership.fenced(found)
            plan = recovery_plan(newest)
            named = plan.version if plan else None
            target = self.store.version(named) if named else newest
            if not manifests.seqs:
                return begin(plan, initial=initial, world_size=world_size, fencing_token=token)
            damaged = evidence.verify(self.store, manifests.chain(target))  # A4
            choice = choose(manifests, damaged, plan=plan, target=target)
        return recover(
            choice,
            self._tail(choice) if keep_tail else None,  # A5
            initial=initial,
            world_size=world_size,
            fencing_token=token,
        )

    def acquire(
        self,
        journal: Journal,
        *,
        initial: CheckpointMetadata,
        recovery_plan: Callable[[Version | None], RecoveryPlan | None] = lambda newest: None,
        world_size: int = 1,
        keep_tail: bool = True,
    ) -> RecoveryPoint:
        """Become the owner of the store (A1 to A7).

        Every earlier owner is fenced from here on.

        Args:
            journal: not started yet.
            initial: where a store without a checkpoint begins; its fingerprint and settings are
                those of now, whatever is found.
            recovery_plan: asked with the newest manifest what to do other than go on; again if
                another owner came in between.
            world_size: ranks; records of another number of them are not replayed.
            keep_tail: false to resume at the state, without what was journaled behind it.

        Raises:
            Fenced: there is a newer owner.
            Corrupt: no checkpoint is wholly valid any more, and the journal does not reach back to
                the beginning.
            FormatUnknown: a newer release wrote one of the manifests; nothing older is taken in
                its place.
            VersionMissing: the plan names a version that is not there.
            StoreFailed: the store could not be made, written or read for a reason that is no
                damage, so nothing older is taken either.
            JournalFailed: the owner's own segment could not be made.
        """
        self._ownership.claim()  # A1
        linked = False
        while not linked:
            try:
                point = self.look(  # A2 to A5
                    initial=initial,
                    recovery_plan=recovery_plan,
                    world_size=world_size,
                    keep_tail=keep_tail,
                )
            finally:  # what is missing may have been retired by a newer owner: that is no damage
                self._refuse_if_fenced()
            evidence.keep(self._root, self._disk, point.skipped)
            self._journal, self._run_state, self._parent = journal, point.run_state, point.version
            self._shared = None if point.skipped else self._earlier(point.version)
            linked = self._fence(point, initial.config_sha256)  # A6
        self._next_seq = point.next_seq + 1
        journal.start(self._ownership.token, initial.fingerprint)  # A7
        return dataclasses.replace(point, run_state=self.run_state)

    @property
    def run_state(self) -> RunState:
        """Run state of the next checkpoint, as of now."""
        own = self._journal.spans if self._journal is not None else []
        timeline = self._retention.trimmed((*self._run_state.timeline, *own))
        return msgspec.structs.replace(self._run_state, timeline=timeline)

    def update(self, **changes: Any) -> None:
        """Change fields of the run state; for the thread that submits checkpoints."""
        self._run_state = msgspec.structs.replace(self._run_state, **changes)

    def read(self, version: Version, path: str) -> bytes:
        """Return a file of a version, checked against its digest.

        Raises:
            Corrupt: the digest does not hold, or the manifest does not name the file.
            Fenced: it does not hold, and there is a newer owner, who may have retired it: that is
                no damage.
        """
        try:
            return self.store.read(version, path)
        except Corrupt:
            self._refuse_if_fenced()
            raise

    def save(
        self,
        files: Mapping[str, bytes],
        metadata: CheckpointMetadata,
        run_state: RunState | None = None,
    ) -> Version:
        """Make a checkpoint durable (C4 to C10).

        Nothing outside hears of it before `announce`.

        Args:
            files: path inside the version's folder (such as ``training/rng.safetensors``) -> bytes.
            metadata: where in the log and in training these bytes stand.
            run_state: as it was then; None: as it is now.

        Raises:
            StoreFailed: nothing changed, the checkpoint before is in force, what was written is
                removed where possible. After C9 the new one may be there without being durable;
                its number is not used again.
            Fenced: there is another owner; nothing was touched after that was seen.
            ValueError: a path is not one, a number in `metadata` is not finite, or its place in
                the journal is not on the timeline.
        """
        assert self._next_seq, "acquire() first"
        run_state = run_state or self.run_state
        check_paths(files)
        _check_place(metadata, run_state)
        seq = self._next_seq
        folder = self._root / manifest.folder_name(self._ownership.token, seq)
        written = VersionFiles(self._disk, folder, self._shared, self._known)
        try:
            with self._ownership.step("C4", folder):
                digests = written.write(files)
            with self._ownership.step("C5", folder):
                written.fsync_folders(files)
            with self._ownership.step("C7", folder):
                version = self._write_manifest(folder, seq, metadata, run_state, digests)
            self._refuse_if_fenced()  # C8
        except (StoreFailed, ValueError):
            written.discard()
            raise
        self._next_seq = seq + 1  # counts as used from here on, unless it is proven not to be

        def undo() -> None:
            self._next_seq = seq
            written.discard()

        mark = self._root / manifest.mark_name(seq)
        with self._ownership.step("C9", mark):
            if not self._ownership.link(folder / manifest.MANIFEST, mark, undo):
                raise self._ownership.fenced(f"{mark.name} is another owner's")
        with self._ownership.step("C10", mark.parent):
            self._disk.fsync_folder(mark.parent)
        self._shared, self._parent = self._parent, version
        return version

    def announce(self, version: Version) -> None:
        """Announce a durable version to serving (C11).

        Repeating it is harmless, and a start repeats it (R7).

        Raises:
            Fenced: there is a newer owner.
            StoreFailed: serving keeps what was announced before.
        """
        with self._ownership.step("C11", self._root / "control"):
            self._ownership.refuse_if_fenced()
            aliases.announce(self._disk, self._root, version.name)

    def sweep(self) -> list[str]:
        """Remove what crashes left behind (R6), as `sweep.sweep` does.

        Raises:
            Fenced: there is a newer owner.
            StoreFailed: the system refused something; the next sweep tries again.
        """
        with self._ownership.step("R6", self._root / "blobs"):
            return sweep.sweep(self.store, self._disk, self._ownership, self._now_us())

    def prune(self, keep: int) -> list[str]:
        """Retire what is not needed any more, as `Retention.prune` does.

        Raises:
            Fenced: there is a newer owner.
            StoreFailed: the system refused something; the next pass does the rest.
        """
        with self._ownership.step("C11", self._root / "trash"):
            return self._retention.prune(keep, lambda: self.run_state)

    def _earlier(self, version: Version | None) -> Version | None:
        """Return the checkpoint before a version, where both are there."""
        if version is None:
            return None
        with self._ownership.step("A4", self._root / "man"):
            older = [found for found in self.store.versions() if found.seq < version.seq]
        return older[-1] if older else None

    def _tail(self, choice: Choice) -> Tail | None:
        """Read the journal behind the state (A5)."""
        if choice.tail_start is None:
            return None
        with self._ownership.step("A5", self._root / JOURNAL):
            return read_tail(self._root, self._disk, choice.timeline, choice.tail_start)

    def _fence(self, point: RecoveryPoint, config_sha256: str) -> bool:
        """Link a manifest without files (A6).

        False if another owner took the number. The settings that it names are those of the journal
        records that follow.
        """
        kind = point.resumed_by.kind if point.resumed_by else "fence"
        own = JournalRange(segment_name(self._ownership.token, 0), 0, None)
        run_state = msgspec.structs.replace(
            point.run_state, timeline=(*point.run_state.timeline, own)
        )
        metadata = msgspec.structs.replace(
            point.metadata, journal=point.journal, fresh_events=(), config_sha256=config_sha256
        )
        fence = self._manifest(kind, point.next_seq, metadata, run_state, {})
        mark = self._root / manifest.mark_name(point.next_seq)
        temporary = mark.with_name(f".{self._disk.token()}.tmp")
        with self._ownership.step("A6", mark.parent):
            try:
                blobs.write_new(self._disk, temporary, manifest_codec.encode(fence))
                self._ownership.refuse_if_fenced()
                if linked := self._ownership.link(temporary, mark):
                    self._disk.fsync_folder(mark.parent)
            finally:
                with contextlib.suppress(OSError):
                    self._disk.unlink(temporary)
        return linked

    def _write_manifest(
        self,
        folder: Path,
        seq: int,
        metadata: CheckpointMetadata,
        run_state: RunState,
        digests: Mapping[str, Digest],
    ) -> Version:
        """Write the manifest of a checkpoint into its folder, durably (C7)."""
        files = {f"blobs/{folder.name}/{path}": digest for path, digest in digests.items()}
        whole = self._manifest(manifest.CHECKPOINT, seq, metadata, run_state, files)
        written = manifest_codec.encode(whole)
        version = self.store.describe(*manifest_codec.decode(written, where=f"blobs/{folder.name}"))
        blobs.put(self._disk, folder / manifest.MANIFEST, written)
        self._disk.fsync_folder(folder)
        return version

    def _manifest(
        self,
        kind: str,
        seq: int,
        metadata: CheckpointMetadata,
        run_state: RunState,
        files: dict[str, Digest],
    ) -> Manifest:
        parent = self._parent
        return Manifest(
            format=manifest.FORMAT,
            kind=kind,
            version=manifest.version_name(seq),
            epoch=self._ownership.token,
            seq=seq,
            parent=Parent(version=parent.name, digest=parent.manifest["self"]) if parent else None,
            created_us=self._now_us(),
            files=files,
            run_state=run_state,
            **msgspec.structs.asdict(metadata),
        )

    def _refuse_if_fenced(self) -> None:
        """Raise Fenced where there is a newer owner (C8)."""
        with self._ownership.step("C8", self._root / "epoch"):
            self._ownership.refuse_if_fenced()

    def _now_us(self) -> int:
        return int(self._clock() * 1_000_000)


def _check_place(metadata: CheckpointMetadata, run_state: RunState) -> None:
    if metadata.journal is None:
        return
    place = metadata.journal.place
    if not any(span.holds(place) for span in run_state.timeline):
        where = f"{place.segment}@{place.byte}"
        raise ValueError(
            f"checkpoint: journal: {where} is not on the timeline {run_state.timeline}"
        )
