"""Connections of the server: silent ones, slow ones, and more of them than descriptors."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from threading import Thread
from urllib.parse import urlsplit

import httpx2
import pytest

from deploy.roles.connections import ConnectionConfig, Connections
from deploy.roles.serve import ServingRole
from deploy.settings.config import ServingConfig
from deploy.settings.tree import Settings
from learner.config import StoreConfig
from tests.fakes.scorer import FakeScorer, FakeStore

ASK = b'{"query": "q", "documents": ["a"]}'
HEAD = b"POST /v2/rerank HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"


class FakeConnection:
    """Records that it was ended."""

    def __init__(self) -> None:
        self.seconds, self.since, self.idle, self.ended = 0.0, 0.0, True, False

    def end(self) -> None:
        self.ended = True


def test_a_new_connection_takes_the_place_of_the_one_that_is_idle_longest() -> None:
    connections = Connections(ConnectionConfig(max_connections=3))
    busy, old, young = FakeConnection(), FakeConnection(), FakeConnection()
    connections.begin(busy, 0.0, 60.0, idle=False)
    connections.begin(young, 1.0, 60.0, idle=True)
    connections.begin(old, 2.0, 60.0, idle=True)
    connections.begin(young, 3.0, 60.0, idle=True)
    assert connections.make_room(4.0)
    assert [c.ended for c in (busy, old, young)] == [False, True, False]


def test_a_request_under_way_is_never_closed_for_a_new_connection() -> None:
    connections = Connections(ConnectionConfig(max_connections=1))
    busy = FakeConnection()
    connections.begin(busy, 0.0, 60.0, idle=False)
    assert not connections.make_room(1.0)
    assert not busy.ended


def test_a_phase_that_lasts_too_long_ends_the_connection() -> None:
    connections = Connections(ConnectionConfig())
    slow, quick = FakeConnection(), FakeConnection()
    connections.begin(slow, 0.0, 10.0, idle=True)
    connections.begin(quick, 5.0, 10.0, idle=True)
    connections.end_overdue(9.9)
    assert len(connections) == 2
    connections.end_overdue(10.0)
    assert (slow.ended, quick.ended, len(connections)) == (True, False, 1)


@pytest.mark.parametrize("descriptors", [64, 256, 1024, 65536])
def test_connections_and_those_not_accepted_yet_fit_into_the_descriptors(descriptors: int) -> None:
    connections = Connections(ConnectionConfig(), max_descriptors=descriptors)
    assert 1 <= connections.most <= 4096
    assert connections.most + connections.backlog <= max(descriptors, 17)


@contextmanager
def serving(
    tmp_path: Path, config: ConnectionConfig, scorer: FakeScorer | None = None
) -> Iterator[tuple[str, int]]:
    """A server with a model, in this process."""
    store = FakeStore()
    store.publish(1, scorer)
    parts = ServingConfig(port=0, connections=config)
    settings = replace(Settings(), serving=parts, store=StoreConfig(root=tmp_path))
    role = ServingRole(settings, store=store)
    thread = Thread(target=role.run)
    thread.start()
    address = urlsplit(role.url)
    assert address.hostname is not None
    assert address.port is not None
    try:
        while httpx2.get(f"{role.url}/readyz").status_code != 200:
            pass
        yield address.hostname, address.port
    finally:
        role.stop()
        thread.join(30)


def received(connection: socket.socket) -> bytes:
    """Return all that comes until the server closes."""
    data = b""
    while piece := connection.recv(65536):
        data += piece
    return data


def test_a_client_that_sends_too_slowly_is_closed_and_told_why(tmp_path: Path) -> None:
    config = ConnectionConfig(header_seconds=0.1, body_seconds=0.1, keep_alive_seconds=0.1)
    declared = HEAD + b"Content-Length: %d\r\n\r\n" % len(ASK)
    with serving(tmp_path, config) as address, ExitStack() as stack:
        sent = {"silent": b"", "head": HEAD, "body": declared + ASK[:5], "idle": declared + ASK}
        connections = {}
        for name, data in sent.items():
            connections[name] = stack.enter_context(socket.create_connection(address, timeout=30))
            connections[name].sendall(data)
        statuses = {name: received(c).split(b"\r\n")[0] for name, c in connections.items()}
    assert statuses == {
        "silent": b"",
        "head": b"HTTP/1.1 408 Request Timeout",
        "body": b"HTTP/1.1 408 Request Timeout",
        "idle": b"HTTP/1.1 200 OK",
    }


def test_more_silent_connections_than_descriptors_keep_nobody_else_out(tmp_path: Path) -> None:
    limit = 256
    program = (
        f"import resource; resource.setrlimit(resource.RLIMIT_NOFILE, ({limit}, {limit})); "
        "from deploy.cli.app import main; main()"
    )
    options = ["serving.port=0", f"store.root={tmp_path}", "observability.log_format=json"]
    command = [sys.executable, "-c", program, "serve"]
    log_path = tmp_path / "log"
    with log_path.open("wb") as log, ExitStack() as stack:
        for option in options:
            command += ["--set", option]
        process = subprocess.Popen(command, stderr=log, stdout=log)
        stack.callback(process.wait, 30)
        stack.callback(process.terminate)
        while not (lines := [x for x in log_path.read_text().splitlines() if "listening" in x]):
            assert process.poll() is None
        url = json.loads(lines[0])["url"]
        address = (urlsplit(url).hostname, urlsplit(url).port)
        for _ in range(limit + 100):
            stack.enter_context(socket.create_connection(address, timeout=30))
        for _ in range(20):
            assert httpx2.get(f"{url}/livez", timeout=30).status_code == 200
    assert len(log_path.read_text().splitlines()) < 20
