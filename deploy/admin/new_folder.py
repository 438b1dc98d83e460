"""A new folder of files that a command writes: all of it, or nothing."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path

from deploy.errors import Unsafe, UsageError, WriteFailed
from learner.store import blobs
from learner.store.blobs import Disk


def check_free(target: Path, store_root: Path) -> None:
    """Refuse a folder that cannot be written, before anything is computed for it.

    Raises:
        Unsafe: it holds something.
        UsageError: it is a file, inside the store, or cannot be made.
    """
    if target.is_relative_to(store_root.resolve()):
        raise UsageError(f"{target} is inside the store {store_root}: name a folder outside of it")
    try:
        _check_holds_nothing(target)
        _try(target)
    except OSError as error:
        reason = error.strerror or str(error)
        raise UsageError(
            f"{target} cannot be made ({reason}): nothing written. Name a new or empty folder that "
            "you may write."
        ) from error


def _check_holds_nothing(target: Path) -> None:
    if not target.exists():
        return
    if not target.is_dir():
        raise UsageError(f"{target} is a file, expected a new or empty folder")
    if next(target.iterdir(), None) is not None:
        raise Unsafe(f"{target} is not empty: nothing written. Name a new or empty folder.")


def _try(target: Path) -> None:
    """Make a folder of the temporary name where the first one would be made; remove it."""
    existing = next(folder for folder in target.parents if folder.exists())
    tried = existing / _temporary(target, Disk().token()).name
    tried.mkdir()
    tried.rmdir()


def _temporary(target: Path, token: str) -> Path:
    return target.with_name(f".{target.name}.{token}.tmp")


def write_folder(target: Path, files: Mapping[str, bytes], disk: Disk) -> None:
    """Write all files into a folder beside the target, durably, then give it the name.

    Raises:
        WriteFailed: it could not be written; nothing is left of it.
    """
    temporary = _temporary(target, disk.token())
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
