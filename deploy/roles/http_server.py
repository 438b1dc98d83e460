"""uvicorn with bounded connections, and refusals that do not reach the application."""

from __future__ import annotations

import asyncio
import math
from typing import Any

import uvicorn
from starlette.types import ASGIApp
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from deploy.roles.connections import Connections


class BoundedServer(uvicorn.Server):
    """A server of `app` whose connections are bounded; `run` and `should_exit` are uvicorn's."""

    def __init__(self, app: ASGIApp, connections: Connections, *, drain_seconds: float) -> None:
        """Listen on nothing yet.

        Args:
            app: the application.
            connections: to keep its connections in.
            drain_seconds: time for requests in flight at the end.
        """
        config = Config(
            app,
            http=protocol(connections),
            ws="none",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            backlog=connections.backlog,
            timeout_keep_alive=math.ceil(connections.config.keep_alive_seconds),
            timeout_graceful_shutdown=max(1, round(drain_seconds)),
        )
        super().__init__(config)
        self._connections = connections

    async def on_tick(self, counter: int) -> bool:
        """Close what is overdue, once a second; uvicorn calls it ten times."""
        if counter % 10 == 0:
            self._connections.end_overdue(asyncio.get_running_loop().time())
        return await super().on_tick(counter)


def protocol(connections: Connections) -> type[HttpToolsProtocol]:
    """Return the protocol class for uvicorn's `http`; its connections are kept in `connections`."""

    class BoundedProtocol(_BoundedProtocol):
        _all = connections

    return BoundedProtocol


class _BoundedProtocol(HttpToolsProtocol):
    """uvicorn's protocol with phases: headers, body, answer, idle."""

    _all: Connections
    seconds: float
    since: float
    idle: bool

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        # a request has begun to arrive; all of it has; it is dropped, by its headers
        self._begun = self._read = self._dropped = False
        self._closes = False  # after the refusal

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        if not self._all.make_room(self.loop.time()):
            transport.abort()
            return
        super().connection_made(transport)
        self._phase(self._all.config.header_seconds, idle=True)

    def connection_lost(self, exc: Exception | None) -> None:
        self._all.remove(self)
        if self.transport is not None:
            super().connection_lost(exc)

    def on_message_begin(self) -> None:
        # what a refusal needs; uvicorn's scope is built of it when the request is let in
        self.url, self.headers, self.expect_100_continue = b"", [], False
        self._begun, self._read, self._dropped = True, False, False
        if self._alone():
            self._phase(self._all.config.header_seconds, idle=True)

    def on_headers_complete(self) -> None:
        self._phase(self._all.config.body_seconds, idle=False)
        if self.transport.is_closing() or (self._alone() and self._refuse()):
            self._dropped = True
        else:
            url, headers, expects = self.url, self.headers, self.expect_100_continue
            super().on_message_begin()
            self.url, self.expect_100_continue = url, expects
            self.scope["headers"] = self.headers = headers
            super().on_headers_complete()

    def _refuse(self) -> bool:
        """Answer a request that is not admitted, before its body; return whether it was refused.

        Its body is thrown away as it comes, and the connection goes on. A client that asked with
        `Expect: 100-continue` sends none, or sends it nevertheless: it is closed at once.
        """
        refusal = self._all.admit(self.parser.get_method(), self.url, self.headers)
        if refusal is None:
            return False
        self._closes = (
            self.expect_100_continue
            or self.parser.should_upgrade()
            or not self.parser.should_keep_alive()
            or self.parser.get_http_version() == "1.0"
        )
        head, body = refusal
        lines = [b"%s: %s\r\n" % header for header in self.server_state.default_headers]
        if self._closes:
            lines.append(b"connection: close\r\n")
        self.transport.write(b"".join((head, *lines, b"\r\n", body)))
        if self.expect_100_continue:
            self.transport.close()
        return True

    def on_body(self, body: bytes) -> None:
        if not self._dropped:
            super().on_body(body)

    def on_message_complete(self) -> None:
        self._read = True
        if self._dropped:
            self._rest()
            if self._closes:
                self.transport.close()
            return
        super().on_message_complete()
        if self.cycle is None or not self.cycle.response_complete:
            self._phase(self._all.answer_seconds, idle=False)
        else:
            self._rest()

    def _alone(self) -> bool:
        """Return whether no request before this one waits for its answer."""
        return not self.pipeline and (self.cycle is None or self.cycle.response_complete)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self._read:
            self._rest()

    def end(self) -> None:
        """Close at once; say why, if a request has begun to arrive and has no answer yet."""
        if self._begun and not self._dropped and not self._answering():
            self.transport.write(_TOO_SLOW)
        self.transport.close()
        if self.transport.get_write_buffer_size():
            self.transport.abort()

    def _answering(self) -> bool:
        return self.cycle is not None and self.cycle.response_started and not self._alone()

    def _rest(self) -> None:
        self._begun = False
        self._phase(self._all.config.keep_alive_seconds, idle=True)

    def _phase(self, seconds: float, *, idle: bool) -> None:
        if self.transport.is_closing():
            return
        self._all.begin(self, self.loop.time(), seconds, idle=idle)


_TOO_SLOW = b"HTTP/1.1 408 Request Timeout\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
