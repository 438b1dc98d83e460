"""One broker for all tests in this folder: from packages, or the one that KAFKA_BOOTSTRAP_SERVERS names."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import pytest

from deploy.broker import Broker
from deploy.errors import BrokerUnavailable

NO_BROKER = pytest.StashKey[str]()


class Cluster(Protocol):
    """What a test may ask of the broker: where it is."""

    @property
    def bootstrap_servers(self) -> str: ...


@dataclass(frozen=True)
class GivenCluster:
    """A broker of the user's own."""

    bootstrap_servers: str


@pytest.fixture(scope="session")
def broker(pytestconfig: pytest.Config) -> Iterator[Cluster]:
    """A running broker. Without packages, network and cache the tests skip and the run ends with a notice; under CI that is an error."""
    if given := os.environ.get("KAFKA_BOOTSTRAP_SERVERS"):
        yield GivenCluster(given)
        return
    own = Broker()
    try:
        own.start()
    except BrokerUnavailable as error:
        if os.environ.get("CI"):
            raise
        pytestconfig.stash[NO_BROKER] = str(error)
        pytest.skip(str(error))
    try:
        yield own
    finally:
        own.close()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whatever asks for the broker bears the mark `kafka`."""
    for item in items:
        if isinstance(item, pytest.Function) and "broker" in item.fixturenames:
            item.add_marker(pytest.mark.kafka)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """A skip for want of a broker is not one dot among many."""
    if reason := config.stash.get(NO_BROKER, None):
        terminalreporter.write_sep("!", "NOTHING WAS TESTED AGAINST KAFKA", red=True, bold=True)
        terminalreporter.write_line(reason)
