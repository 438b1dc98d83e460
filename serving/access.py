"""What every answer carries: the request's id, the version and the time it took; and its count."""

from __future__ import annotations

import re
import time
from collections.abc import Callable

from litestar import Request
from litestar.datastructures import MutableScopeHeaders, State
from litestar.enums import ScopeType
from litestar.types import ASGIApp, Message, Receive, Scope, Send

from serving.errors import NotJson
from serving.inference.slot import NO_VERSION, Slot
from serving.telemetry import Telemetry

REQUEST_ID = re.compile(
    r"[A-Za-z0-9._:-]{1,128}"
)  #: others are not repeated, and replaced by a new one


class Observed:
    """An ASGI application, observed: also its unknown routes and its refusals.

    The inner application finds the request's id in the header ``x-request-id``, whether the client sent one or not.
    """

    def __init__(
        self,
        app: ASGIApp,
        slot: Slot,
        telemetry: Telemetry,
        *,
        new_id: Callable[[], str],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Wrap `app`; `clock` is monotonic, in seconds."""
        self._app, self._slot, self._telemetry, self._new_id, self._clock = (
            app,
            slot,
            telemetry,
            new_id,
            clock,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] != ScopeType.HTTP:
            await self._app(scope, receive, send)
            return
        started = self._clock()
        others = [
            (name, value) for name, value in scope["headers"] if name.lower() != b"x-request-id"
        ]
        sent = [
            value.decode("latin-1")
            for name, value in scope["headers"]
            if name.lower() == b"x-request-id"
        ]
        request_id = sent[0] if sent and REQUEST_ID.fullmatch(sent[0]) else self._new_id()
        scope["headers"] = [*others, (b"x-request-id", request_id.encode())]

        async def observed(message: Message) -> None:
            if message["type"] == "http.response.start":
                duration_seconds = self._clock() - started
                self._stamp(MutableScopeHeaders.from_message(message), request_id, duration_seconds)
                self._telemetry.answered(scope["path"], message["status"], duration_seconds)
            await send(message)

        await self._app(scope, receive, observed)

    def _stamp(
        self, headers: MutableScopeHeaders, request_id: str, duration_seconds: float
    ) -> None:
        serving = self._slot.current
        headers["X-Request-Id"] = request_id
        headers.setdefault("X-Model-Version", NO_VERSION if serving is None else serving.name)
        headers.setdefault("X-Model-Event-Time", (serving and serving.event_time) or NO_VERSION)
        timing, total = headers.get("Server-Timing"), f"total;dur={duration_seconds * 1e3:.2f}"
        headers["Server-Timing"] = f"{timing}, {total}" if timing else total


def expect_json(request: Request[None, None, State]) -> None:
    """Refuse a body that does not say that it is JSON.

    Raises:
        NotJson: another content type, or none.
    """
    content_type = request.headers.get("content-type", "")
    if content_type.split(";")[0].strip().lower() != "application/json":
        raise NotJson(content_type)
