"""Errors as answers: RFC 9457 problem documents."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import Any

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from serving.errors import ClientGone, ServingError
from serving.wire.http import JsonResponse

log = logging.getLogger("steelyard.serving")

_MAX_DETAIL = 1000
UNEXPECTED = "the request failed here, by no fault of the sender; the log has the reason"


class Problem(msgspec.Struct, frozen=True, kw_only=True):
    """Problem details (RFC 9457), with the `error` and `error_type` that TEI's clients read."""

    type: str
    title: str
    status: int
    detail: str
    instance: str
    error: str
    error_type: str


class ProblemResponse(JsonResponse):
    """Answer with a `Problem`."""

    media_type = "application/problem+json"


async def serving_error(request: Request, error: Exception) -> Response:
    """Answer one of our own errors as its class says."""
    assert isinstance(error, ServingError)
    if isinstance(error, ClientGone):
        return Response(status_code=error.status)
    headers = {}
    if error.retry_after_seconds is not None:
        headers["Retry-After"] = str(error.retry_after_seconds)
    return _problem(request, error.status, error.error_type, str(error), headers)


async def http_error(request: Request, error: Exception) -> Response:
    """Answer an unknown path or file."""
    assert isinstance(error, HTTPException)
    error_type = "not_found" if error.status_code == 404 else "validation"
    return _problem(request, error.status_code, error_type, error.detail, error.headers)


async def wrong_method(request: Request, error: Exception) -> Response:
    """Answer OPTIONS with the allowed methods, and refuse any other method that is not one."""
    assert isinstance(error, HTTPException)
    allowed = (error.headers or {}).get("Allow", "GET, HEAD").split(", ")
    headers = {"Allow": ", ".join(sorted({*allowed, "OPTIONS"}))}
    if request.method == "OPTIONS":
        return Response(status_code=204, headers=headers)
    return _problem(request, 405, "validation", error.detail, headers)


async def unexpected_error(request: Request, error: Exception) -> Response:
    """Log an error that no class foresees, and answer without its details."""
    where = {"path": request.url.path, "request_id": request.headers["x-request-id"]}
    log.error("request failed", exc_info=error, extra=where)
    return _problem(request, 500, "internal", UNEXPECTED)


HANDLERS: Mapping[Any, Callable[[Request, Exception], Any]] = {
    ServingError: serving_error,
    HTTPException: http_error,
    405: wrong_method,
}


def _problem(
    request: Request,
    status: int,
    error_type: str,
    detail: str,
    headers: Mapping[str, str] | None = None,
) -> ProblemResponse:
    body = problem(request.headers["x-request-id"], status, error_type, detail)
    return ProblemResponse(body, status_code=status, headers=headers)


def problem(request_id: str, status: int, error_type: str, detail: str) -> Problem:
    """Return the problem document of an answer; a detail that quotes a long value is shortened."""
    if len(detail) > _MAX_DETAIL:
        detail = f"{detail[: _MAX_DETAIL // 2]} ... {detail[-_MAX_DETAIL // 2 :]}"
    return Problem(
        type=f"urn:steelyard:error:{error_type}",
        title=HTTPStatus(status).phrase,
        status=status,
        detail=detail,
        instance=f"urn:steelyard:request:{request_id}",
        error=detail,
        error_type=error_type,
    )
