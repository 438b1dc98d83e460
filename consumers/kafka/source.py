"""A source over kafka-python with `assign()`; all consumer settings are here.

Bytes only, no offset policy, no auto-commit.
"""

from __future__ import annotations

import importlib.util
import logging
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

from kafka import KafkaConsumer
from kafka.errors import KafkaError, LogTruncationError, OffsetOutOfRangeError
from kafka.structs import OffsetAndMetadata
from kafka.structs import TopicPartition as KafkaTopicPartition

from consumers.errors import (
    BatchUnreadable,
    ChecksumMissing,
    ConsumersError,
    LogTruncated,
    OffsetLost,
    SourceUnavailable,
    TopicMissing,
    TopicRecreated,
)
from consumers.kafka.batches import guard
from consumers.kafka.options import KafkaConfig
from consumers.source import Record
from weighting.provenance import TopicPartition

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
    # The client reads topics by name: how long one that was made again may go unnoticed.
    "metadata_max_age_ms": 2000,
    "metrics_enabled": False,
}
_OFFSETS_TIMEOUT_MS = 1000
_BACKOFF_SECONDS = 0.1
_MAX_BACKOFF_SECONDS = 5.0
_QUIET_SECONDS = 60.0  # without a failure: the next one is another outage

Choice: TypeAlias = Callable[[str, int], bool]
"""Returns whether a reader takes (topic, partition)."""


def everything(topic: str, partition: int) -> bool:
    """Take every partition."""
    return True


def own(rank: int, world: int, whole: Collection[str] = ()) -> Choice:
    """Return the choice of one of several readers.

    Partition p belongs to rank p mod `world`; topics in `whole` are read by all.
    """
    return lambda topic, partition: topic in whole or partition % world == rank


class KafkaSource:
    """Some or all partitions of some topics; implements `consumers.source.Source`, for one thread.

    The next offsets are kept here and move only when a poll returns. So a client that fails in any
    way is replaced by a new one that continues exactly at the caller's positions.
    """

    def __init__(
        self,
        config: KafkaConfig,
        topics: Sequence[str],
        *,
        partitions: Choice = everything,
        rebuilt: Callable[[str], object] = lambda cause: None,
        client: Callable[..., Any] = KafkaConsumer,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        """Take the configuration; `start` connects.

        Args:
            config: address and options of the brokers.
            topics: names of the topics to read.
            partitions: chooses their partitions; see `own`.
            rebuilt: called with the cause when a new client replaces one: `poll` (it failed), or
                the cause given to `rebuild`.
            client: makes the client from its settings.
            clock: seconds that only go forward; for the back-off.
            sleep: waits so many seconds, when there is no client to wait in.
        """
        self._config = config
        self._topics = list(topics)
        self._choice = partitions
        self._rebuilt = rebuilt
        self._client = client
        self._clock = clock
        self._sleep = sleep
        self._consumer: Any = None
        self._api_version: Any = None
        self._partitions: dict[TopicPartition, Any] = {}
        self._counts: dict[str, int] = {}
        self._ids: dict[str, str] = {}
        self._next_offsets: dict[TopicPartition, int] = {}
        # Leader epoch of the last record before the next offset.
        self._epochs: dict[TopicPartition, int] = {}
        self._paused: set[TopicPartition] = set()
        self._num_failures = 0  # in succession
        self._not_before = 0.0
        self._reachable = True  # when end offsets were requested last

    def start(self) -> KafkaSource:
        """Connect, and take the partitions; positions are set by `seek`.

        Raises:
            ChecksumMissing: the crc32c package is not installed.
            SourceUnavailable: no broker answered before the deadline.
            TopicMissing: a topic does not exist.
        """
        if importlib.util.find_spec("crc32c") is None:
            raise ChecksumMissing
        self._config.reach()
        try:
            self._consumer = self._connect()
            existing = self._consumer.topics()
        except KafkaError as error:
            self.close()
            raise SourceUnavailable(
                self._config.bootstrap_servers, self._config.connect_timeout_seconds, str(error)
            ) from error
        for topic in self._topics:
            if topic not in existing:
                self.close()
                raise TopicMissing(topic, self._config.bootstrap_servers)
            numbers = self._consumer.partitions_for_topic(topic)
            self._counts[topic] = len(numbers)
            self._ids[topic] = str(self._consumer._cluster.topic_id(topic) or "")
            for partition in numbers:
                if self._choice(topic, partition):
                    self._partitions[topic, partition] = KafkaTopicPartition(topic, partition)
        # With the version known, a client that replaces this one asks nobody before it is made.
        self._api_version = self._consumer.config["api_version"]
        self._consumer.assign(list(self._partitions.values()))
        return self

    def assignment(self) -> list[TopicPartition]:
        """Return our partitions, sorted; those that were added meanwhile are paused at offset 0."""
        return sorted(self._partitions)

    def partition_counts(self) -> dict[str, int]:
        """Return the partition count of every topic by now, read or not."""
        return dict(self._counts)

    def topic_ids(self) -> dict[str, str]:
        """Return the id (UUID) of every topic at the start; empty before Kafka 2.8.

        A topic that is made again under the same name gets another id.
        """
        return dict(self._ids)

    def poll(self, timeout_seconds: float, max_records: int | None = None) -> list[Record]:
        """Return the next records, at most `max_records` or as many as the options allow.

        Returns `[]` when there are none, while the brokers do not answer, and when the client had
        to be replaced. Any error that is none of those below makes a new client, after a pause that
        grows to 5 s while errors continue.

        Raises:
            OffsetLost: a next offset lies outside of the retained range.
            LogTruncated: records that we have read are gone from the log.
            TopicRecreated: a topic is another one than at the start.
            BatchUnreadable: a stored batch cannot be unpacked; raised again by every poll until an
                operator's `seek` is behind it.
        """
        assert len(self._next_offsets) == len(self._partitions), "positioned before reading"
        try:
            if self._consumer is None and not self._replace(timeout_seconds):
                return []
            most = int(self._config.options.get("max_poll_records", _TUNING["max_poll_records"]))
            polled = self._consumer.poll(
                timeout_ms=int(timeout_seconds * 1000), max_records=min(max_records or most, most)
            )
            # Before anything is kept: what was read might be of another log, or end in an error.
            self._compare_ids()
            self._next_offsets |= self._positions()
            self._take_added()
        except OffsetOutOfRangeError as error:
            raise self._lost(error) from error
        except LogTruncationError as error:
            raise self._truncated(error) from error
        except BatchUnreadable:
            self._close_client()  # its next poll would never return
            raise
        except ConsumersError:
            raise
        except Exception as error:  # whatever it is, a new client at the same offsets is the way on
            self._failed(error)
            return []
        if self._num_failures and polled:
            _log.warning("reading goes on after %d new consumers", self._num_failures)
            self._num_failures = 0
        records: list[Record] = []
        for (topic, partition), fetched in polled.items():
            self._epochs[topic, partition] = fetched[-1].leader_epoch
            for r in fetched:
                headers, time_us = tuple(r.headers) if r.headers else (), r.timestamp * 1000
                records.append(Record(topic, partition, r.offset, time_us, r.key, r.value, headers))
        return records

    def rebuild(self, cause: str) -> None:
        """Close the client; the next poll makes a new one that continues at the next offsets.

        For a caller that sees it stand still.
        """
        self._close_client()
        self._rebuilt(cause)

    def position(self, topic: str, partition: int) -> int:
        """Return the next offset; it may have moved past records of aborted transactions."""
        return self._next_offsets[topic, partition]

    def seek(self, topic: str, partition: int, offset: int) -> None:
        """Continue with `offset`."""
        self._next_offsets[topic, partition] = offset
        self._epochs.pop((topic, partition), None)
        if self._consumer is not None:
            self._consumer.seek(self._partitions[topic, partition], offset)

    def pause(self, partitions: Iterable[TopicPartition]) -> None:
        """Deliver nothing of these partitions until they are resumed."""
        paused = list(partitions)
        self._paused.update(paused)
        if self._consumer is not None:
            self._consumer.pause(*(self._partitions[tp] for tp in paused))

    def resume(self, partitions: Iterable[TopicPartition]) -> None:
        """Deliver these partitions again."""
        resumed = list(partitions)
        self._paused.difference_update(resumed)
        if self._consumer is not None:
            self._consumer.resume(*(self._partitions[tp] for tp in resumed))

    def beginning_offsets(self) -> dict[TopicPartition, int]:
        """Return the oldest retained offset of every partition.

        Raises:
            SourceUnavailable: the brokers did not answer before the deadline.
        """
        timeout_seconds = self._config.connect_timeout_seconds
        try:
            offsets = self._any_client().beginning_offsets(
                list(self._partitions.values()), timeout_ms=int(timeout_seconds * 1000)
            )
        except KafkaError as error:
            raise SourceUnavailable(
                self._config.bootstrap_servers, timeout_seconds, str(error)
            ) from error
        return {(tp.topic, tp.partition): offset for tp, offset in offsets.items()}

    def end_offsets(self) -> dict[TopicPartition, int]:
        """Return the end offset of every partition; `{}` without an answer within a second."""
        try:
            offsets = self._any_client().end_offsets(
                list(self._partitions.values()), timeout_ms=_OFFSETS_TIMEOUT_MS
            )
        except Exception as error:  # the next poll decides whether the client is replaced
            if self._reachable:  # once per outage: offsets are requested every second
                servers = self._config.bootstrap_servers
                details = {"bootstrap_servers": servers, "error": str(error)}
                _log.warning("broker unreachable", extra=details)
            self._reachable = False
            return {}
        if not self._reachable:
            _log.info("broker back", extra={"bootstrap_servers": self._config.bootstrap_servers})
        self._reachable = True
        return {(tp.topic, tp.partition): offset for tp, offset in offsets.items()}

    def log_ends(self, ends: Mapping[TopicPartition, int]) -> dict[TopicPartition, int]:
        """Return the end offsets of the log, which the brokers send with every answer to a fetch.

        Those given are of records that are committed; behind them some may wait for the end of a
        transaction.
        """
        if self._consumer is None:
            return dict(ends)
        return {
            tp: max(end, self._consumer.highwater(self._partitions[tp]) or 0)
            for tp, end in ends.items()
        }

    def close(self) -> None:
        """Close all connections; safe to repeat."""
        self._close_client()

    def _connect(self) -> Any:
        known = {} if self._api_version is None else {"api_version": self._api_version}
        options = self._config.options_for(KafkaConsumer.DEFAULT_CONFIG)
        return guard(self._client(**{**_TUNING, **options, **known, **_OURS}))

    def _any_client(self) -> Any:
        """Return the client, a new one if there is none; requests do not wait for the back-off."""
        if self._consumer is None:
            self._continue()
        return self._consumer

    def _continue(self) -> None:
        """Make a client at the caller's positions; it connects by itself."""
        self._consumer = self._connect()
        self._consumer.assign(list(self._partitions.values()))
        for tp, offset in self._next_offsets.items():
            # Only with the epoch does the client see that a log was truncated and has grown again;
            # its own `seek` takes none.
            self._consumer._subscription.seek(
                self._partitions[tp], OffsetAndMetadata(offset, "", self._epochs.get(tp, -1))
            )
        self._consumer.pause(*(self._partitions[tp] for tp in self._paused))

    def _replace(self, timeout_seconds: float) -> bool:
        """Make a new client, or wait until it is time for one."""
        wait = self._not_before - self._clock()
        if wait > 0:
            self._sleep(min(wait, timeout_seconds))
            return False
        self._continue()
        return True

    def _failed(self, error: Exception) -> None:
        """Close a client that raised an unknown error; warn of the first in a row."""
        now = self._clock()
        if now - self._not_before > _QUIET_SECONDS:
            self._num_failures = 0
        self._num_failures += 1
        level = logging.WARNING if self._num_failures == 1 else logging.DEBUG
        _log.log(
            level,
            "poll failed; reading goes on with a new consumer at the same offsets: %r",
            error,
            exc_info=error,
        )
        self._not_before = now + min(
            _BACKOFF_SECONDS * 2 ** (self._num_failures - 1), _MAX_BACKOFF_SECONDS
        )
        self.rebuild("poll")

    def _close_client(self) -> None:
        consumer, self._consumer = self._consumer, None
        if consumer is not None:
            try:
                consumer.close(autocommit=False, timeout_ms=5000)
            except Exception as error:  # it may be what failed
                _log.info("a consumer did not close: %r", error)

    def _positions(self) -> dict[TopicPartition, int]:
        found = (
            (tp, self._consumer.position(partition, timeout_ms=0))
            for tp, partition in self._partitions.items()
        )
        return {tp: int(offset) for tp, offset in found if offset is not None}

    def _compare_ids(self) -> None:
        """Refuse what was read when a topic was made again.

        As far as the client knows by now; by name alone it would continue in the new topic.
        """
        for topic, known in self._ids.items():
            found = self._consumer._cluster.topic_id(topic)
            if known and found is not None and str(found) != known:
                raise TopicRecreated(topic, known, str(found))

    def _take_added(self) -> None:
        """Take partitions that were added, as far as the client knows by now; they begin paused."""
        added = []
        for topic, known in self._counts.items():
            numbers = self._consumer._cluster.partitions_for_topic(topic) or ()
            self._counts[topic] = max(known, len(numbers))
            mine = [p for p in range(known, len(numbers)) if self._choice(topic, p)]
            added += [(topic, partition) for partition in mine]
        if not added:
            return
        self._partitions |= {tp: KafkaTopicPartition(*tp) for tp in added}
        self._consumer.assign(list(self._partitions.values()))
        for tp in added:
            self.seek(*tp, 0)
        self.pause(added)

    def _lost(self, error: KafkaError) -> OffsetLost:
        """Return the error with the partition, its next offset and the retained range."""
        tp, next_offset = next(iter(error.args[0].items()))
        try:
            beginning = self._consumer.beginning_offsets([tp], timeout_ms=_OFFSETS_TIMEOUT_MS)[tp]
        except KafkaError:
            beginning = None
        end = self.end_offsets().get((tp.topic, tp.partition))
        self._close_client()  # if the caller goes on, then from our offsets
        return OffsetLost(tp.topic, tp.partition, next_offset, beginning, end)

    def _truncated(self, error: LogTruncationError) -> LogTruncated:
        tp, found = next(iter(error.divergent_offsets.items()))
        self._close_client()
        return LogTruncated(
            tp.topic,
            tp.partition,
            self._next_offsets[tp.topic, tp.partition],
            None if found is None else found.offset,
        )
