"""The state of this process: alive, ready, and what it serves."""

from __future__ import annotations

from starlette.requests import Request

from serving.errors import Invalid, NotReady
from serving.service import service_of
from serving.wire.http import JsonResponse
from serving.wire.openapi import reading_route
from serving.wire.protocol import HealthAnswer, InfoAnswer


async def livez(request: Request) -> JsonResponse:
    """Answer while both threads run."""
    service = service_of(request)
    for part, healthy in (
        ("inference", service.batcher.healthy),
        ("loader", service.watcher.healthy),
    ):
        if not healthy:
            raise NotReady(f"the {part} thread has ended")
    return JsonResponse(HealthAnswer(status="ok"))


async def readyz(request: Request) -> JsonResponse:
    """Answer while requests can be scored."""
    service = service_of(request)
    if not service.batcher.open:
        raise NotReady("this process is draining")
    if service.slot.current is None:
        raise NotReady("no model has been loaded yet")
    return JsonResponse(HealthAnswer(status="ok"))


async def info(request: Request) -> JsonResponse:
    """Describe the served version, its engine, its freshness and the limits of a request."""
    service = service_of(request)
    model, freshness = service.slot.current, service.watcher.freshness
    answer = InfoAnswer(
        version=model.name if model else None,
        event_time=model.event_time if model else None,
        swaps=service.slot.swaps,
        **service.engine.to_json(),
        refused=dict(service.watcher.refused),
        freshness_p50_seconds=freshness.quantile(0.5),
        freshness_p99_seconds=freshness.quantile(0.99),
        max_documents=service.limits.max_documents,
        max_body_bytes=service.limits.max_body_bytes,
        max_concurrent_requests=service.batcher.config.max_in_flight,
    )
    return JsonResponse(answer)


ROUTES = (
    reading_route("/livez", livez, "Threads are running", HealthAnswer, NotReady),
    reading_route("/readyz", readyz, "Ready to score", HealthAnswer, NotReady),
    reading_route("/health", readyz, "Ready to score", HealthAnswer, NotReady),
    reading_route("/info", info, "What this process serves and takes", InfoAnswer, Invalid),
)
