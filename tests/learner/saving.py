"""A small checkpoint to save, its owner, and the check that a store is whole."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from learner.artifact import Store, Version
from learner.store.blobs import Disk
from learner.store.checkpoint import Checkpointer
from learner.store.journal.writer import Journal
from learner.store.manifest import CheckpointMetadata, EventTimeRange, canonical
from learner.store.recovery.point import RecoveryPoint
from tests.fakes.disk import FaultyDisk, tree

LONG_AFTER = 4_000_000_000.0


def files(step: int) -> dict[str, bytes]:
    """Files whose every byte depends on the step, so that a mixture of two checkpoints shows."""
    return {
        "config.json": json.dumps({"step": step}).encode(),
        "model.safetensors": bytes([step % 256]) * 5000,
        "training/rng.safetensors": bytes([step % 256, 1]) * 700,
        "training/part-clicks-0.msgpack": b"",
    }


def cut(step: int, **changes: Any) -> CheckpointMetadata:
    fields: dict[str, Any] = {
        "step": step,
        "samples": step * 32,
        "offsets": {"clicks": {0: step * 10, 1: step * 11}, "exposures": {0: step * 100}},
        "event_time": EventTimeRange(
            min=1_700_000_000_000_000, max=1_700_000_000_000_000 + step * 1_000_000
        ),
        "watermark_us": 1_700_000_000_000_000,
        "weighting": {"scheme": "ratio", "exponent": 1.0, "clip": [0.05, 20.0]},
        "evaluation": {"click_log_loss": 0.25},
        "fresh_events": ((1_700_000_000_000_000 + step * 1_000_000, step),),
        "config_sha256": "0" * 64,
        "fingerprint": {"torch": "2.13.0", "threads": 1},
    }
    return CheckpointMetadata(**{**fields, **changes})


def start(checkpointer: Checkpointer, root: Path, disk: Disk, **options: Any) -> RecoveryPoint:
    """Acquire the store, with a journal that nothing is written to."""
    journal = Journal(root, disk)
    try:
        return checkpointer.acquire(journal, **{"initial": cut(0), **options})
    finally:
        journal.close()


def resumed(point: RecoveryPoint) -> Version:
    """Return the version whose state a start takes, where there is one."""
    assert point.version is not None
    return point.version


def owner(
    root: Path, disk: Disk | None = None, *, now: float = 1_700_000_100.0, **options: Any
) -> Checkpointer:
    """An owner that has acquired the store."""
    disk = disk or FaultyDisk()
    checkpointer = Checkpointer(root, disk, lambda: now)
    start(checkpointer, root, disk, **options)
    return checkpointer


def saved(root: Path, *steps: int) -> list[Version]:
    """A store with a checkpoint for each step, all announced."""
    checkpointer = owner(root)
    versions = []
    for step in steps:
        versions.append(checkpointer.save(files(step), cut(step)))
        checkpointer.announce(versions[-1])
    return versions


def names(root: Path) -> list[str]:
    return [version.name for version in Store(root).versions()]


def assert_whole(root: Path, version: Version) -> None:
    """Every file of the version is the one that belongs to its step."""
    store = Store(root)
    store.verify(version)
    assert {path: store.read(version, path) for path in version.files} == files(version.step)


def recover(root: Path) -> Version | None:
    """Start as the next owner after a crash, check that nothing is half done, and save again."""
    disk = FaultyDisk()
    next_owner = Checkpointer(root, disk, lambda: LONG_AFTER)
    found = start(next_owner, root, disk)
    assert found.skipped == (), found.skipped
    store = Store(root)
    if found.version is not None:
        assert_whole(root, found.version)
        next_owner.announce(found.version)
    next_owner.sweep()
    after = next_owner.save(files(99), cut(99))
    next_owner.announce(after)
    assert_whole(root, after)
    assert store.announced() == after.name
    before = found.version
    parent = before and {"version": before.name, "self": before.manifest["self"]}
    assert after.manifest["parent"] == parent
    folders = {path.name for path in (root / "blobs").iterdir()}
    assert folders == {version.path.name for version in store.versions()}
    assert not [path for path in tree(root) if path.endswith(".tmp")]
    return found.version


def rewrite(root: Path, version: Version, **changes: Any) -> None:
    """Forge a manifest whose `self` holds, as someone who can write to the store would."""
    raw = {key: value for key, value in {**version.manifest, **changes}.items() if key != "self"}
    forged = canonical({**raw, "self": hashlib.sha256(canonical(raw)).hexdigest()})
    mark = root / "man" / f"M-{version.seq:08d}"
    mark.unlink()
    mark.write_bytes(forged)


class Boastful(Disk):
    """Believes that there is room, so that the real ENOSPC comes from a write."""

    def free_bytes(self, path: Path) -> int:
        return 1 << 40
