"""Admission of requests by their headers; a refusal is bytes, sent without the application.

Under an overload of ten times most requests end here. The whole way through the application costs
a processor several times as much, and then the refusals would crowd out the answers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TypeAlias

import msgspec

from serving.cors import CorsConfig
from serving.errors import Overloaded
from serving.inference.slot import NO_VERSION, LoadedModel, Slot
from serving.middleware import without_slashes
from serving.request_id import new_id, request_id
from serving.telemetry import Telemetry
from serving.wire.problems import problem

#: Place of the request's id in the body.
_ID = "{id}"

Headers: TypeAlias = Sequence[tuple[bytes, bytes]]
"""Names in lower case, and values."""
Refusal: TypeAlias = tuple[bytes, bytes]
"""Status line with header lines, and body; the server adds its own header lines between them."""


class Admission:
    """Asked about every request when its headers are complete."""

    def __init__(
        self,
        admit: Callable[[], Overloaded | None],
        slot: Slot,
        telemetry: Telemetry,
        paths: Iterable[str],
        *,
        cors_config: CorsConfig | None = None,
        new_id: Callable[[], str] = new_id,
    ) -> None:
        """Take the collaborators.

        Args:
            admit: keeps room for a request, or returns the error (`Batcher.admit`).
            slot: holds the version that the answer names.
            telemetry: counts the answer.
            paths: of the routes that score.
            cors_config: origins of web pages that may call; left out, none.
            new_id: names requests that bring no name.
        """
        self._admit, self._slot, self._telemetry = admit, slot, telemetry
        self._paths = {path.encode(): path for path in paths}
        self._cors = cors_config if cors_config and cors_config.allowed else None
        self._new_id = new_id
        self._error: Overloaded | None = None
        self._model: LoadedModel | None = None
        self._head = self._body = ""

    def __call__(self, method: bytes, target: bytes, headers: Headers) -> Refusal | None:
        """Return the answer, or None if the application should be called."""
        path = self._path(target) if method == b"POST" else None
        if path is None or (error := self._admit()) is None:
            return None
        sent = dict(reversed(headers))  # of a name that comes twice, the first
        self._telemetry.answered(path, error.status, 0.0)
        return self._refusal(error, sent.get(b"x-request-id", b""), sent.get(b"origin"))

    def _path(self, target: bytes) -> str | None:
        """Return the path of the scoring route that a request target means, if any."""
        if (path := self._paths.get(target)) is not None:
            return path
        path = without_slashes(target.partition(b"?")[0].decode("latin-1"))
        return self._paths.get(path.encode("latin-1"))

    def _refusal(self, error: Overloaded, sent_id: bytes, sent_origin: bytes | None) -> Refusal:
        model = self._slot.current
        if error is not self._error or model is not self._model:
            self._error, self._model = error, model
            self._head, self._body = self._templates(error, model)
        name = request_id(sent_id.decode("latin-1"), self._new_id)
        body = self._body.replace(_ID, name)
        head = f"{self._head}content-length: {len(body)}\r\nx-request-id: {name}\r\n"
        if self._cors is not None:
            origin = None if sent_origin is None else sent_origin.decode("latin-1")
            for field, value in self._cors.answer_headers(origin):
                head += f"{field}: {value}\r\n"
        return head.encode("latin-1"), body.encode()

    def _templates(self, error: Overloaded, model: LoadedModel | None) -> tuple[str, str]:
        """Return what the refusals of one moment share: the head, and the body without its id."""
        body = msgspec.json.encode(problem(_ID, error.status, error.error_type, str(error)))
        head = (
            "HTTP/1.1 429 Too Many Requests\r\n"
            "content-type: application/problem+json\r\n"
            f"retry-after: {error.retry_after_seconds}\r\n"
            f"x-model-version: {model.name if model else NO_VERSION}\r\n"
            f"x-model-event-time: {(model and model.event_time) or NO_VERSION}\r\n"
            "server-timing: total;dur=0.00\r\n"
        )
        return head, body.decode()
