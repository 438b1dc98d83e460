"""A learner that runs ahead, and dies anywhere: each sample once, and the same bytes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from deploy.roles.wiring import config_sha256
from deploy.verification.relearn import relearn
from learner.artifact import Store
from tests.deploy.whole import SETTINGS, Shop, live, trained, versions
from tests.fakes.disk import Call, Crash, Die, Fault, FaultyDisk, at

AHEAD = replace(SETTINGS, learner=replace(SETTINGS.learner, run_ahead=True))
SHOP = Shop.invented(3, 120)


def contents(root: Path) -> tuple[object, ...]:
    """All that is durable but the times of writing: journal and versions."""
    journal = {path.name: path.read_bytes() for path in sorted((root / "journal").iterdir())}
    found = [(v.files, v.next_offsets, v.step, v.num_samples, v.journal) for v in versions(root)]
    manifests = [(v.manifest["audit"], v.manifest["fresh_events"]) for v in versions(root)]
    return journal, found, manifests


def test_a_life_leaves_the_same_journal_and_the_same_versions(tmp_path: Path) -> None:
    """With late events and idle polls; under the same settings as far as digests go."""
    assert config_sha256(AHEAD) == config_sha256(SETTINGS)
    for seed in (1, 2):
        for name, settings in (("off", SETTINGS), ("on", AHEAD)):
            live(tmp_path / f"{name}-{seed}", SHOP.log, FaultyDisk(), seed, settings=settings)
        off, on = (contents(tmp_path / f"{name}-{seed}") for name in ("off", "on"))
        assert on == off
        assert len(versions(tmp_path / f"on-{seed}")) > 3
        assert trained(tmp_path / f"on-{seed}") == SHOP.trained


def num_calls(root: Path) -> int:
    calls: list[Call] = []

    def counted(call: Call) -> Fault | None:
        calls.append(call)
        return None

    live(root, SHOP.log, FaultyDisk(counted), 1, settings=AHEAD)
    return len(calls)


def test_wherever_it_dies_each_sample_counts_once_and_learning_again_gives_its_bytes(
    tmp_path: Path,
) -> None:
    num = num_calls(tmp_path / "whole")
    for index in range(31, num, num // 3):
        root = tmp_path / str(index)
        with pytest.raises(Crash):
            live(root, SHOP.log, FaultyDisk(at(index, Die("after"))), 1, settings=AHEAD)
        # the next life may run ahead or not
        live(root, SHOP.log, FaultyDisk(), 2, settings=AHEAD if index % 2 else SETTINGS)
        assert trained(root) == SHOP.trained, index
        first, *_, last = versions(root)
        learned = relearn(SETTINGS, Store(root), SHOP.log.reader(), first, last)
        assert not [each for each in learned if each.differs], index
