"""The Litestar application, made from its parts; opens no socket, starts no thread."""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import msgspec
from litestar import Litestar, Request, Response, get
from litestar.datastructures import State
from litestar.exceptions import HTTPException
from litestar.handlers import HTTPRouteHandler
from litestar.response import File
from litestar.static_files import create_static_files_router
from litestar.types import ASGIApp

from serving.access import Observed
from serving.errors import NotReady, Problem, ServingError, problem
from serving.inference.batcher import Batcher
from serving.inference.scoring import Limits, Scoring
from serving.inference.slot import Slot, rfc3339
from serving.rollout.watcher import Store, Watcher
from serving.telemetry import CONTENT_TYPE, Telemetry
from serving.wire.openapi import document
from serving.wire.protocol import HealthAnswer, InfoAnswer, ModelEntry, ModelsAnswer
from serving.wire.rerank import rerank_routes
from serving.wire.score import score_route

log = logging.getLogger("steelyard.serving")
STATIC = Path(__file__).parent / "static"
#: The page may load from where it came and from nowhere else; Swagger UI sets style attributes.
PAGE_POLICY = "default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:"


def create(
    *,
    store: Store,
    slot: Slot,
    batcher: Batcher,
    watcher: Watcher,
    telemetry: Telemetry,
    limits: Limits | None = None,
    wall_clock: Callable[[], float] = time.time,
    new_id: Callable[[], str] = lambda: uuid.uuid4().hex,
) -> ASGIApp:
    """Return the application.

    Args:
        store: for `/v1/models`.
        slot: the version in use.
        batcher: started by the caller, before the first request.
        watcher: started by the caller; fills the slot.
        telemetry: whose registry `/metrics` shows.
        limits: of one request; left out, the defaults.
        wall_clock: seconds since the Unix epoch, for freshness.
        new_id: names requests and answers that bring no name.
    """
    limits = limits or Limits()
    scoring = Scoring(slot, batcher, limits, wall_clock=wall_clock)
    app = Litestar(
        route_handlers=[
            *rerank_routes(scoring, new_id=new_id),
            score_route(scoring),
            *_model_routes(store, slot, batcher, watcher, limits),
            *_health_routes(slot, batcher, watcher),
            *_document_routes(telemetry),
            create_static_files_router(
                path="/static", directories=[STATIC], include_in_schema=False
            ),
        ],
        exception_handlers={
            ServingError: _serving_error,
            HTTPException: _http_error,
            Exception: _unexpected_error,
        },
        request_max_body_size=limits.max_body_bytes,
        openapi_config=None,
        logging_config=None,
        debug=False,
    )
    return Observed(app, slot, telemetry, new_id=new_id)


def _model_routes(
    store: Store, slot: Slot, batcher: Batcher, watcher: Watcher, limits: Limits
) -> list[HTTPRouteHandler]:
    @get("/v1/models", sync_to_thread=True)
    def models() -> ModelsAnswer:
        aliases, refused = store.aliases(), watcher.refused
        states = {name: "refused" for name in refused}
        states |= {name: alias for alias, name in aliases.items() if name is not None}
        entries = [
            ModelEntry(
                version=version.name,
                created=rfc3339(version.created_us),
                event_time=None
                if version.event_time_us is None
                else rfc3339(version.event_time_us),
                evaluation=version.evaluation,
                state=states.get(version.name, "available"),
            )
            for version in store.versions()
        ]
        return ModelsAnswer(aliases=aliases, models=entries)

    @get("/info")
    async def info() -> InfoAnswer:
        serving = slot.current
        return InfoAnswer(
            version=None if serving is None else serving.name,
            event_time=None if serving is None else serving.event_time,
            swaps=slot.swaps,
            refused=dict(watcher.refused),
            freshness_p50_seconds=watcher.freshness.quantile(0.5),
            freshness_p99_seconds=watcher.freshness.quantile(0.99),
            max_documents=limits.max_documents,
            max_body_bytes=limits.max_body_bytes,
            max_concurrent_requests=batcher.config.max_in_flight,
        )

    return [models, info]


def _health_routes(slot: Slot, batcher: Batcher, watcher: Watcher) -> list[HTTPRouteHandler]:
    @get("/livez")
    async def livez() -> HealthAnswer:
        for part, healthy in (("inference", batcher.healthy), ("loader", watcher.healthy)):
            if not healthy:
                raise NotReady(f"the {part} thread has ended")
        return HealthAnswer(status="ok")

    @get(["/readyz", "/health"])
    async def readyz() -> HealthAnswer:
        if not batcher.open:
            raise NotReady("this process is draining")
        if slot.current is None:
            raise NotReady("no model has been loaded yet")
        return HealthAnswer(status="ok")

    return [livez, readyz]


def _document_routes(telemetry: Telemetry) -> list[HTTPRouteHandler]:
    schema = msgspec.json.encode(document())

    @get("/metrics")
    async def metrics() -> Response[bytes]:
        return Response(telemetry.exposition(), media_type=CONTENT_TYPE)

    @get("/openapi.json")
    async def openapi() -> Response[bytes]:
        return Response(schema, media_type="application/json")

    @get("/docs")
    async def docs() -> File:
        return File(
            STATIC / "docs.html",
            media_type="text/html",
            content_disposition_type="inline",
            headers={"Content-Security-Policy": PAGE_POLICY},
        )

    return [metrics, openapi, docs]


AnyRequest = Request[None, None, State]


def _answer(
    request: AnyRequest,
    status: int,
    error_type: str,
    detail: str,
    headers: dict[str, str] | None = None,
) -> Response[Problem]:
    instance = f"urn:steelyard:request:{request.headers['x-request-id']}"
    body = problem(status, error_type, detail, instance=instance)
    return Response(
        body, status_code=status, headers=headers, media_type="application/problem+json"
    )


def _serving_error(request: AnyRequest, error: ServingError) -> Response[Problem]:
    headers = (
        {} if error.retry_after_seconds is None else {"Retry-After": str(error.retry_after_seconds)}
    )
    return _answer(request, error.status, error.error_type, str(error), headers)


def _http_error(request: AnyRequest, error: HTTPException) -> Response[Problem]:
    error_type = (
        "not_found"
        if error.status_code == 404
        else "validation"
        if error.status_code < 500
        else "internal"
    )
    return _answer(request, error.status_code, error_type, error.detail, error.headers)


def _unexpected_error(request: AnyRequest, error: Exception) -> Response[Problem]:
    log.error(
        "request failed",
        exc_info=error,
        extra={"path": request.url.path, "request_id": request.headers["x-request-id"]},
    )
    return _answer(
        request,
        500,
        "internal",
        "the request failed here, by no fault of the sender; the log has the reason",
    )
