"""Names that the doors do not know: misspelt ones are refused, those of other services ignored."""

from __future__ import annotations

import json
import string

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from starlette.testclient import TestClient

from serving.errors import Invalid
from serving.wire.decoding import PLACES, decode, decode_open
from serving.wire.protocol import RerankRequest, ScoreRequest, TeiRequest
from serving.wire.unknown import nearest
from tests.serving.conftest import Replica

COHERE = {"query": "q", "documents": ["a"]}
TEI = {"query": "q", "texts": ["a"]}
SCORE = {"instances": [{"query": "q", "document": "a"}]}
OTHER_SERVICES = (
    *("max_tokens_per_doc", "max_chunks_per_doc", "priority", "return_embeddings", "user"),
    *("truncate_prompt_tokens", "additional_data", "mm_processor_kwargs", "instruction"),
    *("overlap_tokens", "parameters", "truncation", "models", "metadata", "score_threshold"),
    *("max_query_length", "max_doc_length", "normalize", "task", "truncation_direction"),
    *("user_id", "client", "client_ip", "mode", "content", "contents", "max_documents", "top_p"),
    *("num_documents", "documents_only", "query_time", "objectid", "contexts", "truncated"),
)
"""What clients of Cohere, Jina, vLLM, Portkey, Pinecone, SiliconFlow and others send."""


def refusal(client: TestClient, path: str, body: object) -> str:
    answer = client.post(path, json=body)
    assert (answer.status_code, answer.json()["error_type"]) == (400, "validation"), answer.text
    return str(answer.json()["detail"])


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("explian", "explain"),
        ("Explain", "explain"),
        ("topN", "top_n"),
        ("top_k", "top_n"),
        ("returnDocuments", "return_documents"),
        ("rankfields", "rank_fields"),
        ("client_id", "context.client_id"),
        ("clientId", "context.client_id"),
        ("contxt", "context"),
    ],
)
@pytest.mark.parametrize("path", ["/v2/rerank", "/v1/rerank", "/rerank"])
def test_a_misspelt_field_is_refused_with_the_one_that_is_meant(
    client: TestClient, path: str, name: str, meant: str
) -> None:
    detail = refusal(client, path, COHERE | {name: True})
    assert detail == f"Unknown field `{name}`: did you mean `{meant}`? - at `$`"


def test_a_misspelt_field_of_tei_is_refused_too(client: TestClient) -> None:
    assert "did you mean `raw_scores`?" in refusal(client, "/rerank", TEI | {"raw_score": True})


def test_a_misspelt_field_that_must_be_there_is_named_too(client: TestClient) -> None:
    detail = refusal(client, "/v2/rerank", {"query": "q", "document": ["a"]})
    assert "did you mean `documents`?" in detail


def test_fields_of_other_services_are_ignored_and_named_and_counted(
    client: TestClient, replica: Replica
) -> None:
    for path in ("/v2/rerank", "/v1/rerank", "/rerank"):
        for name in OTHER_SERVICES:
            answer = client.post(path, json=COHERE | {name: {"a": [1, None]}})
            assert answer.status_code == 200, answer.text
            expected = [f"`{name}` is not known here and was ignored"]
            assert answer.json()["meta"]["warnings"] == expected
    for name in OTHER_SERVICES:
        assert client.post("/rerank", json=TEI | {name: 1}).status_code == 200
    assert replica.value("serving_ignored_fields_total") == 4 * len(OTHER_SERVICES)


def test_a_request_of_known_fields_has_no_warnings(client: TestClient, replica: Replica) -> None:
    full = COHERE | {"top_n": 1, "explain": False, "context": {"client_id": "c"}, "model": None}
    assert "warnings" not in client.post("/v2/rerank", json=full).json()["meta"]
    assert replica.value("serving_ignored_fields_total") == 0


def test_warnings_are_few_and_short_whatever_is_sent(client: TestClient) -> None:
    odd = {f"{number}{'x' * 500}": 1 for number in range(1000)}
    answer = client.post("/v2/rerank", json=COHERE | odd)
    assert answer.status_code == 200
    assert len(answer.json()["meta"]["warnings"]) == 16
    assert len(json.dumps(answer.json()["meta"]["warnings"])) < 2000


@pytest.mark.parametrize(
    ("path", "body", "expected"),
    [
        (
            "/v1/score",
            SCORE | {"explian": True},
            "Unknown field `explian`: did you mean `explain`? - at `$`",
        ),
        (
            "/v1/score",
            SCORE | {"top_n": 1},
            "Unknown field `top_n`: expected one of `instances`, `model`, `explain` - at `$`",
        ),
        (
            "/v1/score",
            {"instances": [{"querry": "q", "document": "a"}]},
            "Unknown field `querry`: did you mean `query`? - at `$.instances[0]`",
        ),
        (
            "/v2/rerank",
            COHERE | {"context": {"clientid": "c"}},
            "Unknown field `clientid`: did you mean `client_id`? - at `$.context`",
        ),
        (
            "/rerank",
            COHERE | {"context": {"user": "c"}},
            "Unknown field `user`: expected one of `client_id`, `scenario`, `query_id` - at "
            "`$.context`",
        ),
    ],
)
def test_where_the_shape_is_our_own_any_unknown_field_is_refused(
    client: TestClient, path: str, body: object, expected: str
) -> None:
    assert refusal(client, path, body) == expected


@given(st.text(string.ascii_lowercase + "_", min_size=1, max_size=60))
def test_an_unknown_field_is_either_ignored_by_name_or_refused_with_a_known_one(name: str) -> None:
    kinds: tuple[tuple[type, dict[str, object]], ...]
    kinds = ((RerankRequest, {**COHERE}), (TeiRequest, {**TEI}))
    for kind, body in kinds:
        places = PLACES[kind]
        assume(name not in places)
        content = json.dumps(body | {name: 1}).encode()
        meant = nearest(name, places)
        if meant is None:
            asked, ignored = decode_open(content, kind)
            assert isinstance(asked, kind)
            assert ignored == (name,)
        else:
            with pytest.raises(Invalid, match=rf"`{name}`: did you mean `{meant}`"):
                decode_open(content, kind)


@given(st.text(min_size=1))
def test_a_name_of_any_characters_is_refused_in_our_own_shape(name: str) -> None:
    assume(name not in ScoreRequest.__struct_fields__)
    with pytest.raises(Invalid, match="Unknown field"):
        decode(json.dumps(SCORE | {name: 1}).encode(), ScoreRequest)


@pytest.mark.parametrize(
    ("path", "body"), [("/v2/rerank", COHERE), ("/rerank", TEI), ("/v1/score", SCORE)]
)
def test_a_field_of_the_body_in_the_query_string_is_refused(
    client: TestClient, path: str, body: object
) -> None:
    for name in ("model", "Model"):
        detail = refusal(client, f"{path}?{name}=1", body)
        assert detail == f"Expected `model` in the JSON body, got the query parameter `{name}`"
    for name in ("api-version", "client_id", "user_id", "modes", "subscription-key"):
        assert client.post(f"{path}?{name}=1", json=body).status_code == 200


@pytest.mark.parametrize(
    "path", ["/livez", "/readyz", "/health", "/metrics", "/openapi.json", "/v1/models", "/info"]
)
def test_what_takes_no_parameters_lets_those_of_others_through(
    client: TestClient, path: str
) -> None:
    assert client.get(f"{path}?t=1").status_code == 200
