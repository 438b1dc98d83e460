"""Logs of one partition number, written event by event."""

from __future__ import annotations

import json
from datetime import UTC, datetime

from consumers.events import encode_click, encode_exposure, encode_item, encode_purchase
from consumers.pipeline import Topics
from tests.consumers.bench import Bench
from tests.consumers.shop import SECOND, START_US, TOPICS
from tests.fakes.log import Log


def empty(num_partitions: int = 1, *, items: bool = False) -> Log:
    topics = (*TOPICS, "items") if items else TOPICS
    return Log([(topic, p) for topic in topics for p in range(num_partitions)])


def show(
    log: Log, query_id: str, at: float, *, client: str = "c", hits: tuple[str, ...] = ("A", "B")
) -> None:
    time_us = START_US + int(at * SECOND)
    value = encode_exposure(
        query_id=query_id, client_id=client, time_us=time_us, user_query="shoes", hits=hits
    )
    log.append("exposures", 0, value, key=client.encode(), timestamp_us=time_us)


def click(
    log: Log,
    query_id: str | None,
    item: str,
    at: float,
    *,
    client: str = "c",
    event_id: str | None = None,
) -> None:
    time_us = START_US + int(at * SECOND)
    value = encode_click(
        query_id=query_id, client_id=client, object_id=item, time_us=time_us, event_id=event_id
    )
    log.append("clicks", 0, value, key=client.encode(), timestamp_us=time_us)


def buy(
    log: Log,
    query_id: str | None,
    item: str,
    at: float,
    *,
    client: str = "c",
    quantity: float | None = None,
) -> None:
    time_us = START_US + int(at * SECOND)
    value = encode_purchase(
        query_id=query_id, client_id=client, object_id=item, time_us=time_us, quantity=quantity
    )
    log.append("purchases", 0, value, key=client.encode(), timestamp_us=time_us)


def give_back(log: Log, query_id: str | None, item: str, at: float, *, client: str = "c") -> None:
    buy(log, query_id, item, at, client=client, quantity=-1)


def tick(log: Log, at: float, topic: str = "clicks") -> None:
    """Two other clients act: event time moves, because it is not one clock that says so."""
    time = datetime.fromtimestamp(START_US / SECOND + at, UTC).isoformat()
    for client in ("x-1", "x-2"):
        if topic == "exposures":
            show(log, f"{client}@{at}", at, client=client, hits=("X",))
        else:
            value = json.dumps({"action_name": "view", "client_id": client, "timestamp": time})
            log.append(topic, 0, value.encode(), key=client.encode())


def describe(log: Log, item: str, text: str | None, at: float) -> None:
    time_us = START_US + int(at * SECOND)
    value = (
        None
        if text is None
        else encode_item(object_id=item, text=text, time_us=time_us, attributes={"brand": text[:1]})
    )
    log.append("items", 0, value, key=item.encode(), timestamp_us=time_us)


def with_items(log: Log) -> Bench:
    return Bench(log, topics=Topics())
