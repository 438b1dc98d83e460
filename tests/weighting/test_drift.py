"""Drift detectors: they find a change, restart exactly, and leave all that is learned alone."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import msgspec
import numpy as np
import pytest
from river.drift import PageHinkley

from tests.weighting.streams import SECOND, events, sample
from weighting.config import WeigherConfig
from weighting.estimators.conditional import ConditionalConfig
from weighting.estimators.drift import Drift, DriftConfig, DriftDetector, DriftWatch
from weighting.features import FieldConfig
from weighting.tasks import CLICK
from weighting.weigher import Weigher

EAGER = DriftConfig(block_samples=5, threshold=1.0)
NEVER = DriftConfig(block_samples=5, threshold=1e9)


def labels(before: float, after: float, change: int, n: int, seed: int = 0) -> Iterator[float]:
    rng = np.random.default_rng(seed)
    for i in range(n):
        yield float(rng.random() < (before if i < change else after))


@pytest.mark.parametrize(("after", "within"), [(0.2, 2_500), (0.04, 4_000)])
def test_a_change_of_the_mean_is_found_once_with_its_levels(after: float, within: int) -> None:
    detector, found = DriftDetector(DriftConfig()), []
    for i, y in enumerate(labels(0.1, after, 20_000, 40_000)):
        levels = detector.update(y, 1.0)
        if levels:
            found.append((i, *levels))
    ((place, former, present),) = found
    assert 20_000 < place < 20_000 + within
    assert former == pytest.approx(0.1, abs=0.02)
    assert present == pytest.approx(after, abs=0.1)
    assert detector.num_changes == 1
    assert detector.level() == pytest.approx(after, abs=0.01)


@pytest.mark.parametrize("seed", range(3))
def test_a_stream_without_a_change_has_none(seed: int) -> None:
    detector = DriftDetector(DriftConfig())
    found = [detector.update(y, 1.0) for y in labels(0.1, 0.1, 0, 60_000, seed)]
    assert not any(found)


def test_a_constant_series_has_no_change() -> None:
    """As weights under `weighting.scheme: uniform`."""
    detector = DriftDetector(EAGER)
    assert not any(detector.update(1.0, 0.7) for _ in range(1_000))


def test_after_the_warm_up_it_is_river_s_page_hinkley_on_block_means_across_restarts() -> None:
    rng = np.random.default_rng(0)
    means = np.concatenate([rng.normal(1.0, 0.1, 150), rng.normal(1.2, 0.1, 40)])
    scale = means[:30].std(ddof=1)
    reference: Any = PageHinkley(delta=0.25, threshold=20.0)
    config = DriftConfig(block_samples=1, threshold=20.0)
    detector, found = DriftDetector(config), []
    for i, mean in enumerate(means.tolist()):
        state = msgspec.msgpack.encode(detector.snapshot())
        detector = DriftDetector(config)
        detector.restore(msgspec.msgpack.decode(state))
        assert msgspec.msgpack.encode(detector.snapshot()) == state
        levels = detector.update(mean, 1.0)
        if i >= 30:
            reference.update(mean / scale)
        assert bool(levels) == reference.drift_detected
        if levels:
            found.append(i)
            break
    assert found
    assert found[0] > 150


def test_a_snapshot_has_all_that_river_s_detector_changes() -> None:
    test: Any = PageHinkley()
    before = dict(vars(test))
    for i in range(40):
        test.update(float(i % 3))
    changed = {name for name, value in vars(test).items() if value != before[name]}
    kept = {"_sum_increase", "_sum_decrease", "_min_increase", "_max_decrease"}
    assert changed <= {*kept, "_x_mean", "_drift_detected"}
    assert set(vars(test._x_mean)) == {"n", "_mean"}


def watch(config: DriftConfig, samples: int, batch: int) -> list[Drift]:
    rng = np.random.default_rng(0)
    y = (rng.random(samples) < np.where(np.arange(samples) < samples // 2, 0.1, 0.5)).astype(float)
    own, found = DriftWatch(config), []
    for start in range(0, samples, batch):
        here = slice(start, start + batch)
        n, times = len(y[here]), range(start, start + len(y[here]))
        found += own.update(list(times), y[here], np.full(n, 0.1), 1 + y[here], np.full(n, 0.8))
    return found


def test_each_series_has_its_own_level_and_the_time_of_the_sample() -> None:
    found = {change.series: change for change in watch(DriftConfig(), 20_000, 1_000)}
    assert set(found) == {"label", "log_loss", "weight"}
    assert found["label"].before == pytest.approx(0.1, abs=0.02)
    loss = 0.1 * -math.log(0.1) + 0.9 * -math.log(0.9)
    assert found["log_loss"].before == pytest.approx(loss, abs=0.05)
    assert found["weight"].before == pytest.approx(1.1, abs=0.02)
    assert {change.time_us // 1_000 for change in found.values()} == {10}


def test_changes_do_not_depend_on_the_batches() -> None:
    def of(batch: int) -> list[Drift]:
        return sorted(
            watch(EAGER, 2_000, batch), key=lambda change: (change.series, change.time_us)
        )

    assert len(of(1)) > 3
    assert of(1) == of(7) == of(2_000)


def test_what_is_learned_and_weighed_does_not_know_of_the_detectors() -> None:
    eager, never = (Weigher(WeigherConfig(drift=config)) for config in (EAGER, NEVER))
    num_changes = 0
    for own in events(600):
        found, expected = eager.weigh(own), never.weigh(own)
        assert found.weight.tobytes() == expected.weight.tobytes()
        num_changes += sum(len(changes) for changes in found.drifts.values())
        assert not expected.drifts
    assert num_changes > 0
    states = [msgspec.msgpack.decode(weigher.snapshot()) for weigher in (eager, never)]
    drift = [state.pop("drift") for state in states]
    assert drift[0] != drift[1]
    assert states[0] == states[1]


def test_a_restored_weigher_finds_the_same_changes() -> None:
    config = WeigherConfig(
        drift=DriftConfig(block_samples=10, threshold=2.0),
        conditional=ConditionalConfig(fields=FieldConfig(hash_bits=10)),  # a small snapshot
    )
    lists = [
        [
            sample(int((10 * i + k) % (8 if i < 120 else 2) == 0), position=k + 1, at=i * SECOND)
            for k in range(10)
        ]
        for i in range(240)
    ]
    kept, restarted = Weigher(config), Weigher(config)
    found, again = [], []
    for own in lists:
        found.append(kept.weigh(own).drifts)
        again.append(restarted.weigh(own).drifts)
        resumed = Weigher(config)
        resumed.restore(restarted.snapshot())
        restarted = resumed
    assert found == again
    assert any(change.series == "label" for own in found for change in own.get(CLICK, ()))
    assert kept.num_drifts(CLICK) == restarted.num_drifts(CLICK)


def test_a_block_begun_under_longer_blocks_is_closed_by_its_next_value() -> None:
    before, short = DriftDetector(DriftConfig(block_samples=10)), DriftConfig(block_samples=5)
    values = np.arange(12.0)
    for value in values[:8].tolist():
        before.update(value, 1.0)
    single, together = DriftDetector(short), DriftDetector(short)
    for detector in (single, together):
        detector.restore(before.snapshot())
    for value in values[8:].tolist():
        single.update(value, 1.0)
    together.update_many(np.arange(4), values[8:], np.ones(4))
    assert together.snapshot() == single.snapshot()
    assert single.snapshot()["block"] == [9.0 + 10.0 + 11.0, 3.0, 3]
