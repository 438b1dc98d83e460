"""Offsets committed to Kafka for lag dashboards; the checkpoint decides what is read next."""

from __future__ import annotations

import logging

from consumers.kafka.admin import KafkaAdmin
from consumers.telemetry import Telemetry
from learner.artifact import Version

log = logging.getLogger("steelyard.learner")


class AdvisoryCommit:
    """Commits the next offsets of durable versions; a failure is only logged."""

    def __init__(self, admin: KafkaAdmin, group: str, telemetry: Telemetry) -> None:
        """Take the brokers, the consumer group and the series."""
        self._admin = admin
        self._group = group
        self._telemetry = telemetry
        self._num_failed = 0  # in a row

    def __call__(self, version: Version) -> None:
        """Commit the next offsets of `version`.

        One failure is expected: a new cluster makes its coordinator at the first question.
        """
        try:
            self._admin.commit(self._group, version.next_offsets)
        except Exception as error:  # the commit is advisory: nothing here may stop training
            level = logging.WARNING if self._num_failed else logging.INFO
            extra = {"group": self._group, "error": str(error)}
            log.log(level, "advisory commit failed", extra=extra)
            self._num_failed += 1
            return
        self._num_failed = 0
        for (topic, partition), offset in version.next_offsets.items():
            self._telemetry.committed_offset.labels(topic, str(partition)).set(offset)
