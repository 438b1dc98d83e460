"""Overloaded, too large, too late and not yet are answers, and each says when to come back."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable

import httpx2
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.testclient import TestClient
from starlette.types import Message

from serving.inference.batcher import BatcherConfig
from serving.inference.scoring import Limits
from serving.rollout.gate import GateConfig
from serving.rollout.watcher import WatcherConfig
from serving.wire import decoding, rerank, score
from serving.wire.http import LARGE_BYTES
from serving.wire.protocol import RerankRequest
from tests.fakes.scorer import FakeScorer
from tests.serving.conftest import Replica, until

BODY = {"query": "q", "documents": ["a"]}


def outcome(answer: httpx2.Response) -> tuple[int, str, str]:
    return answer.status_code, answer.headers["Retry-After"], answer.json()["error_type"]


@pytest.mark.parametrize(
    ("config", "values"),
    [
        (BatcherConfig, {"max_in_flight": 0}),
        (BatcherConfig, {"window_seconds": -1.0}),
        (Limits, {"max_documents": 0}),
        (WatcherConfig, {"poll_seconds": 0.0}),
        (WatcherConfig, {"threads": 0}),
        (WatcherConfig, {"rollback_failures": -1}),
        (GateConfig, {"min_agreement": 1.5}),
    ],
)
def test_a_setting_that_answers_nobody_is_refused_by_name_and_value(
    config: Callable[..., object], values: dict[str, float]
) -> None:
    ((name, value),) = values.items()
    with pytest.raises(ValueError, match=rf"\.{name}: got {value}, expected"):
        config(**values)


def test_before_the_first_model_every_answer_says_when_to_come_back() -> None:
    replica = Replica()
    with TestClient(replica.app) as client:
        for answer in (
            client.get("/readyz"),
            client.get("/health"),
            client.post("/v2/rerank", json=BODY),
            client.post("/v1/score", json={"instances": [{"query": "q", "document": "a"}]}),
        ):
            assert outcome(answer) == (503, "1", "unhealthy")
            assert answer.headers["X-Model-Version"] == "none"
        assert client.get("/livez").status_code == 200
        assert client.get("/info").json()["version"] is None
        replica.store.publish(1)
        replica.watcher.poll()
        assert client.get("/readyz").json() == {"status": "ok"}


def test_above_the_limit_requests_are_refused_and_the_admitted_ones_answered() -> None:
    gate = threading.Event()
    replica = Replica(batching=BatcherConfig(window_seconds=0.0, max_in_flight=3))
    scorer = FakeScorer("v000001")
    replica.store.publish(1, scorer)
    replica.watcher.poll()
    scorer.gate = gate
    replica.batcher.start()

    async def flood() -> tuple[httpx2.Response, list[httpx2.Response]]:
        async with replica.client() as client:
            admitted = [asyncio.create_task(client.post("/v2/rerank", json=BODY)) for _ in range(3)]
            await until(lambda: replica.value("serving_inflight_requests") == 3)
            refused = await client.post("/v2/rerank", json=BODY)
            gate.set()
            return refused, await asyncio.gather(*admitted)

    refused, admitted = asyncio.run(flood())
    replica.batcher.close()
    assert outcome(refused) == (429, "1", "overloaded")
    assert [answer.status_code for answer in admitted] == [200, 200, 200]
    assert replica.value("serving_inflight_requests") == 0
    assert replica.value("serving_requests_total", route="/v2/rerank", code="429") == 1


def test_past_the_deadline_the_answer_says_when_to_come_back_and_the_place_is_free() -> None:
    config = BatcherConfig(window_seconds=0.0, max_in_flight=1, deadline_seconds=0.0)
    replica = Replica(batching=config)
    replica.store.publish(1)
    replica.watcher.poll()

    async def late() -> list[httpx2.Response]:
        async with replica.client() as client:
            return [await client.post("/v2/rerank", json=BODY) for _ in range(2)]

    answers = asyncio.run(late())
    assert [outcome(answer) for answer in answers] == [(504, "1", "timeout")] * 2
    assert replica.value("serving_inflight_requests") == 0


def test_an_overload_is_refused_with_the_time_of_the_work_that_waits() -> None:
    config = BatcherConfig(window_seconds=0.0, max_wait_seconds=4.0)
    replica = Replica(batching=config)
    scorer = FakeScorer("v000001")
    replica.store.publish(1, scorer)
    replica.watcher.poll()
    num_before = len(scorer.calls)
    scorer.gate = gate = threading.Event()
    gate.set()

    def fault(requests: object) -> None:
        replica.clock.seconds += 2.5  # of each batch

    scorer.fault = fault
    replica.batcher.start()

    async def flood() -> tuple[httpx2.Response, list[httpx2.Response]]:
        async with replica.client() as client:
            await client.post("/v2/rerank", json=BODY)
            gate.clear()
            runs = asyncio.create_task(client.post("/v2/rerank", json=BODY))
            await until(lambda: len(scorer.calls) == num_before + 2)
            waits = asyncio.create_task(client.post("/v2/rerank", json=BODY))
            await until(lambda: replica.value("serving_inflight_requests") == 2)
            refused = await client.post("/v2/rerank", json=BODY)
            gate.set()
            return refused, [await runs, await waits]

    refused, answered = asyncio.run(flood())
    replica.batcher.close()
    assert outcome(refused) == (429, "5", "overloaded"), "one runs and one waits, 2.5 s each"
    assert [answer.status_code for answer in answered] == [200, 200]


class Hanging:
    """A client that sends a request and hangs up when told to."""

    def __init__(self, body: bytes) -> None:
        self.hung_up = asyncio.Event()
        self.status: int | None = None
        self._body: bytes | None = body

    async def receive(self) -> Message:
        if self._body is not None:
            body, self._body = self._body, None
            return {"type": "http.request", "body": body, "more_body": False}
        await self.hung_up.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        self.status = message.get("status", self.status)


def scope(path: str) -> dict[str, object]:
    headers = [(b"content-type", b"application/json")]
    return {"type": "http", "method": "POST", "path": path, "headers": headers, "query_string": b""}


def test_a_request_whose_client_hangs_up_is_never_scored() -> None:
    replica, scorer = Replica(), FakeScorer("v000001")
    replica.store.publish(1, scorer)
    replica.watcher.poll()
    scorer.calls.clear()

    async def hang_up() -> int | None:
        client = Hanging(b'{"query": "q", "documents": ["a"]}')
        call = replica.app(scope("/v2/rerank"), client.receive, client.send)
        served = asyncio.ensure_future(call)
        await until(lambda: replica.value("serving_inflight_requests") == 1)
        client.hung_up.set()
        await served
        return client.status

    assert asyncio.run(hang_up()) == 499
    assert replica.value("serving_inflight_requests") == 0
    assert replica.value("serving_requests_total", route="/v2/rerank", code="499") == 1
    replica.batcher.start()
    replica.batcher.close()
    assert scorer.calls == []


def test_what_has_passed_its_deadline_in_the_queue_is_not_scored() -> None:
    replica = Replica(batching=BatcherConfig(window_seconds=0.0, deadline_seconds=5.0))
    scorer = FakeScorer("v000001")
    replica.store.publish(1, scorer)
    replica.watcher.poll()
    scorer.calls.clear()

    async def wait_long() -> httpx2.Response:
        async with replica.client() as client:
            asked = asyncio.create_task(client.post("/v2/rerank", json=BODY))
            await until(lambda: replica.value("serving_inflight_requests") == 1)
            replica.clock.seconds = 5.0
            replica.batcher.start()
            return await asked

    assert asyncio.run(wait_long()).status_code == 504
    replica.batcher.close()
    assert scorer.calls == []


def test_too_many_documents_and_too_large_a_body_are_413() -> None:
    replica = Replica(limits=Limits(max_documents=2, max_body_bytes=1000))
    replica.store.publish(1)
    replica.watcher.poll()
    replica.batcher.start()
    with TestClient(replica.app) as client:
        most = client.post("/v2/rerank", json={"query": "q", "documents": ["a", "b"]})
        documents = client.post("/v2/rerank", json={"query": "q", "documents": ["a", "b", "c"]})
        texts = client.post("/rerank", json={"query": "q", "texts": ["a", "b", "c"]})
        body = client.post("/v2/rerank", json={"query": "q" * 1000, "documents": ["a"]})
    replica.batcher.close()
    assert [answer.status_code for answer in (most, documents, texts, body)] == [200, 413, 413, 413]
    expected = "Expected at most 2 items, got 3 - at `$.documents`"
    assert documents.json()["detail"].startswith(expected)
    assert "`$.texts`" in texts.json()["detail"]
    assert body.json()["error_type"] == "validation"
    assert "at most 1000 bytes" in body.json()["detail"]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v2/rerank", b'{"query":"q","documents":[%s]}'),
        ("/rerank", b'{"query":"q","texts":[%s]}'),
        ("/v1/score", b'{"instances":[%s]}'),
        ("/v2/rerank", b'{"query":"q","documents":[{"text":"a","b":[%s]}]}'),
    ],
)
def test_many_values_are_counted_before_any_of_them_is_built(
    client: TestClient, monkeypatch: pytest.MonkeyPatch, path: str, body: bytes
) -> None:
    """Six hundred thousand empty documents fit in the largest body."""
    for module in (rerank, score):
        monkeypatch.setattr(module, "document", None)
    monkeypatch.setattr(score, "decode", None)
    monkeypatch.setattr(rerank, "decode_open", None)
    monkeypatch.setattr(rerank, "decode_rerank", None)
    content = body % b",".join([b'""'] * 600_001)
    answer = client.post(path, content=content, headers={"Content-Type": "application/json"})
    assert (answer.status_code, answer.json()["error_type"]) == (413, "validation")
    assert "got 600" in answer.json()["detail"]


def test_documents_are_counted_before_any_of_them_is_built(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rerank, "document", None)
    monkeypatch.setattr(score, "document", None)
    pair = {"query": "q", "document": "a"}
    for path, body in (
        ("/v2/rerank", {"query": "q", "documents": [""] * 513}),
        ("/v1/score", {"instances": [pair] * 513}),
    ):
        answer = client.post(path, json=body)
        assert answer.status_code == 413
        assert "got 513" in answer.json()["detail"]


@pytest.mark.parametrize("num_bytes", [1000, 20_000, 100_000])
def test_a_large_body_is_parsed_beside_the_event_loop(
    client: TestClient, monkeypatch: pytest.MonkeyPatch, num_bytes: int
) -> None:
    threads = []

    def decode(body: bytes, kind: type[RerankRequest]) -> tuple[RerankRequest, tuple[str, ...]]:
        threads.append(threading.current_thread().name)
        return decoding.decode_open(body, kind)

    monkeypatch.setattr(rerank, "decode_open", decode)
    answer = client.post("/v2/rerank", json={"query": "q", "documents": ["a" * num_bytes]})
    assert answer.status_code == 200
    assert ("AnyIO worker" in threads[0]) == (num_bytes > LARGE_BYTES)


@given(st.recursive(st.none() | st.text() | st.integers(), lambda inner: st.lists(inner)))
def test_values_are_counted_outside_of_strings(value: object) -> None:
    def size(value: object) -> int:
        return sum(map(size, value)) if isinstance(value, list) and value else 1

    body = msgspec.json.encode(value)
    assert decoding.num_values(body) == size(value)


def test_a_body_that_does_not_declare_its_length_is_limited_too(client: TestClient) -> None:
    chunks = (b" " * 100_000 for _ in range(21))
    headers = {"Content-Type": "application/json"}
    answer = client.post("/v2/rerank", content=chunks, headers=headers)
    assert (answer.status_code, answer.json()["error_type"]) == (413, "validation")


@pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded", ""])
@pytest.mark.parametrize("path", ["/v2/rerank", "/v1/rerank", "/rerank", "/v1/score"])
def test_another_content_type_than_json_is_415(
    client: TestClient, path: str, content_type: str
) -> None:
    body = '{"query":"q","documents":["a"]}'
    answer = client.post(path, content=body, headers={"Content-Type": content_type})
    assert (answer.status_code, answer.json()["error_type"]) == (415, "validation")
    assert "application/json" in answer.json()["detail"]


def test_a_failing_model_is_424_without_its_own_words_and_the_next_request_is_answered(
    client: TestClient, replica: Replica
) -> None:
    def fault(requests: object) -> None:
        raise RuntimeError("secret path")

    scorer = replica.store.scorers["v000001"]
    assert isinstance(scorer, FakeScorer)
    scorer.fault = fault
    failed = client.post("/v2/rerank", json=BODY)
    scorer.fault = lambda requests: None
    assert (failed.status_code, failed.json()["error_type"]) == (424, "backend")
    assert "secret" not in failed.text
    assert client.post("/v2/rerank", json=BODY).status_code == 200


def test_scores_that_are_no_numbers_never_reach_the_wire(
    client: TestClient, replica: Replica
) -> None:
    replica.store.publish(2, FakeScorer("v000002", {"a": float("nan")}))
    replica.watcher.poll()
    answer = client.post("/v2/rerank", json=BODY)
    assert (answer.status_code, answer.json()["error_type"]) == (424, "backend")


def test_draining_refuses_new_requests_and_readiness(client: TestClient, replica: Replica) -> None:
    replica.batcher.close()
    assert client.get("/livez").status_code == 200, "who drains must not be killed for it"
    for answer in (client.get("/readyz"), client.post("/v2/rerank", json=BODY)):
        assert (answer.status_code, answer.headers["Retry-After"]) == (503, "1")
        assert "draining" in answer.json()["detail"]


def test_an_unknown_route_and_a_wrong_method_are_problems_too(client: TestClient) -> None:
    missing, wrong = client.get("/v3/rerank"), client.get("/v2/rerank")
    assert (missing.status_code, missing.json()["error_type"]) == (404, "not_found")
    assert (wrong.status_code, wrong.headers["Content-Type"]) == (405, "application/problem+json")


def test_options_are_the_methods_and_head_is_get_without_a_body(client: TestClient) -> None:
    options, head = client.options("/v2/rerank"), client.head("/readyz")
    assert (options.status_code, options.headers["Allow"]) == (204, "OPTIONS, POST")
    assert (head.status_code, head.content) == (200, b"")


@pytest.mark.parametrize("path", ["/v2/rerank/", "/v2//rerank", "//v2/rerank", "//v2//rerank//"])
def test_a_slash_too_many_makes_no_difference(
    client: TestClient, replica: Replica, path: str
) -> None:
    answer = client.post(f"http://testserver{path}", json=BODY, follow_redirects=False)
    assert answer.status_code == 200
    assert replica.value("serving_requests_total", route="/v2/rerank", code="200") == 1


def test_our_own_mistake_is_500_without_a_stack_trace(client: TestClient, replica: Replica) -> None:
    def broken() -> dict[str, str | None]:
        raise ZeroDivisionError("inside")

    replica.store.aliases = broken  # type: ignore[method-assign]
    answer = client.get("/v1/models")
    assert (answer.status_code, answer.json()["error_type"]) == (500, "internal")
    assert "inside" not in answer.text


@pytest.mark.parametrize("field", ["model", "objective"])
def test_a_long_value_is_not_given_back(client: TestClient, field: str) -> None:
    body = {"query": "q", "documents": ["a"], field: "\x01" * 100_000}
    answer = client.post("/v2/rerank", json=body)
    assert answer.status_code in (400, 404)
    assert len(answer.content) < 15_000
    end = "Known: champion, v000001" if field == "model" else "at `$.objective`"
    assert answer.json()["detail"].endswith(end)
