"""One run of the crash benchmark: kills at random moments, then draining to the end of the log."""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from kafka import KafkaAdminClient

from benchmarks.crashing import oracle
from benchmarks.crashing.log import (
    NUM_GROWN,
    NUM_PARTITIONS,
    PATIENCE_SECONDS,
    TOPICS,
    Producer,
)
from benchmarks.crashing.oracle import Records
from benchmarks.crashing.processes import Asker, Role
from consumers.kafka.admin import KafkaAdmin
from consumers.kafka.options import KafkaConfig
from deploy.broker.node import Broker
from deploy.process.child import free_ports
from deploy.process.lifecycle import STALLED

DEAD_LETTERS = "steelyard.deadletter"
SECONDS_PER_KILL = 5.0  # about; paces the log

LEARNER, BROKER, SERVING = "learner", "broker", "serving"

#: Moments of a learner's life: spawned, has taken the store, has journaled a step.
STARTED, CLAIMED, LIVE = "started", "claimed", "live"


@dataclass(frozen=True, slots=True, kw_only=True)
class Kill:
    """One SIGKILL to come.

    Attributes:
        target: LEARNER, BROKER or SERVING.
        moment: of a learner's life.
        seconds: after that moment; of a broker, also how long it stays away.
    """

    target: str
    moment: str
    seconds: float


def plan(num_kills: int, random: Random) -> list[Kill]:
    """Return the kills: a sixth broker, a sixth server, 20 of each at most; else the learner."""
    others = min(20, num_kills // 6)
    targets = [BROKER] * others + [SERVING] * others + [LEARNER] * (num_kills - 2 * others)
    random.shuffle(targets)
    kills = []
    for target in targets:
        (moment,) = random.choices((STARTED, CLAIMED, LIVE), (0.2, 0.25, 0.55))
        longest = 1.0
        if target == LEARNER:
            longest = {STARTED: 5.0, CLAIMED: random.choice((0.05, 1.0)), LIVE: 3.0}[moment]
        kills.append(Kill(target=target, moment=moment, seconds=random.uniform(0, longest)))
    return kills


class Failed(Exception):
    """The run cannot be judged: a process ended by itself, or hangs."""


class Run:
    """One run: processes, kills, and what they came to."""

    def __init__(
        self, num_kills: int, seed: int, num_events: int, folder: Path, stack: ExitStack
    ) -> None:
        """Start the broker, and make the topics."""
        self.seed, self._num_events, self.folder = seed, num_events, folder
        self._kills = plan(num_kills, Random(f"{seed} kills"))
        self.done: Counter[str] = Counter()
        self.num_in_recovery = 0
        self.recoveries: list[float] = []
        self.through_outage: list[float] = []
        self.restarts: Counter[str] = Counter()
        self.root = folder / "store"
        self.began = time.monotonic()
        self._reported = float("-inf")
        self._broker = Broker(folder / "kafka")
        stack.callback(self._broker.close)
        self._broker.start()
        self._config = KafkaConfig(bootstrap_servers=self._broker.bootstrap_servers)
        with KafkaAdmin(self._config) as admin:
            for topic in TOPICS:
                admin.create_topic(topic, NUM_PARTITIONS, config={"compression.type": "lz4"})
            admin.create_topic(DEAD_LETTERS, 1)
        (port,) = free_ports(1)
        self.settings = folder / "steelyard.yaml"
        self.settings.write_text(json.dumps(self._plan(port), indent=1))
        self._learner = Role("learn", self.settings, folder / "learn.log")
        self._server = Role("serve", self.settings, folder / "serve.log")
        stack.callback(self._learner.kill)
        stack.callback(self._server.kill)
        per_second = max(20.0, num_events / (SECONDS_PER_KILL * num_kills))
        self.producer = Producer(self._config, seed, per_second)
        stack.callback(self.producer.abandon)
        self.asker = Asker(port, self.root)
        self._live_at: float | None = None
        self._started_at = 0.0
        self._segment, self._num_claims = "", 0
        self._outage = False

    def run(self) -> tuple[Records, tuple[int, int]]:
        """Kill and drain; return the log, and number and sum of the samples expected of it."""
        self.producer.start()
        self._start_learner()
        self._start_server()
        self.asker.start()
        self._wait(lambda: self.asker.answered_life > 0, "the first version is served")
        kill_one = {
            LEARNER: self._kill_learner,
            BROKER: self._kill_broker,
            SERVING: self._kill_server,
        }
        for number, kill in enumerate(self._kills):
            if number == len(self._kills) // 2:
                self._grow()
            kill_one[kill.target](kill)
            self.done[kill.target] += 1
        self._report("all kills are done; draining")
        self.producer.finish(self._num_events)
        records = oracle.read_log(self._broker.bootstrap_servers)
        expected = oracle.number_and_sum(oracle.expected_samples(records))
        self._drain(records, expected[0])
        if code := self._learner.end(PATIENCE_SECONDS):
            log = self._learner.log_tail()
            raise Failed(f"the learner ended with {code} after SIGTERM:\n{log}")
        self.asker.close()
        self._report("learning all of it again")
        return records, expected

    def _plan(self, port: int) -> dict[str, Any]:
        topics = {topic: topic for topic in TOPICS}
        return {
            "kafka": {
                "bootstrap_servers": self._broker.bootstrap_servers,
                "topics": {**topics, "items": None, "dead_letter": DEAD_LETTERS},
            },
            "join": {name: f"{seconds}s" for name, seconds in oracle.WINDOWS_US.items()},
            "learner": {
                "model": "random:2x384",
                "tuning": "top:1",
                "dropout": 0.1,
                "batch_size": 320,
                "threads": 2,
                "max_tokens": 16,
                "flush": "5s",
                "publish_every": "4s",
                "seed": self.seed,
            },
            "serving": {"port": port},
            "store": {"root": str(self.root), "keep": 100_000},
            "observability": {"log_format": "json", "metrics_port": 0},
        }

    def _start_learner(self) -> None:
        self._segment, self._num_claims = (
            oracle.newest_segment(self.root),
            oracle.num_claims(self.root),
        )
        self._live_at, self._started_at = None, time.monotonic()
        self._learner.start()

    def _start_server(self) -> None:
        self.asker.life += 1
        self._server.start()

    def _grow(self) -> None:
        """Add a partition to every topic while the producer rests, and kill the learner over it.

        The producer rests until a checkpoint knows of it, so that what the new partitions hold is
        late for nobody.
        """
        self.producer.pause()
        grow(self._broker.bootstrap_servers)
        self._pause(Random(f"{self.seed} growth").uniform(0, 3))
        self._learner.kill()
        self._start_learner()
        self._wait(
            self._knows_all_partitions, "a checkpoint knows the partitions", look_seconds=0.5
        )
        self.producer.grow(NUM_GROWN)
        self._report("a partition was added to every topic")

    def _has_read(self, records: Records) -> bool:
        """Return whether the newest checkpoint has read these records."""
        newest = oracle.newest_checkpoint(self.root)
        return newest is not None and all(
            newest["offsets"][topic].get(str(p), 0) > part[-1].offset
            for (topic, p), part in records.items()
            if part
        )

    def _knows_all_partitions(self) -> bool:
        newest = oracle.newest_checkpoint(self.root)
        return newest is not None and all(
            len(newest["offsets"][topic]) == NUM_GROWN for topic in TOPICS
        )

    def _num_learned(self) -> int | None:
        newest = oracle.newest_checkpoint(self.root)
        return newest["samples"] if newest else None

    def _kill_learner(self, kill: Kill) -> None:
        if kill.moment == CLAIMED:
            claimed = "the learner has taken the store"
            self._wait(lambda: oracle.num_claims(self.root) > self._num_claims, claimed)
        elif kill.moment == LIVE:
            self._wait(lambda: self._live_at is not None, "the learner is live")
        since = self._started_at if kill.moment == STARTED else time.monotonic()
        self._wait(lambda: time.monotonic() >= since + kill.seconds, "the moment of a kill")
        self._tick()
        self._learner.kill()
        self._tick(restart=False)
        self.num_in_recovery += self._live_at is None
        self._start_learner()

    def _kill_server(self, kill: Kill) -> None:
        self._wait(lambda: self.asker.answered_life == self.asker.life, "the server answers")
        self._pause(kill.seconds)
        self.asker.life += 1  # before it happens: from here on an error is no failure
        self._server.kill()
        self._start_server()

    def _kill_broker(self, kill: Kill) -> None:
        self._broker.kill()
        self._outage = True
        self._pause(kill.seconds)
        self._broker.close()
        self._broker.start()

    def _pause(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        self._wait(lambda: time.monotonic() >= until, "a pause is over")

    def _wait(
        self,
        done: Callable[[], bool],
        what: str,
        progress: Callable[[], object] = lambda: None,
        look_seconds: float = 0.005,
    ) -> None:
        """Wait until it is done; without progress, only for so long."""
        known, deadline = progress(), time.monotonic() + PATIENCE_SECONDS
        while True:
            self._tick()
            if done():
                return
            if (found := progress()) != known:
                known, deadline = found, time.monotonic() + PATIENCE_SECONDS
            if time.monotonic() > deadline:
                raise Failed(
                    f"waited in vain until {what}.\nlearner:\n{self._learner.log_tail()}\n"
                    f"server:\n{self._server.log_tail()}"
                )
            time.sleep(look_seconds)

    def _tick(self, *, restart: bool = True) -> None:
        """Look at everything once: the learner's first step, and roles that ended by themselves."""
        now = time.monotonic()
        if self._live_at is None and oracle.is_live(self.root, self._segment):
            self._live_at = now
            recoveries = self.through_outage if self._outage else self.recoveries
            recoveries.append(now - self._started_at)
            self._outage = False
        if self.producer.error is not None:
            raise Failed(f"the producer: {self.producer.error!r}")
        if restart:
            self._restart_if_ended(self._learner, self._learner.start)
            self._restart_if_ended(self._server, self._start_server)
        if now - self._reported >= 10:
            self._reported = now
            self._report("")

    def _restart_if_ended(self, role: Role, start: Callable[[], None]) -> None:
        """Start a role again that asked for it by its exit code."""
        code = role.ended()
        if code is None:
            return
        if code != STALLED:
            raise Failed(
                f"{role.name} ended by itself (or another process killed it) with {code}:\n"
                f"{role.log_tail()}"
            )
        self.restarts[role.name] += 1
        time.sleep(0.2)
        start()

    def _report(self, what: str) -> None:
        seconds, kills = time.monotonic() - self.began, sum(self.done.values())
        parts = [
            f"[{seconds:6.0f} s, seed {self.seed}] {kills}/{len(self._kills)} kills "
            f"{dict(self.done)}",
            f"{self.num_in_recovery} in recovery",
            f"{self.producer.num_sent:,} records sent",
            f"{self.asker.num_answers:,} answers",
            f"{len(self.asker.failures)} failures",
        ]
        print(", ".join([*parts, what] if what else parts), file=sys.stderr, flush=True)

    def _drain(self, records: Records, num_samples: int) -> None:
        """Wait until every record is learned, as long as the learner makes progress."""

        def drained() -> bool:
            return (self._num_learned() or 0) >= num_samples and self._has_read(records)

        try:
            self._wait(drained, "everything is learned", self._num_learned, 0.5)
        except Failed as error:
            print(f"the learner did not drain: {error}", file=sys.stderr)


def grow(bootstrap_servers: str) -> None:
    """Add a partition to every topic."""
    client = KafkaAdminClient(bootstrap_servers=bootstrap_servers)
    try:
        client.create_partitions(dict.fromkeys(TOPICS, NUM_GROWN))
    finally:
        client.close()
