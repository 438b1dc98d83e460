"""Refusals of versions by servers, in the store, so that another server does not overrule them.

One small file for each refused version: servers write without a lock, and none undoes another's.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Annotated

import msgspec

from learner.errors import Corrupt, StoreFailed
from learner.store import blobs
from learner.store.blobs import Disk
from learner.store.manifest import canonical, version_name, version_seq

FOLDER = "control/refused"
NUM_KEPT = 100
_MAX_BYTES = 64 << 10
_LAST_US = 253_402_300_799_999_999
"""End of the year 9999: what is later is no date."""


class Refusal(msgspec.Struct, frozen=True, kw_only=True, rename={"at_us": "at"}):
    """A version that a server judged unfit.

    Attributes:
        version: its name.
        reason: the check that it failed, and how.
        server: host and port of the server that refused it.
        at_us: microseconds since the Unix epoch.
    """

    version: str
    reason: str
    server: str
    at_us: Annotated[int, msgspec.Meta(ge=0, le=_LAST_US)]


def read(root: Path, disk: Disk, version: str) -> Refusal | None:
    """Return the refusal of a version; None if there is none, or it is damaged.

    Raises:
        OSError: whether there is one cannot be told, as without permission or descriptors.
    """
    try:
        data = blobs.read_small(disk, root, f"{FOLDER}/{version}.json", max_bytes=_MAX_BYTES)
        return msgspec.json.decode(data, type=Refusal)
    except (
        FileNotFoundError,
        Corrupt,
        msgspec.DecodeError,
        UnicodeDecodeError,
        RecursionError,
    ):
        return None


def write(root: Path, disk: Disk, refusal: Refusal) -> None:
    """Record a refusal, durably, and forget those of the oldest versions beyond a hundred.

    Raises:
        StoreFailed: the store cannot be written to, as where it is mounted for reading only.
    """
    folder = root / FOLDER
    path = folder / f"{refusal.version}.json"
    try:
        with contextlib.suppress(FileExistsError):
            disk.mkdir(folder)
        blobs.replace(disk, path, canonical(msgspec.to_builtins(refusal)))
        seqs = [version_seq(name.removesuffix(".json")) for name in disk.listdir(folder)]
        for seq in sorted(filter(None, seqs))[:-NUM_KEPT]:
            with contextlib.suppress(FileNotFoundError):
                disk.unlink(folder / f"{version_name(seq)}.json")
    except OSError as error:
        raise StoreFailed(step="refuse", path=path, cause=error) from error


def withdraw(root: Path, disk: Disk, version: str) -> None:
    """Remove the refusal of a version, if there is one.

    Raises:
        StoreFailed: the store cannot be written to; the refusal stands.
    """
    path = root / FOLDER / f"{version}.json"
    try:
        with contextlib.suppress(FileNotFoundError):
            disk.unlink(path)
            disk.fsync_folder(path.parent)
    except OSError as error:
        raise StoreFailed(step="withdraw", path=path, cause=error) from error
