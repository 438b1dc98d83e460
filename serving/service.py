"""The parts of one serving process, as its routes find them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from starlette.requests import Request

from serving.inference.batcher import Batcher
from serving.inference.scoring import Limits, Scoring
from serving.inference.slot import Slot
from serving.rollout.watcher import Store, Watcher
from serving.telemetry import Telemetry


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """Collaborators of the routes, made once per application.

    Attributes:
        new_id: names an answer whose request brought no `query_id`.
    """

    store: Store
    slot: Slot
    batcher: Batcher
    watcher: Watcher
    telemetry: Telemetry
    limits: Limits
    scoring: Scoring
    new_id: Callable[[], str]


def service_of(request: Request) -> Service:
    """Return the service that `serving.app.create` gave to the application."""
    service: Service = request.app.state.service
    return service
