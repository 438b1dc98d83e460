"""Versions that serving may load: find, verify, read, load, promote.

A version counts only if its commit mark is in ``man/``, its manifest is whole, its parent is the
one that it names, and every file has its digest. Importing this module loads neither torch nor a
model; `Store.load` does.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from learner import version_layout as layout
from learner.errors import Corrupt, FormatUnknown, StoreFailed, VersionMissing
from learner.request import (
    ENCODER,
    Document,
    Inspectable,
    Scorer,
    Scores,
    ScoringInput,
    Warmable,
)
from learner.store import aliases, blobs, manifest, manifest_codec, refusals
from learner.store.blobs import Digest, Disk
from learner.store.journal.records import JournalRange
from learner.store.manifest import CHECKPOINT, TRAINING, ResumePoint, RunState
from learner.store.refusals import Refusal
from weighting.provenance import Offsets
from weighting.sample import client_hash

__all__ = [
    "ENCODER",
    "Corrupt",
    "Document",
    "FormatUnknown",
    "Inspectable",
    "Refusal",
    "Scorer",
    "Scores",
    "ScoringInput",
    "Store",
    "StoreFailed",
    "Version",
    "VersionMissing",
    "Warmable",
    "client_hash",
]

#: So many kinds of versions share what training never moves, beside those in use.
_NUM_FIXED = 2


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Version:
    """One durable manifest; `Store.verify` checks its files.

    Only a checkpoint is a version that can be loaded. The other kinds (`learner.store.manifest`)
    come out of `Store.newest` and `Store.manifests` alone, and have no files.

    Attributes:
        name: ``v000123``.
        seq: the number in it.
        epoch: fencing token of the owner that made it.
        created_us: wall clock.
        event_time_us: newest sample that it contains; None before the first.
        step: optimizer updates.
        num_samples: number of samples stepped on.
        next_offsets: first offsets that it does not contain.
        evaluation: prequential, by name.
        files: path inside the folder -> digest.
        manifest: as it is written.
        path: its folder.
        kind: checkpoint, fence, restore or reset.
        parent: the version that it was resumed from.
        journal: its position in the journal, where a start resumes.
        run_state: what is handed from one manifest to the next.
    """

    name: str
    seq: int
    epoch: int
    created_us: int
    event_time_us: int | None
    step: int
    num_samples: int
    next_offsets: Offsets
    evaluation: dict[str, float]
    files: dict[str, Digest]
    manifest: dict[str, Any]
    path: Path
    kind: str = CHECKPOINT
    parent: str | None = None
    journal: ResumePoint | None = None
    run_state: RunState = field(default_factory=RunState)

    @property
    def timeline(self) -> tuple[JournalRange, ...]:
        """Valid parts of the journal, from the oldest version kept when this was made."""
        return self.run_state.timeline


class Store:
    """A directory of versions, read by anyone; aliases and refusals alone are written through it.

    Damage is `Corrupt`; other trouble (no permission, too many open files) stays an OSError.
    """

    def __init__(
        self,
        root: Path,
        *,
        disk: Disk | None = None,
        device: str = "cpu",
        precision: str = "learned",
        engine: str = "torch",
    ) -> None:
        """Keep the arguments.

        Args:
            root: need not exist before a learner has made it.
            disk: as it is by default.
            device: of torch, for the versions that are loaded.
            precision: of their encoders' products, as in `serving.precision`.
            engine: that runs them, as in `serving.engine`.
        """
        self.root = root
        self._device = device
        self._precision, self._engine = precision, engine
        self._disk = disk or Disk()
        # What training never moves, by the digests of its files: of the versions loaded last
        self._fixed: dict[tuple[tuple[str, Digest], ...], Any] = {}

    def announced(self) -> str | None:
        """Return the name of the version announced last, None before the first.

        Raises:
            Corrupt: the announcement is not one.
        """
        return aliases.announced(self.root, self._disk)

    def versions(self) -> list[Version]:
        """Return every version with a whole manifest, newest last.

        Raises:
            FormatUnknown: one of them was written by another release.
        """
        return [version for version in self.manifests() if version.kind == CHECKPOINT]

    def readable(self) -> list[Version]:
        """Return every version that this release can read, newest last."""
        found = []
        for seq in self.seqs():
            with contextlib.suppress(Corrupt, FormatUnknown, FileNotFoundError):
                found.append(self.read_manifest(seq))
        return [version for version in found if version.kind == CHECKPOINT]

    def manifests(self) -> list[Version]:
        """Return every whole manifest of any kind, newest last.

        Raises:
            FormatUnknown: one of them was written by another release.
        """
        found = []
        for seq in self.seqs():
            # Damaged, or retired since it was listed
            with contextlib.suppress(Corrupt, FileNotFoundError):
                found.append(self.read_manifest(seq))
        return found

    def damaged(self) -> dict[str, str]:
        """Return version name -> problem of each manifest that is not whole."""
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
        """Return the newest whole manifest of any kind, None in a new store.

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
        target = self.aliases().get(name[1:]) or "" if name.startswith("@") else name
        seq = manifest.version_seq(target)
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
        whole, raw = manifest_codec.decode(data, where=mark)
        if whole.seq != seq:
            expected = f"the manifest of {manifest.version_name(seq)}"
            raise Corrupt(mark, expected=expected, found=f"that of {whole.version}")
        return self.describe(whole, raw)

    def describe(self, whole: manifest.Manifest, raw: dict[str, Any]) -> Version:
        """Return the version that a manifest of this store describes; reads nothing."""
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
            next_offsets=whole.next_offsets,
            evaluation=whole.evaluation,
            files={path.removeprefix(f"{folder}/"): digest for path, digest in whole.files.items()},
            parent=whole.parent.version if whole.parent else None,
            journal=whole.journal,
            run_state=whole.run_state,
            manifest=raw,
            path=self.root / folder,
        )

    def verify(self, version: Version) -> None:
        """Check every file's digest, and the parent if it is still here.

        Raises:
            Corrupt: names the first file that is not what the manifest says, with both digests.
        """
        self._verify(version, version.files)

    def read(self, version: Version, path: str) -> bytes:
        """Return a file of a version; its digest is checked on the bytes returned.

        Raises:
            Corrupt: the file is not what the manifest says, or the manifest does not name it.
        """
        if path not in version.files:
            expected = f"one of {', '.join(sorted(version.files))}"
            found = "a path that the manifest does not name"
            raise Corrupt(f"{version.name}/{path}", expected=expected, found=found)
        relative = self._relative(version, path)
        return blobs.read_exact(self._disk, self.root, relative, version.files[path])

    def load(self, version: Version, *, threads: int = 1) -> Scorer:
        """Return a scorer of this version.

        The digest of every file that it may open, those outside ``training/``, is checked first.
        What training never moves is shared with the versions loaded before, if its digests are the
        same; it is not opened again.

        Args:
            version: what to load.
            threads: of the forward pass.

        Raises:
            Corrupt: a file is not what the manifest says; nothing was parsed.
            DeviceMissing: the store's device cannot be used here.
            ModelUnsupported: the version cannot be served in the store's precision, by its engine.
        """
        fixed_files = layout.fixed_files(version.files)
        key = tuple(sorted(fixed_files.items()))
        fixed = self._fixed.get(key)
        known = fixed_files.keys() - {layout.HEADS_SETTINGS} if fixed else set()
        paths = [path for path in version.files if not path.startswith(TRAINING)]
        self._verify(version, [path for path in paths if path not in known])
        from learner.scorer import load_scorer

        scorer = load_scorer(
            version.path,
            version.name,
            threads=threads,
            device=self._device,
            precision=self._precision,
            engine=self._engine,
            fixed=fixed,
        )
        self._fixed.pop(key, None)
        self._fixed[key] = scorer.fixed_parts
        while len(self._fixed) > _NUM_FIXED:
            del self._fixed[next(iter(self._fixed))]
        return scorer

    def aliases(self) -> dict[str, str | None]:
        """Return champion, challenger, previous and pinned; None where one is not set.

        Raises:
            Corrupt: the file is not what `promote` writes.
        """
        return aliases.read(self.root, self._disk)

    def promote(
        self, version: Version, *, alias: str = "champion", by_operator: bool = False
    ) -> None:
        """Let an alias name this version, and ``previous`` the champion before.

        Atomic and durable: a reader sees all names before or all after; repeating it changes
        nothing. What an operator promotes is ``pinned``, unless it is the version that was
        announced last: then nothing is. While another version is pinned, only an operator moves
        the champion. A refusal of the version that an operator makes champion is withdrawn before.

        Args:
            version: of this store.
            alias: ``champion`` or ``challenger``.
            by_operator: not by a gate.

        Raises:
            VersionMissing: the version is gone from the store.
            StoreFailed: the file could not be written; the aliases are as they were.
        """
        self.version(version.name)
        if by_operator and alias == "champion":
            self.withdraw_refusal(version.name)
        aliases.move(self.root, self._disk, version.name, alias=alias, by_operator=by_operator)

    def refusal(self, name: str) -> Refusal | None:
        """Return what a server has on record against a version; None if nothing, or damaged.

        Raises:
            OSError: the record may not be read.
        """
        return refusals.read(self.root, self._disk, name)

    def refuse(self, refusal: Refusal) -> None:
        """Put a refusal on record, for other servers.

        Raises:
            StoreFailed: the store cannot be written to.
        """
        refusals.write(self.root, self._disk, refusal)

    def withdraw_refusal(self, name: str) -> None:
        """Take the refusal of a version off the record.

        Raises:
            StoreFailed: the store cannot be written to; the refusal stands.
        """
        refusals.withdraw(self.root, self._disk, name)

    def fresh_events(self, after: str | None, upto: str) -> list[tuple[int, int]]:
        """Return the event times that `upto` contains and `after` does not, over the lineage.

        A parent that is gone or damaged ends the lineage: what older ones added is left out.

        Args:
            after: the version that served before; None for all that is known.
            upto: the version that serves now. Nothing is fresh after a rollback.

        Returns:
            (event time in microseconds, number of events), oldest first.

        Raises:
            VersionMissing, Corrupt: `upto` cannot be read, or `after` is no name of a version.
        """
        floor = 0 if after is None else manifest.version_seq(after)
        if floor is None:
            raise self._missing(str(after))
        counts: Counter[int] = Counter()
        for version in self.lineage(upto):
            if version.seq <= floor:
                break
            for event_us, count in version.manifest["fresh_events"]:
                counts[event_us] += count
        return sorted(counts.items())

    def lineage(self, name: str) -> Iterator[Version]:
        """Yield a version, its parent and so on, until one is gone or damaged.

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

    def _verify(self, version: Version, paths: Iterable[str]) -> None:
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
            expected = f"parent {parent['version']} with self {parent['self']}"
            mark = manifest.mark_name(version.seq)
            raise Corrupt(mark, expected=expected, found=f"self {found}")

    def _missing(self, name: str) -> VersionMissing:
        known = [version.name for version in self.readable()]
        return VersionMissing(name, root=self.root, known=known)

    def _relative(self, version: Version, path: str) -> str:
        return f"{manifest.folder_name(version.epoch, version.seq)}/{path}"
