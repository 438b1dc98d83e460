"""The loop takes checkpoints when due, one at a time, and survives failures."""

from __future__ import annotations

import errno
import logging
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import pytest
from prometheus_client import CollectorRegistry

from learner.artifact import Store, Version
from learner.errors import Fenced
from learner.loop import train
from learner.publish import Identity, IngestState, Publisher
from learner.store.checkpoint import Checkpointer
from learner.store.journal.writer import Journal
from learner.store.writer import BackgroundWriter, Saved
from learner.telemetry import Telemetry
from learner.trainer import Trainer
from learner.training_step import StepReport
from tests.fakes.clock import ManualClock
from tests.fakes.disk import Call, Fail, Fault, FaultyDisk, Meanwhile, Plan, no_fault
from tests.learner.saving import cut, owner
from tests.learner.training import batches, same, trainer, weights_of
from tests.weighting.streams import SECOND
from weighting.caps import CapsConfig
from weighting.competition import CompetitionConfig
from weighting.config import WeigherConfig
from weighting.estimators.drift import DriftConfig
from weighting.provenance import Offsets
from weighting.sample import Batch, Sample, Signal
from weighting.tasks import CLICK

Samples = list[Sample] | Signal
IDLE = Signal.IDLE


class WaitedFor(BackgroundWriter):
    """Writer whose `poll` waits for the checkpoint in flight: no test sleeps."""

    def poll(self, *, timeout_seconds: float | None = 0.0) -> Saved | None:
        return super().poll(timeout_seconds=None)


@dataclass
class Learner:
    """A training loop over a store that a test may break, with a manual clock."""

    root: Path
    writer: Callable[..., BackgroundWriter] = WaitedFor
    trainer: Trainer = field(default_factory=lambda: trainer(publish_every_seconds=30.0))
    clock: ManualClock = field(default_factory=ManualClock)
    consumed: list[Samples] = field(default_factory=list)
    announced: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.registry = CollectorRegistry()
        self.telemetry = Telemetry(self.registry)
        self.disk = FaultyDisk()
        # Nothing here refers to this learner, so that its model goes with the test
        consumed, announced = self.consumed, self.announced
        self.journal = Journal(self.root, self.disk)
        checkpointer = Checkpointer(self.root, self.disk, lambda: 1_700_000_100.0)
        acquired = checkpointer.acquire(self.journal, initial=cut(0))
        self.publisher = Publisher(
            self.trainer,
            self.writer(checkpointer),
            lambda: IngestState(
                parts={"part-0": b"joins"},
                offsets=Offsets({("clicks", 0): len(consumed)}),
                watermark_us=len(consumed),
            ),
            self.telemetry,
            clock=self.clock,
            identity=Identity(config_sha256="0" * 64, fingerprint={"threads": 1}, inputs={}),
            journal=acquired.journal,
            published=lambda version: announced.append(version.name),
        )

    def source(self, stream: Iterable[Samples], seconds: float) -> Iterator[Batch | Signal]:
        for samples in stream:
            self.clock.advance(seconds)
            self.consumed.append(samples)
            if isinstance(samples, Signal):
                yield samples
            else:
                yield Batch(samples=tuple(samples), polls=(), cause="full", watermark_us=0)

    def run(self, *stream: Samples, seconds: float = 0.0) -> list[StepReport | Signal]:
        """Train on these; the clock moves by so many seconds before each."""
        batches = self.source(stream, seconds)
        return list(train(batches, self.trainer, self.publisher, self.telemetry, self.journal))

    def count(self, series: str, **labels: str) -> float | None:
        return self.registry.get_sample_value(f"steelyard_{series}", labels)

    def publishes(self, result: str) -> float | None:
        return self.count("checkpoint_publishes_total", result=result)

    def versions(self) -> list[Version]:
        return Store(self.root).versions()


def full(op: str, error: int = errno.ENOSPC) -> Plan:
    def plan(call: Call) -> Fault | None:
        return Fail(error) if call.op == op and "journal" not in call.path.parts else None

    return plan


def steps(results: list[StepReport | Signal]) -> list[StepReport]:
    return [result for result in results if isinstance(result, StepReport)]


def num_fresh(version: Version) -> int:
    return sum(count for _, count in version.manifest["fresh_events"])


STREAM = batches(12)


def test_the_first_version_is_published_before_anything_is_learned(tmp_path: Path) -> None:
    learner = Learner(tmp_path)
    assert learner.run(IDLE, IDLE, IDLE) == [IDLE, IDLE, IDLE]
    (first,) = learner.versions()
    assert (first.step, first.num_samples, first.event_time_us) == (0, 0, None)
    assert Store(tmp_path).announced() == "v000002"
    assert learner.announced == ["v000002"]


def test_a_checkpoint_is_taken_when_it_is_due_and_there_is_something_new(tmp_path: Path) -> None:
    learner = Learner(tmp_path)
    learner.run(*STREAM[:2])  # at once, and not again before 30 s are over
    learner.run(IDLE)
    assert [v.step for v in learner.versions()] == [1]
    learner.run(STREAM[2], STREAM[3], STREAM[4], seconds=10.0)
    learner.run(IDLE)
    assert [v.step for v in learner.versions()] == [1, 5]
    learner.run(IDLE, IDLE, IDLE, seconds=100.0)
    assert [v.step for v in learner.versions()] == [1, 5]
    learner.run(STREAM[5], seconds=100.0)
    learner.run(IDLE)
    assert [v.step for v in learner.versions()] == [1, 5, 6]
    assert learner.publishes("ok") == 3
    assert learner.announced == ["v000002", "v000003", "v000004"]


def test_a_version_says_what_it_contains(tmp_path: Path) -> None:
    learner = Learner(tmp_path)
    learner.run(STREAM[0], IDLE)
    learner.run(STREAM[1], STREAM[2], IDLE, seconds=31.0)
    learner.publisher.close()
    first, second, third = learner.versions()
    assert (first.num_samples, num_fresh(first)) == (len(STREAM[0]), len(STREAM[0]))
    assert second.next_offsets == {("clicks", 0): 3}
    assert second.manifest["watermark"] == 3
    assert second.manifest["event_time"] == {"min": 0, "max": STREAM[1][-1].event_time_us}
    assert third.event_time_us == STREAM[2][-1].event_time_us == 11 * SECOND
    seen = Store(tmp_path).fresh_events(first.name, third.name)
    assert seen == [
        (i * SECOND, sum(s.event_time_us == i * SECOND for batch in STREAM[1:3] for s in batch))
        for i in range(4, 12)
    ]
    assert Store(tmp_path).read(third, "training/part-0.msgpack") == b"joins"
    assert third.evaluation["click_num_samples"] == 60


def test_one_checkpoint_is_in_flight_and_training_goes_on_beside_it(tmp_path: Path) -> None:
    learner = Learner(tmp_path, writer=BackgroundWriter)
    gate, reached = threading.Event(), threading.Event()

    def wait() -> None:
        reached.set()
        gate.wait()

    learner.disk.plan = lambda call: Meanwhile(wait) if call.op == "link" else None
    reports = learner.run(*STREAM[:6], seconds=100.0)
    assert reached.wait(60)
    assert len(reports) == 6
    assert learner.versions() == []
    gate.set()
    learner.publisher.close()
    assert [v.step for v in learner.versions()] == [1, 6]
    after_the_first = sum(map(len, STREAM[1:6]))
    assert [num_fresh(v) for v in learner.versions()] == [len(STREAM[0]), after_the_first]


@pytest.mark.parametrize("op", ["create", "write", "fsync", "link"])
def test_a_full_disk_is_counted_and_the_next_checkpoint_lists_what_the_failed_one_would_have_listed(
    tmp_path: Path, op: str
) -> None:
    learner = Learner(tmp_path)
    learner.run(STREAM[0], IDLE)
    learner.disk.plan = full(op)
    reports = learner.run(STREAM[1], STREAM[2], seconds=31.0)
    assert [step.result for step in steps(reports)] == ["ok", "ok"]
    learner.run(IDLE)
    assert learner.publishes("failed") == 2
    assert [v.name for v in learner.versions()] == ["v000002"]
    learner.disk.plan = no_fault
    learner.run(STREAM[3], seconds=31.0)
    learner.run(IDLE)
    assert (learner.publishes("ok"), learner.announced) == (2, ["v000002", "v000003"])
    first, second = learner.versions()
    assert num_fresh(second) == sum(map(len, STREAM[1:4]))
    assert second.step == 4
    Store(tmp_path).verify(second)
    assert Store(tmp_path).announced() == second.name
    assert Store(tmp_path).fresh_events(first.name, second.name)[0][0] == STREAM[1][0].event_time_us


def test_a_disk_that_stays_full_is_logged_ever_more_seldom_and_once_when_there_is_room_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    learner = Learner(tmp_path)
    learner.run(STREAM[0], IDLE)
    num_before = 0
    for num_batches in (6, 1):
        caplog.clear()
        learner.disk.plan = full("write")
        stream: list[Samples] = [STREAM[1], IDLE] * num_batches
        learner.run(*stream, seconds=31.0)
        learner.disk.plan = no_fault
        learner.run(STREAM[2], IDLE, seconds=31.0)
        num_failed = int(learner.publishes("failed") or 0) - num_before
        num_before += num_failed
        lines = [vars(record) for record in caplog.records]
        failed = [line for line in lines if line["message"] == "checkpoint failed"]
        numbers = [line["failed_in_a_row"] for line in failed]
        assert numbers == [number for number in (1, 2, 4, 8) if number <= num_failed < 16]
        assert all(line["error"] for line in failed)
        (again,) = (line for line in lines if line["message"] == "checkpoints work again")
        assert again["failed_in_a_row"] == num_failed
    assert num_before > 10


def test_another_cause_is_logged_whatever_the_number(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    learner = Learner(tmp_path)
    learner.run(STREAM[0], IDLE)
    learner.disk.plan = full("write")
    stream: list[Samples] = [STREAM[1], IDLE]
    learner.run(*stream * 6, seconds=31.0)
    caplog.clear()
    learner.disk.plan = full("write", errno.EROFS)
    learner.run(*stream * 2, seconds=31.0)
    causes = [vars(r)["error"] for r in caplog.records if r.message == "checkpoint failed"]
    assert any("EROFS" in cause or "Read-only" in cause for cause in causes), causes
    assert len(causes) < 3


def test_events_of_a_version_that_was_not_announced_are_not_listed_twice(tmp_path: Path) -> None:
    learner = Learner(tmp_path)
    learner.run(STREAM[0], IDLE)

    def not_announced(call: Call) -> Fault | None:
        is_control = call.op == "rename" and call.path.parent.name == "control"
        return Fail(errno.ENOSPC) if is_control else None

    learner.disk.plan = not_announced
    learner.run(STREAM[1], seconds=31.0)
    learner.run(IDLE)
    assert learner.publishes("failed") == 1
    learner.disk.plan = no_fault
    learner.run(STREAM[2], seconds=31.0)
    learner.run(IDLE)
    assert [num_fresh(v) for v in learner.versions()] == [len(batch) for batch in STREAM[:3]]
    assert Store(tmp_path).announced() == "v000004"


def test_a_refused_weight_is_counted_its_batch_changes_nothing_and_training_goes_on(
    tmp_path: Path,
) -> None:
    learner = Learner(tmp_path)
    learner.run(STREAM[0], IDLE)
    before = weights_of(learner.trainer)
    bad = [*STREAM[1][:2], msgspec.structs.replace(STREAM[1][2], label=7), *STREAM[1][3:]]
    assert learner.run(bad) == [IDLE]
    assert learner.count("weights_refused_total", reason="weight") == 1
    assert same(weights_of(learner.trainer), before)
    (report,) = steps(learner.run(STREAM[2]))
    assert report.step == 3, "the refused one has a number, for the journal has it"
    learner.publisher.close()
    newest = learner.versions()[-1]
    assert num_fresh(newest) == len(STREAM[2])
    assert newest.num_samples == len(STREAM[0]) + len(bad) + len(STREAM[2])


def test_closing_makes_the_last_state_durable(tmp_path: Path) -> None:
    learner = Learner(tmp_path, writer=BackgroundWriter)
    learner.run(*STREAM[:4])
    learner.publisher.close()
    newest = learner.versions()[-1]
    assert (newest.step, newest.num_samples) == (4, sum(map(len, STREAM[:4])))
    assert newest.next_offsets == {("clicks", 0): 4}
    again = trainer()
    again.restore(lambda path: Store(tmp_path).read(newest, path))
    assert again.files() == learner.trainer.files()


def test_closing_with_nothing_new_makes_no_version(tmp_path: Path) -> None:
    learner = Learner(tmp_path)
    learner.run(STREAM[0], IDLE)
    learner.publisher.close()
    assert len(learner.versions()) == 1


def test_a_learner_whose_store_was_taken_stops(tmp_path: Path) -> None:
    learner = Learner(tmp_path)
    learner.run(STREAM[0], IDLE)
    owner(tmp_path)
    with pytest.raises(Fenced):
        learner.run(STREAM[1], IDLE, seconds=31.0)
    assert learner.publishes("fenced") == 1
    assert [v.step for v in learner.versions()] == [1]


def test_a_restart_goes_on_with_the_span_of_event_times_that_it_found(tmp_path: Path) -> None:
    learner = Learner(tmp_path)
    learner.run(STREAM[0], IDLE)
    learner.publisher.close()
    again = Learner(tmp_path)
    again.publisher.restore(learner.versions()[-1])
    again.run(STREAM[1], IDLE)
    event_time = {"min": 0, "max": STREAM[1][-1].event_time_us}
    assert again.versions()[-1].manifest["event_time"] == event_time


def test_a_series_counts_the_samples_that_the_encoder_was_not_given(tmp_path: Path) -> None:
    learner = Learner(tmp_path, trainer=trainer(loss="listwise", compute_share=0.2))
    left_out = sum(report.num_left_out for report in steps(learner.run(*STREAM)))
    assert 0 < left_out == learner.count("samples_left_out_total")


def test_a_series_counts_the_samples_that_each_cap_discounted(tmp_path: Path) -> None:
    capped = WeigherConfig(caps=CapsConfig(long_list=5.0))
    learner = Learner(tmp_path, trainer=trainer(capped, publish_every_seconds=30.0))
    (report,) = steps(learner.run(STREAM[0]))
    assert report.weighted.num_discounted["long_list"] == 20
    for cap, number in report.weighted.num_discounted.items():
        assert learner.count("samples_discounted_total", cap=cap) == number


def test_the_series_tell_what_a_step_saw(tmp_path: Path) -> None:
    learner = Learner(tmp_path)
    (report,) = steps(learner.run(STREAM[0]))
    assert learner.count("learner_steps_total", result="ok") == 1
    assert learner.count("learner_steps_total", result="nonfinite") == 0
    assert learner.count("learner_samples_total") == len(STREAM[0])
    assert learner.count("learner_loss") == report.loss
    last_seconds = STREAM[0][-1].event_time_us / SECOND
    assert learner.count("learner_last_event_timestamp_seconds") == last_seconds
    assert learner.count("weight_effective_sample_ratio") == report.weighted.ess_ratio
    assert learner.count("importance_weight_count", label="click") == 20
    prior = learner.trainer.weigher.prior(STREAM[0][0].task)
    assert learner.count("label_prior_ratio", label="click") == prior


def test_a_change_of_the_weights_is_logged_and_each_candidate_has_a_series(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    competition = CompetitionConfig(
        candidates="uniform, ratio:1", margin=0.01, min_samples=20.0, share=0.01
    )
    own = trainer(WeigherConfig(exponent="auto", competition=competition))
    learner = Learner(tmp_path, trainer=own)
    with caplog.at_level(logging.INFO, "steelyard.learner"):
        reports = learner.run(*batches(8))
    changes = [c for report in reports if isinstance(report, StepReport) for c in report.changes]
    assert changes
    logged = [r for r in caplog.records if r.message == "another weighting scheme is in force"]
    assert [(r.__dict__["before"], r.__dict__["after"]) for r in logged] == [
        (change.before, change.after) for change in changes
    ]
    assert learner.count("weight_candidate_changes_total") == len(changes)
    in_force = {
        name: learner.count("weight_candidate_in_force", candidate=name)
        for name in ("uniform", "ratio:1")
    }
    assert in_force == {"uniform": 0.0, "ratio:1": 0.0} | {changes[-1].after: 1.0}
    probability = learner.count("weight_candidate_probability_ratio", candidate="ratio:1")
    assert probability
    assert 0 < probability < 1


def test_a_change_in_the_stream_is_logged_counted_and_in_the_next_version(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    eager = WeigherConfig(drift=DriftConfig(block_samples=1, threshold=0.5))
    learner = Learner(tmp_path, trainer=trainer(eager, publish_every_seconds=30.0))
    with caplog.at_level(logging.INFO):
        reports = steps(learner.run(*STREAM[:8]))
    learner.publisher.close()
    found = [change for report in reports for change in report.weighted.drifts.get(CLICK, ())]
    lines = [vars(line) for line in caplog.records if line.message == "stream changed"]
    keys = ("series", "time_us", "before", "after")
    assert found
    assert [tuple(line[key] for key in keys) for line in lines if line["task"] == CLICK] == [
        tuple(getattr(change, key) for key in keys) for change in found
    ]
    evaluation = learner.versions()[-1].evaluation
    for name, number in Counter(change.series for change in found).items():
        labels = {"label": CLICK, "figure": name}
        last = max(change.time_us for change in found if change.series == name)
        assert learner.count("drift_changes", **labels) == number
        assert learner.count("drift_last_change_timestamp_seconds", **labels) == last / SECOND
        assert evaluation[f"click_changes_of_{name}"] == number
