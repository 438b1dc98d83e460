"""A log over kafka-python with `assign()`: bytes only, no offset policy, no auto-commit. All consumer settings are here."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Iterable, Sequence
from typing import Any

from kafka import KafkaConsumer, TopicPartition
from kafka.errors import (
    CorruptRecordError,
    KafkaError,
    LogTruncationError,
    OffsetOutOfRangeError,
)

from consumers import source
from consumers.errors import ChecksumMissing, LogCorrupt, OffsetLost, SourceUnavailable, TopicMissing
from consumers.kafka_options import KafkaConfig
from consumers.source import Record

_log = logging.getLogger(__name__)

_OURS: dict[str, Any] = {
    # Any policy would turn a lost range, or a truncated log, into a silent seek.
    "auto_offset_reset": "none",
    "enable_auto_commit": False,
    "group_id": None,
    "key_deserializer": None,
    # An exception inside the client's record iterator would make its next poll never return.
    "value_deserializer": None,
    "isolation_level": "read_committed",
    "check_crcs": True,
    "allow_auto_create_topics": False,
}
_TUNING: dict[str, Any] = {
    "max_poll_records": 3000,
    "fetch_min_bytes": 64 * 1024,
    "fetch_max_wait_ms": 50,
    "max_partition_fetch_bytes": 4 * 1024 * 1024,
    "reconnect_backoff_max_ms": 1000,
    "metrics_enabled": False,
}
_OFFSETS_TIMEOUT_MS = 1000


class KafkaSource:
    """All partitions of some topics; implements `consumers.source.Source`, for one thread."""

    def __init__(self, config: KafkaConfig, topics: Sequence[str]) -> None:
        """Take the address and the topics; `start` connects."""
        self._config = config
        self._topics = list(topics)
        self._consumer: Any = None
        self._partitions: dict[source.TopicPartition, Any] = {}
        self._reachable = True  # as of the last question about end offsets

    def start(self) -> KafkaSource:
        """Connect, and take every partition of every topic; positions are set by `seek`.

        Raises:
            ChecksumMissing: the crc32c package is not installed.
            SourceUnavailable: no broker answered before the deadline.
            TopicMissing: a topic does not exist.
        """
        if importlib.util.find_spec("crc32c") is None:
            raise ChecksumMissing
        self._config.reach()
        try:
            self._consumer = KafkaConsumer(**{**_TUNING, **self._config.options_for(KafkaConsumer.DEFAULT_CONFIG), **_OURS})
            existing = self._consumer.topics()
        except KafkaError as error:
            self.close()
            raise SourceUnavailable(self._config.bootstrap_servers, self._config.connect_timeout_seconds, str(error)) from error
        for topic in self._topics:
            if topic not in existing:
                self.close()
                raise TopicMissing(topic, self._config.bootstrap_servers)
            for partition in self._consumer.partitions_for_topic(topic):
                self._partitions[topic, partition] = TopicPartition(topic, partition)
        self._consumer.assign(list(self._partitions.values()))
        return self

    def assignment(self) -> list[source.TopicPartition]:
        """Return all partitions, sorted."""
        return sorted(self._partitions)

    def poll(self, timeout_seconds: float) -> list[Record]:
        """Return the next records; `[]` when there are none, and while the brokers do not answer: it resumes by itself.

        Raises:
            OffsetLost: a next offset lies outside of the retained range, or the log was truncated.
            LogCorrupt: a stored batch fails its checksum.
        """
        try:
            polled = self._consumer.poll(timeout_ms=int(timeout_seconds * 1000))
        except (OffsetOutOfRangeError, LogTruncationError) as error:
            raise self._lost(error) from error
        except CorruptRecordError as error:
            raise LogCorrupt(str(error)) from error
        except KafkaError as error:
            if not error.retriable:
                raise
            _log.warning("poll failed, and will be tried again: %s", error)
            return []
        records: list[Record] = []
        for (topic, partition), fetched in polled.items():
            records.extend(
                [
                    Record(topic, partition, r.offset, r.timestamp * 1000, r.key, r.value, tuple(r.headers) if r.headers else ())
                    for r in fetched
                ]
            )
        return records

    def position(self, topic: str, partition: int) -> int:
        """Return the next offset; it may have moved past records of aborted transactions."""
        offset = self._consumer.position(self._partitions[topic, partition], timeout_ms=0)
        assert offset is not None, f"{topic}[{partition}] is read before it was positioned"
        return int(offset)

    def seek(self, topic: str, partition: int, offset: int) -> None:
        """Continue with `offset`."""
        self._consumer.seek(self._partitions[topic, partition], offset)

    def pause(self, partitions: Iterable[source.TopicPartition]) -> None:
        """Deliver nothing of these until they are resumed."""
        self._consumer.pause(*(self._partitions[tp] for tp in partitions))

    def resume(self, partitions: Iterable[source.TopicPartition]) -> None:
        """Deliver these again."""
        self._consumer.resume(*(self._partitions[tp] for tp in partitions))

    def beginning_offsets(self) -> dict[source.TopicPartition, int]:
        """Return the oldest retained offset of every partition.

        Raises:
            SourceUnavailable: the brokers did not answer before the deadline.
        """
        timeout_seconds = self._config.connect_timeout_seconds
        try:
            offsets = self._consumer.beginning_offsets(list(self._partitions.values()), timeout_ms=int(timeout_seconds * 1000))
        except KafkaError as error:
            raise SourceUnavailable(self._config.bootstrap_servers, timeout_seconds, str(error)) from error
        return {(tp.topic, tp.partition): offset for tp, offset in offsets.items()}

    def end_offsets(self) -> dict[source.TopicPartition, int]:
        """Return the offset that the next record gets, of every partition; `{}` when the brokers do not answer within a second."""
        try:
            offsets = self._consumer.end_offsets(list(self._partitions.values()), timeout_ms=_OFFSETS_TIMEOUT_MS)
        except KafkaError as error:
            if self._reachable:  # once per outage: the question comes every second, and polls just return nothing
                _log.warning("broker unreachable", extra={"bootstrap_servers": self._config.bootstrap_servers, "error": str(error)})
            self._reachable = False
            return {}
        if not self._reachable:
            _log.info("broker back", extra={"bootstrap_servers": self._config.bootstrap_servers})
        self._reachable = True
        return {(tp.topic, tp.partition): offset for tp, offset in offsets.items()}

    def close(self) -> None:
        """Let go of connections; safe to repeat."""
        if self._consumer is not None:
            self._consumer.close(autocommit=False, timeout_ms=5000)
            self._consumer = None

    def _lost(self, error: KafkaError) -> OffsetLost:
        """Name the partition, its next offset and what is retained."""
        lost = error.divergent_offsets if isinstance(error, LogTruncationError) else error.args[0]
        tp, found = next(iter(lost.items()))
        next_offset = int(getattr(found, "offset", found))
        try:
            beginning = self._consumer.beginning_offsets([tp], timeout_ms=_OFFSETS_TIMEOUT_MS)[tp]
        except KafkaError:
            beginning = None
        end = self.end_offsets().get((tp.topic, tp.partition))
        return OffsetLost(tp.topic, tp.partition, next_offset, beginning, end)
