"""JSON over HTTP: bodies in, answers out."""

from __future__ import annotations

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from serving.errors import NotJson
from serving.inference.batcher import Answer
from serving.inference.slot import NO_VERSION


class JsonResponse(Response):
    """Answer with any value that msgspec encodes."""

    media_type = "application/json"

    def render(self, content: object) -> bytes:
        """Return the body."""
        return msgspec.json.encode(content)


async def json_body(request: Request) -> bytes:
    """Return the request's body.

    Raises:
        NotJson: the content type is another one, or missing.
        BodyTooLarge: from `BodyLimitMiddleware`.
    """
    body = await request.body()
    content_type = request.headers.get("content-type", "")
    if content_type.split(";")[0].strip().lower() != "application/json":
        raise NotJson(content_type)
    return body


def scored(content: object, answer: Answer) -> JsonResponse:
    """Return `content` with headers that name the version and the time of each stage."""
    queue_ms, forward_ms = answer.queue_seconds * 1e3, answer.forward_seconds * 1e3
    headers = {
        "X-Model-Version": answer.model.name,
        "X-Model-Event-Time": answer.model.event_time or NO_VERSION,
        "Server-Timing": f"queue;dur={queue_ms:.2f}, forward;dur={forward_ms:.2f}",
    }
    return JsonResponse(content, headers=headers)
