"""Files of a version, written durably or shared with the one before.

A file of at least 1 MiB that the checkpoint before holds with the same digest, such as a frozen
encoder, is not written again: it gets a second name by `link`. What damages such a file damages
every version that shares it (each one's digest tells), so at most four do: of the five versions
that are always kept, two are independent.
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from learner.artifact import Version
from learner.store import blobs, manifest
from learner.store.blobs import Digest, Disk

MAX_SHARED = 4
_SHARED_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class VersionFiles:
    """The files of one version that is being made.

    Attributes:
        disk: the file system, or a test's.
        folder: of the version; nothing names it yet.
        parent: the checkpoint before, whose large files may be shared.
    """

    disk: Disk
    folder: Path
    parent: Version | None

    def write(self, files: Mapping[str, bytes]) -> dict[str, Digest]:
        """Write or link each file (C4); return the digests.

        Digests are of the bytes that were meant.

        Raises:
            OSError: there is too little room, or the system refused something.
        """
        self._check_room(2 * sum(map(len, files.values())))
        blobs.remove_tree(self.disk, self.folder)  # a failed attempt's; no manifest names it
        for folder in self._folders(files):
            self.disk.mkdir(folder)
        return {path: self._put(path, files[path]) for path in sorted(files)}

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
            reason = f"{free} bytes free, {num_bytes} wanted (twice the checkpoint)"
            raise OSError(errno.ENOSPC, reason, str(root))

    def _folders(self, files: Iterable[str]) -> list[Path]:
        """Return the version's folder and those below it, in order."""
        above = {parent for path in files for parent in (self.folder / path).parents}
        within = {folder for folder in above if folder.is_relative_to(self.folder)}
        return sorted({self.folder, *within})

    def _put(self, path: str, data: bytes) -> Digest:
        if shared := self._share(path, data):
            return shared
        return blobs.put(self.disk, self.folder / path, data)

    def _share(self, path: str, data: bytes) -> Digest | None:
        """Link a large file of the parent; None where it must be written."""
        if self.parent is None or len(data) < _SHARED_BYTES or path not in self.parent.files:
            return None
        same = self.parent.path / path
        meant = blobs.digest(data)
        try:
            if self.parent.files[path] != meant or self.disk.num_links(same) >= MAX_SHARED:
                return None
            self.disk.link(same, self.folder / path)
        except OSError:
            return None  # no link to be had: the bytes are here
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
