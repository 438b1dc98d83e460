"""Open-loop load: requests at Poisson times, whatever became of those before them.

    python -m benchmarks.overloading.load --url URL --rate R --seconds S [--seed N]
    python -m benchmarks.overloading.load --url URL --connections N --seconds S

With `--connections` the loop is closed: so many clients, each of which asks again as soon as it is
answered or refused.

One thread on epoll, about 30 us per request. Every request has a connection to itself while it is
under way: a free one is reused, else a new one is opened, so that no arrival waits for an answer
(no coordinated omission). Latency counts from the moment of sending. By how much sending was late
itself, because this process got no processor, is reported beside it. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import select
import socket
import time
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import numpy as np

NUM_DOCUMENTS = 10
PATIENCE_SECONDS = 15.0
#: More under way than this is a server that cannot keep up: what comes then is counted "not sent".
MAX_CONNECTIONS = 800
_LENGTH = re.compile(rb"(?i)content-length: (\d+)")
_FORWARD = re.compile(rb"forward;dur=([\d.]+)")


@dataclass(slots=True)
class Exchange:
    """A connection, and the request that is under way on it."""

    connection: socket.socket
    sent: float = 0.0
    received: bytes = b""


@dataclass(slots=True)
class Results:
    """Seconds of each request, by what became of it."""

    answered: list[float] = field(default_factory=list)
    answered_at: list[float] = field(default_factory=list)
    batches: list[float] = field(default_factory=list)
    refused: list[float] = field(default_factory=list)
    without_retry_after: int = 0
    others: dict[str, int] = field(default_factory=dict)
    late: list[float] = field(default_factory=list)

    def fail(self, kind: str) -> None:
        """Count what is neither an answer nor a refusal."""
        self.others[kind] = self.others.get(kind, 0) + 1


class Load:
    """Requests to one server."""

    def __init__(self, url: str) -> None:
        """Connect to nothing yet."""
        parts = urlsplit(url)
        self._address = (parts.hostname, parts.port)
        documents = [f"running shoe number {number}" for number in range(NUM_DOCUMENTS)]
        body = json.dumps({"query": "red running shoes", "documents": documents}).encode()
        head = f"POST /v2/rerank HTTP/1.1\r\nHost: {parts.netloc}\r\n"
        head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        self._request = head.encode() + body
        self._poll = select.epoll()
        self._busy: dict[int, Exchange] = {}
        self._free: list[Exchange] = []
        self.results = Results()

    def run(self, rate: float, seconds: float, seed: int) -> None:
        """Send for so many seconds, then wait for the answers that are under way."""
        draw = random.Random(seed)
        begin = time.perf_counter()
        due, end = begin + draw.expovariate(rate), begin + seconds
        while due < end or self._busy:
            now = time.perf_counter()
            while due <= now and due < end:
                self._send()
                self.results.late.append(time.perf_counter() - due)
                due += draw.expovariate(rate)
            wait = min(due, end) - time.perf_counter() if due < end else 0.1
            for number, _ in self._poll.poll(max(0.0, wait)):
                if number in self._busy:
                    self._receive(self._busy[number], begin)
                else:
                    self._forget(number)
            if due >= end:
                self._give_up()

    def run_closed(self, num_connections: int, seconds: float) -> None:
        """Ask again on each connection at once, for so many seconds."""
        begin = time.perf_counter()
        for _ in range(num_connections):
            self._send()
        while self._busy:
            for number, _ in self._poll.poll(0.1):
                if number in self._busy:
                    self._receive(self._busy[number], begin)
            if time.perf_counter() - begin < seconds:
                while self._free:
                    self._send()
            else:
                self._give_up()

    def _send(self) -> None:
        if not self._free and len(self._busy) >= MAX_CONNECTIONS:
            self.results.fail("not sent")
            return
        exchange = self._free.pop() if self._free else self._connect()
        exchange.received, exchange.sent = b"", time.perf_counter()
        self._busy[exchange.connection.fileno()] = exchange
        exchange.connection.send(self._request)

    def _connect(self) -> Exchange:
        connection = socket.create_connection(self._address)
        connection.setblocking(False)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._poll.register(connection.fileno(), select.EPOLLIN)
        return Exchange(connection)

    def _receive(self, exchange: Exchange, begin: float) -> None:
        try:
            data = exchange.connection.recv(65536)
        except OSError:
            data = b""
        if not data:
            self._drop(exchange, "closed")
            return
        exchange.received += data
        head, separator, body = exchange.received.partition(b"\r\n\r\n")
        length = _LENGTH.search(head)
        if not separator or length is None or len(body) < int(length[1]):
            return
        now = time.perf_counter()
        self._count(int(head[9:12]), head, now - exchange.sent, now - begin)
        del self._busy[exchange.connection.fileno()]
        self._free.append(exchange)

    def _count(self, status: int, head: bytes, seconds: float, at: float) -> None:
        if status == 200:
            self.results.answered.append(seconds)
            self.results.answered_at.append(at)
            forward = _FORWARD.search(head)
            self.results.batches.append(float(forward[1]) / 1e3 if forward else 0.0)
        elif status == 429:
            self.results.refused.append(seconds)
            self.results.without_retry_after += b"retry-after" not in head.lower()
        else:
            self.results.fail(str(status))

    def _drop(self, exchange: Exchange, kind: str) -> None:
        self.results.fail(kind)
        self._poll.unregister(exchange.connection.fileno())
        del self._busy[exchange.connection.fileno()]
        exchange.connection.close()

    def _forget(self, number: int) -> None:
        """Close an idle connection that the server has closed."""
        self._poll.unregister(number)
        for exchange in [free for free in self._free if free.connection.fileno() == number]:
            self._free.remove(exchange)
            exchange.connection.close()

    def _give_up(self) -> None:
        now = time.perf_counter()
        for exchange in list(self._busy.values()):
            if now - exchange.sent > PATIENCE_SECONDS:
                self._drop(exchange, "no answer")


def p99(values: list[float]) -> float:
    """Return the 99th percentile, 0 of nothing."""
    return float(np.percentile(values, 99)) if values else 0.0


def main() -> None:
    """Run the load, print what was measured."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", required=True)
    kind = parser.add_mutually_exclusive_group(required=True)
    kind.add_argument("--rate", type=float, help="requests per second, at Poisson times")
    kind.add_argument("--connections", type=int, help="clients that ask again at once")
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    load = Load(arguments.url)
    if arguments.connections:
        load.run_closed(arguments.connections, arguments.seconds)
    else:
        load.run(arguments.rate, arguments.seconds, arguments.seed)
    found, seconds = load.results, arguments.seconds
    report = {
        "answered_per_second": sum(at <= seconds for at in found.answered_at) / seconds,
        "answered": len(found.answered),
        "refused": len(found.refused),
        "refused_without_retry_after": found.without_retry_after,
        "others": found.others,
        "p50": float(np.median(found.answered)) if found.answered else 0.0,
        "p99": p99(found.answered),
        "batch": p99(found.batches),
        "refused_p99": p99(found.refused),
        "late_p99": p99(found.late),
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
