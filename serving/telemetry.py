"""The Prometheus series of serving, all of them; every label combination exists from the start.

`increase()` does not see a series that appears with value 1, so that an alert on the first refusal would stay silent.
"""

from __future__ import annotations

import itertools
import math

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Info,
    disable_created_metrics,
)
from prometheus_client.exposition import generate_latest

CONTENT_TYPE = "text/plain; version=0.0.4"
LATENCY = (
    0.001,
    0.0025,
    0.005,
    0.01,
    0.025,
    0.05,
    0.075,
    0.1,
    0.25,
    0.5,
    0.75,
    1.0,
    2.5,
    5.0,
    7.5,
    10.0,
)
FRESHNESS = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3600.0)
CANDIDATES = tuple(float(2**power) for power in range(11))

ROUTES = (
    *("/v2/rerank", "/v1/rerank", "/rerank", "/v1/score", "/v1/models"),
    *(
        "/livez",
        "/readyz",
        "/health",
        "/info",
        "/metrics",
        "/openapi.json",
        "/docs",
        "/static",
        "unmatched",
    ),
)
CODES = (
    "200",
    "304",
    "400",
    "404",
    "405",
    "413",
    "415",
    "424",
    "429",
    "500",
    "503",
    "504",
    "other",
)
STAGES = ("queue", "forward")
RESULTS = ("ok", "rejected")
CHECKS = ("announcement", "load", "warm", "shape", "finite", "golden", "promote")
REASONS = ("operator",)


class Telemetry:
    """The series, by name; created in the `registry` that `/metrics` shows."""

    def __init__(self, registry: CollectorRegistry) -> None:
        """Create every series with every combination of its labels."""
        disable_created_metrics()  # type: ignore[no-untyped-call]  # prometheus_client gives it no annotations
        self._registry = registry
        name = "steelyard_serving_"
        self.requests = Counter(
            f"{name}requests_total", "Answers.", ("route", "code"), registry=registry
        )
        self.request_duration = Histogram(
            f"{name}request_duration_seconds",
            "From the first byte to the answer.",
            ("route",),
            buckets=LATENCY,
            registry=registry,
        )
        self.stage_duration = Histogram(
            f"{name}stage_duration_seconds",
            "Where a scored request spent its time.",
            ("stage",),
            buckets=LATENCY,
            registry=registry,
        )
        self.batch_candidates = Histogram(
            f"{name}batch_candidates",
            "Documents per forward pass.",
            buckets=CANDIDATES,
            registry=registry,
        )
        self.inflight = Gauge(
            f"{name}inflight_requests", "Requests admitted and not yet scored.", registry=registry
        )
        self.swaps = Counter(
            f"{name}swaps_total",
            "New versions, by what became of them.",
            ("result",),
            registry=registry,
        )
        self.swap_duration = Histogram(
            f"{name}swap_duration_seconds",
            "From the announcement seen to the swap.",
            buckets=LATENCY,
            registry=registry,
        )
        self.gate_checks = Counter(
            f"{name}gate_checks_total",
            "Checks of new versions.",
            ("check", "result"),
            registry=registry,
        )
        self.rollbacks = Counter(
            f"{name}rollbacks_total", "Swaps to an older version.", ("reason",), registry=registry
        )
        self.model_event_timestamp = Gauge(
            f"{name}model_event_timestamp_seconds",
            "Event time of the newest sample in the served version.",
            registry=registry,
        )
        self.model_event_timestamp.set(math.nan)
        self.model = Info(f"{name}model", "The served version.", registry=registry)
        self.model.info({"version": "none"})
        self.freshness = Histogram(
            "steelyard_freshness_seconds",
            "Event time to first answer of a version with it.",
            buckets=FRESHNESS,
            registry=registry,
        )
        self._create_every_combination()

    def _create_every_combination(self) -> None:
        for route, code in itertools.product(ROUTES, CODES):
            self.requests.labels(route, code)
        for route in ROUTES:
            self.request_duration.labels(route)
        for stage in STAGES:
            self.stage_duration.labels(stage)
        for result in RESULTS:
            self.swaps.labels(result)
        for check, result in itertools.product(CHECKS, ("ok", "failed")):
            self.gate_checks.labels(check, result)
        for reason in REASONS:
            self.rollbacks.labels(reason)

    def answered(self, path: str, status: int, duration_seconds: float) -> None:
        """Count one answer; a path or status outside the documented ones goes under its collective label."""
        route = (
            path if path in ROUTES else "/static" if path.startswith("/static/") else "unmatched"
        )
        code = str(status) if str(status) in CODES else "other"
        self.requests.labels(route, code).inc()
        self.request_duration.labels(route).observe(duration_seconds)

    def exposition(self) -> bytes:
        """Return the registry in Prometheus' text format."""
        return generate_latest(self._registry)
