"""A serving process on fakes: its clocks stand still, its ids count up."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Generator, Iterator

import httpx2
import pytest
from prometheus_client import CollectorRegistry
from starlette.testclient import TestClient
from starlette.types import ASGIApp

from serving.app import create
from serving.cors import CorsConfig
from serving.inference.batcher import Batcher, BatcherConfig
from serving.inference.scoring import Limits
from serving.inference.slot import Slot
from serving.rollout.watcher import Watcher, WatcherConfig
from serving.telemetry import Telemetry
from tests.fakes.scorer import FakeStore


class ManualClock:
    """A clock that a test sets."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds

    def __call__(self) -> float:
        return self.seconds


class _Yield:
    """Give the event loop one iteration when awaited."""

    def __await__(self) -> Generator[None, None, None]:
        yield


async def until(condition: Callable[[], bool]) -> None:
    """Run the event loop until `condition` holds."""
    while not condition():
        await _Yield()


class Replica:
    """One process as `deploy` wires it; threads only where a test starts them."""

    def __init__(
        self,
        *,
        batching: BatcherConfig | None = None,
        limits: Limits | None = None,
        cors: CorsConfig | None = None,
        store: FakeStore | None = None,
        watching: WatcherConfig | None = None,
        wait: Callable[[float], bool] | None = None,
    ) -> None:
        self.registry = CollectorRegistry()
        self.telemetry = Telemetry(self.registry)
        self.store = store or FakeStore()
        self.slot = Slot()
        self.clock, self.wall_clock = ManualClock(), ManualClock(1_795_471_700.0)
        batching = batching or BatcherConfig(window_seconds=0.0)
        self.batcher = Batcher(batching, self.telemetry, clock=self.clock)
        self.watcher = Watcher(
            self.store,
            self.slot,
            self.telemetry,
            watching or WatcherConfig(),
            replayed=self.batcher.replayed,
            clock=self.clock,
            wait=wait,
            server="here:8080",
            wall_clock=self.wall_clock,
        )
        names = (f"id-{number}" for number in itertools.count(1))
        self.app: ASGIApp = create(
            store=self.store,
            slot=self.slot,
            batcher=self.batcher,
            watcher=self.watcher,
            telemetry=self.telemetry,
            limits=limits,
            cors_config=cors,
            wall_clock=self.wall_clock,
            new_id=lambda: next(names),
        )

    def client(self) -> httpx2.AsyncClient:
        """An asynchronous client: many requests at once on one event loop."""
        transport = httpx2.ASGITransport(self.app)
        return httpx2.AsyncClient(transport=transport, base_url="http://serving")

    def value(self, series: str, **labels: str) -> float:
        value = self.registry.get_sample_value(f"steelyard_{series}", labels)
        assert value is not None, f"no series {series}{labels}"
        return value


@pytest.fixture
def replica() -> Iterator[Replica]:
    """Start a replica that serves v000001."""
    replica = Replica()
    replica.store.publish(1)
    replica.watcher.poll()
    replica.batcher.start()
    yield replica
    replica.batcher.close()


@pytest.fixture
def client(replica: Replica) -> Iterator[TestClient]:
    with TestClient(replica.app) as client:
        yield client
