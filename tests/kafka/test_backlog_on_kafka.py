"""A backlog on a real broker, learned with long steps under the least `kafka.stall` there is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from threading import Event

import pytest

from deploy.process import lifecycle
from deploy.roles import learn
from learner.trainer import Trainer
from learner.training_step import StepReport
from tests.kafka.conftest import Cluster
from tests.kafka.learning import Learner, open_shop, trained
from weighting.provenance import TopicPartition

STALL_SECONDS = 5.0
LONG_STEP_SECONDS = 100.0


class Clock:
    """Time by which every step takes 100 s, and everything else none."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_learner_with_long_steps_works_through_a_backlog_and_is_left_alone(
    broker: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop = open_shop(broker, num_events=400)
    shop.end()
    clock, ended, watchdogs = Clock(), list[int](), list[lifecycle.Watchdog]()

    def watchdog(
        progress: lifecycle.Progress, stall_seconds: float, *, step_seconds: float
    ) -> lifecycle.Watchdog:
        assert stall_seconds == STALL_SECONDS
        made = lifecycle.Watchdog(
            progress, stall_seconds, step_seconds=step_seconds, end=ended.append
        )
        watchdogs.append(made)
        return made

    monkeypatch.setattr(learn, "Progress", lambda: lifecycle.Progress(clock))
    monkeypatch.setattr(learn, "Watchdog", watchdog)

    def long_step(report: StepReport, trainer: Trainer) -> None:
        clock.now += LONG_STEP_SECONDS
        watchdogs[-1].look()

    settings = shop.at(tmp_path / "store", batch_size=32)
    settings = replace(settings, kafka=replace(settings.kafka, stall_seconds=STALL_SECONDS))
    with Learner(settings, long_step) as learner:
        wanted = shop.trained()
        last = learner.version(lambda version: trained(version).num >= wanted.num)
        rebuilt = learner.role._consumer_telemetry.rebuilds.labels("stall")._value.get()
    assert (trained(last), ended, rebuilt) == (wanted, [], 0)
    assert clock.now > 20 * STALL_SECONDS


def test_lag_is_true_while_one_step_does_not_return(broker: Cluster, tmp_path: Path) -> None:
    shop = open_shop(broker, num_events=1500)
    shop.begin()
    in_step, go_on = Event(), Event()

    def stuck(report: StepReport, trainer: Trainer) -> None:
        in_step.set()
        go_on.wait()

    with Learner(shop.at(tmp_path / "store", batch_size=32), stuck) as learner:
        assert in_step.wait(60)
        read = learner.until(lambda: sum(offsets(learner).values()) or None)
        shop.end()
        unread = sum(shop.ends.values()) - read
        learner.until(lambda: True if lag(learner) == unread else None)
        waiting = learner.role._telemetry.samples_waiting.labels("unread")._value.get()
        assert waiting > 0
        go_on.set()


def offsets(learner: Learner) -> Mapping[TopicPartition, float]:
    return series(learner, "steelyard_consumer_next_offset")


def lag(learner: Learner) -> float:
    return sum(series(learner, "steelyard_consumer_lag_records").values())


def series(learner: Learner, name: str) -> dict[TopicPartition, float]:
    return {
        (sample.labels["topic"], int(sample.labels["partition"])): sample.value
        for family in learner.role.registry.collect()
        for sample in family.samples
        if sample.name == name
    }
