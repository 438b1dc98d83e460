"""A shadow store: one version and the newest, with their journal, as hard links.

The learner that runs on it is its only owner; the live store is only read.
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterable, Iterator
from pathlib import Path

from deploy.errors import UsageError
from learner.artifact import Store, Version
from learner.errors import StoreFailed
from learner.store import blobs, manifest
from learner.store.blobs import Disk

_FOLDERS = ("epoch", "man", "blobs", "control", "journal", "trash")


def make(store: Store, version: Version, root: Path, disk: Disk) -> None:
    """Make a store at `root` on which a command is carried out as it would be on the live one.

    1. Folders. 2. The fencing token, above those of all linked versions: the shadow's learner is a
    new owner. 3. Files and journal segments. 4. Exclusions with their key. 5. Commit marks, last.

    Raises:
        UsageError: `root` is there and not empty.
        StoreFailed: it could not be made; what is there so far may be deleted.
    """
    if root.exists() and any(root.iterdir()):
        raise UsageError(
            f"--shadow-root: {root} is not empty. Name another, or delete it if it is an earlier "
            "shadow."
        )
    checkpoints = [kept for kept in store.versions() if kept.manifest["kind"] == "checkpoint"]
    newest = checkpoints[-1] if checkpoints else version
    chosen = {kept.seq: kept for kept in (version, newest)}.values()
    try:
        for folder in (root, *(root / name for name in _FOLDERS)):  # 1
            with contextlib.suppress(FileExistsError):
                disk.mkdir(folder)
        epoch = root / "epoch" / f"{max(kept.epoch for kept in chosen):06d}"
        blobs.write_new(disk, epoch, f"shadow of {store.root}\n".encode())  # 2
        for path in _files(chosen, store.root, disk):  # 3, 4
            _share(disk, store.root, root, path)
        for kept in chosen:  # 5
            _share(disk, store.root, root, manifest.mark_name(kept.seq))
        for folder_path in sorted({path.parent for path in root.rglob("*")}, reverse=True):
            disk.fsync_folder(folder_path)
        disk.fsync_folder(root.parent)
    except OSError as error:
        raise StoreFailed(step="shadow", path=root, cause=error) from error
    assert Store(root).newest() is not None, "the linked versions can be read"


def _files(versions: Iterable[Version], live: Path, disk: Disk) -> Iterator[str]:
    """Yield what a shadow shares: files of versions, journal segments, exclusions."""
    for version in versions:
        folder = manifest.folder_name(version.epoch, version.seq)
        yield from (f"{folder}/{path}" for path in (*version.files, manifest.MANIFEST))
    yield from _names(disk, live, "journal")
    exclusions = ("control/exclusions.key", *_names(disk, live, "control/exclusions"))
    yield from (path for path in exclusions if (live / path).is_file())


def _share(disk: Disk, live: Path, root: Path, relative: str) -> None:
    """Link a file into the shadow; copy it where the two are on different file systems."""
    target = root / relative
    missing = [
        folder for folder in target.parents if folder.is_relative_to(root) and not folder.exists()
    ]
    for folder in reversed(missing):
        disk.mkdir(folder)
    try:
        disk.link(live / relative, target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        blobs.write_new(disk, target, (live / relative).read_bytes())


def _names(disk: Disk, live: Path, folder: str) -> list[str]:
    try:
        return [f"{folder}/{name}" for name in disk.listdir(live / folder)]
    except FileNotFoundError:
        return []
