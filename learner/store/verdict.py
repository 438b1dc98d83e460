"""Verdict: result of the last verification, in the store for monitoring."""

from __future__ import annotations

from pathlib import Path

import msgspec

from learner.errors import Corrupt
from learner.store import blobs
from learner.store.blobs import Disk
from learner.store.manifest import canonical

FILE = "control/verified.json"
_MAX_BYTES = 64 << 10


class Verdict(
    msgspec.Struct,
    frozen=True,
    kw_only=True,
    rename={"num_differences": "differences", "at_us": "at", "equal_us": "last_equal"},
):
    """A verification that decided something.

    Attributes:
        version: that was verified.
        since: the version that it was counted from.
        num_differences: 0: equal.
        at_us: microseconds since the Unix epoch.
        equal_us: the last one that found no difference; 0: none yet.
    """

    version: str
    since: str | None
    num_differences: int
    at_us: int
    equal_us: int


def read(root: Path, disk: Disk) -> Verdict | None:
    """Return the last verdict of a store; None if it cannot be read."""
    try:
        data = blobs.read_small(disk, root, FILE, max_bytes=_MAX_BYTES)
        return msgspec.json.decode(data, type=Verdict)
    except (OSError, Corrupt, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def write(
    root: Path, disk: Disk, *, version: str, since: str | None, num_differences: int, now_us: int
) -> None:
    """Replace the verdict, durably; keep the time of the last equal one.

    Raises:
        OSError: the store cannot be written to; the verdict before stands.
    """
    equal_us = now_us
    if num_differences:
        before = read(root, disk)
        equal_us = before.equal_us if before else 0
    verdict = Verdict(
        version=version,
        since=since,
        num_differences=num_differences,
        at_us=now_us,
        equal_us=equal_us,
    )
    blobs.replace(disk, root / FILE, canonical(msgspec.to_builtins(verdict)))
