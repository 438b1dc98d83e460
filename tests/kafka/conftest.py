"""Brokers for these tests: one for all, one per module to be harmed, three nodes for leaders."""

import gc
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

import pytest

from deploy.broker.cluster import BrokerCluster
from deploy.broker.node import Broker
from deploy.errors import BrokerUnavailable
from deploy.process.child import free_ports
from tests.conftest import NO_BROKER
from tests.fakes.proxy import Proxy

Started = TypeVar("Started", Broker, BrokerCluster)


class Cluster(Protocol):
    """A broker as tests see it: its address."""

    @property
    def bootstrap_servers(self) -> str: ...


@dataclass(frozen=True)
class GivenCluster:
    """A broker of the user's own."""

    bootstrap_servers: str


@dataclass(frozen=True)
class Harmed:
    """A broker that a test may kill, hang and restart, also behind a proxy.

    It is up again when the test ends, or the next one fails.
    """

    node: Broker
    proxy: Proxy
    data: Path

    @property
    def bootstrap_servers(self) -> str:
        return self.node.bootstrap_servers


@pytest.fixture(scope="module", autouse=True)
def dropped_sockets() -> Iterator[None]:
    """Collect them before tests that are not of Kafka run in the same process."""
    yield
    gc.collect()


def started(node: Started) -> Started:
    """Skip without packages, network and cache, with a notice at the end; under CI, fail."""
    try:
        node.start()
    except BrokerUnavailable as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(f"{NO_BROKER}{error}")
    return node


@pytest.fixture(scope="session")
def broker() -> Iterator[Cluster]:
    """A running broker that no test harms: from packages, or KAFKA_BOOTSTRAP_SERVERS."""
    if given := os.environ.get("KAFKA_BOOTSTRAP_SERVERS"):
        yield GivenCluster(given)
        return
    own = started(Broker())
    try:
        yield own
    finally:
        own.close()


@pytest.fixture(scope="module")
def harmed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Harmed]:
    """One node of our own for a module, with a second listener advertised as the proxy (K1)."""
    port, proxied, controller = free_ports(3)
    with Proxy(proxied) as proxy:
        properties = {
            "listener.security.protocol.map": (
                "PLAINTEXT:PLAINTEXT,PROXIED:PLAINTEXT,CONTROLLER:PLAINTEXT"
            ),
            "listeners": f"PLAINTEXT://127.0.0.1:{port},PROXIED://127.0.0.1:{proxied},CONTROLLER://127.0.0.1:{controller}",
            "advertised.listeners": f"PLAINTEXT://127.0.0.1:{port},PROXIED://127.0.0.1:{proxy.port}",
            "controller.quorum.voters": f"1@127.0.0.1:{controller}",
        }
        data = tmp_path_factory.mktemp("kafka")
        node = Broker(data, port=port, properties=properties)
        try:
            yield Harmed(started(node), proxy, data)
        finally:
            node.close()


@pytest.fixture(scope="module")
def three() -> Iterator[BrokerCluster]:
    """Three nodes of our own for a module (K3); half a minute, half a gigabyte: only for `long`."""
    cluster = BrokerCluster()
    try:
        yield started(cluster)
    finally:
        cluster.close()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what asks for a broker; it does not fail for sockets that kafka-python dropped."""
    for item in items:
        if isinstance(item, pytest.Function) and {"broker", "harmed", "three"} & set(
            item.fixturenames
        ):
            item.add_marker(pytest.mark.kafka)
            item.add_marker(pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning"))
