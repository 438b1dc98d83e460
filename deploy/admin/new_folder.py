"""A new folder of files that a command writes: all of it, or nothing."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path

from deploy.errors import Unsafe, UsageError, WriteFailed
from learner.store import blobs
from learner.store.blobs import Disk


def check_free(target: Path, store_root: Path) -> None:
    """Refuse a folder that cannot be written.

    Raises:
        Unsafe: it holds something.
        UsageError: it is a file, or inside the store.
    """
    if target.is_relative_to(store_root.resolve()):
        raise UsageError(f"{target} is inside the store {store_root}: name a folder outside of it")
    if not target.exists():
        return
    if not target.is_dir():
        raise UsageError(f"{target} is a file, expected a new or empty folder")
    if next(target.iterdir(), None) is not None:
        raise Unsafe(f"{target} is not empty: nothing written. Name a new or empty folder.")


def write_folder(target: Path, files: Mapping[str, bytes], disk: Disk) -> None:
    """Write all files into a folder beside the target, durably, then give it the name.

    Raises:
        WriteFailed: it could not be written; nothing is left of it.
    """
    temporary = target.with_name(f".{target.name}.{disk.token()}.tmp")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        disk.mkdir(temporary)
        for path, data in files.items():
            file = temporary / path
            if not file.parent.exists():
                disk.mkdir(file.parent)
            blobs.write_new(disk, file, data)
        for written in {(temporary / path).parent for path in files} | {temporary}:
            disk.fsync_folder(written)
        disk.rename(temporary, target)  # over an empty folder; one that was filled is an error
        disk.fsync_folder(target.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            blobs.remove_tree(disk, temporary)
        raise WriteFailed(target, error) from error
