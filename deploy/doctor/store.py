"""Checks of the store: versions can be kept there, and the newest one is whole."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from deploy.doctor.check_result import CheckResult
from learner.artifact import Store, Version
from learner.config import StoreConfig
from learner.errors import StoreError

STORE = "store"


def newest(store: StoreConfig) -> Version | None:
    """Return the newest readable version, None where there is none."""
    with contextlib.suppress(StoreError, OSError):
        versions = Store(store.root).versions()
        return versions[-1] if versions else None
    return None


def examine_store(config: StoreConfig) -> Iterator[CheckResult]:
    """Run all checks of the store."""
    root = config.root
    if not root.is_dir():
        yield _missing(root)
        return
    why = _unfit(root)
    if why:
        remedy = "set store.root to a folder of yours on a local POSIX file system"
        yield CheckResult.fail(STORE, f"{root}: {why}", remedy)
    else:
        yield CheckResult.ok(STORE, f"{root}: writable, link and fsync work")
    version = newest(config)
    yield _space(config, version)
    if version is not None:
        yield _whole(config, version)


def _missing(root: Path) -> CheckResult:
    if root.parent.is_dir() and os.access(root.parent, os.W_OK):
        remedy = f"mkdir {root}, or let the learner do it"
        return CheckResult.warn(STORE, f"{root} is not there yet", remedy)
    text = f"{root} is not there, and cannot be made in {root.parent}"
    remedy = f"sudo install -d -o $(id -un) {root}, or set store.root"
    return CheckResult.fail(STORE, text, remedy)


def _unfit(root: Path) -> str | None:
    """Do there what a checkpoint does; return what fails."""
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


def _space(config: StoreConfig, version: Version | None) -> CheckResult:
    free = shutil.disk_usage(config.root).free
    if version is None:
        return CheckResult.ok(STORE, f"{_size(free)} free; no version yet")
    needed = 2 * config.keep * sum(digest.size for digest in version.files.values())
    text = (
        f"{_size(free)} free, {_size(needed)} are needed for twice {config.keep} versions like "
        f"{version.name}"
    )
    if free < needed:
        return CheckResult.fail(STORE, text, "free some space, or set store.keep to less")
    return CheckResult.ok(STORE, text)


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
