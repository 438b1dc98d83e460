"""ASGI middleware around every route; each class does one thing and can be left out."""

from __future__ import annotations

import re
from collections.abc import Callable

from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.cors import EXPOSED_HEADERS, CorsConfig
from serving.errors import BodyTooLarge
from serving.inference.slot import NO_VERSION, Slot
from serving.request_id import request_id
from serving.telemetry import Telemetry


class RequestIdMiddleware:
    """Request ids: the client's `X-Request-Id` if well formed, else a new one.

    The inner application finds it in the request's headers, the client in the answer's.
    """

    def __init__(self, app: ASGIApp, *, new_id: Callable[[], str]) -> None:
        """Wrap `app`."""
        self._app, self._new_id = app, new_id

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = MutableHeaders(scope=scope)
        own_id = request_id(headers.get("x-request-id", ""), self._new_id)
        headers["x-request-id"] = own_id

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["x-request-id"] = own_id
            await send(message)

        await self._app(scope, receive, send_with_id)


class TelemetryMiddleware:
    """Count every answer, and say in its headers which version served and how long it took."""

    def __init__(
        self, app: ASGIApp, *, slot: Slot, telemetry: Telemetry, clock: Callable[[], float]
    ) -> None:
        """Wrap `app`; `clock` is monotonic, in seconds."""
        self._app, self._slot = app, slot
        self._telemetry, self._clock = telemetry, clock

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = self._clock()

        async def send_counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                duration_seconds = self._clock() - started
                self._add_headers(MutableHeaders(scope=message), duration_seconds)
                self._telemetry.answered(scope["path"], message["status"], duration_seconds)
            await send(message)

        await self._app(scope, receive, send_counted)

    def _add_headers(self, headers: MutableHeaders, duration_seconds: float) -> None:
        model = self._slot.current
        headers.setdefault("x-model-version", model.name if model else NO_VERSION)
        event_time = model.event_time if model else None
        headers.setdefault("x-model-event-time", event_time or NO_VERSION)
        stages, total = headers.get("server-timing"), f"total;dur={duration_seconds * 1e3:.2f}"
        headers["server-timing"] = f"{stages}, {total}" if stages else total


class TrailingSlashMiddleware:
    """Route `//path/` as `/path`, without a redirect that a client may not follow."""

    def __init__(self, app: ASGIApp) -> None:
        """Wrap `app`."""
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] == "http":
            scope["path"] = without_slashes(scope["path"])
        await self._app(scope, receive, send)


def without_slashes(path: str) -> str:
    """Return a path without the slashes that make no difference.

    >>> without_slashes("//v2/rerank/")
    '/v2/rerank'
    """
    return re.sub("/+", "/", path).rstrip("/") or "/"


class BodyLimitMiddleware:
    """Refuse a request body above `max_bytes`, whether it declares its length or not."""

    def __init__(self, app: ASGIApp, *, max_bytes: int) -> None:
        """Wrap `app`, which sees `BodyTooLarge` where it reads the body."""
        self._app, self._max_bytes = app, max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        declared = Headers(scope=scope).get("content-length", "")
        too_long = declared.isdecimal() and int(declared) > self._max_bytes
        num_bytes = 0

        async def receive_limited() -> Message:
            nonlocal num_bytes
            if too_long:
                raise BodyTooLarge(self._max_bytes)
            message = await receive()
            num_bytes += len(message.get("body", b""))
            if num_bytes > self._max_bytes:
                raise BodyTooLarge(self._max_bytes)
            return message

        await self._app(scope, receive_limited, send)


def cors(config: CorsConfig) -> list[Middleware]:
    """Return the middleware that lets web pages of these origins call; none for none."""
    if not config.allowed:
        return []
    allowed = Middleware(
        CORSMiddleware,
        allow_origins=config.allowed,
        allow_methods=("GET", "HEAD", "POST"),
        allow_headers=("*",),
        expose_headers=EXPOSED_HEADERS,
    )
    return [allowed]
