"""Checks of the store: versions can be kept there, and the newest one is whole."""

from __future__ import annotations

import contextlib
import math
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from deploy.doctor.check_result import CheckResult
from learner.artifact import Store, Version
from learner.config import StoreConfig
from learner.errors import StoreError
from learner.store.retention import TRASH_US

STORE = "store"


def newest(store: StoreConfig) -> Version | None:
    """Return the newest readable version, None where there is none."""
    versions = _versions(store)
    return versions[-1] if versions else None


def steady_bytes(versions: Sequence[Version], keep: int) -> int:
    """Return how large the versions of a store become, beside its journal.

    A file that an earlier version has too is there twice; every other file is there once per
    version: kept, retired within the last minute, and being made.

    Args:
        versions: at least one, newest last.
        keep: number of versions that stay.
    """
    newest = versions[-1]
    earlier = {digest for version in versions[:-1] for digest in version.files.values()}
    shared = sum(digest.size for digest in newest.files.values() if digest in earlier)
    own = sum(digest.size for digest in newest.files.values()) - shared
    ages_us = [newest.created_us - version.created_us for version in versions[-2:-1]]
    num_retired = math.ceil(TRASH_US / max(*ages_us, 1_000_000)) if ages_us else 1
    return own * (keep + num_retired + 1) + 2 * shared


def _versions(store: StoreConfig) -> list[Version]:
    with contextlib.suppress(StoreError, OSError):
        return Store(store.root).versions()
    return []


def examine_store(config: StoreConfig) -> Iterator[CheckResult]:
    """Run all checks of the store."""
    root = config.root
    if not root.is_dir():
        yield _missing(root)
        return
    why = unfit(root)
    if why:
        remedy = "set store.root to a folder of yours on a local POSIX file system"
        yield CheckResult.fail(STORE, f"{root}: {why}", remedy)
    else:
        yield CheckResult.ok(STORE, f"{root}: writable, link and fsync work")
    versions = _versions(config)
    yield _space(config, versions)
    if versions:
        yield _whole(config, versions[-1])


def _missing(root: Path) -> CheckResult:
    if root.parent.is_dir() and os.access(root.parent, os.W_OK):
        remedy = f"mkdir {root}, or let the learner do it"
        return CheckResult.warn(STORE, f"{root} is not there yet", remedy)
    text = f"{root} is not there, and cannot be made in {root.parent}"
    remedy = f"sudo install -d -o $(id -un) {root}, or set store.root"
    return CheckResult.fail(STORE, text, remedy)


def unfit(root: Path) -> str | None:
    """Do in a folder what a checkpoint does; return what fails, None if all works."""
    doing = "making a folder"
    try:
        folder = Path(tempfile.mkdtemp(prefix=".doctor-", dir=root))
    except OSError as error:
        return f"{doing} failed: {error.strerror}"
    try:
        doing = "fsync"
        with (folder / "file").open("wb") as stream:
            stream.write(b"steelyard")
            stream.flush()
            os.fsync(stream.fileno())
        doing = "link(2)"
        (folder / "link").hardlink_to(folder / "file")
        doing = "fsync of a folder"
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        return f"{doing} failed: {error.strerror}"
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return None


def _space(config: StoreConfig, versions: Sequence[Version]) -> CheckResult:
    free = shutil.disk_usage(config.root).free
    if not versions:
        return CheckResult.ok(STORE, f"{_size(free)} free; no version yet")
    used = _used_bytes(config.root)
    grows_to = max(steady_bytes(versions, config.keep), used)
    text = (
        f"{_size(free)} free; the store has {_size(used)} and will have about {_size(grows_to)} "
        f"with {config.keep} versions like {versions[-1].name}"
    )
    new = sum(digest.size for digest in versions[-1].files.values())
    if free < grows_to - used + 2 * new:
        return CheckResult.fail(STORE, text, "free some space, or set store.keep to less")
    return CheckResult.ok(STORE, text)


def _used_bytes(root: Path) -> int:
    """Return the bytes on disk below a folder, a file with several names once."""
    sizes: dict[int, int] = {}
    for path in root.rglob("*"):
        with contextlib.suppress(OSError):  # gone since it was listed
            status = path.lstat()
            sizes[status.st_ino] = status.st_size if stat.S_ISREG(status.st_mode) else 0
    return sum(sizes.values())


def _whole(config: StoreConfig, version: Version) -> CheckResult:
    try:
        Store(config.root).verify(version)
    except (StoreError, OSError) as error:
        remedy = (
            "start the learner: it resumes from the newest whole version, and serving keeps its own"
        )
        return CheckResult.fail(STORE, f"{version.name}: {error}", remedy)
    return CheckResult.ok(STORE, f"{version.name}: every file has its digest")


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:.1f} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:.1f} MB"
