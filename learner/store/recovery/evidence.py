"""Evidence: read and verify manifests, and keep what is damaged.

A damaged file is linked to ``quarantine/`` before retention may take its version away.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence
from pathlib import Path

from learner.artifact import Store, Version
from learner.errors import Corrupt
from learner.store import manifest
from learner.store.blobs import Disk
from learner.store.recovery.decision import Manifests
from learner.store.recovery.point import Skipped


def read_manifests(store: Store) -> Manifests:
    """Read every manifest of a store (A2, A3).

    Raises:
        FormatUnknown: one of them was written by another release.
        OSError: one cannot be read for a reason that is no damage.
    """
    seqs = store.seqs()
    readable, damaged = [], []
    for seq in reversed(seqs):
        try:
            readable.append(store.read_manifest(seq))
        except FileNotFoundError:
            continue  # an older owner retired it just now
        except Corrupt as error:
            damaged.append(_skipped(manifest.version_name(seq), error))
    return Manifests(seqs=tuple(seqs), readable=tuple(readable), damaged=tuple(damaged))


def verify(store: Store, chain: Iterable[Version]) -> list[Skipped]:
    """Return the damaged checkpoints above the newest whole one (A4).

    Raises:
        OSError: a file cannot be read for a reason that is no damage.
    """
    damaged = []
    for version in chain:
        if version.kind != manifest.CHECKPOINT:
            continue
        try:
            store.verify(version)
        except Corrupt as error:
            damaged.append(_skipped(version.name, error))
        else:
            break
    return damaged


def keep(root: Path, disk: Disk, skipped: Sequence[Skipped]) -> None:
    """Link damaged files to ``quarantine/``, as far as that works."""
    for each in skipped:
        with contextlib.suppress(OSError):
            kept = root / "quarantine" / each.path.replace("/", "+")
            disk.link(root / each.path, kept)
            disk.fsync_folder(kept.parent)


def _skipped(name: str, error: Corrupt) -> Skipped:
    return Skipped(name=name, reason=str(error), path=error.path)
