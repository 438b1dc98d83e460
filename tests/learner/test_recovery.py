"""Whatever crashes, each record counts once and the state is that of one clean run over its own history (T01, T08, T09)."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.fakes.disk import Crash, Die, FaultyDisk, at, on
from tests.learner.fast import Learner, Log, finish

LOG = Log.invented(110, 80)
LOSSES = [
    {"data": False, "names": False},
    {"data": True, "names": False},
    {"data": False, "names": True},
    {"data": True, "names": True},
    {"data": True, "names": False, "zeros": True},
]


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with a past: two owners, more checkpoints than are kept, and journal that no checkpoint covers."""
    root = tmp_path_factory.mktemp("begun") / "store"
    Learner(root, FaultyDisk(), LOG, 1).run(20)
    disk = FaultyDisk(on("link", 3, Die()))
    with pytest.raises(Crash):
        Learner(root, disk, LOG, 2).run()
    return root


def live(root: Path, disk: FaultyDisk, seed: int, num_polls: int = 6) -> None:
    try:
        Learner(root, disk, LOG, seed).run(num_polls)
    except Crash:
        pass


def num_calls(root: Path, seed: int) -> int:
    disk = FaultyDisk()
    Learner(root, disk, LOG, seed).run(6)
    return len(disk.calls)


@pytest.mark.parametrize("when", ["before", "middle", "after"])
def test_a_crash_at_every_call_and_two_more_in_recovery_change_nothing(begun: Path, tmp_path: Path, when: str) -> None:
    total = num_calls(shutil.copytree(begun, tmp_path / "probe"), 2)
    for index in range(total):
        root = shutil.copytree(begun, tmp_path / f"{index}")
        for life, place in enumerate((index, (index * 7) % total, (index * 13) % total)):
            disk = FaultyDisk(at(place, Die(when)))
            live(root, disk, 2 + life)
            disk.lose_power(**LOSSES[(index + life) % len(LOSSES)])
        finish(root, LOG)
        shutil.rmtree(root)
