"""A learner in a thread on a real broker, operator commands, and the samples to expect."""

from __future__ import annotations

import json
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from hashlib import blake2b
from pathlib import Path
from random import Random
from threading import Event, Thread
from time import monotonic
from types import TracebackType
from typing import Any, Self, TypeVar

from consumers.events import encode_click, encode_exposure, encode_purchase
from consumers.joining.partition_clock import NUM_CLIENTS
from consumers.kafka.admin import KafkaAdmin, partition_of
from consumers.kafka.sink import KafkaSink
from consumers.pipeline import Topics
from deploy.admin import kafka_commands
from deploy.admin.replay.request import ReplayRequest
from deploy.process.observability import ObservabilityConfig
from deploy.process.terminal import Output
from deploy.roles.learn import LearnRole
from deploy.settings.config import LogConfig
from deploy.settings.tree import Settings
from learner.artifact import Store, Version
from learner.config import LearnerConfig, StoreConfig
from learner.store import commands
from learner.store.manifest import LearnedSamples
from learner.trainer import Trainer
from learner.training_step import StepReport
from tests.consumers.oracle import oracle
from tests.consumers.shop import SECOND, START_US, WINDOWS, writes
from tests.fakes.log import Log
from tests.kafka.conftest import Cluster
from weighting.provenance import TopicPartition

T = TypeVar("T")
Write = tuple[str, str, bytes | None]  # topic, client, value
Each = Callable[[StepReport, Trainer], None]
LONG_AFTER_US = START_US + 86_400 * SECOND
NEWCOMER = "c-37"  #: a client that is only in the last part of a log
NEVER_IDLE = replace(WINDOWS, idle_timeout_us=3600 * SECOND)


def settings_for(broker: Cluster, topics: Topics) -> Settings:
    return replace(
        Settings(),
        kafka=LogConfig(bootstrap_servers=broker.bootstrap_servers, topics=topics),
        join=WINDOWS,
        learner=LearnerConfig(
            model="random:1x32",
            tuning="full",
            batch_size=64,
            flush_seconds=0.2,
            publish_every_seconds=0.5,
            max_tokens=16,
        ),
        observability=ObservabilityConfig(metrics_port=0),
    )


def names() -> Topics:
    tag = uuid.uuid4()
    return Topics(
        exposures=f"exposures-{tag}",
        clicks=f"clicks-{tag}",
        purchases=f"purchases-{tag}",
        items=None,
        dead_letter=f"dead-{tag}",
    )


@dataclass
class Shop:
    """A log on the broker, written part by part, and the same log in memory.

    Its last events close all windows.
    """

    settings: Settings
    log: Log
    num_partitions: int
    written: list[Write]  #: left to be written

    @property
    def ends(self) -> Mapping[TopicPartition, int]:
        """The end offsets of now."""
        return {tp: len(records) for tp, records in self.log.records.items()}

    def begin(self, share: float = 0.5) -> None:
        """Write a share of what is left; the newcomer comes with the rest."""
        now = int(len(self.written) * share)
        self._send([write for write in self.written[:now] if write[1] != NEWCOMER])
        self.written = self.written[now:]

    def end(self) -> None:
        """Write the rest, then last events so late that every window before has closed."""
        last: list[Write] = []
        for client in last_clients(self.num_partitions):
            given: dict[str, Any] = {
                "client_id": client,
                "query_id": f"end-{client}",
                "time_us": LONG_AFTER_US,
            }
            last.append(
                ("exposures", client, encode_exposure(**given, user_query="shoes", hits=["SKU-1"]))
            )
            last.append(("clicks", client, encode_click(**given, object_id="SKU-1")))
            last.append(("purchases", client, encode_purchase(**given, object_id="SKU-1")))
        self._send([*self.written, *last])
        self.written = []

    def _send(self, written: list[Write]) -> None:
        named = {topic.split("-")[0]: topic for topic in self.settings.kafka.topics.kinds()}
        sink = KafkaSink(self.settings.kafka, list(named.values())).start()
        for topic, client, value in written:
            self.log.append(
                named[topic],
                partition_of(client.encode(), self.num_partitions),
                value,
                key=client.encode(),
            )
            sink.send(named[topic], client.encode(), value)
        sink.flush()
        sink.close()

    def at(self, root: Path, **learner: Any) -> Settings:
        """Settings of a store of its own."""
        settings = replace(self.settings, learner=replace(self.settings.learner, **learner))
        topic = self.settings.kafka.topics.exposures  # of this shop alone, whoever shares a broker
        kafka = replace(self.settings.kafka, group_id=f"{topic}-{root.parent.name}-{root.name}")
        return replace(settings, store=StoreConfig(root=root, keep=100), kafka=kafka)

    def trained(self, without: str | None = None) -> LearnedSamples:
        """Return the oracle's samples of all of it; windows of the last events are open."""
        left_out = [b'"query_id":"end-'] + (
            [] if without is None else [f'"client_id":"{without}"'.encode()]
        )
        records = {
            tp: [
                record
                for record in of_one
                if not any(part in (record.value or b"") for part in left_out)
            ]
            for tp, of_one in self.log.records.items()
        }
        wanted = oracle(
            records,
            click_window_us=WINDOWS.click_window_us,
            observation_window_us=WINDOWS.observation_window_us,
            attribution_window_us=WINDOWS.attribution_window_us,
            grace_us=WINDOWS.grace_us,
        )
        hashes = (
            int.from_bytes(blake2b(name.encode(), digest_size=8).digest(), "little")
            for name in wanted.samples
        )
        return LearnedSamples(num=len(wanted.samples), sum64=sum(hashes) % (1 << 64))


def open_shop(broker: Cluster, *, num_events: int, num_partitions: int = 2, seed: int = 5) -> Shop:
    """Make the topics of a log with all its flaws; nothing is in it yet."""
    topics = names()
    settings = replace(settings_for(broker, topics), join=NEVER_IDLE)
    settings = replace(settings, learner=replace(settings.learner, publish_every_seconds=0.1))
    with KafkaAdmin(settings.kafka) as admin:
        for topic in topics.kinds():
            admin.create_topic(topic, num_partitions)
        admin.create_topic(topics.dead_letter, 1)
    log = Log([(topic, p) for topic in topics.kinds() for p in range(num_partitions)])
    written = [
        write[1:] for write in sorted(writes(Random(seed), num_events), key=lambda write: write[0])
    ]
    return Shop(settings, log, num_partitions, written)


def last_clients(num_partitions: int) -> list[str]:
    """Clients of each partition, so many that event time follows them."""
    names = [f"end-{n}" for n in range(100 * num_partitions)]
    of_partition = [
        [name for name in names if partition_of(name.encode(), num_partitions) == p]
        for p in range(num_partitions)
    ]
    return [name for names in of_partition for name in names[:NUM_CLIENTS]]


class Learner:
    """A role `learn` in a thread while the context lasts; leaving it stops it.

    An error that ended it before is raised.
    """

    def __init__(
        self, settings: Settings, each: Each = lambda report, trainer: None, **given: Any
    ) -> None:
        self.store = Store(settings.store.root)
        self.role = LearnRole(settings, **given)
        self._each = each
        self._error: BaseException | None = None
        self._thread = Thread(target=self._run)

    def _run(self) -> None:
        try:
            self.role.run(self._each)
        except BaseException as error:
            self._error = error

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.role.stop()
        self.join()

    def join(self) -> None:
        """Wait for its end; raises what it ended by."""
        self._thread.join(120)
        assert not self._thread.is_alive()
        error, self._error = self._error, None
        if error is not None:
            raise error

    def until(self, found: Callable[[], T | None]) -> T:
        """Wait until something is there; a learner that has ended is asked once more."""
        return until(found, lambda: not self._thread.is_alive())

    def version(self, fits: Callable[[Version], bool]) -> Version:
        """Wait for a newest checkpoint that fits."""

        def look() -> Version | None:
            newest = next(iter(self.store.versions()[-1:]), None)
            return newest if newest is not None and fits(newest) else None

        return self.until(look)

    def answered(self, command_id: int, state: str) -> dict[str, Any]:
        """Wait for the answer to a command."""

        def look() -> dict[str, Any] | None:
            answer = commands.answered(self.store.root, command_id)
            return answer if answer is not None and answer["state"] == state else None

        return self.until(look)


def until(
    found: Callable[[], T | None],
    over: Callable[[], bool] = lambda: False,
    *,
    seconds: float = 60.0,
) -> T:
    """Look again and again until something is there."""
    deadline, again = monotonic() + seconds, Event()
    while True:
        last = over()
        value = found()
        if value is not None:
            return value
        assert not last, "it has ended, and not as it should"
        assert monotonic() < deadline, "it did not come"
        again.wait(0.02)


def words(settings: Settings) -> list[str]:
    """Return the settings of a shop's learner as command-line options."""
    kafka, join, learner = settings.kafka, settings.join, settings.learner
    windows = ("click_window", "observation_window", "attribution_window", "grace", "idle_timeout")
    given = {
        "store.root": settings.store.root,
        "store.keep": settings.store.keep,
        "kafka.bootstrap_servers": kafka.bootstrap_servers,
        "kafka.group_id": kafka.group_id,
        "kafka.stall": f"{kafka.stall_seconds:.0f}s",
        "observability.metrics_port": 0,
        **{f"kafka.options.{name}": value for name, value in kafka.options.items()},
        **{
            f"kafka.topics.{name}": getattr(kafka.topics, name)
            for name in ("exposures", "clicks", "purchases", "dead_letter")
        },
        "kafka.topics.items": "null",
        **{f"join.{name}": f"{getattr(join, f'{name}_us') // SECOND}s" for name in windows},
        **{
            f"learner.{name}": getattr(learner, name)
            for name in ("model", "tuning", "batch_size", "max_tokens")
        },
        "learner.flush": f"{learner.flush_seconds * 1000:.0f}ms",
        "learner.step_timeout": f"{learner.step_timeout_seconds:.0f}s",
        "learner.publish_every": f"{learner.publish_every_seconds * 1000:.0f}ms",
    }
    return [word for key, value in given.items() for word in ("--set", f"{key}={value}")]


def json_output() -> tuple[Output, list[Any]]:
    """Return an output for programs, and the list of what was written to it."""
    written: list[Any] = []
    return Output(
        write=lambda line: written.append(json.loads(line)), report=lambda line: None, as_json=True
    ), written


def trained(version: Version) -> LearnedSamples:
    """Return number and sum of the samples that a version was trained on."""
    return LearnedSamples(**version.manifest["trained"])


def early(store: Store) -> Version:
    """A version from early in the log."""
    versions = store.versions()
    return next(version for version in versions if version.step >= versions[-1].step // 4)


def give(settings: Settings, **request: Any) -> int:
    """Command a replay; return the command's number."""
    out, written = json_output()
    assert (
        kafka_commands.replay(
            settings,
            out,
            ReplayRequest(execute=True, yes=True, **request),
            learn="steelyard learn",
        )
        == 0
    )
    return int(written[-1]["order"])


def contents(version: Version) -> dict[str, object]:
    """Return the digests of a version's files, but for polls that no batch has named yet."""
    return {
        path: digest
        for path, digest in version.files.items()
        if not path.startswith("training/rank-")
    }


def outcomes(version: Version) -> Counter[str]:
    """Return the outcomes of the records that a version contains."""
    counted = Counter[str]()
    for parts in version.manifest["audit"].values():
        for of_one in parts.values():
            counted.update(of_one["outcomes"])
    return counted


def files_of(root: Path) -> Iterator[tuple[str, bytes]]:
    """Every file below a folder, with its bytes."""
    for path in sorted(root.rglob("*")):
        if path.is_file():
            yield str(path.relative_to(root)), path.read_bytes()
