"""The role `learn` on a real broker: it resumes from its checkpoint; every sample counts once."""

from __future__ import annotations

import queue
import signal
import socket
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from threading import Thread
from typing import Any

import pytest

from consumers.errors import SourceUnavailable, TopicMissing
from consumers.events import encode_click, encode_exposure, encode_purchase
from consumers.kafka.admin import KafkaAdmin, partition_of
from consumers.kafka.options import KafkaConfig
from consumers.kafka.sink import KafkaSink
from deploy.errors import PortTaken
from deploy.process.observability import ObservabilityConfig
from deploy.roles.learn import LearnRole
from deploy.settings.config import LogConfig
from deploy.settings.tree import Settings
from learner.artifact import Store, Version
from learner.config import LearnerConfig, StoreConfig
from learner.errors import LearnerError, ModelMissing
from learner.tracking.config import TrackingConfig
from learner.trainer import Trainer
from learner.training_step import StepReport
from tests.consumers.oracle import oracle
from tests.consumers.shop import SECOND, START_US, TOPICS, WINDOWS, writes
from tests.fakes.log import Log
from tests.kafka.conftest import Cluster
from tests.kafka.learning import Learner, last_clients, names, settings_for
from tests.learner.tracked import scalars
from weighting.errors import WeightingError
from weighting.estimators.conditional import ConditionalConfig

NUM_PARTITIONS = 2
LONG_AFTER_US = START_US + 86_400 * SECOND

Each = Callable[[StepReport, Trainer], None]


class Killed(Exception):
    """Stands for whatever ends a process in the middle."""


@dataclass(frozen=True)
class Shop:
    """A log on the broker, and how many samples must come of it."""

    settings: Settings
    num_samples: int
    num_unreadable: int

    def at(self, root: Path, *, run_ahead: bool = False) -> Settings:
        return replace(
            self.settings,
            learner=replace(self.settings.learner, run_ahead=run_ahead),
            store=StoreConfig(root=root),
            kafka=replace(self.settings.kafka, group_id=f"steelyard-{uuid.uuid4()}"),
        )


@pytest.fixture(autouse=True)
def signals() -> Iterator[None]:
    """A role catches signals where it runs on the main thread; the tests give them back."""
    kept = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in kept.items():
        signal.signal(number, handler)


@pytest.fixture(scope="module")
def shop(broker: Cluster) -> Shop:
    """Write two thousand flawed events, then last ones that close every window before."""
    topics = names()
    config = KafkaConfig(bootstrap_servers=broker.bootstrap_servers)
    with KafkaAdmin(config) as admin:
        for topic in topics.kinds():
            admin.create_topic(topic, NUM_PARTITIONS)
        admin.create_topic(topics.dead_letter, 1)
    named = {topic.split("-")[0]: topic for topic in topics.kinds()}
    sink = KafkaSink(config, list(topics.kinds())).start()
    log = Log([(topic, p) for topic in TOPICS for p in range(NUM_PARTITIONS)])
    for _, topic, client, value in sorted(writes(Random(5), 2000), key=lambda write: write[0]):
        log.append(topic, partition_of(client.encode(), NUM_PARTITIONS), value, key=client.encode())
        sink.send(named[topic], client.encode(), value)
    sink.flush()
    wanted = oracle(
        log.records,
        click_window_us=WINDOWS.click_window_us,
        observation_window_us=WINDOWS.observation_window_us,
        attribution_window_us=WINDOWS.attribution_window_us,
        grace_us=WINDOWS.grace_us,
    )
    for client in last_clients(NUM_PARTITIONS):
        last: dict[str, Any] = {
            "client_id": client,
            "query_id": f"end-{client}",
            "time_us": LONG_AFTER_US,
        }
        sink.send(
            named["exposures"],
            client.encode(),
            encode_exposure(**last, user_query="shoes", hits=["SKU-1"]),
        )
        sink.send(named["clicks"], client.encode(), encode_click(**last, object_id="SKU-1"))
        sink.send(named["purchases"], client.encode(), encode_purchase(**last, object_id="SKU-1"))
    sink.flush()
    sink.close()
    return Shop(settings_for(broker, topics), len(wanted.samples), len(wanted.unreadable))


def learn(
    settings: Settings, each: Each = lambda report, trainer: None, *, until: int | None = None
) -> Version:
    """Run the role until it has so many samples (or `each` ends it); return its versions."""
    role = LearnRole(settings)
    heard: queue.Queue[int | BaseException] = queue.Queue()

    def both(report: StepReport, trainer: Trainer) -> None:
        each(report, trainer)
        heard.put(trainer.num_samples)

    def run() -> None:
        try:
            role.run(both)
        except BaseException as error:
            heard.put(error)

    thread = Thread(target=run)
    thread.start()
    try:
        while until is not None:
            found = heard.get(timeout=120)
            if isinstance(found, BaseException):
                raise found
            if found >= until:
                break
    finally:
        role.stop()
        thread.join(120)
    assert not thread.is_alive()
    return Store(settings.store.root).versions()[-1]


@pytest.mark.parametrize("run_ahead", [False, True])
def test_what_a_learner_trained_on_is_exactly_what_the_log_holds(
    shop: Shop, tmp_path: Path, run_ahead: bool
) -> None:
    settings = shop.at(tmp_path, run_ahead=run_ahead)
    dead_letter = [settings.kafka.topics.dead_letter]
    with KafkaAdmin(settings.kafka) as admin:
        num_before = sum(admin.end_offsets(dead_letter).values())
    version = learn(settings, until=shop.num_samples)
    assert version.num_samples == shop.num_samples
    Store(tmp_path).verify(version)
    assert Store(tmp_path).announced() == version.name
    assert (
        sum(count for _, count in Store(tmp_path).fresh_events(None, version.name))
        == shop.num_samples
    )
    with KafkaAdmin(settings.kafka) as admin:
        topics = list(settings.kafka.topics.kinds())
        assert version.next_offsets == admin.end_offsets(topics)
        assert (
            admin.committed(settings.kafka.group_id) == version.next_offsets
        )  # advisory: for dashboards
        num_unreadable = sum(admin.end_offsets(dead_letter).values()) - num_before
        assert num_unreadable == shop.num_unreadable


@pytest.mark.parametrize("run_ahead", [False, True])
@pytest.mark.parametrize("end", ["stopped", "killed"])
def test_a_learner_that_ended_goes_on_where_its_checkpoint_was(
    shop: Shop, tmp_path: Path, end: str, run_ahead: bool
) -> None:
    settings = shop.at(tmp_path, run_ahead=run_ahead)
    for times in (1, 2):
        role, base = LearnRole(settings), len(Store(tmp_path).versions())

        def each(
            report: StepReport, trainer: Trainer, role: LearnRole = role, base: int = base
        ) -> None:
            if len(Store(tmp_path).versions()) > base and trainer.num_samples > 0:
                if end == "killed":
                    raise Killed
                role.stop()

        if end == "killed":
            with pytest.raises(Killed):
                role.run(each)
        else:
            role.run(each)
        assert len(Store(tmp_path).versions()) > base, f"end {times}"
    before = Store(tmp_path).versions()[-1]
    assert 0 < before.num_samples < shop.num_samples
    version = learn(settings, until=shop.num_samples)
    assert version.num_samples == shop.num_samples
    assert version.manifest["event_time"]["min"] <= before.manifest["event_time"]["min"]
    with KafkaAdmin(settings.kafka) as admin:
        assert version.next_offsets == admin.end_offsets(list(settings.kafka.topics.kinds()))
    assert (
        sum(count for _, count in Store(tmp_path).fresh_events(None, version.name))
        == shop.num_samples
    )
    assert version.epoch == 3


def test_the_curve_of_a_learner_that_was_killed_has_each_step_once(
    shop: Shop, tmp_path: Path
) -> None:
    pytest.importorskip("tensorboard")
    tracking = TrackingConfig(to="tensorboard", every_steps=1, details_every_steps=4)
    settings = replace(shop.at(tmp_path), tracking=tracking)
    steps: list[int] = []

    def each(report: StepReport, trainer: Trainer) -> None:
        steps.append(report.step)
        if len(steps) == 5:
            raise Killed

    with pytest.raises(Killed):
        LearnRole(settings).run(each)
    version = learn(settings, until=shop.num_samples)
    curve = scalars(tmp_path / "tracking" / "learn", "samples")
    assert [step for step, _ in curve] == list(range(1, version.step + 1))
    assert curve[-1] == (version.step, shop.num_samples)


def test_a_learner_that_is_told_to_stop_leaves_its_last_step_in_a_version(
    shop: Shop, tmp_path: Path
) -> None:
    settings = shop.at(tmp_path)
    role = LearnRole(
        replace(settings, learner=replace(settings.learner, publish_every_seconds=3600.0))
    )
    steps: list[int] = []

    def each(report: StepReport, trainer: Trainer) -> None:
        steps.append(trainer.num_samples)
        if len(steps) == 5:
            role.stop()

    role.run(each)
    newest = Store(tmp_path).versions()[-1]
    assert (newest.step, newest.num_samples) == (5, steps[-1])


def test_a_broker_that_is_down_is_one_sentence_with_its_remedy(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening: refused
        where = f"127.0.0.1:{taken.getsockname()[1]}"
        settings = replace(
            Settings(),
            kafka=LogConfig(bootstrap_servers=where, connect_timeout_seconds=0.5),
            learner=LearnerConfig(model="random:1x32"),
            store=StoreConfig(root=tmp_path),
            observability=ObservabilityConfig(metrics_port=0),
        )
        with pytest.raises(
            SourceUnavailable, match=rf"no Kafka broker answered at {where}.*Start the broker"
        ):
            LearnRole(settings).run()


def test_a_topic_that_is_missing_is_named(broker: Cluster, tmp_path: Path) -> None:
    settings = settings_for(broker, names())
    settings = replace(
        settings,
        store=StoreConfig(root=tmp_path),
        kafka=replace(settings.kafka, connect_timeout_seconds=2.0),
    )
    topics = settings.kafka.topics
    with KafkaAdmin(settings.kafka) as admin:
        with pytest.raises(
            TopicMissing, match=r"topic '(exposures|clicks|purchases)-.*' does not exist"
        ):
            LearnRole(settings).run()
        for topic in topics.kinds():
            admin.create_topic(topic, NUM_PARTITIONS)
        with pytest.raises(TopicMissing, match=rf"topic '{topics.dead_letter}' does not exist"):
            LearnRole(settings).run()
        assert topics.dead_letter not in admin.topics()
    assert not (tmp_path / "epoch").exists()


def test_a_start_that_is_refused_leaves_the_running_learner_its_store(
    shop: Shop, tmp_path: Path
) -> None:
    settings = shop.at(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        refused = [
            (replace(settings, learner=replace(settings.learner, model="/no/such")), ModelMissing),
            (
                replace(
                    settings,
                    kafka=replace(settings.kafka, bootstrap_servers=f"127.0.0.1:{port + 1}"),
                ),
                SourceUnavailable,
            ),
            (
                replace(settings, observability=replace(settings.observability, metrics_port=port)),
                PortTaken,
            ),
        ]
        for wrong, error in refused:
            with pytest.raises(error):
                LearnRole(wrong).run()
            assert not (tmp_path / "epoch").exists()


@pytest.mark.parametrize(
    "other",
    [
        {"learner": {"tuning": "prefix:2"}},
        {"learner": {"model": "random:1x64"}},
        {"weighting": {"conditional": ConditionalConfig(model="naive_bayes")}},
    ],
    ids=lambda other: next(iter(next(iter(other.values())))),
)
def test_settings_that_a_version_does_not_fit_are_refused_without_fencing_its_learner(
    shop: Shop, tmp_path: Path, other: dict[str, dict[str, Any]]
) -> None:
    settings = shop.at(tmp_path)
    with Learner(settings) as learner:
        before = learner.version(lambda version: version.manifest["step"] > 0)
        changed = {name: replace(getattr(settings, name), **own) for name, own in other.items()}
        with pytest.raises((LearnerError, WeightingError), match=r"learned with|taken with"):
            LearnRole(replace(settings, **changed), accept_config=True).run()
        assert [path.name for path in (tmp_path / "epoch").iterdir()] == ["000001"]
    assert learner.store.versions()[-1].seq >= before.seq
