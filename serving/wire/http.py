"""JSON over HTTP: bodies in, answers out."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TypeVar

import msgspec
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from serving.errors import ClientGone, NotJson
from serving.inference.delivery import Answer
from serving.inference.slot import NO_VERSION

T = TypeVar("T")

#: Bodies up to this size are parsed on the event loop, the worst of them in about 5 ms.
LARGE_BYTES = 16 << 10


class JsonResponse(Response):
    """Answer with any value that msgspec encodes."""

    media_type = "application/json"

    def render(self, content: object) -> bytes:
        """Return the body."""
        return msgspec.json.encode(content)


async def parsed(request: Request, parse: Callable[[bytes], T]) -> T:
    """Return what `parse` makes of the request's body; a large one is parsed beside the loop.

    Raises:
        NotJson: the content type is another one, or missing.
        BodyTooLarge: from `BodyLimitMiddleware`.
    """
    body = await request.body()
    content_type = request.headers.get("content-type", "")
    if content_type.split(";")[0].strip().lower() != "application/json":
        raise NotJson(content_type)
    if len(body) <= LARGE_BYTES:
        return parse(body)
    return await run_in_threadpool(parse, body)


@asynccontextmanager
async def while_connected(request: Request) -> AsyncIterator[None]:
    """Cancel what is awaited inside when the client hangs up; the body has been read before.

    Raises:
        ClientGone: it did.
    """
    task = asyncio.current_task()
    assert task is not None, "a request is served in a task"
    inside, gone = True, False

    def cancel(watch: asyncio.Task[None]) -> None:
        nonlocal gone
        if inside and not watch.cancelled():
            gone = True
            task.cancel()

    watch = asyncio.create_task(_until_gone(request))
    watch.add_done_callback(cancel)
    try:
        yield
    except asyncio.CancelledError:
        if not gone:
            raise
        task.uncancel()
        raise ClientGone from None
    finally:
        inside = False
        watch.cancel()


async def _until_gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def scored(content: object, answer: Answer) -> JsonResponse:
    """Return `content` with headers that name the version and the time of each stage."""
    queue_ms, forward_ms = answer.queue_seconds * 1e3, answer.forward_seconds * 1e3
    headers = {
        "X-Model-Version": answer.model.name,
        "X-Model-Event-Time": answer.model.event_time or NO_VERSION,
        "Server-Timing": f"queue;dur={queue_ms:.2f}, forward;dur={forward_ms:.2f}",
    }
    return JsonResponse(content, headers=headers)
