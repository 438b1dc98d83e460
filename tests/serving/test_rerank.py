"""The wire: each shape answered as its clients expect, each mistake named."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.testclient import TestClient

from learner.artifact import Document, client_hash
from serving.wire.ordering import order
from tests.fakes.scorer import FakeScorer
from tests.serving.conftest import Replica

COHERE = """
{"model":"champion","query":"red running shoes",
 "documents":["mug",{"id":"SKU-0007","text":"shoe","price":59.9,"tags":["a"],"sizes":null},{"id":12,"text":"sock"}],
 "top_n":2,"return_documents":false,"max_tokens_per_doc":128,"priority":1,
 "context":{"client_id":"c-9f2b","scenario":"search","query_id":"0f6c"},"objective":"ctcvr"}
"""


@pytest.fixture
def shoes(replica: Replica) -> FakeScorer:
    """Version 2 serves, and likes shoes."""
    scorer = FakeScorer("v000002", {"mug": 0.25, "shoe": 0.75, "sock": 0.5}, purchase=0.5)
    replica.store.publish(2, scorer)
    replica.watcher.poll()
    return scorer


def answered(client: TestClient, path: str, body: str) -> Any:
    response = client.post(path, content=body, headers={"Content-Type": "application/json"})
    assert response.status_code == 200, response.text
    return json.loads(response.text)


@pytest.mark.usefixtures("shoes")
@pytest.mark.parametrize(
    ("path", "version"), [("/v2/rerank", "2"), ("/v1/rerank", "1"), ("/rerank", "2")]
)
def test_cohere_and_jina_clients_get_their_shape(
    client: TestClient, path: str, version: str
) -> None:
    assert answered(client, path, COHERE) == {
        "id": "0f6c",
        "model": "v000002",
        "results": [
            {"index": 1, "relevance_score": 0.375, "id": "SKU-0007"},
            {"index": 2, "relevance_score": 0.25, "id": "12"},
        ],
        "meta": {
            "api_version": {"version": version},
            "model_event_time": "2026-11-23T22:08:12Z",
            "cached": False,
            "ranker": "model",
            "warnings": [
                "`max_tokens_per_doc` is not known here and was ignored",
                "`priority` is not known here and was ignored",
            ],
        },
    }


@pytest.mark.usefixtures("shoes")
def test_documents_come_back_when_asked_for(client: TestClient) -> None:
    body = '{"query":"q","documents":["mug",{"text":"shoe"}],"return_documents":true,"top_n":1}'
    (result,) = answered(client, "/v1/rerank", body)["results"]
    assert result == {"index": 1, "relevance_score": 0.75, "document": {"text": "shoe"}}


@pytest.mark.usefixtures("shoes")
def test_tei_clients_get_a_bare_array(client: TestClient) -> None:
    options = '"raw_scores":false,"return_text":true,"truncate":true,"truncation_direction":"right"'
    body = f'{{"query":"q","texts":["mug","shoe"],{options}}}'
    assert answered(client, "/rerank", body) == [
        {"index": 1, "score": 0.75, "text": "shoe"},
        {"index": 0, "score": 0.25, "text": "mug"},
    ]


@pytest.mark.usefixtures("shoes")
def test_raw_scores_are_log_odds(client: TestClient) -> None:
    body = '{"query":"q","texts":["mug","shoe"],"raw_scores":true}'
    first, second = answered(client, "/rerank", body)
    assert first == {"index": 1, "score": pytest.approx(math.log(3))}
    assert second == {"index": 0, "score": pytest.approx(-math.log(3))}


@pytest.mark.usefixtures("shoes")
@pytest.mark.parametrize(
    ("objective", "score"), [(None, 0.75), ("ctr", 0.75), ("cvr", 0.5), ("ctcvr", 0.375)]
)
def test_the_objective_says_what_is_ordered_by(
    client: TestClient, objective: str | None, score: float
) -> None:
    body = json.dumps({"query": "q", "documents": ["shoe"], "objective": objective})
    assert answered(client, "/v2/rerank", body)["results"][0]["relevance_score"] == score


@pytest.mark.usefixtures("shoes")
def test_scores_come_with_their_priors_and_their_ratio(client: TestClient) -> None:
    pairs = '{"query":"q","document":{"id":"1","text":"shoe"}},{"query":"q","document":"mug"}'
    body = f'{{"model":"@champion","instances":[{pairs}]}}'
    prior = {"click": 0.25, "purchase": 0.125}
    assert answered(client, "/v1/score", body) == {
        "model": "v000002",
        "predictions": [
            {
                "p": {"click": 0.75, "purchase": 0.5},
                "prior": prior,
                "weight": {"click": 3.0, "purchase": 4.0},
            },
            {
                "p": {"click": 0.25, "purchase": 0.5},
                "prior": prior,
                "weight": {"click": 1.0, "purchase": 4.0},
            },
        ],
    }


@pytest.fixture
def explaining(replica: Replica) -> FakeScorer:
    """Version 3 serves, and can say which of its parts said what."""
    scorer = FakeScorer("v000003", {"mug": 0.25, "shoe": 0.75}, explains=True)
    replica.store.publish(3, scorer)
    replica.watcher.poll()
    return scorer


LOG_3 = pytest.approx(math.log(3))


@pytest.mark.usefixtures("explaining")
def test_a_ranking_is_explained_document_by_document_when_asked(client: TestClient) -> None:
    body = '{"query":"q","documents":["mug","shoe"],"explain":true}'
    best, worst = answered(client, "/v2/rerank", body)["results"]
    half = pytest.approx(math.log(3) / 2)
    assert best["index"] == 1
    assert best["explanation"] == {
        "logit": LOG_3,
        "contributions": {"first": half, "second": half},
    }
    assert worst["explanation"]["logit"] == pytest.approx(-math.log(3))


@pytest.mark.usefixtures("explaining")
def test_a_score_is_explained_when_asked(client: TestClient) -> None:
    body = '{"instances":[{"query":"q","document":"shoe"}],"explain":true}'
    (prediction,) = answered(client, "/v1/score", body)["predictions"]
    assert prediction["explanation"]["logit"] == LOG_3
    assert sum(prediction["explanation"]["contributions"].values()) == LOG_3


def test_a_shop_orders_by_expected_value_where_the_version_knows_it(
    client: TestClient, replica: Replica
) -> None:
    value = {"mug": 100.0, "shoe": 10.0}
    scorer = FakeScorer("v000003", {"mug": 0.25, "shoe": 0.75}, explains=True, value=value)
    replica.store.publish(3, scorer)
    replica.watcher.poll()
    body = '{"query":"q","documents":["shoe","mug"],"explain":true%s}'
    plain = answered(client, "/v2/rerank", body % "")["results"]
    assert [result["index"] for result in plain] == [0, 1]
    assert [result["explanation"]["expected_value"] for result in plain] == [10.0, 100.0]
    by_value = answered(client, "/v2/rerank", body % ',"objective":"value"')["results"]
    assert [(r["index"], r["relevance_score"]) for r in by_value] == [(1, 12.5), (0, 3.75)]
    pair = '{"instances":[{"query":"q","document":"mug"}]}'
    assert answered(client, "/v1/score", pair)["predictions"][0]["expected_value"] == 100.0


@pytest.mark.usefixtures("shoes")
def test_an_order_by_value_is_refused_where_the_version_cannot_tell_it(client: TestClient) -> None:
    body = {"query": "q", "documents": ["mug"], "objective": "value"}
    answer = client.post("/v2/rerank", json=body)
    assert answer.status_code == 400
    assert "learner.task_weights.value" in answer.text
    pair = '{"instances":[{"query":"q","document":"mug"}]}'
    assert "expected_value" not in answered(client, "/v1/score", pair)["predictions"][0]


@pytest.mark.usefixtures("explaining")
@pytest.mark.parametrize("asked", ["", ',"explain":false'])
def test_nothing_is_explained_unasked(client: TestClient, asked: str) -> None:
    body = f'{{"query":"q","documents":["mug"]{asked}}}'
    assert "explanation" not in answered(client, "/v2/rerank", body)["results"][0]
    body = f'{{"instances":[{{"query":"q","document":"shoe"}}]{asked}}}'
    assert "explanation" not in answered(client, "/v1/score", body)["predictions"][0]


@pytest.mark.usefixtures("shoes")
def test_a_scorer_without_parts_has_no_explanation(client: TestClient) -> None:
    body = '{"query":"q","documents":["mug"],"explain":true}'
    assert "explanation" not in answered(client, "/v2/rerank", body)["results"][0]


def test_the_scorer_sees_ids_and_attributes(client: TestClient, shoes: FakeScorer) -> None:
    answered(client, "/v2/rerank", COHERE)
    request = shoes.calls[-1][0]
    assert request.query == "red running shoes"
    assert request.documents == (
        Document(text="mug"),
        Document(text="shoe", id="SKU-0007", attributes={"price": 59.9, "tags": ["a"]}),
        Document(text="sock", id="12"),
    )


@pytest.mark.parametrize("path", ["/v2/rerank", "/v1/rerank", "/rerank"])
@pytest.mark.parametrize(
    ("context", "client_id"),
    [
        (',"context":{"client_id":"c-9f2b"}', "c-9f2b"),
        (',"context":{"client_id":""}', ""),
        (',"context":{"query_id":"q"}', ""),
        (',"context":null', ""),
        ("", ""),
    ],
)
def test_the_scorer_sees_a_hash_of_the_client_as_events_have_it(
    client: TestClient, shoes: FakeScorer, path: str, context: str, client_id: str
) -> None:
    answered(client, path, f'{{"query":"q","documents":["mug"]{context}}}')
    (request,) = shoes.calls[-1]
    assert request.client == client_hash(client_id)
    assert (request.client == 0) == (not client_id)


def test_pairs_and_plain_texts_have_no_client(client: TestClient, shoes: FakeScorer) -> None:
    answered(client, "/rerank", '{"query":"q","texts":["mug"]}')
    answered(client, "/v1/score", '{"instances":[{"query":"q","document":"mug"}]}')
    assert [request.client for call in shoes.calls[-2:] for request in call] == [0, 0]


def test_a_request_is_kept_with_its_client_for_the_next_version(
    client: TestClient, replica: Replica
) -> None:
    answered(client, "/v2/rerank", COHERE)
    assert replica.slot.current is not None
    (kept,) = replica.batcher.replayed(replica.slot.current)
    assert kept.request.client == client_hash("c-9f2b")


def test_the_texts_of_a_list_are_an_attribute_and_what_is_nested_is_none(
    client: TestClient, shoes: FakeScorer
) -> None:
    document = {"text": "shoe", "tags": ["new", {}], "sizes": [38], "nested": {"a": 1}}
    answer = client.post("/v2/rerank", json={"query": "red", "documents": [document]})
    assert answer.status_code == 200
    (seen,) = shoes.calls[-1][0].documents
    assert seen.attributes == {"tags": ["new"], "sizes": ["38"]}


LONG_ID = '{"query":"q","documents":["a"],"context":{"query_id":"' + "x" * 101 + '"}}'
NO_TEXT = '{"instances":[{"query":"q","document":{}}]}'
EITHER = "`documents` (Cohere, Jina) or `texts` (TEI)"
DEEP, TOO_DEEP = "[" * 100_000, "nested too deeply"


@pytest.mark.parametrize(
    ("path", "body", "detail"),
    [
        ("/v2/rerank", '{"query":"q","documents":["a",{"text":1}]}', "`$.documents[1].text`"),
        ("/v2/rerank", '{"query":"q","documents":[{"id":"1"}]}', "`$.documents[0].text`"),
        ("/v2/rerank", '{"query":"q","documents":[{"id":1.5,"text":"a"}]}', "`$.documents[0].id`"),
        ("/v2/rerank", '{"query":"q","documents":[7]}', "`$.documents[0]`"),
        ("/v2/rerank", '{"query":7,"documents":["a"]}', "`$.query`"),
        ("/v1/rerank", '{"documents":["a"]}', "`query`"),
        ("/v2/rerank", '{"query":"q","documents":["a"],"top_n":0}', "`$.top_n`"),
        ("/v2/rerank", '{"query":"q","documents":["a"],"objective":"revenue"}', "`$.objective`"),
        ("/v2/rerank", LONG_ID, "`$.context.query_id`"),
        ("/rerank", '{"query":"q"}', EITHER),
        ("/rerank", '{"query":"q","documents":["a"],"texts":["a"]}', EITHER),
        ("/rerank", '{"query":"q","texts":["a",null]}', "`$.texts[1]`"),
        ("/rerank", '{"query":"q","texts":["a"],"truncate":false}', "`$.truncate`"),
        ("/v1/score", NO_TEXT, "`$.instances[0].document.text`"),
        ("/v1/score", '{"instances":[{"query":"q","document":"a","surprise":1}]}', "`surprise`"),
        ("/v2/rerank", '{"query":"q",', "truncated"),
        ("/v2/rerank", b'{"query":"\xff\xfe","documents":["a"]}', "utf-8"),
        ("/v2/rerank", '{"query":"q","documents":[{"text":"a","more":' + DEEP, TOO_DEEP),
        ("/rerank", '{"query":"q","more":' + DEEP, TOO_DEEP),
        ("/v2/rerank", "", "truncated"),
    ],
)
def test_a_bad_request_names_the_field(
    client: TestClient, path: str, body: str | bytes, detail: str
) -> None:
    headers = {"Content-Type": "application/json", "X-Request-Id": "mine"}
    response = client.post(path, content=body, headers=headers)
    problem = response.json()
    assert response.headers["Content-Type"] == "application/problem+json"
    assert detail in problem.pop("detail")
    assert detail in problem.pop("error")
    assert problem == {
        "type": "urn:steelyard:error:validation",
        "title": "Bad Request",
        "status": 400,
        "instance": "urn:steelyard:request:mine",
        "error_type": "validation",
    }


@pytest.mark.parametrize(
    ("path", "field"),
    [("/v2/rerank", "documents"), ("/rerank", "texts"), ("/v1/score", "instances")],
)
def test_nothing_to_score_is_an_error_that_names_the_field(
    client: TestClient, path: str, field: str
) -> None:
    body = {"instances": []} if field == "instances" else {"query": "q", field: []}
    response = client.post(path, json=body)
    assert (response.status_code, response.json()["error_type"]) == (400, "empty")
    assert f"`$.{field}`" in response.json()["detail"]


def test_an_unknown_model_is_answered_with_the_known_names(
    client: TestClient, replica: Replica
) -> None:
    replica.store.publish(2)
    replica.watcher.poll()
    body = {"model": "rerank-v3.5", "query": "q", "documents": ["a"]}
    response = client.post("/v2/rerank", json=body)
    assert (response.status_code, response.json()["error_type"]) == (404, "not_found")
    assert response.json()["detail"].endswith("Known: champion, previous, v000001, v000002")


@pytest.mark.parametrize(
    ("model", "version"),
    [
        ("champion", "v000002"),
        ("@champion", "v000002"),
        ("v000002", "v000002"),
        ("previous", "v000001"),
        ("v000001", "v000001"),
    ],
)
def test_a_model_is_asked_for_by_alias_or_version(
    client: TestClient, replica: Replica, model: str, version: str
) -> None:
    replica.store.publish(2)
    replica.watcher.poll()
    response = client.post("/v2/rerank", json={"model": model, "query": "q", "documents": ["a"]})
    assert (response.json()["model"], response.headers["X-Model-Version"]) == (version, version)
    assert response.json()["results"][0]["relevance_score"] == int(version[1:]) / 1000


PROCESS = ("/livez", "/readyz", "/info", "/metrics")
READ = (*PROCESS, "/v1/models", "/openapi.json", "/docs", "/static/docs.js")


def test_every_answer_says_which_version_which_request_and_how_long(client: TestClient) -> None:
    answers = [
        client.post("/v2/rerank", json={"query": "q", "documents": ["a"]}),
        client.post("/v2/rerank", json={"query": 1}),
        client.get("/no/such/route"),
        client.delete("/v2/rerank"),
        *(client.get(path) for path in READ),
    ]
    assert [answer.status_code for answer in answers] == [200, 400, 404, 405] + [200] * 8
    for answer in answers:
        assert answer.headers["X-Model-Version"] == "v000001"
        assert answer.headers["X-Model-Event-Time"] == "2026-11-23T22:08:12Z"
        assert answer.headers["X-Request-Id"]
        assert "total;dur=" in answer.headers["Server-Timing"]
    assert answers[0].headers["Server-Timing"].startswith("queue;dur=0.00, forward;dur=0.00")


def test_a_request_id_is_repeated_unless_it_could_hide_something(client: TestClient) -> None:
    good = client.get("/livez", headers={"X-Request-Id": "trace-1"})
    bad = client.get("/livez", headers={"X-Request-Id": "a b\tc"})
    assert good.headers["X-Request-Id"] == "trace-1"
    assert bad.headers["X-Request-Id"].startswith("id-")


@given(st.lists(st.sampled_from([0.1, 0.2, 0.3]), min_size=1), st.integers(1, 20))
def test_ties_keep_the_order_of_the_request(values: list[float], top_n: int) -> None:
    expected = sorted(range(len(values)), key=lambda index: (-values[index], index))
    assert list(order(np.array(values), top_n)) == expected[:top_n]
