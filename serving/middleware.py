"""ASGI middleware around every route; each class does one thing and can be left out."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.cors import CorsConfig
from serving.errors import BodyTooLarge, ServingError
from serving.inference.slot import NO_VERSION, Slot
from serving.telemetry import Telemetry
from serving.wire.problems import serving_error

#: Ids of another form are not repeated in the answer, but replaced by a new one.
REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")


#: Headers of an answer that a web page of an allowed origin may read.
EXPOSED_HEADERS = (
    "X-Model-Version",
    "X-Model-Event-Time",
    "X-Request-Id",
    "Server-Timing",
    "Retry-After",
)


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
        sent = headers.get("x-request-id", "")
        request_id = sent if REQUEST_ID.fullmatch(sent) else self._new_id()
        headers["x-request-id"] = request_id

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["x-request-id"] = request_id
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
            scope["path"] = re.sub("/+", "/", scope["path"]).rstrip("/") or "/"
        await self._app(scope, receive, send)


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


class SheddingMiddleware:
    """Refuse requests that would wait too long, before their body is read or decoded.

    Under an overload most requests end here, so a refusal must cost little.
    """

    def __init__(
        self, app: ASGIApp, *, paths: Iterable[str], refusal: Callable[[], ServingError | None]
    ) -> None:
        """Wrap `app`; `refusal` is asked about each POST to one of `paths`."""
        self._app, self._paths, self._refusal = app, frozenset(paths), refusal

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] == "http" and scope["method"] == "POST" and scope["path"] in self._paths:
            if (error := self._refusal()) is not None:
                response = await serving_error(Request(scope), error)
                await response(scope, receive, send)
                return
        await self._app(scope, receive, send)


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
