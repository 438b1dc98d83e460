"""The models route: aliases, and every version in the store."""

from __future__ import annotations

from starlette.requests import Request

from learner.artifact import Version
from serving.errors import Invalid
from serving.inference.slot import rfc3339
from serving.service import service_of
from serving.wire.http import JsonResponse
from serving.wire.openapi import reading_route
from serving.wire.protocol import ModelEntry, ModelsAnswer


def models(request: Request) -> JsonResponse:
    """List versions; not a coroutine, because it reads the disk: Starlette gives it a thread."""
    service = service_of(request)
    aliases = service.store.aliases()
    refused = service.watcher.refused
    states = {name: alias for alias, name in aliases.items() if name is not None}
    states |= dict.fromkeys(refused, "refused")
    versions = service.store.readable()
    entries = [
        _entry(version, states.get(version.name, "available"), refused.get(version.name))
        for version in versions
    ]
    return JsonResponse(ModelsAnswer(aliases=aliases, models=entries))


def _entry(version: Version, state: str, reason: str | None) -> ModelEntry:
    event_time_us = version.event_time_us
    return ModelEntry(
        version=version.name,
        created=rfc3339(version.created_us),
        event_time=None if event_time_us is None else rfc3339(event_time_us),
        evaluation=version.evaluation,
        weighting=version.manifest.get("weighting", {}),
        state=state,
        reason=reason,
    )


ROUTES = (reading_route("/v1/models", models, "Aliases and versions", ModelsAnswer, Invalid),)
