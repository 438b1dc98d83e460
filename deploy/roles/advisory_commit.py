"""Offsets committed to Kafka for lag dashboards; the checkpoint decides what is read next."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from threading import Condition, Thread

from consumers.kafka.admin import KafkaAdmin
from consumers.telemetry import Telemetry
from weighting.provenance import TopicPartition

log = logging.getLogger("steelyard.learner")

_LAST_SECONDS = 5.0
_RETRY_SECONDS = 5.0


class AdvisoryCommit:
    """Commits next offsets in a thread of its own, the newest alone; a failure is only logged.

    Brokers that do not answer would hold a commit up for as long as a request may take, and with it
    training. A new cluster makes the coordinator of a group at the first question and refuses that
    one, so a first failure is tried again without a word at the levels that are shown.
    """

    def __init__(
        self,
        admin: KafkaAdmin,
        group: str,
        telemetry: Telemetry,
        *,
        retry_seconds: float = _RETRY_SECONDS,
    ) -> None:
        """Take the collaborators; the first call makes the thread.

        Args:
            admin: the brokers.
            group: the consumer group.
            telemetry: the series.
            retry_seconds: wait after the first failure in a row; after others the next offsets are
                waited for.
        """
        self._admin = admin
        self._group = group
        self._telemetry = telemetry
        self._retry_seconds = retry_seconds
        self._num_failed = 0  # in a row
        self._newest: Mapping[TopicPartition, int] | None = None  # that waits
        self._closed = self._given_up = False
        self._changed = Condition()
        self._thread: Thread | None = None

    def __call__(self, next_offsets: Mapping[TopicPartition, int]) -> None:
        """Commit these soon, unless newer ones come first; never waits."""
        with self._changed:
            self._newest = next_offsets
            if self._thread is None and not self._closed:
                self._thread = Thread(target=self._run, name="advisory-commit", daemon=True)
                self._thread.start()
            self._changed.notify()

    def close(self, timeout_seconds: float = _LAST_SECONDS) -> None:
        """Commit what waits, or drop it after a time; safe to repeat."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        if self._thread is not None:
            self._thread.join(timeout_seconds)
        with self._changed:
            self._newest = None
            self._given_up = True

    def commit(self, next_offsets: Mapping[TopicPartition, int]) -> None:
        """Commit these now."""
        try:
            self._admin.commit(self._group, next_offsets)
        except Exception as error:  # the commit is advisory: nothing here may end the thread
            self._failed(error)
            return
        self._num_failed = 0
        for (topic, partition), offset in next_offsets.items():
            self._telemetry.committed_offset.labels(topic, str(partition)).set(offset)

    def _failed(self, error: Exception) -> None:
        extra = {"group": self._group, "error": str(error)}
        if self._num_failed:
            log.warning(
                "advisory commit failed; lag dashboards show older offsets, nothing is lost",
                extra=extra,
            )
        else:
            log.debug("advisory commit failed once and is tried again", extra=extra)
        self._num_failed += 1

    def _run(self) -> None:
        while (next_offsets := self._wait()) is not None:
            self.commit(next_offsets)
            if self._num_failed == 1:
                self._commit_again(next_offsets)

    def _commit_again(self, next_offsets: Mapping[TopicPartition, int]) -> None:
        """Commit these once more, after a wait or at the end, unless newer ones come."""
        with self._changed:
            self._changed.wait_for(self._is_due, self._retry_seconds)
            if self._newest is not None or self._given_up:
                return
        self.commit(next_offsets)

    def _is_due(self) -> bool:
        return self._newest is not None or self._closed

    def _wait(self) -> Mapping[TopicPartition, int] | None:
        """Return what is to be committed, None at the end."""
        with self._changed:
            self._changed.wait_for(self._is_due)
            next_offsets, self._newest = self._newest, None
            return next_offsets
