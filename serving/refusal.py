"""The refusal of an overload as bytes, for a server that sends it without calling the application.

Under an overload of ten times most requests end here. The whole way through the application costs
a processor several times as much, and then the refusals would crowd out the answers.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Sequence

import msgspec

from serving.errors import Overloaded
from serving.inference.slot import NO_VERSION, Slot
from serving.middleware import REQUEST_ID
from serving.telemetry import Telemetry
from serving.wire.problems import problem

_HEAD = (
    "HTTP/1.1 429 Too Many Requests\r\n"
    "content-type: application/problem+json\r\n"
    "content-length: {length}\r\n"
    "retry-after: {retry_after}\r\n"
    "x-request-id: {request_id}\r\n"
    "x-model-version: {version}\r\n"
    "x-model-event-time: {event_time}\r\n"
    "server-timing: total;dur=0.00\r\n"
    "\r\n"
)

Headers = Sequence[tuple[bytes, bytes]]
"""Names in lower case, and values."""


class Refusals:
    """Asked about every request when its headers are complete."""

    def __init__(
        self,
        refusal: Callable[[], Overloaded | None],
        slot: Slot,
        telemetry: Telemetry,
        paths: Iterable[str],
        *,
        new_id: Callable[[], str] = lambda: uuid.uuid4().hex,
    ) -> None:
        """Take the collaborators.

        Args:
            refusal: the error of this moment, if any (`Batcher.refusal`).
            slot: holds the version that the answer names.
            telemetry: counts the answer.
            paths: of the routes that score.
            new_id: names requests that bring no name.
        """
        self._refusal, self._slot, self._telemetry = refusal, slot, telemetry
        self._paths = {path.encode(): path for path in paths}
        self._new_id = new_id

    def __call__(self, method: bytes, target: bytes, headers: Headers) -> bytes | None:
        """Return the whole answer, or None if the application should be asked."""
        path = self._paths.get(target) if method == b"POST" else None
        # from a browser: the application knows which headers its answer needs
        if path is None or any(name == b"origin" for name, _ in headers):
            return None
        if (error := self._refusal()) is None:
            return None
        request_id = next((value for name, value in headers if name == b"x-request-id"), b"")
        name = request_id.decode("latin-1")
        name = name if REQUEST_ID.fullmatch(name) else self._new_id()
        model = self._slot.current
        body = msgspec.json.encode(problem(name, error.status, error.error_type, str(error)))
        head = _HEAD.format(
            length=len(body),
            retry_after=error.retry_after_seconds,
            request_id=name,
            version=model.name if model else NO_VERSION,
            event_time=(model.event_time if model else None) or NO_VERSION,
        )
        self._telemetry.answered(path, error.status, 0.0)
        return head.encode("latin-1") + body
