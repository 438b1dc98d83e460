"""Web pages of other origins: none by default, those of the setting with a preflight."""

from __future__ import annotations

import pytest
from starlette.testclient import TestClient

from serving.cors import CorsConfig
from serving.inference.batcher import BatcherConfig
from tests.serving.conftest import Replica

SHOP = "https://shop.example"
PREFLIGHT = {
    "Origin": SHOP,
    "Access-Control-Request-Method": "POST",
    "Access-Control-Request-Headers": "content-type",
}


def replica(cors: CorsConfig, batching: BatcherConfig | None = None) -> Replica:
    made = Replica(cors=cors, batching=batching)
    made.store.publish(1)
    made.watcher.poll()
    return made


def test_no_page_of_another_origin_may_call_by_default(client: TestClient) -> None:
    answer = client.options("/v2/rerank", headers=PREFLIGHT)
    assert "Access-Control-Allow-Origin" not in answer.headers


@pytest.mark.parametrize("origins", [SHOP, f"http://localhost:3000, {SHOP}", "*"])
def test_a_page_of_an_allowed_origin_may_call(origins: str) -> None:
    client = TestClient(replica(CorsConfig(origins=origins)).app)
    preflight = client.options("/v2/rerank", headers=PREFLIGHT)
    assert preflight.status_code == 200
    assert preflight.headers["Access-Control-Allow-Origin"] in (SHOP, "*")
    assert "POST" in preflight.headers["Access-Control-Allow-Methods"]
    answer = client.get("/readyz", headers={"Origin": SHOP})
    assert answer.headers["Access-Control-Allow-Origin"] in (SHOP, "*")
    assert "X-Model-Version" in answer.headers["Access-Control-Expose-Headers"]


def test_a_page_of_another_origin_may_not() -> None:
    client = TestClient(replica(CorsConfig(origins="https://other.example")).app)
    assert client.options("/v2/rerank", headers=PREFLIGHT).status_code == 400


def test_a_page_can_read_why_it_was_refused() -> None:
    batching = BatcherConfig(window_seconds=0.0, deadline_seconds=0.0)
    client = TestClient(replica(CorsConfig(origins=SHOP), batching).app)
    body = {"query": "q", "documents": ["a"]}
    answer = client.post("/v2/rerank", json=body, headers={"Origin": SHOP})
    assert (answer.status_code, answer.headers["Retry-After"]) == (504, "1")
    assert answer.headers["Access-Control-Allow-Origin"] == SHOP


@pytest.mark.parametrize("origins", ["", SHOP, f"https://other.example, {SHOP}", "*"])
@pytest.mark.parametrize("origin", [None, SHOP, "https://elsewhere.example"])
def test_an_answer_beside_the_application_has_the_headers_of_one_from_it(
    origins: str, origin: str | None
) -> None:
    config = CorsConfig(origins=origins)
    sent = {} if origin is None else {"Origin": origin}
    answer = TestClient(replica(config).app).get("/livez", headers=sent)
    by_application = {
        (name, value)
        for name, value in answer.headers.items()
        if name == "vary" or name.startswith("access-control")
    }
    assert set(config.answer_headers(origin)) == by_application


@pytest.mark.parametrize("origins", ["shop.example", "https://shop.example/page", "ftp://a"])
def test_what_is_no_origin_is_refused_by_name(origins: str) -> None:
    with pytest.raises(ValueError, match=r"cors\.origins: got .*expected origins like https"):
        CorsConfig(origins=origins)


@pytest.mark.parametrize("name", ["%00", "a%00b", "x" * 5000])
def test_a_name_that_no_file_can_have_is_not_found(client: TestClient, name: str) -> None:
    assert client.get(f"/static/{name}").status_code == 404


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/info", "/v1/models", "/metrics", "/docs"])
def test_head_is_get_without_a_body(client: TestClient, path: str) -> None:
    answer = client.head(path)
    assert (answer.status_code, answer.content) == (200, b"")


@pytest.mark.parametrize(("top_n", "status"), [("1.0", 200), ("2", 200), ("1.5", 400), ("0", 400)])
def test_an_integer_may_be_written_with_a_fraction_of_zero(
    client: TestClient, replica: Replica, top_n: str, status: int
) -> None:
    body = f'{{"query":"q","documents":[{{"text":"a","id":7.0}},"b"],"top_n":{top_n}}}'
    answer = client.post("/v2/rerank", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == status
    if status == 200:
        assert answer.json()["results"][0]["id"] == "7"
    else:
        assert "$.top_n" in answer.json()["detail"]
    schema = client.get("/openapi.json").json()["components"]["schemas"]["RerankRequest"]
    assert {"type": "integer", "minimum": 1} in schema["properties"]["top_n"]["anyOf"]


def test_documents_without_text_are_read_by_their_rank_fields(
    client: TestClient, replica: Replica
) -> None:
    documents = [{"title": "red shoe", "price": 5, "brand": "Alba"}]
    body = {"query": "q", "documents": documents, "return_documents": True}
    helpful = client.post("/v1/rerank", json=body)
    assert helpful.status_code == 400
    assert "rank_fields" in helpful.json()["detail"]
    answer = client.post("/v1/rerank", json=body | {"rank_fields": ["brand", "title", "none"]})
    assert answer.json()["results"][0]["document"]["text"] == "Alba red shoe"
    nothing = client.post("/v1/rerank", json=body | {"rank_fields": ["none"]})
    assert (nothing.status_code, "$.documents[0]" in nothing.json()["detail"]) == (400, True)
