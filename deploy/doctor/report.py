"""Report on the environment before anything runs: every trouble, with its remedy."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

from consumers.errors import SourceUnavailable
from consumers.kafka.admin import KafkaAdmin
from consumers.kafka.options import KafkaConfig
from deploy.doctor import kafka, records
from deploy.doctor.check_result import CheckResult
from deploy.doctor.extras import examine_extras, examine_products
from deploy.doctor.kafka import Admin, examine_kafka, unreachable
from deploy.doctor.machine import (
    MACHINE,
    MODEL,
    examine_machine,
    examine_metrics_port,
    examine_model,
    examine_port,
)
from deploy.doctor.store import STORE, examine_store, newest
from deploy.settings.tree import Settings

_AREAS = (kafka.AREA, records.TIME, STORE, MODEL, MACHINE)


def examine(
    settings: Settings,
    *,
    connect: Callable[[KafkaConfig], AbstractContextManager[Admin]] = KafkaAdmin,
    clock: Callable[[], float] = time.time,
) -> list[CheckResult]:
    """Run all checks; brokers that are down are one result among the others.

    Args:
        settings: of the job.
        connect: opens a connection to the brokers.
        clock: seconds since the Unix epoch.
    """
    version = newest(settings.store)
    offsets = version.next_offsets if version else {}
    results: list[CheckResult] = []
    try:
        with connect(settings.kafka) as admin:
            results += examine_kafka(
                settings.kafka, settings.join, admin, next_offsets=offsets, now_seconds=clock()
            )
    except (SourceUnavailable, RuntimeError) as error:  # the client library raises RuntimeErrors
        results.append(unreachable(settings.kafka, error))
    results += examine_store(settings.store)
    results.append(examine_model(settings.learner))
    results += examine_extras(settings)
    results += examine_products(settings.serving)
    results += examine_machine()
    results.append(examine_port(settings.serving))
    results.append(examine_metrics_port(settings.observability))
    return sorted(results, key=lambda result: _AREAS.index(result.area))


def render(results: Sequence[CheckResult]) -> str:
    """Return the report as text: one line a check, its remedy below it, a heading per area."""
    lines = []
    for area, group in itertools.groupby(results, key=lambda result: result.area):
        lines.append(area)
        for result in group:
            lines.append(f"  {result.mark:<2} {result.text}")
            if result.remedy:
                lines.append(f"     Fix: {result.remedy}")
    num_failed = sum(result.failed for result in results)
    num_marked = sum(result.mark == "!" for result in results)
    counts = []
    if num_failed:
        counts.append(f"{num_failed} to be put right")
    if num_marked:
        counts.append(f"{num_marked} to look at")
    return "\n".join([*lines, ", ".join(counts) or "all is well"])
