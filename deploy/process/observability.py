"""Logs and the metrics port of a process; nothing else configures them.

All modules log events with fields through the standard library:
`log.info("version swapped", extra={"version": "v000012"})`.
"""

from __future__ import annotations

import logging
import math
import sys
import urllib.request
from dataclasses import dataclass
from threading import Thread
from typing import Literal, TextIO
from wsgiref.simple_server import WSGIServer

import structlog
from prometheus_client import (
    CollectorRegistry,
    GCCollector,
    PlatformCollector,
    ProcessCollector,
    start_http_server,
)
from prometheus_client.parser import text_string_to_metric_families

from deploy.errors import PortTaken

_SPARSE_SECONDS = 300


@dataclass(frozen=True, slots=True, kw_only=True)
class ObservabilityConfig:
    """Settings of logs and metrics.

    Attributes:
        log_format: json (one object a line), console, or auto (console on a terminal).
        log_level: least level that is logged.
        metrics_host: where the learner's metrics are.
        metrics_port: the same; 0 takes a free one. Serving has its own under /metrics.
    """

    log_format: Literal["auto", "json", "console"] = "auto"
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    metrics_host: str = "127.0.0.1"
    metrics_port: int = 9464

    def __post_init__(self) -> None:
        """Refuse a port out of range.

        Raises:
            ValueError: names key, value and expectation.
        """
        if not 0 <= self.metrics_port <= 65535:
            raise ValueError(
                f"observability.metrics_port: got {self.metrics_port!r}, expected a port from 0 to "
                "65535"
            )


def configure_logging(config: ObservabilityConfig, stream: TextIO | None = None) -> None:
    """Send every record to `stream` (standard error), one JSON object or readable line each.

    Calling it again replaces the first call.
    """
    stream = stream or sys.stderr
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
        render = [structlog.dev.ConsoleRenderer(colors=stream.isatty())]
    else:
        render = [
            structlog.processors.dict_tracebacks,
            structlog.processors.JSONRenderer(default=str),
        ]
    handler = logging.StreamHandler(stream)
    handler.addFilter(_Sparse())
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *render],
        )
    )
    logging.basicConfig(handlers=[handler], level=config.log_level.upper(), force=True)
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
    """Lets each message of Kafka's client library pass once in five minutes.

    While brokers are down it would log the same eight times a second.
    """

    def __init__(self) -> None:
        super().__init__()
        # (logger, line of its source) -> time at which it last passed
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
    """Return a registry with the series of the process: memory, descriptors, Python."""
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    GCCollector(registry=registry)
    PlatformCollector(registry=registry)
    return registry


class MetricsServer:
    """Prometheus' endpoint of one registry, in a thread of its own."""

    def __init__(self, server: WSGIServer, thread: Thread) -> None:
        """Take what is already running; `start_metrics` makes it."""
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
    """Return a `/metrics` page of now: (name of the sample, its labels) -> value.

    Raises:
        OSError: nobody answers there.
    """
    with urllib.request.urlopen(url, timeout=10) as answer:
        text = answer.read().decode()
    families = text_string_to_metric_families(text)
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in families
        for sample in family.samples
    }
