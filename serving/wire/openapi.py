"""The OpenAPI 3.1 document of the public listener, made from the wire types: routes, examples and documented codes only."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import Any

import msgspec

from serving import errors
from serving.wire import protocol

_RERANK = {
    "query": "red running shoes",
    "documents": [
        "ceramic mug, blue",
        {"id": "SKU-0007", "text": "trail running shoe, red", "price": 59.9},
    ],
    "top_n": 10,
}
_TEI = {"query": "red running shoes", "texts": ["ceramic mug, blue", "trail running shoe, red"]}
_SCORE = {
    "instances": [
        {
            "query": "red running shoes",
            "document": {"id": "SKU-0007", "text": "trail running shoe, red"},
        }
    ]
}
_SCORING_ERRORS: tuple[type[errors.ServingError], ...] = (
    *(errors.Invalid, errors.NotFound, errors.TooLarge, errors.NotJson, errors.BackendFailed),
    *(errors.Overloaded, errors.NotReady, errors.DeadlinePassed),
)
_HEADERS = {
    "X-Model-Version": "The version that answered, or `none` before the first.",
    "X-Model-Event-Time": "Event time of the newest sample that this version contains.",
    "X-Request-Id": "The request's own, or a new one.",
    "Server-Timing": "Milliseconds: `queue`, `forward`, `total`.",
}


def document() -> dict[str, Any]:
    """Return the document as plain data."""
    kinds: list[Any] = [
        *(protocol.RerankRequest, protocol.RerankAnswer, protocol.TeiRequest, protocol.TeiResult),
        *(
            protocol.ScoreRequest,
            protocol.ScoreAnswer,
            protocol.ModelsAnswer,
            protocol.HealthAnswer,
            protocol.InfoAnswer,
            errors.Problem,
        ),
    ]
    _, components = msgspec.json.schema_components(
        kinds, ref_template="#/components/schemas/{name}"
    )
    tei_answer = {"type": "array", "items": _ref(protocol.TeiResult)}
    either_in = {"oneOf": [_ref(protocol.RerankRequest), _ref(protocol.TeiRequest)]}
    either_out = {"oneOf": [_ref(protocol.RerankAnswer), tei_answer]}
    rerank = (
        "Order documents",
        _ref(protocol.RerankRequest),
        {"cohere": _RERANK},
        _ref(protocol.RerankAnswer),
    )
    health = _read("Ready to score", _ref(protocol.HealthAnswer), errors.NotReady)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Steelyard",
            "version": _version(),
            "description": "Scores over HTTP from a model that changes underneath. Every answer says which version gave it.",
        },
        "paths": {
            "/v2/rerank": _scoring(*rerank),
            "/v1/rerank": _scoring(*rerank),
            "/rerank": _scoring(
                "Order documents or texts", either_in, {"cohere": _RERANK, "tei": _TEI}, either_out
            ),
            "/v1/score": _scoring(
                "Score pairs",
                _ref(protocol.ScoreRequest),
                {"one": _SCORE},
                _ref(protocol.ScoreAnswer),
            ),
            "/v1/models": _read("Aliases and versions", _ref(protocol.ModelsAnswer)),
            "/livez": _read("Threads turn", _ref(protocol.HealthAnswer), errors.NotReady),
            "/readyz": health,
            "/health": health,
            "/info": _read("What this process serves and takes", _ref(protocol.InfoAnswer)),
            "/metrics": {
                "get": {
                    "summary": "Prometheus series",
                    "responses": {"200": _described("Exposition", "text/plain")},
                }
            },
        },
        "components": {"schemas": components},
    }


def _ref(kind: type) -> dict[str, Any]:
    return {"$ref": f"#/components/schemas/{kind.__name__}"}


def _version() -> str:
    try:
        return version("steelyard")
    except PackageNotFoundError:  # run from a source tree
        return "0"


def _described(
    description: str, media_type: str, schema: dict[str, Any] | None = None
) -> dict[str, Any]:
    headers = {
        name: {"description": text, "schema": {"type": "string"}} for name, text in _HEADERS.items()
    }
    return {
        "description": description,
        "headers": headers,
        "content": {media_type: {"schema": schema or {"type": "string"}}},
    }


def _responses(
    schema: dict[str, Any], failures: tuple[type[errors.ServingError], ...]
) -> dict[str, Any]:
    answers = {"200": _described("Answer", "application/json", schema)}
    for failure in failures:
        answers[str(failure.status)] = _described(
            (failure.__doc__ or "").splitlines()[0],
            "application/problem+json",
            _ref(errors.Problem),
        )
    return answers


def _read(
    summary: str, schema: dict[str, Any], *failures: type[errors.ServingError]
) -> dict[str, Any]:
    return {"get": {"summary": summary, "responses": _responses(schema, failures)}}


def _scoring(
    summary: str, schema: dict[str, Any], examples: dict[str, Any], answer: dict[str, Any]
) -> dict[str, Any]:
    content = {
        "schema": schema,
        "examples": {name: {"value": value} for name, value in examples.items()},
    }
    body = {"required": True, "content": {"application/json": content}}
    return {
        "post": {
            "summary": summary,
            "requestBody": body,
            "responses": _responses(answer, _SCORING_ERRORS),
        }
    }
