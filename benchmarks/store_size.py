"""Size of a store on disk as versions of the default model are published and retired.

Run: python -m benchmarks.store_size
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from learner.config import LearnerConfig, StoreConfig
from learner.store.blobs import Disk
from learner.store.checkpoint import Checkpointer
from learner.trainer import Trainer
from tests.learner.saving import cut, start
from tests.learner.training import batches
from weighting.config import WeigherConfig
from weighting.weigher import Weigher

NUM_VERSIONS = 40


def main() -> None:
    """Publish as often as the default says, and print the size after each version as JSON."""
    config, keep = LearnerConfig(), StoreConfig().keep
    trainer = Trainer(config, Weigher(WeigherConfig()))
    now = 1e9
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        checkpointer = Checkpointer(root, Disk(), lambda: now)
        start(checkpointer, root, Disk())
        sizes = []
        for step, batch in enumerate(batches(NUM_VERSIONS), 1):
            trainer.step(batch)
            checkpointer.announce(checkpointer.save(trainer.files(), cut(step)))
            checkpointer.prune(keep)
            now += config.publish_every_seconds
            sizes.append(used_bytes(root))
    print(json.dumps({"keep": keep, "megabytes": [round(size / 1e6) for size in sizes]}))


def used_bytes(root: Path) -> int:
    """Return the bytes of all files below a folder, a file with several names once."""
    files = [path.lstat() for path in root.rglob("*") if path.is_file()]
    return sum({status.st_ino: status.st_size for status in files}.values())


if __name__ == "__main__":
    main()
