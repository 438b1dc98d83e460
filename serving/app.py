"""The Starlette application: a list of routes inside a list of middleware.

To add an HTTP route, write its module in `serving/wire/` with a `ROUTES`, and name it in `ROUTES`
here. Its metrics label and its part of the OpenAPI document follow from that.
Nothing here opens a socket or starts a thread.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.exceptions import ExceptionMiddleware
from starlette.types import ASGIApp

from serving.cors import CorsConfig
from serving.inference.batcher import Batcher
from serving.inference.scoring import Limits, Scoring
from serving.inference.slot import Slot
from serving.middleware import (
    BodyLimitMiddleware,
    RequestIdMiddleware,
    TelemetryMiddleware,
    TrailingSlashMiddleware,
    cors,
)
from serving.request_id import new_id
from serving.rollout.watcher import Store, Watcher
from serving.service import EngineInfo, Service
from serving.telemetry import Telemetry
from serving.wire import documents, health, models, rerank, score
from serving.wire.problems import HANDLERS, unexpected_error

ROUTES = (
    *rerank.ROUTES,
    *score.ROUTES,
    *models.ROUTES,
    *health.ROUTES,
    *documents.ROUTES,
)
SCORING_PATHS = [route.path for route in (*rerank.ROUTES, *score.ROUTES)]


def create(
    *,
    store: Store,
    slot: Slot,
    batcher: Batcher,
    watcher: Watcher,
    telemetry: Telemetry,
    limits: Limits | None = None,
    cors_config: CorsConfig | None = None,
    engine: EngineInfo | None = None,
    wall_clock: Callable[[], float] = time.time,
    new_id: Callable[[], str] = new_id,
) -> ASGIApp:
    """Return the application.

    Args:
        store: for `/v1/models`.
        slot: the version in use.
        batcher: started by the caller, before the first request.
        watcher: started by the caller; fills the slot.
        telemetry: whose registry `/metrics` shows.
        limits: of one request; left out, the defaults.
        cors_config: origins of web pages that may call; left out, none.
        engine: of all versions, for `/info` and `/metrics`; left out, torch of some version.
        wall_clock: seconds since the Unix epoch, for freshness.
        new_id: names requests and answers that bring no name.
    """
    limits, engine = limits or Limits(), engine or EngineInfo()
    scoring = Scoring(slot, batcher, wall_clock=wall_clock)
    middleware = [
        *cors(cors_config or CorsConfig()),
        Middleware(RequestIdMiddleware, new_id=new_id),
        Middleware(TelemetryMiddleware, slot=slot, telemetry=telemetry, clock=time.monotonic),
        Middleware(TrailingSlashMiddleware),
        # Starlette itself would answer an unexpected error and then raise it once more.
        Middleware(ExceptionMiddleware, handlers={Exception: unexpected_error}),
        Middleware(BodyLimitMiddleware, max_bytes=limits.max_body_bytes),
    ]
    app = Starlette(routes=ROUTES, middleware=middleware, exception_handlers=HANDLERS)
    app.router.redirect_slashes = False  # `TrailingSlashMiddleware` has removed them
    app.state.service = Service(
        store=store,
        slot=slot,
        batcher=batcher,
        watcher=watcher,
        telemetry=telemetry,
        limits=limits,
        scoring=scoring,
        engine=engine,
        new_id=new_id,
    )
    telemetry.engine.info(engine.to_json())
    telemetry.add_routes(route.path for route in ROUTES)
    return app
