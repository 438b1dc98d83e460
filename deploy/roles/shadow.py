"""A store beside the store: one version and the newest, with their journal, as hard links; the learner that runs on it owns it alone."""

from __future__ import annotations

import contextlib
import errno
from pathlib import Path

from deploy.admin import lineage
from deploy.errors import UsageError
from learner.artifact import Store, Version
from learner.errors import StoreFailed
from learner.store import blobs, manifest
from learner.store.blobs import Disk

_FOLDERS = ("epoch", "man", "blobs", "control", "journal", "trash")


def make(store: Store, version: Version, root: Path, disk: Disk) -> None:
    """Make a store at `root` whose newest state is the live one's, so that an order there is carried out as it would be live.

    1. Folders. 2. The owner epoch, above all that wrote what is linked: the shadow's learner is a new owner. 3. Files and journal segments.
    4. Exclusions with their key. 5. Commit marks, last. The live store is only read.

    Raises:
        UsageError: `root` is there and not empty.
        StoreFailed: it could not be made; what is there so far may be deleted.
    """
    if root.exists() and any(root.iterdir()):
        raise UsageError(
            f"--shadow-root: {root} is not empty. Name another, or delete it if it is an earlier shadow."
        )
    newest = next(
        (kept for kept in reversed(store.versions()) if kept.manifest["kind"] == "checkpoint"),
        version,
    )
    chosen = {kept.seq: kept for kept in (version, newest)}.values()
    try:
        for folder in (root, *(root / name for name in _FOLDERS)):  # 1
            with contextlib.suppress(FileExistsError):
                disk.mkdir(folder)
        epoch = max(kept.epoch for kept in chosen)
        blobs.write_new(
            disk, root / "epoch" / f"{epoch:06d}", f"shadow of {store.root}\n".encode()
        )  # 2
        for kept in chosen:  # 3
            for path in (*kept.files, manifest.MANIFEST):
                _share(
                    disk, store.root, root, f"{manifest.folder_name(kept.epoch, kept.seq)}/{path}"
                )
        for path in _names(disk, store.root / "journal", "journal"):
            _share(disk, store.root, root, path)
        for path in (
            "control/exclusions.key",
            *_names(disk, store.root / "control" / "exclusions", "control/exclusions"),
        ):  # 4
            if (store.root / path).is_file():
                _share(disk, store.root, root, path)
        for kept in chosen:  # 5
            _share(disk, store.root, root, manifest.mark_name(kept.seq))
        for folder_path in sorted({path.parent for path in root.rglob("*")}, reverse=True):
            disk.fsync_folder(folder_path)
        disk.fsync_folder(root.parent)
    except OSError as error:
        raise StoreFailed(step="shadow", path=root, cause=error) from error
    assert lineage.newest(Store(root)) is not None, "the shadow has what it was given"


def _share(disk: Disk, live: Path, root: Path, relative: str) -> None:
    """Give a file a second name in the shadow; a copy where the two are on different file systems."""
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


def _names(disk: Disk, folder: Path, relative: str) -> list[str]:
    try:
        return [f"{relative}/{name}" for name in disk.listdir(folder)]
    except FileNotFoundError:
        return []
