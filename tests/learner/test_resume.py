"""A learner resumed in another process ends on the bytes of one never stopped (T07)."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from learner import arithmetic
from tests.learner.resumed import Job, Kind, digests, learner, stream

KINDS = [
    Kind(tuning=tuning, dropout=dropout)
    for tuning in ("frozen", "top:1", "full")
    for dropout in (0.0, 0.1)
] + [Kind(tuning=tuning, dropout=0.1) for tuning in ("lora:2", "ia3@top:1", "prefix:3")]
KINDS += [Kind(tuning="top:1", dropout=0.1, precision="bfloat16")]
STOPS = (1, 17, 32)


def uninterrupted(kind: Kind, root: Path, threads: int) -> dict[str, str]:
    """Take all steps at once, save at each stop, and return the digests of the end."""
    own = learner(kind, threads)
    for step, samples in enumerate(stream(), 1):
        own.step(samples)
        if step in STOPS:
            save(own.files(), root / str(step))
    return digests(own.files())


def save(files: dict[str, bytes], folder: Path) -> None:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)


def resumed(jobs: list[Job], root: Path) -> list[dict[str, str]]:
    """Each job's digests, from one new process that has warmed nothing."""
    paths = [root / f"job-{i}.json" for i in range(len(jobs))]
    for path, job in zip(paths, jobs, strict=True):
        path.write_bytes(msgspec.json.encode(job))
    command = [sys.executable, "-m", "tests.learner.resumed", *map(str, paths)]
    done = subprocess.run(command, capture_output=True, check=True, timeout=600)
    found: list[dict[str, str]] = msgspec.json.decode(done.stdout)
    return found


@pytest.fixture(
    scope="module", params=[1, pytest.param(2, marks=pytest.mark.long)], ids="{} threads".format
)
def history(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[Job, dict[str, str]]]:
    """Return the expected end of each job."""
    root, threads = tmp_path_factory.mktemp("history"), request.param
    found: dict[Job, dict[str, str]] = {}
    for i, kind in enumerate(KINDS):
        end = uninterrupted(kind, root / str(i), threads)
        for stop in STOPS:
            folder = str(root / str(i) / str(stop))
            fields = msgspec.structs.asdict(kind)
            found[Job(**fields, after=stop, folder=folder, threads=threads)] = end
    yield found
    arithmetic.use(1)


def test_a_learner_that_was_stopped_ends_on_the_bytes_of_one_that_was_not(
    history: dict[Job, dict[str, str]], tmp_path: Path
) -> None:
    for job, found in zip(history, resumed(list(history), tmp_path), strict=True):
        assert found == history[job], job


def test_without_the_state_of_the_random_numbers_the_bytes_are_others_under_dropout(
    history: dict[Job, dict[str, str]], tmp_path: Path
) -> None:
    jobs = [job for job in history if job.after == STOPS[-1]]
    for job in jobs:
        # A step is seeded by its number: that is all the state there is.
        progress = Path(job.folder) / "training/progress.json"
        fields = msgspec.json.decode(progress.read_bytes())
        progress.write_bytes(msgspec.json.encode({**fields, "step": 0}))
    for job, found in zip(jobs, resumed(jobs, tmp_path), strict=True):
        models = [
            [
                digest
                for file, digest in sorted(run.items())
                if file.startswith(("model", "adapter"))
            ]
            for run in (found, history[job])
        ]
        differs = models[0] != models[1]
        assert differs == (job.dropout > 0 and job.tuning != "frozen"), job
