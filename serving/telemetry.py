"""The Prometheus series of serving; every label combination exists from the start.

`increase()` does not see a series that appears with value 1: an alert on the first refusal would
stay silent.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from functools import partial

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

_MILLISECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75)
LATENCY = (*_MILLISECONDS, 1.0, 2.5, 5.0, 7.5, 10.0)
FRESHNESS = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3600.0)
CANDIDATES = tuple(float(2**power) for power in range(11))

#: Collective labels: any file below, and any path that is no route.
STATIC, UNMATCHED = "/static", "unmatched"
_ERROR_CODES = ("400", "404", "405", "413", "415", "424", "429", "499", "500", "503", "504")
CODES = ("200", "304", *_ERROR_CODES, "other")
STAGES = ("queue", "forward")
RESULTS = ("ok", "rejected")
CHECKS = (
    "announcement",
    "load",
    "warm",
    "shape",
    "finite",
    "fixed",
    "evaluation",
    "agreement",
    "distribution",
    "promote",
)
REASONS = ("operator", "failures")


class Telemetry:
    """The series, by name; created in the `registry` that `/metrics` shows."""

    def __init__(self, registry: CollectorRegistry) -> None:
        """Create every series; `add_routes` adds the labels of the routes."""
        disable_created_metrics()  # type: ignore[no-untyped-call]  # it has no annotations
        self._registry = registry
        self._routes: set[str] = set()
        self._answers: dict[tuple[str, int], tuple[Counter, Histogram]] = {}
        self._create_request_series()
        self._create_model_series()
        self._create_labels()
        self.add_routes([UNMATCHED])

    def _create_request_series(self) -> None:
        counter = partial(Counter, registry=self._registry)
        histogram = partial(Histogram, registry=self._registry)
        name = "steelyard_serving_"
        self.requests = counter(f"{name}requests_total", "Answers.", ("route", "code"))
        self.request_duration = histogram(
            f"{name}request_duration_seconds",
            "From the first byte to the answer.",
            ("route",),
            buckets=LATENCY,
        )
        self.stage_duration = histogram(
            f"{name}stage_duration_seconds",
            "Where a scored request spent its time.",
            ("stage",),
            buckets=LATENCY,
        )
        self.batch_candidates = histogram(
            f"{name}batch_candidates", "Documents per forward pass.", buckets=CANDIDATES
        )
        self.ignored_fields = counter(
            f"{name}ignored_fields_total", "Unknown fields of rerank requests, which were ignored."
        )
        self.inflight = Gauge(
            f"{name}inflight_requests",
            "Requests admitted and not yet scored.",
            registry=self._registry,
        )

    def _create_model_series(self) -> None:
        counter = partial(Counter, registry=self._registry)
        histogram = partial(Histogram, registry=self._registry)
        name = "steelyard_serving_"
        self.swaps = counter(
            f"{name}swaps_total", "New versions, by what became of them.", ("result",)
        )
        self.swap_duration = histogram(
            f"{name}swap_duration_seconds",
            "From the announcement seen to the swap.",
            buckets=LATENCY,
        )
        self.gate_checks = counter(
            f"{name}gate_checks_total", "Checks of new versions.", ("check", "result")
        )
        self.rollbacks = counter(
            f"{name}rollbacks_total", "Swaps to an older version.", ("reason",)
        )
        self.model_event_timestamp = Gauge(
            f"{name}model_event_timestamp_seconds",
            "Event time of the newest sample in the served version.",
            registry=self._registry,
        )
        self.model = Info(f"{name}model", "The served version.", registry=self._registry)
        self.engine = Info(
            f"{name}engine", "Engine, its version and its precision.", registry=self._registry
        )
        self.freshness = histogram(
            "steelyard_freshness_seconds",
            "Event time to first answer of a version with it.",
            buckets=FRESHNESS,
        )
        self.model_event_timestamp.set(math.nan)
        self.model.info({"version": "none"})

    def _create_labels(self) -> None:
        for stage in STAGES:
            self.stage_duration.labels(stage)
        for result in RESULTS:
            self.swaps.labels(result)
        for check, result in itertools.product(CHECKS, ("ok", "failed")):
            self.gate_checks.labels(check, result)
        for reason in REASONS:
            self.rollbacks.labels(reason)

    def add_routes(self, paths: Iterable[str]) -> None:
        """Create the label combinations of these routes."""
        for path in paths:
            self._routes.add(path)
            self.request_duration.labels(path)
            for code in CODES:
                self.requests.labels(path, code)

    def answered(self, path: str, status: int, duration_seconds: float) -> None:
        """Count one answer; an unknown path or status goes under its collective label."""
        under_static = path.startswith(f"{STATIC}/")
        route = path if path in self._routes else STATIC if under_static else UNMATCHED
        requests, duration = self._series(route, status)
        requests.inc()
        duration.observe(duration_seconds)

    def _series(self, route: str, status: int) -> tuple[Counter, Histogram]:
        """Return the series of one kind of answer; looking labels up takes longer than counting."""
        if (series := self._answers.get((route, status))) is None:
            code = str(status) if str(status) in CODES else "other"
            series = self.requests.labels(route, code), self.request_duration.labels(route)
            self._answers[route, status] = series
        return series

    def exposition(self) -> bytes:
        """Return the registry in Prometheus' text format."""
        return generate_latest(self._registry)
