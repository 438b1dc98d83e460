"""Digests of a seeded run, to compare before and after a refactoring: `python -m tests.seeded_run`.

A real learner (two passes over one invented log, so that a resume is part of it) writes versions to
a temporary store. Each printed line is one version: sha256 over the path and digest of every file,
once for what serving loads and once for the training state. The last line covers all versions.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Mapping
from pathlib import Path

from tests.deploy.whole import Shop, live, versions
from tests.fakes.disk import FaultyDisk

SEED = 5
NUM_EVENTS = 1_500


def digest(files: Mapping[str, str]) -> str:
    """Return sha256 over the sorted (path, sha256) pairs."""
    lines = "\n".join(f"{path} {sha256}" for path, sha256 in sorted(files.items()))
    return hashlib.sha256(lines.encode()).hexdigest()


def run(root: Path) -> list[str]:
    """Learn twice from one log into the store at `root`; return one line per version."""
    shop = Shop.invented(SEED, NUM_EVENTS)
    for life in range(2):
        live(root, shop.log, FaultyDisk(), life)
    lines = []
    for version in versions(root):
        files = {path: d.sha256 for path, d in version.files.items()}
        training = {path: sha for path, sha in files.items() if path.startswith("training/")}
        served = {path: sha for path, sha in files.items() if path not in training}
        lines.append(f"{version.name} served {digest(served)} training {digest(training)}")
    return lines


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        lines = run(Path(folder))
    print("\n".join(lines))
    print(f"all {len(lines)} versions", hashlib.sha256("\n".join(lines).encode()).hexdigest())
