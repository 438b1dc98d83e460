"""All of it at once, on one machine: broker, shop, learner, server; and at the end what was measured.

1. the server starts, and waits for a version; Apache Kafka starts, topics and product texts are written;
2. the learner starts from the encoder as it is, and publishes it as the first version;
3. the shop opens: events to Kafka, requests to the server;
4. the shop closes; the learner reads what is left, publishes, and ends;
5. the last version is judged against what the simulated shoppers' world knows.

Each role is a child process with the command line that a user would type.
"""

from __future__ import annotations

import http.client
import json
import os
import secrets
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from consumers.kafka.admin import KafkaAdmin
from consumers.kafka.options import KafkaConfig
from consumers.kafka.sink import KafkaSink
from consumers.pipeline import Topics
from deploy.broker.node import Broker, free_ports, spawn
from deploy.demo.catalog import load_catalog
from deploy.demo.judge import Array, ClickCounts, judge, ndcg, summary
from deploy.demo.shop import invented_shop
from deploy.demo.show import Show
from deploy.demo.traffic import Producer, Requests, rerank, send_items
from deploy.demo.world import Query, Shoppers, World
from deploy.errors import DeployError
from deploy.process.observability import scrape
from learner.artifact import Store
from learner.config import LearnerConfig
from learner.evaluation import Evaluation
from weighting.estimators.stacker import StackerConfig
from weighting.weigher import WeigherConfig

_PARTITIONS = 4
_START_SECONDS = 300.0
_END_SECONDS = 300.0
_REQUESTS_PER_SECOND = 20.0
#: Nothing learned, the click logit served is a s cos / (1 + b) + constant: the stacker's start, the scale, the exponent's inversion.
_UNTRAINED_SLOPE = (
    StackerConfig().encoder * LearnerConfig().logit_scale / (1 + WeigherConfig().exponent)
)
_COMMAND = "from deploy.cli.app import main; main()"


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoConfig:
    """What the command line says.

    Attributes:
        seconds: how long the shop is open.
        catalog: folder of graded judgments; None for the invented shop.
        split: which queries of the catalogue are asked in the stream.
        bootstrap_servers: a Kafka to use instead of our own; topics get names of their own there.
        tuning: what moves in the encoder.
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
        DeployError: a part of it did not start or ended by itself; holds the end of its log.
    """
    world = (
        invented_shop(seed=config.seed)
        if config.catalog is None
        else load_catalog(config.catalog, split=config.split)
    )
    show = Show()
    with tempfile.TemporaryDirectory(prefix="steelyard-demo-") as folder, ExitStack() as stack:
        stack.callback(show.close)
        result = _Demo(config, world, Path(folder), show, stack).run()
    show.summary(result)
    if config.json:
        print(json.dumps(result), flush=True)


class _Role:
    """A child process that runs one role, with its log in a file; it ends when we do."""

    def __init__(self, name: str, settings: Path, log: Path) -> None:
        self.name, self._log = name, log
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
        with log.open("wb") as output:
            self._process = spawn(
                [sys.executable, "-c", _COMMAND, name, "--config", str(settings)],
                output,
                env=environment,
            )

    def check(self) -> None:
        if self._process.poll() is not None:
            raise DeployError(
                f"the role {self.name} ended by itself (exit code {self._process.returncode}). Its log ends:\n{self.log_tail()}"
            )

    def log_tail(self) -> str:
        return "\n".join(self._log.read_text(errors="replace").splitlines()[-20:])

    def close(self, *, seconds: float = 60.0) -> None:
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(seconds)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()


class _Demo:
    """One run."""

    def __init__(
        self, config: DemoConfig, world: World, folder: Path, show: Show, stack: ExitStack
    ) -> None:
        self._config, self._world, self._folder, self._show, self._stack = (
            config,
            world,
            folder,
            show,
            stack,
        )
        own = f"demo-{secrets.token_hex(3)}-" if config.bootstrap_servers else ""
        self._topics = Topics(
            exposures=f"{own}exposures",
            clicks=f"{own}clicks",
            purchases=f"{own}purchases",
            items=f"{own}items",
            dead_letter=f"{own}steelyard.deadletter",
        )
        self._store = Store(folder / "store")
        self._serve_port, self._metrics_port = free_ports(2)
        self._settings = folder / "steelyard.yaml"

    def run(self) -> dict[str, Any]:
        config, show, stack = self._config, self._show, self._stack
        servers = config.bootstrap_servers or stack.enter_context(Broker()).bootstrap_servers
        kafka = KafkaConfig(bootstrap_servers=servers)
        self._settings.write_text(json.dumps(self._plan(servers), indent=1))
        serve = self._start("serve")
        stack.enter_context(self._created_topics(kafka))
        sink = KafkaSink(
            kafka, [t for t in (*self._topics.kinds(), self._topics.dead_letter)]
        ).start()
        stack.callback(sink.close)
        assert self._topics.items is not None
        send_items(sink, self._topics.items, self._world.products())
        show.say("broker", f"Apache Kafka at {servers}, 3 event topics x {_PARTITIONS} partitions")
        learn = self._start("learn")
        self._wait_until("the first version is served", self._ready, serve, learn)
        show.say("learner", f"encoder published as {self._info()['version']}, nothing learned yet")
        show.say("serving", f"http://127.0.0.1:{self._serve_port}   /docs   /metrics")
        before = self._rankings()
        rate = 40.0 if config.catalog else 15.0
        producer = Producer(
            sink, self._topics, self._world, visits_per_second=rate, seed=config.seed
        )
        requests = Requests(
            self._serve_port, self._world, per_second=_REQUESTS_PER_SECOND, seed=config.seed
        )
        show.say(
            "shop",
            f"{self._world.name}: {rate:.0f} shown lists/s, clicks, delayed purchases; {_REQUESTS_PER_SECOND:.0f} requests/s",
        )
        began = time.monotonic()
        producer.start()
        requests.start()
        try:
            while (elapsed := time.monotonic() - began) < config.seconds:
                for role in (serve, learn):
                    role.check()
                if producer.error is not None:
                    raise DeployError(
                        f"the shop could not write its events: {producer.error}"
                    ) from producer.error
                show.progress(elapsed, config.seconds, self._standing(requests))
                time.sleep(0.5)
        finally:
            producer.close()
            requests.close()
        self._wait_until("the learner has read everything", self._caught_up, serve, learn)
        measured = self._metrics()
        learn.close()
        last = self._store.announced()
        self._wait_until(f"{last} is served", lambda: self._info()["version"] == last, serve)
        result = {
            "world": self._world.name,
            "seconds": time.monotonic() - began,
            "lists": producer.num_visits,
        }
        result |= self._stream(measured, requests)
        result |= self._quality(before, producer.counts)
        serve.close()
        return result

    def _plan(self, servers: str) -> dict[str, Any]:
        """The settings of both roles: windows in seconds instead of days, everything else by default."""
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
                "batch": 320 if catalog else 128,
                "tuning": self._config.tuning,
                "seed": self._config.seed,
            },
            "serving": {"port": self._serve_port},
            "store": {"root": str(self._folder / "store")},
            "observability": {"log_format": "json", "metrics_port": self._metrics_port},
        }

    def _start(self, name: str) -> _Role:
        role = _Role(name, self._settings, self._folder / f"{name}.log")
        self._stack.callback(role.close)
        return role

    @contextmanager
    def _created_topics(self, kafka: KafkaConfig) -> Iterator[None]:
        """Our topics; on a Kafka that is not ours they are deleted again."""
        with KafkaAdmin(kafka) as admin:
            for topic in self._topics.kinds():
                compacted = topic == self._topics.items
                admin.create_topic(
                    topic, _PARTITIONS, config={"cleanup.policy": "compact"} if compacted else None
                )
            admin.create_topic(self._topics.dead_letter, 1, config={"cleanup.policy": "compact"})
        try:
            yield
        finally:
            if self._config.bootstrap_servers:
                with KafkaAdmin(kafka) as admin:
                    for topic in (*self._topics.kinds(), self._topics.dead_letter):
                        admin.delete_topic(topic)

    def _wait_until(self, what: str, done: Any, *roles: _Role) -> None:
        deadline = time.monotonic() + (
            _START_SECONDS if what.startswith("the first") else _END_SECONDS
        )
        while not done():
            for role in roles:
                role.check()
            if time.monotonic() > deadline:
                logs = "\n".join(f"{role.name}:\n{role.log_tail()}" for role in roles)
                raise DeployError(f"waited in vain until {what}. The logs end:\n{logs}")
            time.sleep(0.1)

    def _ready(self) -> bool:
        try:
            with urllib.request.urlopen(
                f"http://127.0.0.1:{self._serve_port}/readyz", timeout=5
            ) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def _info(self) -> dict[str, Any]:
        with urllib.request.urlopen(
            f"http://127.0.0.1:{self._serve_port}/info", timeout=30
        ) as answer:
            found: dict[str, Any] = json.load(answer)
        return found

    def _metrics(self) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
        return scrape(f"http://127.0.0.1:{self._metrics_port}/metrics")

    def _caught_up(self) -> bool:
        return _total(self._metrics(), "steelyard_consumer_lag_records") == 0

    def _standing(self, requests: Requests) -> dict[str, Any]:
        """What the progress view shows."""
        m, info = self._metrics(), self._info()
        click = frozenset({("label", "click")})
        quality = frozenset({("label", "click"), ("model", "champion")})
        value = m.get
        prior, ess = (
            value(("steelyard_label_prior_ratio", click)),
            value(("steelyard_weight_effective_sample_ratio", frozenset())),
        )
        auc = value(("steelyard_prequential_auc_ratio", quality))
        entropy = value(("steelyard_prequential_normalized_entropy_ratio", quality))
        return {
            "events": f"{_events(m):,}",
            "samples": f"{_total(m, 'steelyard_learner_samples_total'):,.0f}",
            "prior": None if prior is None else f"{prior:.4f}",
            "weight_ess_ratio": None if ess is None else f"{ess:.2f}",
            "auc": None if auc is None else f"{auc:.3f}",
            "normalized_entropy": None if entropy is None else f"{entropy:.3f}",
            "version": info["version"],
            "swaps": info["swaps"],
            "requests": f"{requests.failed}/{requests.sent}",
        }

    def _stream(
        self, m: dict[tuple[str, frozenset[tuple[str, str]]], float], requests: Requests
    ) -> dict[str, Any]:
        """What the stream, the learner and the server counted."""
        info, newest = self._info(), self._store.version(str(self._store.announced()))
        kept: dict[str, bytes] = msgspec.msgpack.decode(
            self._store.read(newest, "training/evaluation.msgpack")
        )
        evaluation = Evaluation()
        evaluation.restore(kept["click"])
        quarters = evaluation.quarters()
        aucs = [quarter.get("auc") for quarter in quarters]
        click = frozenset({("label", "click")})
        bounds = {
            b: m[
                ("steelyard_label_prior_bound_ratio", frozenset({("label", "click"), ("bound", b)}))
            ]
            for b in ("low", "high")
        }
        failures = dict(requests.failures)
        return {
            "events": _events(m),
            "samples": newest.num_samples,
            "duplicates": int(_total(m, "steelyard_consumer_events_total", outcome="duplicate")),
            "late": int(_total(m, "steelyard_consumer_events_total", outcome="late")),
            "dead_letters": int(_total(m, "steelyard_deadletter_events_total")),
            "versions_published": newest.seq,
            "versions_swapped": info["swaps"],
            "requests": requests.sent,
            "requests_failed": requests.failed,
            "failures": failures,
            "versions_answering": len(requests.versions),
            "request_p50_ms": 1000 * float(np.median(requests.seconds))
            if requests.seconds
            else None,
            "request_p99_ms": 1000 * float(np.quantile(requests.seconds, 0.99))
            if requests.seconds
            else None,
            "freshness_p50_seconds": info["freshness_p50_seconds"],
            "freshness_p99_seconds": info["freshness_p99_seconds"],
            "auc": aucs,
            "auc_first_quarter": aucs[0],
            "auc_last_quarter": aucs[-1],
            "normalized_entropy": evaluation.get()["normalized_entropy"],
            "normalized_entropy_quarters": [
                quarter.get("normalized_entropy") for quarter in quarters
            ],
            "predicted_to_observed": evaluation.get()["predicted_to_observed"],
            "weight_ess_ratio": m[("steelyard_weight_effective_sample_ratio", frozenset())],
            "prior": m[("steelyard_label_prior_ratio", click)],
            "prior_low": bounds["low"],
            "prior_high": bounds["high"],
        }

    def _rankings(self) -> dict[str, tuple[Array, Array]]:
        """Of every query: the score that ranks, and p(click), per product (n,), as the server answers now."""
        found = {}
        connection = http.client.HTTPConnection("127.0.0.1", self._serve_port, timeout=120)
        for query in self._world.queries:
            order = [row["index"] for row in rerank(connection, query)["results"]]
            score = np.zeros(len(order))
            score[order] = -np.arange(len(order), dtype=np.float64)
            instances = [
                {"query": query.text, "document": {"id": p.id, "text": p.text, **p.attributes}}
                for p in query.products
            ]
            connection.request(
                "POST",
                "/v1/score",
                json.dumps({"instances": instances}),
                {"content-type": "application/json"},
            )
            answer = json.load(connection.getresponse())
            found[query.text] = (
                score,
                np.array([row["p"]["click"] for row in answer["predictions"]]),
            )
        connection.close()
        return found

    def _quality(
        self, before: dict[str, tuple[Array, Array]], counts: ClickCounts
    ) -> dict[str, Any]:
        """The last version against grades and against the truth of the simulation."""
        after = self._rankings()

        def cosine(query: Query) -> Array:
            p = before[query.text][1]
            value: Array = (np.log(p) - np.log1p(-p)) / _UNTRAINED_SLOPE
            return value

        judged = judge(
            self._world, served=lambda q: after[q.text][0], zero_shot=cosine, counts=counts
        )
        shoppers = Shoppers(self._world, seed=self._config.seed)
        asked = [query for query in self._world.queries if query.in_stream]

        def error(rankings: dict[str, tuple[Array, Array]]) -> float:
            gaps = [np.abs(rankings[q.text][1] - shoppers.true_click(q))[q.shown] for q in asked]
            return float(np.concatenate(gaps).mean())

        moved = max(
            asked,
            key=lambda q: (
                ndcg(after[q.text][0], q.grades, k=3) - ndcg(before[q.text][0], q.grades, k=3)
            ),
        )

        def top(rankings: dict[str, tuple[Array, Array]]) -> list[str]:
            return [
                moved.products[i].text[:40]
                for i in np.argsort(-rankings[moved.text][0], kind="stable")[:3]
            ]

        return {
            "truth_error": [error(before), error(after)],
            "ndcg10": summary(judged),
            "per_query": {
                part: {method: values.tolist() for method, values in methods.items()}
                for part, methods in judged.items()
            },
            "ranking": {"query": moved.text, "before": top(before), "after": top(after)},
        }


def _total(
    metrics: dict[tuple[str, frozenset[tuple[str, str]]], float], name: str, **labels: str
) -> float:
    wanted = set(labels.items())
    return sum(value for (own, found), value in metrics.items() if own == name and wanted <= found)


def _events(metrics: dict[tuple[str, frozenset[tuple[str, str]]], float]) -> int:
    """Records of exposures, clicks and purchases read; product texts do not count."""
    return int(
        _total(metrics, "steelyard_consumer_events_total")
        - _total(metrics, "steelyard_consumer_events_total", event="item")
    )
