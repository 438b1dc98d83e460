"""The demo: broker, shop, learner and server on one machine, and a summary at the end.

1. the server starts, and waits for a version; Apache Kafka starts, topics and product texts are
   written;
2. the learner starts from the encoder as it is, and publishes it as the first version;
3. the shop opens: events to Kafka, requests to the server;
4. the shop closes; the learner reads what is left, publishes, and ends;
5. the last version is judged against what the simulated shoppers' world knows.

Each role is a child process with the command line that a user would type.
"""

from __future__ import annotations

import json
import secrets
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from consumers.kafka.admin import KafkaAdmin
from consumers.kafka.options import KafkaConfig
from consumers.kafka.sink import KafkaSink
from consumers.pipeline import Topics
from deploy.broker.node import Broker
from deploy.demo import results
from deploy.demo.catalog import load_catalog
from deploy.demo.child import RoleProcess
from deploy.demo.server import Server
from deploy.demo.shop import invented_shop
from deploy.demo.show import Show
from deploy.demo.traffic import Producer, Requests, send_items
from deploy.demo.world import World
from deploy.errors import DeployError
from deploy.process.child import free_ports
from deploy.process.observability import scrape
from learner.artifact import Store

_PARTITIONS = 4
_WAIT_SECONDS = 300.0
_REQUESTS_PER_SECOND = 20.0
_LISTS_PER_SECOND = {"invented": 15.0, "catalog": 40.0}


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoConfig:
    """Options of the demo.

    Attributes:
        seconds: how long the shop is open.
        catalog: folder of graded judgments; None for the invented shop.
        split: seed of the choice of queries that are asked in the stream.
        bootstrap_servers: a Kafka to use instead of our own; topics get names of their own there.
        tuning: which part of the encoder is trained.
        seed: of the shop and the learner.
        json: the last line on standard output is one JSON object.
    """

    seconds: float
    catalog: Path | None
    split: int
    bootstrap_servers: str | None
    tuning: str
    seed: int
    json: bool


def main(config: DemoConfig) -> None:
    """Run the demo.

    Raises:
        DeployError: a part did not start or ended by itself; holds the end of its log.
    """
    if config.catalog is None:
        world = invented_shop(seed=config.seed)
    else:
        world = load_catalog(config.catalog, split=config.split)
    show = Show()
    with tempfile.TemporaryDirectory(prefix="steelyard-demo-") as folder, ExitStack() as stack:
        stack.callback(show.close)
        result = _Demo(config, world, Path(folder), show, stack).run()
    show.summary(result)
    if config.json:
        print(json.dumps(result), flush=True)


class _Demo:
    """One run."""

    def __init__(
        self, config: DemoConfig, world: World, folder: Path, show: Show, stack: ExitStack
    ) -> None:
        self._config = config
        self._world = world
        self._folder = folder
        self._show = show
        self._stack = stack
        own = f"demo-{secrets.token_hex(3)}-" if config.bootstrap_servers else ""
        self._topics = Topics(
            exposures=f"{own}exposures",
            clicks=f"{own}clicks",
            purchases=f"{own}purchases",
            items=f"{own}items",
            dead_letter=f"{own}steelyard.deadletter",
        )
        self._store = Store(folder / "store")
        serve_port, self._metrics_port = free_ports(2)
        self._server = Server(serve_port)
        self._settings = folder / "steelyard.yaml"

    def run(self) -> dict[str, Any]:
        config, show, stack, server = self._config, self._show, self._stack, self._server
        servers = config.bootstrap_servers or stack.enter_context(Broker()).bootstrap_servers
        kafka = KafkaConfig(bootstrap_servers=servers)
        self._settings.write_text(json.dumps(self._plan(servers), indent=1))
        serve = self._start("serve")
        stack.enter_context(self._created_topics(kafka))
        sink = KafkaSink(kafka, [*self._topics.kinds(), self._topics.dead_letter]).start()
        stack.callback(sink.close)
        assert self._topics.items is not None
        send_items(sink, self._topics.items, self._world.products())
        show.report(
            "broker", f"Apache Kafka at {servers}, 3 event topics x {_PARTITIONS} partitions"
        )
        learn = self._start("learn")
        self._wait_until("the first version is served", server.ready, serve, learn)
        version = server.info()["version"]
        show.report("learner", f"encoder published as {version}, nothing learned yet")
        show.report("serving", f"{server.url}   /docs   /metrics")
        before = server.rankings(self._world)
        began = time.monotonic()
        producer, requests = self._trade(sink, serve, learn)
        self._wait_until("the learner has read everything", self._caught_up, serve, learn)
        metrics = self._metrics()
        learn.close()
        last = self._store.announced()
        self._wait_until(f"{last} is served", lambda: server.info()["version"] == last, serve)
        result = {
            "world": self._world.name,
            "seconds": time.monotonic() - began,
            "lists": producer.num_visits,
        }
        result |= results.stream(metrics, server.info(), requests, self._store)
        after = server.rankings(self._world)
        result |= results.quality(self._world, before, after, producer.counts, seed=config.seed)
        serve.close()
        return result

    def _trade(self, sink: KafkaSink, *roles: RoleProcess) -> tuple[Producer, Requests]:
        """Keep the shop open: events to Kafka, requests to the server."""
        config, seed = self._config, self._config.seed
        rate = _LISTS_PER_SECOND["catalog" if config.catalog else "invented"]
        producer = Producer(sink, self._topics, self._world, visits_per_second=rate, seed=seed)
        per_second = _REQUESTS_PER_SECOND
        requests = Requests(self._server.port, self._world, per_second=per_second, seed=seed)
        self._show.report(
            "shop",
            f"{self._world.name}: {rate:.0f} shown lists/s, clicks, delayed purchases; "
            f"{per_second:.0f} requests/s",
        )
        began = time.monotonic()
        producer.start()
        requests.start()
        try:
            while (elapsed := time.monotonic() - began) < config.seconds:
                for role in roles:
                    role.check()
                if producer.error is not None:
                    message = f"the shop could not write its events: {producer.error}"
                    raise DeployError(message) from producer.error
                values = results.progress(self._metrics(), self._server.info(), requests)
                self._show.progress(elapsed, config.seconds, values)
                time.sleep(0.5)
        finally:
            producer.close()
            requests.close()
        return producer, requests

    def _plan(self, servers: str) -> dict[str, Any]:
        """Return the settings of both roles: windows in seconds, not days; the rest by default."""
        catalog = self._config.catalog is not None
        names = ("exposures", "clicks", "purchases", "items", "dead_letter")
        windows = {
            "click_window": "1500ms",
            "observation_window": "2s",
            "attribution_window": "120s",
            "grace": "500ms",
            "idle_timeout": "300ms",
        }
        return {
            "kafka": {
                "bootstrap_servers": servers,
                "topics": {name: getattr(self._topics, name) for name in names},
            },
            "join": windows,
            "learner": {
                "publish_every": "15s" if catalog else "3s",
                "batch_size": 320 if catalog else 128,
                "reference_batch_size": 320 if catalog else 128,
                "tuning": self._config.tuning,
                "seed": self._config.seed,
            },
            "serving": {"port": self._server.port},
            "store": {"root": str(self._folder / "store")},
            "observability": {"log_format": "json", "metrics_port": self._metrics_port},
        }

    def _start(self, name: str) -> RoleProcess:
        role = RoleProcess(name, self._settings, self._folder / f"{name}.log")
        self._stack.callback(role.close)
        return role

    @contextmanager
    def _created_topics(self, kafka: KafkaConfig) -> Iterator[None]:
        """Create our topics; on a Kafka that is not ours they are deleted again."""
        with KafkaAdmin(kafka) as admin:
            compacted = {"cleanup.policy": "compact"}
            for topic in self._topics.kinds():
                own = compacted if topic == self._topics.items else None
                admin.create_topic(topic, _PARTITIONS, config=own)
            admin.create_topic(self._topics.dead_letter, 1, config=compacted)
        try:
            yield
        finally:
            if self._config.bootstrap_servers:
                with KafkaAdmin(kafka) as admin:
                    for topic in (*self._topics.kinds(), self._topics.dead_letter):
                        admin.delete_topic(topic)

    def _wait_until(self, what: str, done: Callable[[], bool], *roles: RoleProcess) -> None:
        deadline = time.monotonic() + _WAIT_SECONDS
        while not done():
            for role in roles:
                role.check()
            if time.monotonic() > deadline:
                logs = "\n".join(f"{role.name}:\n{role.log_tail()}" for role in roles)
                raise DeployError(f"waited in vain until {what}. The logs end:\n{logs}")
            time.sleep(0.1)

    def _metrics(self) -> results.Metrics:
        return scrape(f"http://127.0.0.1:{self._metrics_port}/metrics")

    def _caught_up(self) -> bool:
        return results.total(self._metrics(), "steelyard_consumer_lag_records") == 0
