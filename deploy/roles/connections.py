"""Connections of the server: time limits, a bound on their number, and room for new ones.

uvicorn bounds only the time between two requests. A client that sends nothing, or one byte a
second, would hold its descriptor for ever, and at the limit of descriptors nobody else is served.
"""

from __future__ import annotations

import logging
import resource
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Protocol, TypeAlias

from msgspec import Meta

from weighting.constraints import Count, Positive, check

log = logging.getLogger("steelyard.serving")

#: Descriptors kept for files, Kafka and connections that are being closed: at least so many, and at
#: least this share.
_KEPT, _KEPT_SHARE = 128, 0.25
_MAX_BACKLOG = 2048
_LOG_SECONDS = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionConfig:
    """Time limits of a connection, and how many there are."""

    keep_alive_seconds: Annotated[
        Positive,
        Meta(description="Time for which an idle connection is kept; longer than the proxy's."),
    ] = 75.0
    header_seconds: Annotated[
        Positive, Meta(description="Time to send the headers of a request, from its first byte.")
    ] = 10.0
    body_seconds: Annotated[
        Positive, Meta(description="Time to send the body, and to take the answer.")
    ] = 30.0
    max_connections: Annotated[
        Count,
        Meta(
            description="Connections at a time; at most three quarters of the limit of open "
            "files. A new one then takes the place of the one that has been idle longest."
        ),
    ] = 4096

    def __post_init__(self) -> None:
        """Check every field."""
        check(self, "connections")


Admit: TypeAlias = Callable[
    [bytes, bytes, Sequence[tuple[bytes, bytes]]], tuple[bytes, bytes] | None
]
"""Method, target, headers -> head and body of a refusal, or None."""


class Connection(Protocol):
    """A connection as `Connections` sees it.

    Attributes:
        seconds: the time allowed in its present phase.
        since: when that phase began.
        idle: no request is under way; it may be closed for a new one.
    """

    seconds: float
    since: float
    idle: bool

    def end(self) -> None:
        """Close it at once; with an answer, if a request has begun to arrive."""


@dataclass(slots=True)
class Connections:
    """All connections of a server, oldest phase first; used by the event loop only.

    Attributes:
        config: time limits.
        answer_seconds: time in which the application answers, and the client takes the answer.
        admit: asked when the headers of a request are complete; returns a refusal, or None if the
            application should be called.
        max_descriptors: open files that this process may have.
    """

    config: ConnectionConfig
    answer_seconds: float = 60.0
    admit: Admit = lambda method, target, headers: None
    max_descriptors: int = field(
        default_factory=lambda: resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    )
    _open: dict[Connection, None] = field(default_factory=dict)
    _logged: float = -_LOG_SECONDS

    @property
    def most(self) -> int:
        """Connections at a time."""
        kept = max(_KEPT, round(_KEPT_SHARE * self.max_descriptors))
        return max(1, min(self.config.max_connections, self.max_descriptors - kept))

    @property
    def backlog(self) -> int:
        """Connections that the kernel holds until they are accepted.

        The event loop accepts all of them at once, before any is counted here.
        """
        return max(16, min(_MAX_BACKLOG, (self.max_descriptors - self.most) * 3 // 4))

    def __len__(self) -> int:
        """Return the number of connections."""
        return len(self._open)

    def begin(self, connection: Connection, now: float, seconds: float, *, idle: bool) -> None:
        """Begin a phase of a connection, new or known."""
        connection.since, connection.seconds, connection.idle = now, seconds, idle
        self._open.pop(connection, None)
        self._open[connection] = None

    def make_room(self, now: float) -> bool:
        """Return whether one more connection fits, after closing the one that is idle longest."""
        if len(self._open) < self.most:
            return True
        if now - self._logged >= _LOG_SECONDS:
            self._logged = now
            log.warning("connections at their limit", extra={"limit": self.most})
        idle = next((connection for connection in self._open if connection.idle), None)
        if idle is None:
            return False
        self.remove(idle)
        idle.end()
        return True

    def remove(self, connection: Connection) -> None:
        """Forget a connection that is closed."""
        self._open.pop(connection, None)

    def end_overdue(self, now: float) -> None:
        """Close every connection whose phase has lasted too long."""
        overdue = [
            connection for connection in self._open if now - connection.since >= connection.seconds
        ]
        for connection in overdue:
            self.remove(connection)
            connection.end()
