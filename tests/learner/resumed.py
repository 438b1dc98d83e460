"""A learner that resumes from a checkpoint in a process of its own.

``python -m tests.learner.resumed JOB...`` writes digests to stdout.
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import msgspec

from learner.trainer import Trainer
from tests.learner.training import lists, text, trainer
from weighting.sample import Sample

NUM_STEPS = 40


class Kind(msgspec.Struct, frozen=True, kw_only=True):
    tuning: str
    dropout: float
    precision: str = "float32"


class Job(Kind, frozen=True, kw_only=True):
    """Take the steps after `after` of `NUM_STEPS`, from the checkpoint in `folder`."""

    after: int
    folder: str
    threads: int

    def run(self) -> dict[str, str]:
        own = learner(self, self.threads)  # it has cached no vector and drawn no random number
        own.restore(lambda name: (Path(self.folder) / name).read_bytes())
        for samples in stream()[self.after :]:
            own.step(samples)
        return digests(own.files())


def learner(kind: Kind, threads: int) -> Trainer:
    return trainer(
        model="random:2x32",
        tuning=kind.tuning,
        dropout=kind.dropout,
        precision=kind.precision,
        threads=threads,
    )


def stream() -> list[list[Sample]]:
    """Return steps whose texts come and go: some are new, some were met long ago."""
    steps = [lists(4, seed=step, start=4 * step) for step in range(NUM_STEPS)]
    return [
        [msgspec.structs.replace(s, text=moved(s, step)) for s in samples]
        for step, samples in enumerate(steps)
    ]


def moved(sample: Sample, step: int) -> str:
    item = int(sample.item_id.removeprefix("SKU-"))
    return text((item * 7 + 3 * step) % 400) + " steel" * (step % 3)


def digests(files: dict[str, bytes]) -> dict[str, str]:
    return {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}


if __name__ == "__main__":
    found = [msgspec.json.decode(Path(path).read_bytes(), type=Job).run() for path in sys.argv[1:]]
    sys.stdout.buffer.write(msgspec.json.encode(found))
