"""Kill the learner, the broker and the server at random moments, and count what was lost, what was doubled and which bytes differ.

    python -m benchmarks.crash --kills N [--seed S] [--events E] [--json]

The real learner (a tiny BERT with dropout), Apache Kafka and the server run as child processes with the command lines that a user types.
A producer writes an invented log - exposures, clicks, purchases; 5 % of them twice, 2 % late, 1 % unreadable - while SIGKILLs fall: most on
the learner, from right after its start to deep in training; the others on broker and server. Then the learner drains and is told to end.

What is compared knows nothing of the code under test:

- events: a consumer of our own reads the log and hashes it; the last manifest must say the same number and sum of every partition, and
  one outcome for each record.
- samples: what a naive join of that log gives (`tests.consumers.oracle`) must be what the manifest says was trained: number and sum. Where
  the learner left steps out (`samples_left_out`: a loss beyond all others, or not finite), number only, those included.
- digests: a fresh process learns the journal again from the first version on, never interrupted, and compares every file of every version
  that it passes to the byte (`steelyard verify --deep`).
- answers: one request, again and again. Each answer is 200 from a version that is durable in the store, and one version has one list of
  scores; except while the server was killed or has no model yet.

The seed decides the log, whom each kill hits, behind which moment (start, claim of the store, first live step) and after which delay. The
wall clock still decides how far each process has come by then, and how much of the endless log is written. `recovery_*_seconds`: from a
learner's start to its first journaled live step, all of the journal's tail learned again; lives during which the broker was away are told
apart. `crashes_in_recovery`: kills of a learner before that step.

What the producer has no acknowledgement of it sends again: the same event id twice in the log, which is the learner's to notice.

Progress goes to standard error; the last line on standard output is one JSON object; exit 1 if anything is not as it should be.
"""

from __future__ import annotations

import argparse
import hashlib
import http.client
import json
import os
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from heapq import heappop, heappush
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from kafka import KafkaConsumer, TopicPartition

from consumers.errors import ConsumersError
from consumers.events import encode_click, encode_exposure, encode_purchase
from consumers.kafka.admin import KafkaAdmin, partition_of
from consumers.kafka.options import KafkaConfig
from consumers.kafka.sink import KafkaSink
from consumers.source import Record
from deploy.broker.node import Broker
from deploy.process.child import free_ports, spawn
from tests.consumers.oracle import oracle

NUM_PARTITIONS = 2
TOPICS = ("clicks", "exposures", "purchases")
DEAD_LETTERS = "steelyard.deadletter"
SECOND = 1_000_000
START_US = 1_700_000_000 * SECOND
#: Windows that a few minutes fill. No partition ever counts as idle, so that the samples are a function of the log alone.
WINDOWS_US = {
    "click_window": 20,
    "observation_window": 60,
    "attribution_window": 600,
    "grace": 5,
    "idle_timeout": 86_400,
}
MALFORMED = (b"{", b'{"a":1}', b"\xff\xfe", None, b"\x00\x00\x00\x00\x01avro", b"")
DUPLICATE, LATE, UNREADABLE = 0.05, 0.02, 0.01
SECONDS_PER_KILL = 5.0  # about; paces the log
PATIENCE_SECONDS = 180.0
_COMMAND = "from deploy.cli.app import main; main()"
_MODULUS = 1 << 64

LEARNER, BROKER, SERVING = "learner", "broker", "serving"
STARTED, CLAIMED, LIVE = (
    "started",
    "claimed",
    "live",
)  #: moments of a learner's life: spawned, has taken the store, has journaled a step


@dataclass(frozen=True, slots=True, kw_only=True)
class Kill:
    """One SIGKILL to come."""

    target: str
    moment: str  #: of a learner's life
    seconds: float  #: after that moment; of a broker, also how long it stays away


def plan(num_kills: int, random: Random) -> list[Kill]:
    """Whom to kill and when: a sixth the broker and a sixth the server, 20 of each at most; the rest the learner."""
    others = min(20, num_kills // 6)
    targets = [BROKER] * others + [SERVING] * others + [LEARNER] * (num_kills - 2 * others)
    random.shuffle(targets)
    kills = []
    for target in targets:
        (moment,) = random.choices((STARTED, CLAIMED, LIVE), (0.2, 0.25, 0.55))
        longest = (
            {STARTED: 5.0, CLAIMED: random.choice((0.05, 1.0)), LIVE: 3.0}[moment]
            if target == LEARNER
            else 1.0
        )
        kills.append(Kill(target=target, moment=moment, seconds=random.uniform(0, longest)))
    return kills


@dataclass(order=True, slots=True)
class Write:
    """A record to be appended; `at_us` orders the log."""

    at_us: float
    number: int
    topic: str = field(compare=False)
    client: str = field(compare=False)
    value: bytes | None = field(compare=False)
    event_id: str | None = field(compare=False)


def invent(random: Random) -> Iterator[Write]:
    """An endless log in the order of appending: events up to 3 s out of order, some late beyond grace, some twice, some unreadable."""
    due: list[Write] = []
    time_us, number = float(START_US), 0

    def put(
        at_us: float, topic: str, client: str, value: bytes | None, event_id: str | None
    ) -> None:
        nonlocal number
        number += 1
        heappush(due, Write(at_us, number, topic, client, value, event_id))

    def happen(topic: str, client: str, at_us: float, value: bytes, event_id: str) -> None:
        late_us = random.uniform(10, 60) * SECOND if random.random() < LATE else 0.0
        place = at_us + random.uniform(0, 3 * SECOND) + late_us
        put(place, topic, client, value, event_id)
        if random.random() < DUPLICATE:
            put(place + random.uniform(0, 60 * SECOND), topic, client, value, event_id)
        if random.random() < UNREADABLE:
            put(place, topic, client, random.choice(MALFORMED), None)

    def name() -> str:
        return f"{random.getrandbits(64):016x}"

    while True:
        time_us += random.expovariate(1.0) * SECOND
        client, query_id, shown = f"c-{random.randrange(2000)}", f"q-{name()}", name()
        hits = random.sample([f"SKU-{n:03d}" for n in range(60)], 4)
        exposure = encode_exposure(
            query_id=query_id,
            client_id=client,
            time_us=int(time_us),
            user_query=f"shoes {random.randrange(40)}",
            hits=hits,
            event_id=shown,
        )
        happen("exposures", client, time_us, exposure, shown)
        for hit in hits:
            if random.random() < 0.3:
                click_us, clicked = time_us + random.expovariate(1 / 15) * SECOND, name()
                known = query_id if random.random() < 0.8 else None
                click = encode_click(
                    query_id=known,
                    client_id=client,
                    object_id=hit,
                    time_us=int(click_us),
                    event_id=clicked,
                )
                happen("clicks", client, click_us, click, clicked)
                if random.random() < 0.4:
                    bought_us, bought = click_us + random.expovariate(1 / 100) * SECOND, name()
                    known = query_id if random.random() < 0.8 else None
                    purchase = encode_purchase(
                        query_id=known,
                        client_id=client,
                        object_id=hit,
                        time_us=int(bought_us),
                        event_id=bought,
                    )
                    happen("purchases", client, bought_us, purchase, bought)
        while due and due[0].at_us < time_us:
            yield heappop(due)


class Producer:
    """Writes the log at a pace from a thread of its own, and again what was not acknowledged."""

    def __init__(self, config: KafkaConfig, seed: int, per_second: float) -> None:
        """Write nothing before `start`."""
        self._config, self._per_second = config, per_second
        self._log = invent(Random(f"{seed} log"))
        self._stopped, self._abandoned = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="producer", daemon=True)
        self._sink: KafkaSink | None = None
        self.newest_us = float(START_US)
        self.num_sent = 0
        self.num_resent = 0
        self.event_ids: set[str] = set()
        self.error: BaseException | None = None

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def close(self) -> None:
        """End after the write at hand."""
        self._stopped.set()
        self._thread.join()
        if self._sink is not None:
            self._sink.close()
            self._sink = None

    def abandon(self) -> None:
        """End now: nobody wants the rest of the log."""
        self._abandoned.set()
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join()

    def finish(self, at_least: int) -> None:
        """Write what is missing, then one event per partition so much later that every window before it has closed."""
        self.close()
        while self.num_sent < at_least:
            self._write([next(self._log) for _ in range(500)])
        end_us = int(self.newest_us) + 86_400 * SECOND
        last = []
        for number in range(NUM_PARTITIONS):
            client = next(
                f"end-{n}"
                for n in range(1000)
                if partition_of(f"end-{n}".encode(), NUM_PARTITIONS) == number
            )
            common: dict[str, Any] = {
                "client_id": client,
                "query_id": f"end-{number}",
                "time_us": end_us,
            }
            last += [
                Write(
                    0,
                    0,
                    "exposures",
                    client,
                    encode_exposure(**common, user_query="end", hits=["SKU-1"]),
                    None,
                ),
                Write(
                    0,
                    0,
                    "clicks",
                    client,
                    encode_click(**common, object_id="SKU-1", event_id=f"end-click-{number}"),
                    None,
                ),
                Write(
                    0,
                    0,
                    "purchases",
                    client,
                    encode_purchase(**common, object_id="SKU-1", event_id=f"end-purchase-{number}"),
                    None,
                ),
            ]
        self._write(last)
        self.close()

    def _run(self) -> None:
        try:
            began = time.monotonic()
            while not self._stopped.wait(0.1):
                due = int((time.monotonic() - began) * self._per_second) - self.num_sent
                if due > 0:
                    self._write([next(self._log) for _ in range(min(due, 200))])
        except BaseException as error:  # told by the main thread
            self.error = error

    def _write(self, writes: list[Write]) -> None:
        """Until all of them are acknowledged; what is sent again was perhaps written before."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:
            try:
                if self._sink is None:
                    self._sink = KafkaSink(self._config, TOPICS, flush_timeout_seconds=5.0).start()
                for write in writes:
                    self._sink.send(write.topic, write.client.encode(), write.value)
                self._sink.flush()
                break
            except ConsumersError:
                if time.monotonic() > deadline or self._abandoned.is_set():
                    raise
                if self._sink is not None:
                    self._sink.close()
                self._sink = None
                self.num_resent += len(writes)
                time.sleep(0.2)
        self.num_sent += len(writes)
        self.event_ids |= {write.event_id for write in writes if write.event_id is not None}
        self.newest_us = max([self.newest_us, *(write.at_us for write in writes)])


class Role:
    """A child process that runs one role, in a process group of its own; started again after each end."""

    def __init__(self, name: str, settings: Path, log: Path) -> None:
        """Start nothing yet."""
        self.name, self._settings, self._log = name, settings, log
        self.num_lives = 0
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Spawn it; its output is appended to the log."""
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
        self.num_lives += 1
        with self._log.open("ab") as output:
            self._process = spawn(
                [sys.executable, "-c", _COMMAND, self.name, "--config", str(self._settings)],
                output,
                env=environment,
            )

    def ended(self) -> int | None:
        """Its exit code, if it has ended."""
        assert self._process is not None
        return self._process.poll()

    def kill(self) -> None:
        """SIGKILL, to its whole group."""
        if self._process is not None and self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def end(self, seconds: float) -> int:
        """SIGTERM; return the exit code."""
        assert self._process is not None
        self._process.terminate()
        return self._process.wait(seconds)

    def log_tail(self) -> str:
        """Return the last lines that it said."""
        return "\n".join(self._log.read_text(errors="replace").splitlines()[-20:])


class Asker(threading.Thread):
    """One request after the other; says what was wrong with an answer."""

    REQUEST = json.dumps(
        {
            "query": "shoes 7",
            "documents": [
                {"id": f"SKU-{n:03d}", "text": f"text of SKU-{n:03d}"} for n in range(12)
            ],
        }
    )

    def __init__(self, port: int, root: Path) -> None:
        """Ask nothing before `start`."""
        super().__init__(name="asker", daemon=True)
        self._port, self._root = port, root
        self._stopped = threading.Event()
        self.life = 0  #: of the server; another one means that it was killed
        self.answered_life = 0  #: the last one that has answered
        self.num_answers = 0
        self.failures: list[str] = []
        self.scores: dict[str, list[float]] = {}
        self.mixed: set[str] = set()

    def run(self) -> None:
        """Ask until closed."""
        while not self._stopped.wait(0.02):
            life = self.life
            try:
                status, data = self._ask()
            except (OSError, http.client.HTTPException) as error:
                if life == self.life == self.answered_life:
                    self.failures.append(f"{type(error).__name__}: {error}")
                continue
            if status == 200:
                self.answered_life = max(self.answered_life, life)
                self._check(json.loads(data))
            elif status != 503 or life == self.answered_life:
                self.failures.append(f"{status} {data[:200]!r}")

    def close(self) -> None:
        """End after the answer at hand."""
        self._stopped.set()
        self.join()

    def _ask(self) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=60)
        try:
            connection.request(
                "POST", "/v2/rerank", self.REQUEST, {"content-type": "application/json"}
            )
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()

    def _check(self, answer: Mapping[str, Any]) -> None:
        self.num_answers += 1
        version = answer["model"]
        if not (self._root / "man" / f"M-{int(version[1:]):08d}").exists():
            self.failures.append(f"an answer of {version}, which is not in the store")
        scores = [0.0] * len(answer["results"])
        for row in answer["results"]:
            scores[row["index"]] = row["relevance_score"]
        if self.scores.setdefault(version, scores) != scores:
            self.mixed.add(version)


class Failed(Exception):
    """The run cannot be judged: a process ended by itself, or hangs."""


class Run:
    """One run."""

    def __init__(
        self, num_kills: int, seed: int, num_events: int, folder: Path, stack: ExitStack
    ) -> None:
        """Start the broker, and make the topics."""
        self._seed, self._num_events, self._folder = seed, num_events, folder
        self._kills = plan(num_kills, Random(f"{seed} kills"))
        self._done: Counter[str] = Counter()
        self._in_recovery = 0
        self._recoveries: list[float] = []
        self._through_outage: list[float] = []
        self._restarts: Counter[str] = Counter()
        self._root = folder / "store"
        self._began = time.monotonic()
        self._told = float("-inf")
        self._broker = Broker(folder / "kafka")
        stack.callback(self._broker.close)
        self._broker.start()
        self._config = KafkaConfig(bootstrap_servers=self._broker.bootstrap_servers)
        with KafkaAdmin(self._config) as admin:
            for topic in TOPICS:
                admin.create_topic(topic, NUM_PARTITIONS)
            admin.create_topic(DEAD_LETTERS, 1)
        (port,) = free_ports(1)
        self.settings = folder / "steelyard.yaml"
        self.settings.write_text(json.dumps(self._plan(port), indent=1))
        self._learner = Role("learn", self.settings, folder / "learn.log")
        self._server = Role("serve", self.settings, folder / "serve.log")
        stack.callback(self._learner.kill)
        stack.callback(self._server.kill)
        per_second = max(20.0, num_events / (SECONDS_PER_KILL * num_kills))
        self._producer = Producer(self._config, seed, per_second)
        stack.callback(self._producer.abandon)
        self._asker = Asker(port, self._root)
        self._live_at: float | None = None
        self._started_at = 0.0
        self._segment, self._num_claims = "", 0
        self._outage = False

    def run(self) -> dict[str, Any]:
        """Kill, drain, judge; return the JSON object."""
        self._producer.start()
        self._start_learner()
        self._start_server()
        self._asker.start()
        self._wait(lambda: self._asker.answered_life > 0, "the first version is served")
        for kill in self._kills:
            {LEARNER: self._kill_learner, BROKER: self._kill_broker, SERVING: self._kill_server}[
                kill.target
            ](kill)
            self._done[kill.target] += 1
        self._say("all kills are done; draining")
        self._producer.finish(self._num_events)
        records = read_log(self._broker.bootstrap_servers)
        expected = self._expected(records)
        self._drain(records, expected)
        if code := self._learner.end(PATIENCE_SECONDS):
            raise Failed(
                f"the learner ended with {code} after SIGTERM:\n{self._learner.log_tail()}"
            )
        self._asker.close()
        self._say("learning all of it again")
        return self._judge(records, expected)

    def _plan(self, port: int) -> dict[str, Any]:
        return {
            "kafka": {
                "bootstrap_servers": self._broker.bootstrap_servers,
                "topics": {
                    **{topic: topic for topic in TOPICS},
                    "items": None,
                    "dead_letter": DEAD_LETTERS,
                },
            },
            "join": {name: f"{seconds}s" for name, seconds in WINDOWS_US.items()},
            "learner": {
                "model": "random:1x32",
                "tuning": "full",
                "dropout": 0.1,
                "batch_size": 32,
                "max_tokens": 16,
                "flush": "200ms",
                "publish_every": "1s",
                "seed": self._seed,
            },
            "serving": {"port": port},
            "store": {"root": str(self._root), "keep": 100_000},
            "observability": {"log_format": "json", "metrics_port": 0},
        }

    # --- processes --------------------------------------------------------------------------------------------------------------

    def _start_learner(self) -> None:
        self._segment, self._num_claims = newest_segment(self._root), num_claims(self._root)
        self._live_at, self._started_at = None, time.monotonic()
        self._learner.start()

    def _start_server(self) -> None:
        self._asker.life += 1
        self._server.start()

    def _kill_learner(self, kill: Kill) -> None:
        if kill.moment == CLAIMED:
            self._wait(
                lambda: num_claims(self._root) > self._num_claims, "the learner has taken the store"
            )
        elif kill.moment == LIVE:
            self._wait(lambda: self._live_at is not None, "the learner is live")
        since = self._started_at if kill.moment == STARTED else time.monotonic()
        self._wait(lambda: time.monotonic() >= since + kill.seconds, "the moment of a kill")
        self._tick()
        self._learner.kill()
        self._tick(restart=False)
        self._in_recovery += self._live_at is None
        self._start_learner()

    def _kill_server(self, kill: Kill) -> None:
        self._wait(lambda: self._asker.answered_life == self._asker.life, "the server answers")
        self._pause(kill.seconds)
        self._asker.life += 1  # before it happens: from here on an error is no failure
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
        """Wait until it is done; for how long nothing may get on, as `progress` tells it, has a limit."""
        known, deadline = progress(), time.monotonic() + PATIENCE_SECONDS
        while True:
            self._tick()
            if done():
                return
            if (found := progress()) != known:
                known, deadline = found, time.monotonic() + PATIENCE_SECONDS
            if time.monotonic() > deadline:
                raise Failed(
                    f"waited in vain until {what}.\nlearner:\n{self._learner.log_tail()}\nserver:\n{self._server.log_tail()}"
                )
            time.sleep(look_seconds)

    def _tick(self, *, restart: bool = True) -> None:
        """Look at everything once: who is live, who has ended by itself."""
        now = time.monotonic()
        if self._live_at is None and is_live(self._root, self._segment):
            self._live_at = now
            (self._through_outage if self._outage else self._recoveries).append(
                now - self._started_at
            )
            self._outage = False
        if self._producer.error is not None:
            raise Failed(f"the producer: {self._producer.error!r}")
        if restart:
            for role, start in (
                (self._learner, self._learner.start),
                (self._server, self._start_server),
            ):
                if (code := role.ended()) is not None:
                    if code != 75:
                        raise Failed(
                            f"{role.name} ended by itself (or somebody else killed it) with {code}:\n{role.log_tail()}"
                        )
                    self._restarts[role.name] += 1
                    time.sleep(0.2)
                    start()
        if now - self._told >= 10:
            self._told = now
            self._say("")

    def _say(self, what: str) -> None:
        seconds, kills = time.monotonic() - self._began, sum(self._done.values())
        print(
            f"[{seconds:6.0f} s, seed {self._seed}] {kills}/{len(self._kills)} kills {dict(self._done)}, {self._in_recovery} in recovery, "
            f"{self._producer.num_sent:,} records sent, {self._asker.num_answers:,} answers, {len(self._asker.failures)} failures"
            f"{', ' if what else ''}{what}",
            file=sys.stderr,
            flush=True,
        )

    # --- the end ----------------------------------------------------------------------------------------------------------------

    def _expected(self, records: Mapping[tuple[str, int], list[Record]]) -> tuple[int, int]:
        """Number and sum of the samples that a naive join makes of the log before its last events."""
        before = {
            tp: [record for record in part if b'"end-' not in (record.value or b"")]
            for tp, part in records.items()
        }
        windows = {
            name: seconds * SECOND for name, seconds in WINDOWS_US.items() if name != "idle_timeout"
        }
        samples = oracle(before, **{f"{name}_us": value for name, value in windows.items()}).samples
        hashes = (
            int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little")
            for name in samples
        )
        return len(samples), sum(hashes) % _MODULUS

    def _drain(
        self, records: Mapping[tuple[str, int], list[Record]], expected: tuple[int, int]
    ) -> None:
        def drained() -> bool:
            newest = newest_checkpoint(self._root)
            if newest is None or newest["samples"] < expected[0]:
                return False
            return all(
                newest["offsets"][topic][str(p)] > part[-1].offset
                for (topic, p), part in records.items()
            )

        try:
            self._wait(
                drained,
                "everything is learned",
                lambda: (newest_checkpoint(self._root) or {}).get("samples"),
                0.5,
            )
        except Failed as error:
            print(f"the learner did not drain: {error}", file=sys.stderr)

    def _judge(
        self, records: Mapping[tuple[str, int], list[Record]], expected: tuple[int, int]
    ) -> dict[str, Any]:
        final = newest_checkpoint(self._root)
        assert final is not None
        lost = doubled = 0
        problems: list[str] = []

        def count(what: str, found: tuple[int, int], wanted: tuple[int, int]) -> None:
            nonlocal lost, doubled
            if found == wanted:
                return
            same = found[0] == wanted[0]
            lost += 1 if same else max(0, wanted[0] - found[0])
            doubled += 1 if same else max(0, found[0] - wanted[0])
            problems.append(
                f"{what}: found {found[0]} ({found[1]:016x}), expected {wanted[0]} ({wanted[1]:016x})"
            )

        for (topic, p), part in records.items():
            audit, end = final["audit"][topic][str(p)], final["offsets"][topic][str(p)]
            contained = [record for record in part if record.offset < end]
            count(
                f"{topic}[{p}]",
                (audit["num_records"], audit["sum64"]),
                (len(contained), sum(map(hash64, contained)) % _MODULUS),
            )
            count(
                f"outcomes of {topic}[{p}]",
                (sum(audit["outcomes"].values()), 0),
                (audit["num_records"], 0),
            )
            count(f"unread of {topic}[{p}]", (len(contained), 0), (len(part), 0))
        left_out = final["samples"] - final["trained"]["num"]
        if (
            left_out
        ):  # steps of which nothing was learned: each sample once in a step, but which is in no sum
            count("samples in steps", (final["samples"], 0), (expected[0], 0))
        else:
            count("samples", (final["trained"]["num"], final["trained"]["sum64"]), expected)
        written = {
            name
            for part in records.values()
            for record in part
            if (name := _event_id(record)) is not None
        }
        count(
            "events in the log",
            (len(self._producer.event_ids & written), 0),
            (len(self._producer.event_ids), 0),
        )
        state, again = self._learn_again()
        if state["outcome"] != "equal":
            problems.append(f"learned again: {state['text']}")
        divergences = len(state["versions"]) or int(state["outcome"] != "equal")
        audits = sum(
            int(check["outcome"] != "equal") for check in again if check["step"] != "state"
        )
        problems += [
            f"verify: {check['text']}"
            for check in again
            if check["step"] != "state" and check["outcome"] != "equal"
        ]
        seconds = np.array(self._recoveries or [float("nan")])
        asker = self._asker
        problems += [f"serving: {text}" for text in asker.failures[:5]] + [
            f"two lists of scores: {name}" for name in sorted(asker.mixed)
        ]
        for problem in problems:
            print(problem, file=sys.stderr)
        return {
            "kills": sum(self._done.values()),
            "kills_by": {name: self._done[name] for name in (LEARNER, BROKER, SERVING)},
            "crashes_in_recovery": self._in_recovery,
            "events": sum(map(len, records.values())),
            "samples": final["trained"]["num"],
            "samples_left_out": left_out,
            "steps_in_quarantine": sum(end - first for first, end in final["quarantine"]),
            "lost": lost,
            "doubled": doubled,
            "divergences": divergences,
            "digests_compared": state["num_compared"] or 0,
            "verify_failures": audits,
            "steps": final["step"],
            "recovery_p50_seconds": round(float(np.quantile(seconds, 0.5)), 3),
            "recovery_p99_seconds": round(float(np.quantile(seconds, 0.99)), 3),
            "recoveries": len(self._recoveries),
            "recovery_through_outage_max_seconds": round(max(self._through_outage, default=0.0), 3),
            "restarts_by_itself": dict(self._restarts),
            "records_resent": self._producer.num_resent,
            "seed": self._seed,
            "seconds": round(time.monotonic() - self._began, 1),
            "serving_answers": asker.num_answers,
            "serving_failures": len(asker.failures),
            "versions_answering": len(asker.scores),
            "mixed_versions": len(asker.mixed),
        }

    def _learn_again(self) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """`steelyard verify --deep` from the first version on: its check of the state, and all of its checks."""
        first = next(found for found in manifests(self._root) if found["kind"] == "checkpoint")
        arguments = [
            "verify",
            "--deep",
            "--json",
            "--since",
            first["version"],
            "--config",
            str(self.settings),
        ]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        out, err = self._folder / "verify.json", self._folder / "verify.err"
        with out.open("wb") as output, err.open("wb") as errors:
            command = [sys.executable, "-c", _COMMAND, *arguments]
            subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=errors,
                env=environment,
                timeout=3600,
                check=False,
            )
        try:
            checks: list[dict[str, Any]] = json.loads(out.read_text())["checks"]
            return next(check for check in checks if check["step"] == "state"), checks
        except (ValueError, KeyError, StopIteration) as error:
            text = f"verify --deep said nothing of the state ({error!r}):\n{out.read_text()[-2000:]}\n{err.read_text()[-3000:]}"
            return {"outcome": "undecided", "text": text, "num_compared": 0, "versions": []}, []


# --- the oracle's own eyes: nothing of the code under test ------------------------------------------------------------------------


def hash64(record: Record) -> int:
    """BLAKE2b-64 over topic, partition, offset and value."""
    topic, value = record.topic.encode(), record.value
    data = struct.pack("<qq", len(topic), record.partition) + topic
    data += struct.pack("<qq", record.offset, -1 if value is None else len(value)) + (value or b"")
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")


def read_log(bootstrap_servers: str) -> dict[tuple[str, int], list[Record]]:
    """Every record of every partition."""
    partitions = [TopicPartition(topic, p) for topic in TOPICS for p in range(NUM_PARTITIONS)]
    consumer = KafkaConsumer(
        bootstrap_servers=bootstrap_servers, enable_auto_commit=False, group_id=None
    )
    found: dict[tuple[str, int], list[Record]] = {(tp.topic, tp.partition): [] for tp in partitions}
    try:
        consumer.assign(partitions)
        ends = consumer.end_offsets(partitions)
        consumer.seek_to_beginning(*partitions)
        while any(consumer.position(tp) < ends[tp] for tp in partitions):
            for tp, records in consumer.poll(timeout_ms=500).items():
                found[tp.topic, tp.partition] += [
                    Record(tp.topic, tp.partition, r.offset, r.timestamp * 1000, r.key, r.value)
                    for r in records
                ]
    finally:
        consumer.close()
    return found


def manifests(root: Path) -> Iterator[dict[str, Any]]:
    """Every manifest, oldest first."""
    for path in sorted((root / "man").glob("M-*")):
        yield json.loads(path.read_bytes())


def newest_checkpoint(root: Path) -> dict[str, Any] | None:
    """The newest manifest of a version."""
    for path in sorted((root / "man").glob("M-*"), reverse=True):
        found: dict[str, Any] = json.loads(path.read_bytes())
        if found["kind"] == "checkpoint":
            return found
    return None


def num_claims(root: Path) -> int:
    """The newest owner's number."""
    return max(
        (int(path.name) for path in (root / "epoch").glob("*") if path.name.isdecimal()), default=0
    )


def newest_segment(root: Path) -> str:
    """The name of the newest owner's journal segment."""
    return max((path.name for path in (root / "journal").glob("*-0000")), default="")


def is_live(root: Path, before: str) -> bool:
    """Whether an owner that is newer than this segment has journaled a step: more than the magic word and the first frame."""
    segment = newest_segment(root)
    if segment <= before:
        return False
    path = root / "journal" / segment
    with path.open("rb") as file:
        head = file.read(12)
    return len(head) == 12 and path.stat().st_size > 16 + struct.unpack("<I", head[8:])[0]


def _event_id(record: Record) -> str | None:
    try:
        value = json.loads(record.value or b"")
        name = (value.get("event_attributes") or value["query_attributes"])["event_id"]
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
    return name if isinstance(name, str) else None


def measure(num_kills: int, seed: int, num_events: int, folder: Path) -> dict[str, Any]:
    """Run it once in a folder that is given; nothing of it runs any more afterwards.

    Raises:
        Failed: a process ended by itself, or hangs; holds the end of its log.
    """
    with ExitStack() as stack:
        try:
            return Run(num_kills, seed, num_events, folder, stack).run()
        except Failed as error:
            print(f"failed: {error}", file=sys.stderr, flush=True)
            raise


def is_clean(result: Mapping[str, Any]) -> bool:
    """Whether nothing was lost, doubled, different, refused or mixed."""
    names = (
        "lost",
        "doubled",
        "divergences",
        "verify_failures",
        "serving_failures",
        "mixed_versions",
    )
    return not any(result[name] for name in names)


def main() -> None:
    """Run it from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--kills", type=int, default=60)
    parser.add_argument(
        "--seed",
        type=int,
        default=int(uuid.uuid4()) % 1_000_000,
        help="left out, a random one, which is printed",
    )
    parser.add_argument("--events", type=int, help="records at least; left out, 150 per kill")
    parser.add_argument("--json", action="store_true", help="print the JSON object only")
    parser.add_argument(
        "--keep",
        action="store_true",
        help="keep the folder with store, broker data and logs; printed",
    )
    options = parser.parse_args()
    num_events = options.events or 150 * options.kills
    print(f"seed {options.seed}", file=sys.stderr)
    folder = Path(tempfile.mkdtemp(prefix="steelyard-crash-"))
    kept = options.keep
    try:
        result = measure(options.kills, options.seed, num_events, folder)
        kept = kept or not is_clean(result)
    except BaseException:
        kept = True
        raise
    finally:
        if kept:
            print(
                f"seed {options.seed}; store, logs and broker data are in {folder}", file=sys.stderr
            )
        else:
            import shutil

            shutil.rmtree(folder, ignore_errors=True)
    if not options.json:
        for key, value in result.items():
            print(f"{key:<36} {value}")
    print(json.dumps(result), flush=True)
    sys.exit(not is_clean(result))


if __name__ == "__main__":
    main()
