"""Broker, topics, clock, store, model, machine: what is wrong, with the remedy, before it runs."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager

from consumers.errors import SourceUnavailable
from consumers.kafka.admin import KafkaAdmin
from consumers.kafka.options import KafkaConfig
from deploy.doctor.check_result import CheckResult, render
from deploy.doctor.kafka import Admin, examine_kafka, unreachable
from deploy.doctor.machine import (
    examine_machine,
    examine_model,
    examine_port,
    examine_store,
    newest,
)
from deploy.settings.tree import Settings

__all__ = ["examine", "render"]


def examine(
    settings: Settings,
    *,
    connect: Callable[[KafkaConfig], AbstractContextManager[Admin]] = KafkaAdmin,
    clock: Callable[[], float] = time.time,
) -> list[CheckResult]:
    """Look at everything; brokers that are down are one finding among the others.

    Args:
        settings: of the job.
        connect: to the brokers.
        clock: seconds since the Unix epoch.
    """
    version = newest(settings.store)
    findings: list[CheckResult] = []
    try:
        with connect(settings.kafka) as admin:
            offsets = version.next_offsets if version else {}
            findings += examine_kafka(
                settings.kafka, settings.join, admin, next_offsets=offsets, now_seconds=clock()
            )
    except (
        SourceUnavailable,
        RuntimeError,
    ) as error:  # the client library's own errors are RuntimeErrors
        findings.append(unreachable(settings.kafka, error))
    findings += examine_store(settings.store)
    findings.append(examine_model(settings.learner))
    findings += examine_machine()
    findings.append(examine_port(settings.serving))
    return sorted(
        findings,
        key=lambda finding: ("Kafka", "time", "store", "model", "machine").index(finding.area),
    )
