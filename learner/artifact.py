"""What serving may load: versions, aliases, `load(version) -> Scorer`, `promote`. The door.

A version counts only if its commit mark is in ``man/``, its manifest is whole, its parent is the one that it names, and every file has its
digest. Importing this module loads neither torch nor a model; `Store.load` does.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from learner.errors import Corrupt, FormatUnknown, StoreFailed, VersionMissing
from learner.request import Document, Scorer, Scores, ScoringInput
from learner.store import blobs, manifest
from learner.store.blobs import Digest, Disk
from learner.store.journal import JournalRange
from learner.store.manifest import CHECKPOINT, ResumePoint, RunState

__all__ = [
    "Corrupt",
    "Document",
    "FormatUnknown",
    "Scorer",
    "Scores",
    "ScoringInput",
    "Store",
    "StoreFailed",
    "Version",
    "VersionMissing",
]

ALIASES = ("pinned", "champion", "challenger", "previous")
_ANNOUNCED = "control/announced.json"
_ALIASES = "control/aliases.json"
_LOCK = "control/aliases.lock"
_MAX_CONTROL_BYTES = 64 << 10
_TRAINING = "training/"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Version:
    """One durable manifest as it tells itself; whether its files hold is for `Store.verify` to say.

    Only a checkpoint is a version that can be loaded. The other kinds (`learner.manifest`) come out of `Store.newest` and
    `Store.manifests` alone, and have no files.
    """

    name: str  #: ``v000123``
    seq: int
    epoch: int  #: of the owner that made it
    created_us: int
    event_time_us: int | None  #: newest sample that it contains; None before the first
    step: int
    num_samples: int
    next_offsets: dict[tuple[str, int], int]  #: (topic, partition) -> next offset to apply
    evaluation: dict[str, float]
    files: dict[str, Digest]  #: path inside the folder -> digest
    manifest: dict[str, Any]  #: as it is written
    path: Path  #: its folder
    kind: str = CHECKPOINT  #: or fence, restore, reset
    parent: str | None = None  #: the version that it went on from
    journal: ResumePoint | None = None  #: where the journal goes on from it
    run_state: RunState = field(
        default_factory=RunState
    )  #: timeline, gaps, resets and what else holds from one manifest to the next

    @property
    def timeline(self) -> tuple[JournalRange, ...]:
        """The parts of the journal that count, from the oldest version on that was kept when this was made."""
        return self.run_state.timeline


class Store:
    """A directory of versions, read by anyone; of its writers only those of aliases come through here.

    Damage is `Corrupt`; trouble that is no damage (no permission, too many open files) stays the OSError that it is.
    """

    def __init__(self, root: Path, *, disk: Disk | None = None) -> None:
        """Do nothing yet; `root` need not exist before a learner has made it."""
        self.root = root
        self._disk = disk or Disk()
        self._prefix_caches: dict[
            str, Any
        ] = {}  #: what frozen layers made of texts, shared by the versions that this store loads

    def announced(self) -> str | None:
        """Return the name of the version that the learner announced last, None before the first.

        Raises:
            Corrupt: the announcement is not one.
        """
        written = self._control(_ANNOUNCED)
        if written is None:
            return None
        name = written.get("version")
        if not isinstance(name, str) or manifest.version_seq(name) is None:
            raise Corrupt(_ANNOUNCED, expected="the name of a version", found=repr(name))
        return name

    def versions(self) -> list[Version]:
        """Return every version with a whole manifest, newest last; `Checkpointer.acquire` reports the others.

        Raises:
            FormatUnknown: one of them was written by another release.
        """
        return [version for version in self.manifests() if version.kind == CHECKPOINT]

    def manifests(self) -> list[Version]:
        """Return every whole manifest of any kind, newest last.

        Raises:
            FormatUnknown: one of them was written by another release.
        """
        found = []
        for seq in self.seqs():
            with contextlib.suppress(
                Corrupt, FileNotFoundError
            ):  # damaged, or retired since it was listed
                found.append(self.read_manifest(seq))
        return found

    def damaged(self) -> dict[str, str]:
        """Return what is wrong with each manifest that is not whole, by the name of its version."""
        found = {}
        for seq in self.seqs():
            try:
                self.read_manifest(seq)
            except Corrupt as error:
                found[manifest.version_name(seq)] = str(error)
            except FileNotFoundError:  # retired since it was listed
                continue
        return found

    def newest(self) -> Version | None:
        """Return the newest whole manifest of any kind: what a start goes on from. None in a new store.

        Raises:
            FormatUnknown: it was written by another release.
        """
        for seq in reversed(self.seqs()):
            with contextlib.suppress(Corrupt, FileNotFoundError):
                return self.read_manifest(seq)
        return None

    def seqs(self) -> list[int]:
        """Return the numbers of all commit marks, readable or not, in order."""
        try:
            names = self._disk.listdir(self.root / "man")
        except FileNotFoundError:
            return []
        return sorted(seq for name in names if (seq := manifest.mark_seq(name)) is not None)

    def version(self, name: str) -> Version:
        """Return one version by name (``v000012``) or alias (``@champion``).

        Raises:
            VersionMissing: there is none, or the alias names none; names the known ones.
            Corrupt: its manifest is not whole.
            FormatUnknown: it was written by another release.
        """
        seq = manifest.version_seq(
            self.aliases().get(name[1:]) or "" if name.startswith("@") else name
        )
        if seq is None:
            raise self._missing(name)
        try:
            found = self.read_manifest(seq)
        except FileNotFoundError as error:
            raise self._missing(name) from error
        if found.kind != CHECKPOINT:
            raise self._missing(name)
        return found

    def read_manifest(self, seq: int) -> Version:
        """Return manifest number `seq`, of whatever kind.

        Raises:
            FileNotFoundError: there is no such commit mark.
            Corrupt: it is not whole.
            FormatUnknown: it was written by another release.
        """
        mark = manifest.mark_name(seq)
        data = blobs.read_small(self._disk, self.root, mark, max_bytes=manifest.MAX_MANIFEST_BYTES)
        whole, raw = manifest.decode(data, where=mark)
        if whole.seq != seq:
            raise Corrupt(
                mark,
                expected=f"the manifest of {manifest.version_name(seq)}",
                found=f"that of {whole.version}",
            )
        return self.describe(whole, raw)

    def describe(self, whole: manifest.Manifest, raw: dict[str, Any]) -> Version:
        """Return a manifest as the version of this store that it describes; reads nothing."""
        folder = manifest.folder_name(whole.epoch, whole.seq)
        return Version(
            name=whole.version,
            kind=whole.kind,
            seq=whole.seq,
            epoch=whole.epoch,
            created_us=whole.created_us,
            event_time_us=whole.event_time.max if whole.event_time else None,
            step=whole.step,
            num_samples=whole.samples,
            next_offsets={
                (topic, partition): offset
                for topic, parts in whole.offsets.items()
                for partition, offset in parts.items()
            },
            evaluation=whole.evaluation,
            files={path.removeprefix(f"{folder}/"): digest for path, digest in whole.files.items()},
            parent=whole.parent.version if whole.parent else None,
            journal=whole.journal,
            run_state=whole.run_state,
            manifest=raw,
            path=self.root / folder,
        )

    def verify(self, version: Version) -> None:
        """Read every file of a version and compare its digest; then its parent, if that is still here.

        Raises:
            Corrupt: names the first file that is not what the manifest says, with both digests.
        """
        self._verify(version, list(version.files))

    def read(self, version: Version, path: str) -> bytes:
        """Return a file of a version, its digest checked on the very bytes that are returned.

        Raises:
            Corrupt: the file is not what the manifest says, or the manifest does not name it.
        """
        if path not in version.files:
            raise Corrupt(
                f"{version.name}/{path}",
                expected=f"one of {', '.join(sorted(version.files))}",
                found="a path that the manifest does not name",
            )
        return blobs.read_exact(
            self._disk, self.root, self._relative(version, path), version.files[path]
        )

    def load(self, version: Version, *, threads: int = 1) -> Scorer:
        """Return a scorer of this version, after checking the digests of all that it may open (everything outside ``training/``).

        Args:
            version: what to load.
            threads: of the forward pass.

        Raises:
            Corrupt: a file is not what the manifest says; nothing was parsed.
        """
        self._verify(version, [path for path in version.files if not path.startswith(_TRAINING)])
        from learner.scorer import load_scorer

        return load_scorer(version.path, version.name, threads=threads, caches=self._prefix_caches)

    def aliases(self) -> dict[str, str | None]:
        """Return the movable names ``champion``, ``challenger``, ``previous`` and ``pinned``; None where one is not set.

        Raises:
            Corrupt: the file is not what `promote` writes.
        """
        written = self._control(_ALIASES) or {}
        for alias, name in written.items():
            if name is not None and (
                not isinstance(name, str) or manifest.version_seq(name) is None
            ):
                raise Corrupt(
                    _ALIASES, expected=f"{alias}: the name of a version or null", found=repr(name)
                )
        return {**dict.fromkeys(ALIASES), **written}

    def promote(self, version: Version, *, alias: str = "champion", ordered: bool = False) -> None:
        """Let an alias name this version, and ``previous`` the champion before; no change if it does already.

        Atomic and durable: a reader sees all names before or all after. What an operator ordered is ``pinned``, unless it is the version
        that was announced last: then nothing is. While another version is pinned, only an order moves the champion.

        Args:
            version: of this store.
            alias: ``champion`` or ``challenger``.
            ordered: by an operator, not by a gate.

        Raises:
            VersionMissing: the version is gone from the store.
            StoreFailed: the file could not be written; the aliases are as they were.
        """
        self.version(version.name)
        try:
            with self._locked():
                before = self.aliases()
                after = {**before, alias: version.name}
                if alias == "champion":
                    after = self._crowned(before, version.name, ordered=ordered)
                if after != before:
                    blobs.replace(self._disk, self.root / _ALIASES, manifest.canonical(after))
        except OSError as error:
            raise StoreFailed(step="promote", path=self.root / _ALIASES, cause=error) from error

    def _crowned(
        self, before: dict[str, str | None], name: str, *, ordered: bool
    ) -> dict[str, str | None]:
        if not ordered and before["pinned"] not in (None, name):
            return before
        after = (
            dict(before)
            if before["champion"] == name
            else {**before, "champion": name, "previous": before["champion"]}
        )
        if ordered:
            after["pinned"] = None if name == self.announced() else name
        return after

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """One mover of aliases at a time; the system lets go of the lock of a process that dies."""
        fd = os.open(
            self.root / _LOCK,
            os.O_CREAT | os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC,
            blobs.FILE_MODE,
        )
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)

    def fresh_events(self, after: str | None, upto: str) -> list[tuple[int, int]]:
        """Return when the events happened that `upto` contains and `after` does not, over all versions in between.

        The lineage is followed by parents. An ancestor that is gone or damaged ends it, so what that one added is not told.

        Args:
            after: the version that served before; None for all that is known.
            upto: the version that serves now. Older than `after`, as after a rollback: nothing is fresh.

        Returns:
            (event time in microseconds, number of events), oldest first.

        Raises:
            VersionMissing, Corrupt: `upto` cannot be read, or `after` is not the name of a version.
        """
        floor = 0 if after is None else manifest.version_seq(after)
        if floor is None:
            raise self._missing(str(after))
        counts: dict[int, int] = {}
        for version in self.lineage(upto):
            if version.seq <= floor:
                break
            for event_us, count in version.manifest["fresh_events"]:
                counts[event_us] = counts.get(event_us, 0) + count
        return sorted(counts.items())

    def lineage(self, name: str) -> Iterator[Version]:
        """Yield a version, the one that it went on from, and so on; it ends where one is gone or damaged.

        Raises:
            VersionMissing, Corrupt: the first one cannot be read.
        """
        version = self.version(name)
        yield version
        while version.parent is not None:
            try:
                version = self.version(version.parent)
            except (VersionMissing, Corrupt):
                return
            yield version

    def _verify(self, version: Version, paths: list[str]) -> None:
        for path in sorted(paths):
            blobs.check(self._disk, self.root, self._relative(version, path), version.files[path])
        parent = version.manifest["parent"]
        if parent is None:
            return
        try:
            found = self.version(parent["version"]).manifest["self"]
        except (VersionMissing, Corrupt):
            return  # pruned or damaged: the child is complete without it
        if found != parent["self"]:
            raise Corrupt(
                manifest.mark_name(version.seq),
                expected=f"parent {parent['version']} with self {parent['self']}",
                found=f"self {found}",
            )

    def _control(self, relative: str) -> dict[str, Any] | None:
        try:
            data = blobs.read_small(self._disk, self.root, relative, max_bytes=_MAX_CONTROL_BYTES)
        except FileNotFoundError:
            return None
        try:
            written = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise Corrupt(
                relative, expected="a JSON object", found=f"{len(data)} bytes that are not"
            ) from error
        if not isinstance(written, dict):
            raise Corrupt(relative, expected="a JSON object", found=type(written).__name__)
        return written

    def _missing(self, name: str) -> VersionMissing:
        return VersionMissing(
            name, root=self.root, known=[version.name for version in self.versions()]
        )

    def _relative(self, version: Version, path: str) -> str:
        return f"{manifest.folder_name(version.epoch, version.seq)}/{path}"


def announce(disk: Disk, root: Path, name: str) -> None:
    """Say, atomically and durably, that `name` is there to be served (`Checkpointer.announce` is who calls it)."""
    blobs.replace(disk, root / _ANNOUNCED, manifest.canonical({"version": name}))
