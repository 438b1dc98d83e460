"""The watcher on a store on disk, which keeps the promises of the fake."""

from __future__ import annotations

from pathlib import Path

from prometheus_client import CollectorRegistry

from learner.artifact import Scorer, Store, Version
from serving.inference.slot import Slot
from serving.rollout.watcher import Watcher, WatcherConfig
from serving.telemetry import Telemetry
from tests.fakes.scorer import FakeScorer
from tests.learner.saving import cut, files, owner


class FirstIsFake(Store):
    """A real store, except that the files of its first version are no model."""

    def load(self, version: Version, *, threads: int = 1) -> Scorer:
        if version.seq == 2:
            return FakeScorer(version.name)
        return super().load(version, threads=threads)


def test_a_flipped_byte_is_refused_by_file_and_the_version_before_stays(tmp_path: Path) -> None:
    learner, store, slot = owner(tmp_path), FirstIsFake(tmp_path), Slot()
    watcher = Watcher(store, slot, Telemetry(CollectorRegistry()), WatcherConfig())
    watcher.poll()
    assert slot.current is None
    learner.announce(learner.save(files(1), cut(1)))
    watcher.poll()
    second = learner.save(files(2), cut(2))
    damaged = second.path / "model.safetensors"
    damaged.chmod(0o640)
    damaged.write_bytes(b"\0" + damaged.read_bytes()[1:])
    learner.announce(second)
    watcher.poll()
    assert slot.current is not None
    assert slot.current.name == "v000002"
    assert store.aliases()["champion"] == "v000002"
    assert watcher.refused.keys() == {"v000003"}
    assert "model.safetensors: expected" in watcher.refused["v000003"]


def test_freshness_is_read_from_the_lineage_of_the_store(tmp_path: Path) -> None:
    learner, slot, telemetry = owner(tmp_path), Slot(), Telemetry(CollectorRegistry())
    watcher = Watcher(FirstIsFake(tmp_path), slot, telemetry, WatcherConfig())
    learner.announce(learner.save(files(1), cut(1)))
    watcher.poll()
    assert slot.current is not None
    slot.current.first_answer_seconds = 1_700_000_004.0
    watcher.poll()
    assert watcher.freshness.quantile(0.5) == 3.0
