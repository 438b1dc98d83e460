"""Traffic of the shop: flawed events to Kafka, as real producers send, and requests."""

from __future__ import annotations

import heapq
import http.client
import json
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from consumers.events import encode_click, encode_exposure, encode_item, encode_purchase
from consumers.kafka.sink import KafkaSink
from consumers.pipeline import Topics
from deploy.demo.judge import ClickCounts
from deploy.demo.world import Product, Query, Shoppers, Visit, World

_DUPLICATE, _MALFORMED, _LATE = 0.02, 0.003, 0.01
_SECOND = 1_000_000


def send_items(sink: KafkaSink, topic: str, products: Sequence[Product]) -> None:
    """Write every product's text to the compacted items topic."""
    for product in products:
        value = encode_item(
            object_id=product.id,
            text=product.text,
            attributes=dict(product.attributes),
            time_us=int(time.time() * _SECOND),
        )
        sink.send(topic, product.id.encode(), value)
    sink.flush()


@dataclass(order=True, slots=True)
class _Due:
    at: float
    number: int
    topic: str = field(compare=False)
    client: str = field(compare=False)
    value: bytes = field(compare=False)


class Producer:
    """Sends visits at a rate, from a thread of its own.

    2 % of records twice, 1 % of clicks 3 s late, 0.3 % broken in half.
    """

    def __init__(
        self, sink: KafkaSink, topics: Topics, world: World, *, visits_per_second: float, seed: int
    ) -> None:
        """Open the shop; visits begin with `start`."""
        self._sink, self._topics = sink, topics
        self._shoppers = Shoppers(world, seed=seed)
        self._rate = visits_per_second
        self._random = np.random.Generator(np.random.PCG64(seed + 1))
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="shop")
        self._due: list[_Due] = []
        self._number = 0
        self.counts = ClickCounts()
        self.sent: Counter[str] = Counter()
        self.num_visits = 0
        self.error: BaseException | None = None

    def start(self) -> None:
        """Let shoppers in."""
        self._thread.start()

    def close(self) -> None:
        """End the visits; events due in the next three seconds are still sent."""
        self._stopped.set()
        self._thread.join()

    def _run(self) -> None:
        try:
            began = time.time()
            while not self._stopped.wait(0.02):
                now = time.time()
                while self.num_visits < (now - began) * self._rate:
                    self.num_visits += 1
                    self._plan(self._shoppers.visit(), now)
                self._send_until(now)
            end = time.time() + 3.0
            while self._due and (now := time.time()) < end:
                self._send_until(now)
                time.sleep(0.05)
            self._sink.flush()
        except Exception as error:  # reported by the owner, which waits in another thread
            self.error = error

    def _plan(self, visit: Visit, now: float) -> None:
        """Schedule the events of a visit."""
        draw, topics, query = self._random, self._topics, visit.query
        client, query_id = f"c-{draw.integers(1 << 40):010x}", f"q-{draw.integers(1 << 60):015x}"
        hits = [query.products[i].id for i in visit.shown]
        self.counts.learn(query.text, hits, visit.clicked.tolist())
        assert topics.exposures is not None
        shown_us = int(now * _SECOND)
        exposure = encode_exposure(
            query_id=query_id,
            client_id=client,
            time_us=shown_us,
            user_query=query.text,
            hits=hits,
            scenario="search",
        )
        self._put(now, topics.exposures, client, exposure)
        at = now
        rows = zip(hits, visit.clicked, visit.bought, strict=True)
        for place, (item, clicked, bought) in enumerate(rows, 1):
            if not clicked:
                continue
            at += float(draw.uniform(0.05, 0.4))
            event = f"{query_id}-{place}"
            click = encode_click(
                client_id=client,
                object_id=item,
                time_us=int(at * _SECOND),
                query_id=query_id,
                ordinal=place,
                event_id=f"{event}-click",
            )
            self._put(at + (3.0 if draw.random() < _LATE else 0.0), topics.clicks, client, click)
            if bought:
                when = at + float(np.clip(draw.lognormal(0.7, 1.0), 0.2, 60.0))
                purchase = encode_purchase(
                    client_id=client,
                    object_id=item,
                    time_us=int(when * _SECOND),
                    query_id=query_id,
                    event_id=f"{event}-purchase",
                    price=9.9,
                )
                self._put(when, topics.purchases, client, purchase)

    def _put(self, at: float, topic: str, client: str, value: bytes) -> None:
        self._number += 1
        heapq.heappush(self._due, _Due(at, self._number, topic, client, value))

    def _send_until(self, now: float) -> None:
        while self._due and self._due[0].at <= now:
            due = heapq.heappop(self._due)
            chance = self._random.random()
            self._sink.send(due.topic, due.client.encode(), due.value)
            self.sent[due.topic] += 1
            if chance < _DUPLICATE:
                self._sink.send(due.topic, due.client.encode(), due.value)
                self.sent["duplicates"] += 1
            elif chance < _DUPLICATE + _MALFORMED:
                self._sink.send(due.topic, due.client.encode(), due.value[: len(due.value) // 2])
                self.sent["malformed"] += 1


class Requests:
    """Sends reranking requests at a rate over one connection, from a thread of its own.

    Every answer that is not 200 counts as failed.
    """

    def __init__(self, port: int, world: World, *, per_second: float, seed: int) -> None:
        """Keep port and queries; nothing is sent before `start`."""
        self._port, self._per_second = port, per_second
        self._queries = world.queries
        self._random = np.random.Generator(np.random.PCG64(seed + 2))
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="requests")
        self.sent = 0
        self.failed = 0
        self.failures: Counter[str] = Counter()
        self.versions: Counter[str] = Counter()
        self.seconds: list[float] = []

    def start(self) -> None:
        """Start asking."""
        self._thread.start()

    def close(self) -> None:
        """Stop asking."""
        self._stopped.set()
        self._thread.join()

    def _run(self) -> None:
        began = time.monotonic()
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=30)
        while not self._stopped.wait(self._seconds_to_next(began)):
            query = self._queries[int(self._random.integers(len(self._queries)))]
            asked = time.monotonic()
            self.sent += 1
            try:
                answer = rerank(connection, query)
            except (OSError, http.client.HTTPException, ValueError) as error:
                self.failed += 1
                self.failures[f"{type(error).__name__}: {error}"[:200]] += 1
                connection.close()
                continue
            self.seconds.append(time.monotonic() - asked)
            self.versions[answer["model"]] += 1
        connection.close()

    def _seconds_to_next(self, began: float) -> float:
        due = began + (self.sent + 1) / self._per_second
        return max(0.0, due - time.monotonic())


def rerank(connection: http.client.HTTPConnection, query: Query) -> dict[str, Any]:
    """Return the server's ranking of all of a query's products.

    Raises:
        ValueError: the answer is not 200; holds its beginning.
    """
    documents = [{"id": p.id, "text": p.text, **p.attributes} for p in query.products]
    body = json.dumps({"query": query.text, "documents": documents})
    connection.request("POST", "/v2/rerank", body, {"content-type": "application/json"})
    response = connection.getresponse()
    data = response.read()
    if response.status != 200:
        raise ValueError(f"{response.status} {data[:120]!r}")
    answer: dict[str, Any] = json.loads(data)
    return answer
