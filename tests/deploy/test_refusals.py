"""Refusals of an overload on real connections: what is sent, and how the connection goes on."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from threading import Event, Thread
from urllib.parse import urlsplit

import httpx2
import pytest

from deploy.roles.serve import ServingRole
from deploy.settings.config import ServingConfig
from deploy.settings.tree import Settings
from learner.config import StoreConfig
from serving.cors import CorsConfig
from serving.inference.batcher import BatcherConfig
from tests.fakes.scorer import FakeScorer, FakeStore

SHOP = "https://shop.example"
ASK = b'{"query": "q", "documents": ["a"]}'
HEAD = b"POST /v2/rerank HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
LENGTH = b"Content-Length: %d\r\n\r\n" % len(ASK)
LIVE = b"GET /livez HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"


class Full:
    """A server whose only place is taken by a request that waits for `gate`."""

    def __init__(self, url: str, gate: Event) -> None:
        self.url, self.gate = url, gate
        parts = urlsplit(url)
        self._address = (parts.hostname, parts.port)

    def exchange(self, *pieces: bytes) -> bytes:
        """Send each piece after an answer to the one before; return all until the server closes."""
        answers = b""
        with socket.create_connection(self._address, timeout=30) as connection:
            for piece in pieces:
                connection.sendall(piece)
                answers += connection.recv(65536)
            while more := connection.recv(65536):
                answers += more
        return answers

    def count(self, code: str) -> float:
        lines = httpx2.get(f"{self.url}/metrics").text.splitlines()
        name = f'steelyard_serving_requests_total{{code="{code}",route="/v2/rerank"}}'
        return float(next(line for line in lines if line.startswith(name)).split()[-1])


@pytest.fixture
def full(tmp_path: Path) -> Iterator[Full]:
    store, scorer = FakeStore(), FakeScorer("v000001")
    store.publish(1, scorer)
    parts = ServingConfig(
        port=0, batcher=BatcherConfig(max_in_flight=1), cors=CorsConfig(origins=SHOP)
    )
    role = ServingRole(
        replace(Settings(), serving=parts, store=StoreConfig(root=tmp_path)), store=store
    )
    thread = Thread(target=role.run)
    thread.start()
    parts_of_url = urlsplit(role.url)
    held = None
    try:
        while httpx2.get(f"{role.url}/readyz").status_code != 200:
            pass
        scorer.gate = gate = Event()
        held = socket.create_connection((parts_of_url.hostname, parts_of_url.port))
        held.sendall(HEAD + LENGTH + ASK)
        while (
            "steelyard_serving_inflight_requests 1.0" not in httpx2.get(f"{role.url}/metrics").text
        ):
            pass
        yield Full(role.url, gate)
    finally:
        gate.set()
        if held is not None:
            held.close()
        role.stop()
        thread.join(30)


def parsed(answer: bytes) -> tuple[int, dict[str, str], bytes]:
    head, _, body = answer.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    headers = dict(line.split(": ", 1) for line in lines)
    return int(first.split()[1]), headers, body


def test_a_refusal_is_what_the_application_would_have_answered(full: Full) -> None:
    """The application refuses a request that waited for its place behind another one."""
    origin = b"Origin: " + SHOP.encode() + b"\r\n"
    ask = HEAD + origin + b"X-Request-Id: mine\r\nConnection: close\r\n" + LENGTH + ASK
    status, headers, body = parsed(full.exchange(ask))
    live = b"GET /v1/models HTTP/1.1\r\nHost: a\r\n\r\n"
    answers = full.exchange(live + ask)  # pipelined: the second one waits for the first
    behind = answers[answers.index(b"HTTP/1.1 429") :]
    by_application = parsed(behind)
    for answered in (headers, by_application[1]):
        assert answered.pop("date")
        assert answered.pop("server-timing").startswith("total;dur=")
    own, theirs = json.loads(body), json.loads(by_application[2])
    for problem in (own, theirs):  # the expected wait differs by milliseconds
        problem["detail"] = problem["error"] = re.sub(r"about [\d.e-]+ s", "", problem["detail"])
    headers.pop("content-length")
    by_application[1].pop("content-length")
    assert (status, headers, own) == (*by_application[:2], theirs)
    assert headers["access-control-allow-origin"] == SHOP
    assert headers["x-request-id"] == "mine"
    assert int(headers["retry-after"]) >= 1
    assert own["error_type"] == "overloaded"
    assert full.count("429") == 2


def test_the_headers_alone_are_refused_and_the_connection_goes_on(full: Full) -> None:
    answers = full.exchange(HEAD + LENGTH, ASK + LIVE)
    assert answers.count(b"HTTP/1.1") == 2
    assert answers.startswith(b"HTTP/1.1 429 Too Many Requests\r\n")
    assert b"HTTP/1.1 200 OK" in answers
    assert b"connection: close" not in answers.partition(b"\r\n\r\n")[0]


def test_pipelined_requests_are_refused_in_their_order(full: Full) -> None:
    asks = [HEAD + b"X-Request-Id: %d\r\n" % number + LENGTH + ASK for number in range(3)]
    answers = full.exchange(b"".join(asks) + LIVE)
    statuses = [piece[:3] for piece in answers.split(b"HTTP/1.1 ")[1:]]
    assert statuses == [b"429", b"429", b"429", b"200"]
    places = [answers.index(b"x-request-id: %d\r\n" % number) for number in range(3)]
    assert places == sorted(places)


@pytest.mark.parametrize(
    "head",
    [
        HEAD + b"Connection: close\r\n",
        HEAD.replace(b"HTTP/1.1", b"HTTP/1.0"),
        HEAD.replace(b"HTTP/1.1", b"HTTP/1.0") + b"Connection: keep-alive\r\n",
    ],
)
def test_a_client_that_wants_the_connection_closed_is_told_so_and_closed(
    full: Full, head: bytes
) -> None:
    answers = full.exchange(head + LENGTH + ASK + HEAD + LENGTH + ASK)
    status, headers, _ = parsed(answers)
    assert (status, headers["connection"]) == (429, "close")
    assert answers.count(b"HTTP/1.1") == 1
    assert full.count("429") == 1, "nothing is done after that"


def test_a_client_that_waits_for_100_continue_need_not_send_its_body(full: Full) -> None:
    """It may take the answer for the end of its request: what follows must not be its body."""
    answers = full.exchange(HEAD + b"Expect: 100-continue\r\n" + LENGTH)
    status, headers, _ = parsed(answers)
    assert (status, headers["connection"]) == (429, "close")
    assert b"100 Continue" not in answers


@pytest.mark.parametrize("target", [b"/v2/rerank?a=b", b"//v2/rerank/", b"/v1/score"])
def test_every_way_to_write_the_path_is_refused(full: Full, target: bytes) -> None:
    answers = full.exchange(HEAD.replace(b"/v2/rerank", target) + LENGTH, ASK + LIVE)
    assert answers.startswith(b"HTTP/1.1 429 ")


def test_an_id_that_is_not_well_formed_is_not_repeated(full: Full) -> None:
    answers = full.exchange(HEAD + b'X-Request-Id: {id}"\r\n' + LENGTH + ASK + LIVE)
    _, headers, body = parsed(answers[: answers.rindex(b"HTTP/1.1 200")])
    assert json.loads(body)["instance"] == f"urn:steelyard:request:{headers['x-request-id']}"
    assert len(headers["x-request-id"]) == 32


def test_what_does_not_score_is_answered_under_an_overload(full: Full) -> None:
    assert httpx2.get(f"{full.url}/readyz").status_code == 200
    assert httpx2.get(f"{full.url}/v2/rerank").status_code == 405


def test_a_body_in_chunks_is_thrown_away_too(full: Full) -> None:
    chunked = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
    answers = full.exchange(chunked + b'5\r\n{"que\r\n', b"2\r\nry\r\n0\r\n\r\n" + LIVE)
    assert answers.startswith(b"HTTP/1.1 429 ")
    assert b"HTTP/1.1 200 OK" in answers
