"""An invented log, endless and flawed, and the producer that writes it to Kafka."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from heapq import heappop, heappush
from itertools import islice
from random import Random
from typing import Any

from consumers.errors import ConsumersError
from consumers.events import encode_click, encode_exposure, encode_purchase
from consumers.joining.partition_clock import NUM_CLIENTS
from consumers.kafka.admin import partition_of
from consumers.kafka.options import KafkaConfig
from consumers.kafka.sink import KafkaSink

NUM_PARTITIONS, NUM_GROWN = 2, 3
TOPICS = ("clicks", "exposures", "purchases")
SECOND = 1_000_000
START_US = 1_700_000_000 * SECOND
MALFORMED = (b"{", b'{"a":1}', b"\xff\xfe", None, b"\x00\x00\x00\x00\x01avro", b"")
DUPLICATE, LATE, UNREADABLE = 0.05, 0.02, 0.01
NOTHING_FOUND = 0.05
WRONG_CLOCK = 0.02
#: Errors of the producer whose clock is wrong; within the window of deduplication.
CLOCK_ERRORS_SECONDS = (90, -300)
WRONG_CLIENT = "c-wrong-clock"
#: With this begin clients, queries and event ids of the last events.
LAST = "end-"
PATIENCE_SECONDS = 180.0
#: Event time after partitions were added in which nothing out of order is written: how late an
#: event of a new partition is depends on when it was taken over, which no oracle can know.
ORDERLY_SECONDS = 120


@dataclass(order=True, slots=True)
class Write:
    """A record to be appended; `at_us` orders the log.

    Attributes:
        orderly: neither late, nor of a wrong clock, nor a copy.
    """

    at_us: float
    number: int
    topic: str = field(compare=False)
    client: str = field(compare=False)
    value: bytes | None = field(compare=False)
    event_id: str | None = field(compare=False)
    orderly: bool = field(compare=False, default=True)


class _Future:
    """Records to come, in the order of appending."""

    def __init__(self, random: Random) -> None:
        self._random = random
        self._due: list[Write] = []
        self._number = 0

    def happen(self, topic: str, client: str, at_us: float, value: bytes, event_id: str) -> None:
        """Schedule an event: perhaps late, perhaps twice, perhaps beside an unreadable record."""
        random = self._random
        late_us = random.uniform(10, 60) * SECOND if random.random() < LATE else 0.0
        place = at_us + random.uniform(0, 3 * SECOND) + late_us
        orderly = not late_us and client != WRONG_CLIENT
        self._put(place, topic, client, value, event_id, orderly)
        if random.random() < DUPLICATE:
            again = place + random.uniform(0, 60 * SECOND)
            self._put(again, topic, client, value, event_id, False)
        if random.random() < UNREADABLE:
            self._put(place, topic, client, random.choice(MALFORMED), None, True)

    def until(self, time_us: float) -> Iterator[Write]:
        """Yield what is due before a time."""
        while self._due and self._due[0].at_us < time_us:
            yield heappop(self._due)

    def _put(
        self,
        at_us: float,
        topic: str,
        client: str,
        value: bytes | None,
        event_id: str | None,
        orderly: bool,
    ) -> None:
        self._number += 1
        heappush(self._due, Write(at_us, self._number, topic, client, value, event_id, orderly))


def invent(random: Random) -> Iterator[Write]:
    """Yield an endless log in the order of appending.

    Events are up to 3 s out of order, some late beyond grace, some twice, some unreadable. Some
    searches find nothing. One client's clock is wrong, ahead in some visits, behind in others.
    """
    future, time_us = _Future(random), float(START_US)
    while True:
        time_us += random.expovariate(1.0) * SECOND
        error_us = 0
        if random.random() < WRONG_CLOCK:
            error_us = random.choice(CLOCK_ERRORS_SECONDS) * SECOND
        _visit(random, future, time_us, error_us)
        yield from future.until(time_us)


def _visit(random: Random, future: _Future, time_us: float, error_us: int) -> None:
    """Schedule a list of four items, or of none, with its clicks and purchases.

    `error_us` is what the client's clock is ahead.
    """

    def name() -> str:
        return f"{random.getrandbits(64):016x}"

    client = WRONG_CLIENT if error_us else f"c-{random.randrange(2000)}"
    query_id, shown = f"q-{name()}", name()
    hits = random.sample([f"SKU-{n:03d}" for n in range(60)], 4)
    if random.random() < NOTHING_FOUND:
        hits = []
    exposure = encode_exposure(
        query_id=query_id,
        client_id=client,
        time_us=int(time_us) + error_us,
        user_query=f"shoes {random.randrange(40)}",
        hits=hits,
        event_id=shown,
    )
    future.happen("exposures", client, time_us, exposure, shown)
    for hit in hits:
        if random.random() >= 0.3:
            continue
        click_us, clicked = time_us + random.expovariate(1 / 15) * SECOND, name()
        click = encode_click(
            query_id=query_id if random.random() < 0.8 else None,
            client_id=client,
            object_id=hit,
            time_us=int(click_us) + error_us,
            event_id=clicked,
        )
        future.happen("clicks", client, click_us, click, clicked)
        if random.random() >= 0.4:
            continue
        bought_us, bought = click_us + random.expovariate(1 / 100) * SECOND, name()
        purchase = encode_purchase(
            query_id=query_id if random.random() < 0.8 else None,
            client_id=client,
            object_id=hit,
            time_us=int(bought_us) + error_us,
            event_id=bought,
        )
        future.happen("purchases", client, bought_us, purchase, bought)


class Producer:
    """Writes the log at a pace from a thread of its own, and again what was not acknowledged."""

    def __init__(self, config: KafkaConfig, seed: int, per_second: float) -> None:
        """Write nothing before `start`."""
        self._config, self._per_second = config, per_second
        self._log = invent(Random(f"{seed} log"))
        self._stopped, self._abandoned = threading.Event(), threading.Event()
        self._flows, self._writing = threading.Event(), threading.Lock()
        self._flows.set()
        self._orderly_until_us = float("-inf")
        self.num_partitions = NUM_PARTITIONS
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
        """End now, without the rest of the log."""
        self._abandoned.set()
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join()

    def pause(self) -> None:
        """Write nothing more until `grow`; all that was written is acknowledged."""
        self._flows.clear()
        with self._writing:
            pass

    def grow(self, num_partitions: int) -> None:
        """Go on with so many partitions of each topic, which are there by now."""
        if self._sink is not None:  # it knows the partitions of before
            self._sink.close()
            self._sink = None
        self.num_partitions = num_partitions
        self._orderly_until_us = self.newest_us + ORDERLY_SECONDS * SECOND
        self._flows.set()

    def finish(self, at_least: int) -> None:
        """Write what is missing, then last events so late that every window before has closed."""
        self.close()
        while self.num_sent < at_least:
            self._write([next(self._log) for _ in range(500)])
        end_us = int(self.newest_us) + 86_400 * SECOND
        last: list[Write] = []
        for number in range(self.num_partitions):
            last += last_events(number, self.num_partitions, end_us)
        self._write(last)
        self.close()

    def _run(self) -> None:
        try:
            began = time.monotonic()
            while not self._stopped.wait(0.1):
                due = int((time.monotonic() - began) * self._per_second) - self.num_sent
                with self._writing:
                    if due > 0 and self._flows.is_set():
                        self._write([next(self._log) for _ in range(min(due, 200))])
        except BaseException as error:  # reported by the main thread
            self.error = error

    def _write(self, writes: list[Write]) -> None:
        """Send until all are acknowledged; what is sent again was perhaps written before."""
        writes = [w for w in writes if w.orderly or w.at_us > self._orderly_until_us]
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


def last_events(partition: int, num_partitions: int, end_us: int) -> Iterator[Write]:
    """Yield the last events of a partition, of so many clients that event time follows them."""
    names = (f"{LAST}{n}" for n in range(1000))
    clients = (n for n in names if partition_of(n.encode(), num_partitions) == partition)
    for client in islice(clients, NUM_CLIENTS):
        common: dict[str, Any] = {"client_id": client, "query_id": client, "time_us": end_us}
        exposure = encode_exposure(**common, user_query="end", hits=["SKU-1"])
        yield Write(0, 0, "exposures", client, exposure, None)
        click = encode_click(**common, object_id="SKU-1", event_id=f"{LAST}click-{client}")
        yield Write(0, 0, "clicks", client, click, None)
        purchase = encode_purchase(**common, object_id="SKU-1", event_id=f"{LAST}buy-{client}")
        yield Write(0, 0, "purchases", client, purchase, None)
