"""Files of a version, written durably or shared with an earlier one.

A file of at least 64 KiB that the checkpoint before the last holds with the same digest, such as
the frozen part of an encoder, is not written again: it gets a second name by `link`. So there are
two copies of it on disk however many versions are kept, and what damages one copy damages every
other version (each one's digest tells).
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from learner.artifact import Version
from learner.store import blobs, manifest
from learner.store.blobs import Digest, Disk

_SHARED_BYTES = 64 << 10

Known = dict[str, tuple[bytes, Digest]]
"""Path -> bytes that versions share, and their digest."""


@dataclass(frozen=True, slots=True)
class VersionFiles:
    """The files of one version that is being made.

    Attributes:
        disk: the file system, or a test's.
        folder: of the version; nothing names it yet.
        shared: the version whose large files may be shared.
        known: what earlier versions shared: while it is the same object, it is not hashed again.
    """

    disk: Disk
    folder: Path
    shared: Version | None
    known: Known = field(default_factory=dict)

    def write(self, files: Mapping[str, bytes]) -> dict[str, Digest]:
        """Write or link each file (C4); return the digests.

        Digests are of the bytes that were meant.

        Raises:
            OSError: there is too little room, or the system refused something.
        """
        blobs.remove_tree(self.disk, self.folder)  # a failed attempt's; no manifest names it
        same = {path: digest for path in files if (digest := self._same(path, files[path]))}
        self._check_room(2 * sum(len(data) for path, data in files.items() if path not in same))
        for folder in self._folders(files):
            self.disk.mkdir(folder)
        return {path: self._put(path, files[path], same.get(path)) for path in sorted(files)}

    def fsync_folders(self, files: Iterable[str]) -> None:
        """Make the names durable, from the deepest folder to ``blobs/`` (C5)."""
        for folder in [*reversed(self._folders(files)), self.folder.parent]:
            self.disk.fsync_folder(folder)

    def discard(self) -> None:
        """Remove what was written, as far as that works."""
        with contextlib.suppress(OSError):
            blobs.remove_tree(self.disk, self.folder)

    def _check_room(self, num_bytes: int) -> None:
        root = self.folder.parent.parent
        free = self.disk.free_bytes(root)
        if free < num_bytes:
            reason = f"{free} bytes free, {num_bytes} wanted (twice what is new)"
            raise OSError(errno.ENOSPC, reason, str(root))

    def _folders(self, files: Iterable[str]) -> list[Path]:
        """Return the version's folder and those below it, in order."""
        above = {parent for path in files for parent in (self.folder / path).parents}
        within = {folder for folder in above if folder.is_relative_to(self.folder)}
        return sorted({self.folder, *within})

    def _put(self, path: str, data: bytes, same: Digest | None) -> Digest:
        """Link a file that is the `same` in the shared version, or write it."""
        if self.shared is not None and same is not None:
            with contextlib.suppress(OSError):  # no link to be had: the bytes are here
                self.disk.link(self.shared.path / path, self.folder / path)
                return same
        return blobs.put(self.disk, self.folder / path, data)

    def _same(self, path: str, data: bytes) -> Digest | None:
        """Return the digest of a large file that the shared version has too."""
        if self.shared is None or len(data) < _SHARED_BYTES or path not in self.shared.files:
            return None
        before, meant = self.known.pop(path, (None, None))
        if meant is None or before is not data:
            meant = blobs.digest(data)
        if self.shared.files[path] != meant:
            return None
        self.known[path] = (data, meant)
        return meant


def check_paths(paths: Iterable[str]) -> None:
    """Refuse what is no path inside a version's folder.

    Raises:
        ValueError: names the path.
    """
    for path in paths:
        if path == manifest.MANIFEST:
            raise ValueError(f"checkpoint file {path!r}: the name belongs to the manifest")
        if wrong := manifest.check_path(path):
            raise ValueError(
                f"checkpoint file {path!r}: expected a normalised path inside the version's "
                f"folder, got one that is {wrong}"
            )
