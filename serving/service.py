"""The parts of one serving process, as its routes find them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version

from starlette.requests import Request

from serving.inference.batcher import Batcher
from serving.inference.scoring import Limits, Scoring
from serving.inference.slot import Slot
from serving.rollout.watcher import Store, Watcher
from serving.telemetry import Telemetry


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineInfo:
    """What multiplies for the encoder, as an operator asks for it.

    Attributes:
        engine: as in `serving.engine`, which is the name of its package too.
        precision: as in `serving.precision`.
        engine_version: of the installed package.
    """

    engine: str = "torch"
    precision: str = "learned"
    engine_version: str = "unknown"

    @classmethod
    def installed(cls, engine: str, precision: str) -> EngineInfo:
        """Return an engine with the version that is installed here."""
        try:
            found = version(engine)
        except PackageNotFoundError:  # a build without metadata
            found = cls().engine_version
        return cls(engine=engine, precision=precision, engine_version=found)

    def to_json(self) -> dict[str, str]:
        """Return it as plain values, by the names of labels, log fields and `/info`."""
        return asdict(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """Collaborators of the routes, made once per application.

    Attributes:
        engine: of all versions that are served.
        new_id: names an answer whose request brought no `query_id`.
    """

    store: Store
    slot: Slot
    batcher: Batcher
    watcher: Watcher
    telemetry: Telemetry
    limits: Limits
    scoring: Scoring
    engine: EngineInfo
    new_id: Callable[[], str]


def service_of(request: Request) -> Service:
    """Return the service that `serving.app.create` gave to the application."""
    service: Service = request.app.state.service
    return service
