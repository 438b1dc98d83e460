"""The OpenAPI 3.1 document, made from the routes themselves and their wire types.

It describes what is documented: routes, examples, headers and status codes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import msgspec
from starlette.routing import BaseRoute, Route

from serving import errors
from serving.wire.problems import Problem

Schema = dict[str, Any]
Endpoint = Callable[..., Any]
Failure = type[errors.ServingError]

_DESCRIPTION = (
    "Scores over HTTP from a model that changes underneath. "
    "Every answer says which version gave it."
)
_SCORING_FAILURES: tuple[Failure, ...] = (
    errors.Invalid,
    errors.NotFound,
    errors.TooLarge,
    errors.NotJson,
    errors.BackendFailed,
    errors.Overloaded,
    errors.NotReady,
    errors.DeadlinePassed,
)
_HEADERS = {
    "X-Model-Version": "The version that answered, or `none` before the first.",
    "X-Model-Event-Time": "Event time of the newest sample that this version contains.",
    "X-Request-Id": "The request's own, or a new one.",
    "Server-Timing": "Milliseconds: `queue`, `forward`, `total`.",
}


class DocumentedRoute(Route):
    """A route with its part of the OpenAPI document."""

    def __init__(
        self,
        path: str,
        endpoint: Endpoint,
        operation: Schema,
        *,
        method: str = "get",
        kinds: Sequence[Any] = (),
    ) -> None:
        """Route `path` to `endpoint`.

        Args:
            path: without parameters.
            endpoint: takes a request, returns a response.
            operation: the OpenAPI operation object.
            method: the only HTTP method that is documented.
            kinds: the wire types that `operation` refers to.
        """
        super().__init__(path, endpoint, methods=[method])
        self.documented = {method: operation}
        self.kinds = kinds


def scoring_route(
    path: str,
    endpoint: Endpoint,
    summary: str,
    *,
    requests: Sequence[Any],
    answers: Sequence[Any],
    examples: Mapping[str, object],
) -> DocumentedRoute:
    """Return a POST route that scores.

    Args:
        path: of the route.
        endpoint: takes a request, returns a response.
        summary: one phrase.
        requests: the wire types that the body may have.
        answers: the wire type of the answer to each.
        examples: bodies, by a name for each.
    """
    named = {name: {"value": example} for name, example in examples.items()}
    content = {"schema": _schema(requests), "examples": named}
    operation = {
        "summary": summary,
        "requestBody": {"required": True, "content": {"application/json": content}},
        "responses": _responses(_schema(answers), _SCORING_FAILURES),
    }
    kinds = (*requests, *answers)
    return DocumentedRoute(path, endpoint, operation, method="post", kinds=kinds)


def reading_route(
    path: str, endpoint: Endpoint, summary: str, answer: type, *failures: Failure
) -> DocumentedRoute:
    """Return a GET route that answers with an `answer`, or fails with one of `failures`."""
    operation = {"summary": summary, "responses": _responses(_schema([answer]), failures)}
    return DocumentedRoute(path, endpoint, operation, kinds=[answer])


def text_route(path: str, endpoint: Endpoint, summary: str, description: str) -> DocumentedRoute:
    """Return a GET route that answers with plain text."""
    text = _described(description, "text/plain", {"type": "string"})
    return DocumentedRoute(path, endpoint, {"summary": summary, "responses": {"200": text}})


def document(routes: Iterable[BaseRoute]) -> Schema:
    """Return the document that describes the `DocumentedRoute`s among `routes`."""
    documented = [route for route in routes if isinstance(route, DocumentedRoute)]
    kinds = [*(kind for route in documented for kind in route.kinds), Problem]
    return {
        "openapi": "3.1.0",
        "info": {"title": "Steelyard", "version": _version(), "description": _DESCRIPTION},
        "paths": {route.path: route.documented for route in documented},
        "components": {"schemas": _components(kinds)[1]},
    }


def _components(kinds: Iterable[Any]) -> tuple[tuple[Schema, ...], Schema]:
    template = "#/components/schemas/{name}"
    return msgspec.json.schema_components(kinds, ref_template=template)


def _schema(kinds: Sequence[Any]) -> Schema:
    references = _components(kinds)[0]
    return references[0] if len(references) == 1 else {"oneOf": list(references)}


def _version() -> str:
    try:
        return version("steelyard")
    except PackageNotFoundError:  # run from a source tree
        return "0"


def _described(description: str, media_type: str, schema: Schema) -> Schema:
    string = {"type": "string"}
    return {
        "description": description,
        "headers": {
            name: {"description": text, "schema": string} for name, text in _HEADERS.items()
        },
        "content": {media_type: {"schema": schema}},
    }


def _responses(schema: Schema, failures: Iterable[Failure]) -> Schema:
    problem = _schema([Problem])
    answers = {"200": _described("Answer", "application/json", schema)}
    for failure in failures:
        summary = (failure.__doc__ or "").splitlines()[0]
        answers[str(failure.status)] = _described(summary, "application/problem+json", problem)
    return answers
