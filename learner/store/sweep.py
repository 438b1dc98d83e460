"""Sweeping: remove what crashes left behind (R6)."""

from __future__ import annotations

import errno
from pathlib import Path

from learner.artifact import Store
from learner.store import blobs
from learner.store.blobs import Disk
from learner.store.ownership import Ownership

_MAX_CLAIMS = 100
_LEFTOVER_US = 3600 * 1_000_000
_AT_WORK = (errno.ENOENT, errno.ENOTEMPTY)


def sweep(store: Store, disk: Disk, ownership: Ownership, now_us: int) -> list[str]:
    """Remove unnamed folders of older owners, temporary files and old claims.

    Temporary files go when they are an hour old, claims but for the newest 100. A folder whose
    number has a damaged commit mark stays, as evidence.

    Returns:
        The names of the folders that were removed, below the root.

    Raises:
        Fenced: there is a newer owner.
        OSError: something could not be removed; the next sweep tries again.
    """
    ownership.refuse_if_fenced()
    swept = [name for name in _unnamed(store, disk, ownership.token) if _remove(store, disk, name)]
    for folder in (store.root / "control", store.root / "man"):
        _remove_temporary(disk, folder, now_us)
    claims = [name for name in disk.listdir(store.root / "epoch") if name.isdecimal()]
    for name in sorted(claims, key=int)[:-_MAX_CLAIMS]:
        disk.unlink(store.root / "epoch" / name)
    return swept


def _unnamed(store: Store, disk: Disk, token: int) -> list[str]:
    """Return the folders of owners before `token` that no manifest names."""
    manifests = store.manifests()
    named = {found.path.name for found in manifests}
    damaged = set(store.seqs()) - {found.seq for found in manifests}
    unnamed = []
    for name in disk.listdir(store.root / "blobs"):
        epoch, _, seq = name.partition("-")
        is_older = epoch.isdecimal() and seq.isdecimal() and int(epoch) < token
        if is_older and name not in named and int(seq) not in damaged:
            unnamed.append(f"blobs/{name}")
    return unnamed


def _remove(store: Store, disk: Disk, folder: str) -> bool:
    """Remove a folder; False if its owner is at work in it."""
    try:
        blobs.remove_tree(disk, store.root / folder)
    except OSError as error:
        if error.errno not in _AT_WORK:
            raise
        return False
    return True


def _remove_temporary(disk: Disk, folder: Path, now_us: int) -> None:
    for name in disk.listdir(folder):
        path = folder / name
        if name.endswith(".tmp") and now_us - disk.modified_us(path) >= _LEFTOVER_US:
            disk.unlink(path)
