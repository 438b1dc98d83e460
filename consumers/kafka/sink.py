"""A sink over kafka-python; all producer settings are here."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from typing import Any

from kafka import KafkaProducer
from kafka.errors import KafkaError

from consumers.errors import SinkUnavailable, SourceUnavailable, TopicMissing
from consumers.kafka.options import KafkaConfig

_log = logging.getLogger(__name__)

_OURS: dict[str, Any] = {
    "acks": "all",
    "enable_idempotence": True,
    "allow_auto_create_topics": False,
    "key_serializer": None,
    "value_serializer": None,
}
_TUNING: dict[str, Any] = {
    "linger_ms": 20,
    "batch_size": 128 * 1024,
    "max_block_ms": 10_000,
    # The client's 30 s would be as long as a flush may take: a broker that is back would be noticed
    # too late.
    "reconnect_backoff_max_ms": 1000,
    "metrics_enabled": False,
}


class KafkaSink:
    """Writer of records; implements `consumers.source.Sink`.

    The key decides the partition, by murmur2 as Java's producer does.
    """

    def __init__(
        self, config: KafkaConfig, topics: Sequence[str], *, flush_timeout_seconds: float = 30.0
    ) -> None:
        """Take the address and the topics that will be written; `start` connects."""
        self._config = config
        self._topics = list(topics)
        self._flush_timeout_seconds = flush_timeout_seconds
        self._producer: Any = None
        self._num_sent = 0
        self._num_acknowledged = 0
        # Topic and cause; appended by the client's thread.
        self._failures: list[tuple[str, str]] = []

    def start(self) -> KafkaSink:
        """Connect, and see that every topic exists.

        Raises:
            SourceUnavailable: no broker answered before the deadline.
            TopicMissing: a topic does not exist.
        """
        self._config.reach()
        self._connect()
        for topic in self._topics:
            try:
                self._producer.partitions_for(topic)
            except KafkaError as error:
                self.close()
                raise TopicMissing(topic, self._config.bootstrap_servers) from error
        return self

    def _connect(self) -> None:
        try:
            self._producer = KafkaProducer(
                **{**_TUNING, **self._config.options_for(KafkaProducer.DEFAULT_CONFIG), **_OURS}
            )
        except KafkaError as error:
            raise SourceUnavailable(
                self._config.bootstrap_servers, self._config.connect_timeout_seconds, str(error)
            ) from error

    def send(
        self,
        topic: str,
        key: bytes | None,
        value: bytes | None,
        headers: Iterable[tuple[str, bytes]] = (),
    ) -> None:
        """Accept one record; it is only safe after the next `flush`.

        Raises:
            SinkUnavailable: the client's buffer stayed full, since the brokers do not answer.
        """
        try:
            future = self._producer.send(topic, key=key, value=value, headers=list(headers))
        except KafkaError as error:
            raise SinkUnavailable(topic, 1, str(error)) from error
        self._num_sent += 1
        future.add_callback(self._acknowledged)
        future.add_errback(lambda error: self._failures.append((topic, str(error))))

    def flush(self) -> None:
        """Wait until everything sent is acknowledged.

        Raises:
            SinkUnavailable: something was not, since the last flush.
        """
        try:
            self._producer.flush(timeout=self._flush_timeout_seconds)
        except KafkaError as error:
            raise SinkUnavailable(
                ", ".join(self._topics), self._num_sent - self._num_acknowledged, str(error)
            ) from error
        if self._failures:
            failures, self._failures = self._failures, []
            self._num_sent = self._num_acknowledged = 0
            # An idempotent producer of kafka-python refuses everything after its first failure.
            self.close()
            self._connect()
            raise SinkUnavailable(failures[0][0], len(failures), failures[0][1])

    def close(self) -> None:
        """Close all connections; what was not flushed may be lost. Safe to repeat."""
        producer, self._producer = self._producer, None
        if producer is not None:
            try:
                producer.close(timeout=5)
            except KafkaError as error:  # it flushes first, in vain where the brokers are away
                producer._sender.force_close()  # else its thread would go on sending for ever
                _log.info("a producer did not close: %r", error)

    def _acknowledged(self, _: object) -> None:
        self._num_acknowledged += 1
