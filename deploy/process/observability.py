"""Logs and the metrics port of a process; nothing else configures them.

Other modules log events with fields through the standard library:
`log.info("version swapped", extra={"version": "v000012"})`.
"""

from __future__ import annotations

import logging
import math
import urllib.request
from collections.abc import Iterable
from dataclasses import dataclass
from threading import Thread
from typing import Annotated, Literal, TextIO
from wsgiref.simple_server import WSGIServer

import structlog
from msgspec import Meta
from prometheus_client import (
    CollectorRegistry,
    GCCollector,
    PlatformCollector,
    ProcessCollector,
    start_http_server,
)
from prometheus_client.parser import text_string_to_metric_families

from deploy.errors import PortTaken
from deploy.process import log_line
from weighting.constraints import Port, check

_SPARSE_SECONDS = 300


@dataclass(frozen=True, slots=True, kw_only=True)
class ObservabilityConfig:
    """Logs and metrics of a process."""

    log_format: Annotated[
        Literal["auto", "json", "console"],
        Meta(description="json (an object a line), console, or auto: console on a terminal."),
    ] = "auto"
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"], Meta(description="Lowest level logged.")
    ] = "info"
    metrics_host: Annotated[str, Meta(description="Address of the learner's metrics.")] = (
        "127.0.0.1"
    )
    metrics_port: Annotated[
        Port, Meta(description="Their port, 0 for a free one; the server's are under its /metrics.")
    ] = 9464

    def __post_init__(self) -> None:
        """Check every field."""
        check(self, "observability")


def configure_logging(
    config: ObservabilityConfig, stream: TextIO | None = None, secrets: Iterable[str] = ()
) -> None:
    """Write every log record to `stream`, standard error by default.

    One JSON object or readable line each, of bounded size and without the `secrets`. A second call
    replaces the first.
    """
    of_process = stream is None
    stream = stream or log_line.standard_error()
    console = config.log_format == "console" or (config.log_format == "auto" and stream.isatty())
    shared: list[structlog.typing.Processor] = [
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.ExtraAdder(),
        _without_terminal_colours,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    render: list[structlog.typing.Processor]
    if console:
        # The default shows the variables of every frame: records, passwords.
        plain = structlog.dev.plain_traceback
        render = [
            log_line.bounded,
            structlog.dev.ConsoleRenderer(colors=stream.isatty(), exception_formatter=plain),
        ]
    else:
        tracebacks = structlog.tracebacks.ExceptionDictTransformer(
            show_locals=False, max_frames=log_line.MAX_FRAMES
        )
        render = [
            structlog.processors.ExceptionRenderer(tracebacks),
            log_line.bounded,
            structlog.processors.JSONRenderer(default=str),
        ]
    handler = logging.StreamHandler(stream)
    if of_process and not console:
        log_line.take_over_standard_error()
    handler.addFilter(_Sparse())
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                *render,
                log_line.Finish(secrets),
            ],
        )
    )
    logging.basicConfig(handlers=[handler], level=config.log_level.upper(), force=True)
    logging.captureWarnings(True)
    logging.getLogger("kafka").setLevel(logging.WARNING)  # at info it reports every connection
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
    )


class _Sparse(logging.Filter):
    """Filter that passes each message of Kafka's client library once in five minutes.

    While brokers are down it would log eight times a second.
    """

    def __init__(self) -> None:
        super().__init__()
        # Logger and line of its source -> time when it last passed.
        self._passed: dict[tuple[str, int], float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        if not record.name.startswith("kafka."):
            return True
        place = (record.name, record.lineno)
        if 0 <= record.created - self._passed.get(place, -math.inf) < _SPARSE_SECONDS:
            return False
        self._passed[place] = record.created
        return True


def _without_terminal_colours(
    logger: object, method: str, event: structlog.typing.EventDict
) -> structlog.typing.EventDict:
    """Drop the copy of the message that uvicorn adds for terminals."""
    event.pop("color_message", None)
    return event


def new_registry() -> CollectorRegistry:
    """Return a registry with series on memory, descriptors, garbage collection and Python."""
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    GCCollector(registry=registry)
    PlatformCollector(registry=registry)
    return registry


class MetricsServer:
    """Prometheus endpoint of one registry, in a thread of its own."""

    def __init__(self, server: WSGIServer, thread: Thread) -> None:
        """Take a running server; `start_metrics` starts one."""
        self._server, self._thread = server, thread

    @property
    def port(self) -> int:
        """Port that it listens on."""
        return int(self._server.server_port)

    def close(self) -> None:
        """Stop listening and end the thread."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def start_metrics(registry: CollectorRegistry, port: int, host: str = "127.0.0.1") -> MetricsServer:
    """Serve `registry` on `port`; 0 takes a free one.

    Raises:
        PortTaken: another process listens there.
    """
    try:
        return MetricsServer(*start_http_server(port, host, registry=registry))
    except OSError as error:
        raise PortTaken(host, port, "observability.metrics_port", error) from error


def scrape(url: str) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """Return the samples of a `/metrics` page: (name, labels) -> value.

    Raises:
        OSError: there is no answer.
    """
    with urllib.request.urlopen(url, timeout=10) as answer:
        text = answer.read().decode()
    families = text_string_to_metric_families(text)
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in families
        for sample in family.samples
    }
