"""Movable names of versions (champion, challenger, previous, pinned), and the announced version.

Files ``control/aliases.json`` and ``control/announced.json``: replaced as a whole, so that a reader
sees all names before a change or all after it.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from learner.errors import Corrupt, StoreFailed
from learner.store import blobs, manifest
from learner.store.blobs import Disk

ALIASES = ("pinned", "champion", "challenger", "previous")
_ANNOUNCED = "control/announced.json"
_ALIASES = "control/aliases.json"
_LOCK = "control/aliases.lock"
_MAX_CONTROL_BYTES = 64 << 10


def announced(root: Path, disk: Disk) -> str | None:
    """Return the name of the version announced last, None before the first.

    Raises:
        Corrupt: the announcement is not one.
    """
    written = _read_object(root, disk, _ANNOUNCED)
    if written is None:
        return None
    name = written.get("version")
    if not isinstance(name, str) or manifest.version_seq(name) is None:
        raise Corrupt(_ANNOUNCED, expected="the name of a version", found=repr(name))
    return name


def announce(disk: Disk, root: Path, name: str) -> None:
    """Offer a version to serving, atomically and durably; for `Checkpointer.announce`."""
    blobs.replace(disk, root / _ANNOUNCED, manifest.canonical({"version": name}))


def read(root: Path, disk: Disk) -> dict[str, str | None]:
    """Return alias -> version name, None where it is not set.

    Raises:
        Corrupt: the file is not what `move` writes.
    """
    written = _read_object(root, disk, _ALIASES) or {}
    for alias, name in written.items():
        if name is None or (isinstance(name, str) and manifest.version_seq(name) is not None):
            continue
        expected = f"{alias}: the name of a version or null"
        raise Corrupt(_ALIASES, expected=expected, found=repr(name))
    return {**dict.fromkeys(ALIASES), **written}


def move(root: Path, disk: Disk, name: str, *, alias: str, by_operator: bool) -> None:
    """Let `alias` name a version; see `Store.promote`.

    Raises:
        Corrupt: the file is not what this function writes.
        StoreFailed: the file could not be written; the aliases are as they were.
    """
    try:
        with _locked(root):
            before = read(root, disk)
            after = {**before, alias: name}
            if alias == "champion":
                newest = announced(root, disk) if by_operator else None
                after = _with_champion(before, name, by_operator=by_operator, announced=newest)
            if after != before:
                blobs.replace(disk, root / _ALIASES, manifest.canonical(after))
    except OSError as error:
        raise StoreFailed(step="promote", path=root / _ALIASES, cause=error) from error


def _with_champion(
    before: dict[str, str | None], name: str, *, by_operator: bool, announced: str | None
) -> dict[str, str | None]:
    """Move the champion; a gate does not move it away from a pinned version."""
    if not by_operator and before["pinned"] not in (None, name):
        return before
    after = dict(before)
    if before["champion"] != name:
        after |= {"champion": name, "previous": before["champion"]}
    if by_operator:
        after["pinned"] = None if name == announced else name
    return after


@contextlib.contextmanager
def _locked(root: Path) -> Iterator[None]:
    """Hold the file lock; the system releases that of a process that dies."""
    flags = os.O_CREAT | os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(root / _LOCK, flags, blobs.FILE_MODE)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def _read_object(root: Path, disk: Disk, relative: str) -> dict[str, Any] | None:
    try:
        data = blobs.read_small(disk, root, relative, max_bytes=_MAX_CONTROL_BYTES)
    except FileNotFoundError:
        return None
    try:
        written = json.loads(data)
    except (ValueError, RecursionError) as error:
        found = f"{len(data)} bytes that are not"
        raise Corrupt(relative, expected="a JSON object", found=found) from error
    if not isinstance(written, dict):
        raise Corrupt(relative, expected="a JSON object", found=type(written).__name__)
    return written
