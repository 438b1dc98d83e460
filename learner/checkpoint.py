"""The whole job, saved as one or not at all, and found again after a crash.

The steps are those of RELIABILITY 3 and 5, under the same numbers. Claiming:

- A1 claim the next owner epoch, by a file that only one can create.
- A2 the next number to use is above every commit mark, readable or not.
- A4 state comes from the newest checkpoint of which every file has its digest.

Saving:

- C4 enough free space; then each file under a temporary name, fsync, rename. The digest is of the bytes that were meant.
- C5 fsync of every folder touched, up to ``blobs/``.
- C7 the manifest likewise, and fsync of its folder.
- C8 a newer claim: fenced.
- C9 the commit mark, by `link`: the compare-and-swap. Taken: fenced.
- C10 fsync of ``man/``. Only now is it durable, and only now does anyone hear of it.
- C11 announce.

Killed before C9 leaves a folder that no manifest names, for the next owner to sweep; killed later leaves the new checkpoint.
A1 with C8 and C9 fences. Without a fence manifest (A6) an old owner that wakes between C8 and C9 can still take the number of its
successor; the successor then stops as fenced and goes on from what it finds at its next start, so nothing is lost or counted twice.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path

import msgspec

from learner import artifact, blobs, manifest
from learner.artifact import Store, Version
from learner.blobs import Digest, Disk
from learner.errors import Corrupt, Fenced, StoreError, StoreFailed
from learner.manifest import Cut, Manifest, Parent

MIN_KEEP = 5
_FOLDERS = ("epoch", "man", "blobs", "control", "trash")
_MAX_CLAIMS = 100
_LEFTOVER_US = 3600 * 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Skipped:
    """A checkpoint that was passed over, to be logged loudly; it stays where it is, as evidence."""

    name: str  #: of the version
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Recovered:
    """What a start finds."""

    version: Version | None  #: the newest wholly valid checkpoint; None in a new store
    skipped: tuple[Skipped, ...]  #: newer ones that are damaged, newest first


@dataclass(frozen=True, slots=True, kw_only=True)
class Saved:
    """How a save in the background ended. A version with an error is durable; what failed came after."""

    version: Version | None  #: None: nothing changed, the checkpoint before is in force
    error: StoreError | None


class Checkpointer:
    """Saves, finds and retires the checkpoints of one owner; used by one thread at a time.

    Resumes after the cut that the newest valid manifest names: its next offsets are the first ones that are not in the state.
    """

    def __init__(self, store_root: Path, disk: Disk, clock: Callable[[], float]) -> None:
        """Take collaborators and do nothing.

        Args:
            store_root: one local POSIX file system; made by `claim` if it is not there.
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

    def claim(self) -> int:
        """Become the owner of the store (A1, A2); every earlier owner is fenced from here on.

        Returns:
            The owner epoch.

        Raises:
            StoreFailed: the store could not be made or written.
        """
        with _step("A1", self._root):
            if self._make_folder(self._root):
                self._disk.fsync_folder(self._root.parent)
            for name in _FOLDERS:
                self._make_folder(self._root / name)
            self._disk.fsync_folder(self._root)
            claimed, content = 0, f"{os.uname().nodename} {os.getpid()} {self._now_us()}\n".encode()
            while not claimed:
                wanted = max(self._claims(), default=0) + 1
                with contextlib.suppress(FileExistsError):  # another owner was quicker: the next number
                    blobs.write_new(self._disk, self._claim_path(wanted), content)
                    claimed = wanted
            self._disk.fsync_folder(self._root / "epoch")
        with _step("A2", self._root / "man"):
            self._next_seq = max(self.store.seqs(), default=0) + 1
        self._epoch = claimed
        self._parent = None
        return claimed

    def latest(self) -> Recovered:
        """Find the newest wholly valid checkpoint (A4), every digest read; the next save names it as its parent.

        Raises:
            Fenced: it was made by a newer owner than this one.
            FormatUnknown: a newer release wrote the newest; nothing older is taken in its place.
            StoreFailed: the store could not be read for a reason that is no damage, so nothing older is taken either.
        """
        with _step("A4", self._root / "man"):
            recovered = self._newest_valid()
        self._parent = recovered.version
        return recovered

    def read(self, version: Version, path: str) -> bytes:
        """Return a file of a version, checked against its digest; Corrupt if it does not hold or is not named (`Store.read`)."""
        return self.store.read(version, path)

    def save(self, files: Mapping[str, bytes], cut: Cut) -> Version:
        """Make a checkpoint durable (C4 to C10), the next in number; nothing outside hears of it before `announce`.

        Args:
            files: path inside the version's folder (such as ``training/rng.safetensors``) -> bytes.
            cut: where in the log and in training these bytes stand.

        Raises:
            StoreFailed: nothing changed, the checkpoint before is in force, what was written is removed where possible. After C9 the
                new one may be there without being durable; its number is not used again.
            Fenced: there is another owner; nothing was touched after that was seen.
            ValueError: a path is not one, or a number in `cut` is not finite.
        """
        assert self._epoch, "claim() first"
        _check_files(files)
        seq = self._next_seq
        relative = manifest.folder_name(self._epoch, seq)
        folder, mark = self._root / relative, self._root / manifest.mark_name(seq)
        try:
            with _step("C4", folder):
                digests, folders = self._write(folder, files)
            with _step("C5", folder):
                for touched in folders:
                    self._disk.fsync_folder(touched)
            whole = self._manifest(seq, cut, {f"{relative}/{path}": digest for path, digest in digests.items()})
            with _step("C7", folder):
                written = manifest.encode(whole)
                version = self.store.describe(*manifest.decode(written, where=relative))
                blobs.put(self._disk, folder / manifest.MANIFEST, written)
                self._disk.fsync_folder(folder)
            with _step("C8", self._root / "epoch"):
                self._refuse_if_fenced()
        except (StoreFailed, ValueError):
            self._discard(folder)
            raise
        self._link(folder, mark)  # C9
        with _step("C10", mark.parent):
            self._disk.fsync_folder(mark.parent)
        self._parent = version
        return version

    def announce(self, version: Version) -> None:
        """Tell serving that a durable version is there (C11); repeating it is harmless, and a start repeats it (R7).

        Raises:
            Fenced: there is a newer owner.
            StoreFailed: serving keeps what was announced before.
        """
        with _step("C11", self._root / "control"):
            self._refuse_if_fenced()
            artifact.announce(self._disk, self._root, version.name)

    def sweep(self) -> list[str]:
        """Remove what crashes left behind (R6).

        That is: folders of older owners that no manifest names, temporary files in ``control/`` that are an hour old, all but the newest
        100 claims. A folder whose number has a damaged commit mark stays, as evidence.

        Returns:
            The names of the folders that were removed, below the root.

        Raises:
            Fenced: there is a newer owner.
            StoreFailed: something could not be removed; the next sweep tries again.
        """
        with _step("R6", self._root / "blobs"):
            self._refuse_if_fenced()
            versions = self.store.versions()
            named = {version.path.name for version in versions}
            damaged = set(self.store.seqs()) - {version.seq for version in versions}
            swept = []
            for name in self._disk.listdir(self._root / "blobs"):
                epoch, _, seq = name.partition("-")
                ours_to_judge = epoch.isdecimal() and seq.isdecimal() and int(epoch) < self._epoch
                if ours_to_judge and name not in named and int(seq) not in damaged:
                    blobs.remove_tree(self._disk, self._root / "blobs" / name)
                    swept.append(f"blobs/{name}")
            for name in self._disk.listdir(self._root / "control"):
                path = self._root / "control" / name
                if name.endswith(".tmp") and self._now_us() - self._disk.modified_us(path) >= _LEFTOVER_US:
                    self._disk.unlink(path)
            for epoch_number in sorted(self._claims())[:-_MAX_CLAIMS]:
                self._disk.unlink(self._claim_path(epoch_number))
        return swept

    def prune(self, keep: int) -> list[str]:
        """Retire old checkpoints in two phases: into ``trash/`` now, gone in a pass at least an hour later.

        Kept are the newest `keep`, the newest wholly valid one, every one that an alias or the announcement names, and damaged ones.

        Args:
            keep: at least 5.

        Returns:
            The names of the versions that were retired.

        Raises:
            Fenced: there is a newer owner.
            StoreFailed: the next pass goes on from there.
        """
        if keep < MIN_KEEP:
            raise ValueError(f"keep: got {keep}, expected at least {MIN_KEEP}")
        with _step("C11", self._root / "trash"):
            self._refuse_if_fenced()
            self._empty_trash()
            versions = self.store.versions()
            pinned = {*self.store.aliases().values(), self.store.announced()}
            old = [version for version in versions[:-keep] if version.name not in pinned]
            if old and not any(self._valid(version) for version in reversed(versions[-keep:])):
                old = [version for version in old if version is not next(filter(self._valid, reversed(old)), None)]
            for version in old:
                self._retire(version)
        return [version.name for version in old]

    def _newest_valid(self) -> Recovered:
        skipped: list[Skipped] = []
        for seq in reversed(self.store.seqs()):
            name = manifest.version_name(seq)
            try:
                version = self.store.version(name)
                self.store.verify(version)
            except Corrupt as error:
                skipped.append(Skipped(name=name, reason=str(error)))
                continue
            if self._epoch and version.epoch > self._epoch:
                raise Fenced(root=self._root, epoch=self._epoch, found=f"{name} was made by owner epoch {version.epoch}")
            return Recovered(version=version, skipped=tuple(skipped))
        return Recovered(version=None, skipped=tuple(skipped))

    def _write(self, folder: Path, files: Mapping[str, bytes]) -> tuple[dict[str, Digest], list[Path]]:
        """C4. Returns the digests, and the folders touched: deepest first, ``blobs/`` last."""
        needed = 2 * sum(map(len, files.values()))
        if (free := self._disk.free_bytes(self._root)) < needed:
            raise OSError(errno.ENOSPC, f"{free} bytes free, {needed} wanted (twice the checkpoint)", str(self._root))
        blobs.remove_tree(self._disk, folder)  # what a failed attempt could not remove; no manifest names it
        folders = {folder}
        for path in files:
            folders.update(parent for parent in (folder / path).parents if parent.is_relative_to(folder))
        deepest_last = sorted(folders)
        for made in deepest_last:
            self._disk.mkdir(made)
        digests = {path: blobs.put(self._disk, folder / path, files[path]) for path in sorted(files)}
        return digests, [*reversed(deepest_last), folder.parent]

    def _manifest(self, seq: int, cut: Cut, files: dict[str, Digest]) -> Manifest:
        parent = self._parent
        return Manifest(
            format=manifest.FORMAT,
            kind=manifest.KIND,
            version=manifest.version_name(seq),
            epoch=self._epoch,
            seq=seq,
            parent=Parent(version=parent.name, digest=parent.manifest["self"]) if parent else None,
            created_us=self._now_us(),
            files=files,
            **msgspec.structs.asdict(cut),
        )

    def _link(self, folder: Path, mark: Path) -> None:
        """C9. From the attempt on the number counts as used, unless the manifest's link count proves that it is not."""
        seq, written = self._next_seq, folder / manifest.MANIFEST
        self._next_seq = seq + 1
        with _step("C9", mark):
            try:
                self._disk.link(written, mark)
            except FileExistsError as error:
                found = f"{mark.name} is another owner's"
                raise Fenced(root=self._root, epoch=self._epoch, found=found) from error
            except OSError:
                if self._disk.num_links(written) == 2:
                    return  # done, whatever the system said
                self._next_seq = seq
                self._discard(folder)
                raise

    def _refuse_if_fenced(self) -> None:
        """C8. Anyone who claimed later is the owner now."""
        if (newest := max(self._claims(), default=0)) > self._epoch:
            raise Fenced(root=self._root, epoch=self._epoch, found=f"epoch {newest} was claimed after it")

    def _discard(self, folder: Path) -> None:
        with contextlib.suppress(OSError):
            blobs.remove_tree(self._disk, folder)

    def _valid(self, version: Version) -> bool:
        if self._parent is not None and version.seq == self._parent.seq:
            return True  # saved or verified by this process
        try:
            self.store.verify(version)
        except Corrupt:
            return False
        return True

    def _retire(self, version: Version) -> None:
        """Manifest first, then blobs, so that no reader finds a version without its files."""
        trash, now_us = self._root / "trash", self._now_us()
        mark = self._root / manifest.mark_name(version.seq)
        for source in (mark, version.path):
            with contextlib.suppress(FileNotFoundError):
                self._disk.rename(source, trash / f"{now_us}-{source.name}")
            self._disk.fsync_folder(source.parent)
        self._disk.fsync_folder(trash)

    def _empty_trash(self) -> None:
        for name in self._disk.listdir(self._root / "trash"):
            thrown_us = name.partition("-")[0]
            if thrown_us.isdecimal() and self._now_us() - int(thrown_us) >= _LEFTOVER_US:
                path = self._root / "trash" / name
                if path.is_dir():
                    blobs.remove_tree(self._disk, path)
                else:
                    self._disk.unlink(path)

    def _make_folder(self, path: Path) -> bool:
        try:
            self._disk.mkdir(path)
        except FileExistsError:
            return False
        return True

    def _claims(self) -> list[int]:
        return [int(name) for name in self._disk.listdir(self._root / "epoch") if name.isdecimal()]

    def _claim_path(self, epoch: int) -> Path:
        return self._root / "epoch" / f"{epoch:06d}"

    def _now_us(self) -> int:
        return int(self._clock() * 1_000_000)


class BackgroundWriter:
    """Saves, announces and prunes in a thread of its own, one checkpoint at a time; from the first `submit` on the checkpointer is its."""

    def __init__(self, checkpointer: Checkpointer, *, keep: int = 20) -> None:
        """Take the checkpointer (claimed, recovered) and how many versions to keep; the thread starts with the first `submit`."""
        self._checkpointer = checkpointer
        self._keep = keep
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint-writer")
        self._pending: Future[Saved] | None = None

    def submit(self, files: Mapping[str, bytes], cut: Cut) -> bool:
        """Hand copies over; False, with nothing done, while one is in flight or its outcome has not been polled."""
        if self._pending is not None:
            return False
        self._pending = self._executor.submit(self._run, files, cut)
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

    def _run(self, files: Mapping[str, bytes], cut: Cut) -> Saved:
        version = None
        try:
            version = self._checkpointer.save(files, cut)
            self._checkpointer.announce(version)
            self._checkpointer.prune(self._keep)
        except Fenced:
            raise
        except StoreError as error:
            return Saved(version=version, error=error)
        return Saved(version=version, error=None)


def _check_files(files: Mapping[str, bytes]) -> None:
    for path in files:
        if path == manifest.MANIFEST:
            raise ValueError(f"checkpoint file {path!r}: the name belongs to the manifest")
        if wrong := manifest.check_path(path):
            raise ValueError(f"checkpoint file {path!r}: expected a normalised path inside the version's folder, got one that is {wrong}")


@contextlib.contextmanager
def _step(number: str, path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StoreFailed(step=number, path=path, cause=error) from error
