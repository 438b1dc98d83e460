"""Administration of a Kafka cluster: topics, configurations, offsets and consumer groups."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self

from kafka import KafkaConsumer
from kafka.admin import ConfigResource, ConfigResourceType, KafkaAdminClient, OffsetSpec
from kafka.errors import (
    GroupIdNotFoundError,
    KafkaError,
    NoError,
    TopicAlreadyExistsError,
    UnknownTopicOrPartitionError,
)
from kafka.partitioner.default import murmur2
from kafka.structs import OffsetAndMetadata
from kafka.structs import TopicPartition as KafkaTopicPartition

from consumers.errors import CommitFailed, SourceUnavailable, TopicMissing
from consumers.kafka.batches import guard
from consumers.kafka.options import KafkaConfig
from consumers.source import Record
from weighting.provenance import TopicPartition

_log = logging.getLogger(__name__)


class KafkaAdmin:
    """Client for administration; a context manager that connects and closes."""

    def __init__(self, config: KafkaConfig) -> None:
        """Take the address; `start` connects."""
        self._config = config
        self._client: Any = None

    def start(self) -> Self:
        """Connect.

        Raises:
            SourceUnavailable: no broker answered before the deadline.
        """
        self._config.reach()
        try:
            self._client = KafkaAdminClient(
                **self._config.options_for(KafkaAdminClient.DEFAULT_CONFIG)
            )
        except KafkaError as error:
            raise SourceUnavailable(
                self._config.bootstrap_servers, self._config.connect_timeout_seconds, str(error)
            ) from error
        return self

    def close(self) -> None:
        """Close all connections; safe to repeat."""
        if self._client is not None:
            self._client.close()
            self._client = None

    def __enter__(self) -> Self:
        """Connect."""
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close all connections."""
        self.close()

    @contextmanager
    def _asking(self, what: str) -> Iterator[None]:
        """Turn the client's errors into ours.

        Raises:
            SourceUnavailable: the brokers did not answer, or refused to.
        """
        try:
            yield
        except KafkaError as error:
            servers, seconds = self._config.bootstrap_servers, self._config.connect_timeout_seconds
            raise SourceUnavailable(servers, seconds, f"{what}: {error}") from error

    # --- topics ---------------------------------------------------------------------------------

    def topics(self) -> dict[str, int]:
        """Return every topic with its partition count, without the brokers' own."""
        return {t["name"]: len(t["partitions"]) for t in self._described()}

    def topic_ids(self) -> dict[str, str]:
        """Return the id of every topic; a topic that was recreated has another one."""
        return {t["name"]: str(t["topic_id"]) for t in self._described()}

    def _described(self) -> list[dict[str, Any]]:
        """Describe every topic but the brokers' own."""
        with self._asking("topics"):
            return [t for t in self._client.describe_topics() if not t["is_internal"]]

    def topic_config(self, topic: str) -> dict[str, str]:
        """Return the whole configuration of a topic, defaults included.

        Raises:
            TopicMissing: it does not exist.
        """
        resource = ConfigResource(ConfigResourceType.TOPIC, topic)
        with self._asking(topic):
            found = self._client.describe_configs([resource], config_filter="all")
        entries = found["topic"][topic]
        if not entries:
            raise TopicMissing(topic, self._config.bootstrap_servers)
        return {key: str(entry["value"]) for key, entry in entries.items()}

    def retention_seconds(self, topics: Iterable[str]) -> dict[str, float]:
        """Return how long topics keep their records.

        Left out: topics that keep them for ever, and those whose configuration is not known.
        """
        resources = [ConfigResource(ConfigResourceType.TOPIC, topic) for topic in topics]
        try:
            found = self._client.describe_configs(resources, config_filter="all")["topic"]
        except KafkaError as error:
            _log.info("retention of topics is not known", extra={"error": str(error)})
            return {}
        kept = {topic: _retention_ms(entries) for topic, entries in found.items()}
        return {topic: kept_ms / 1000 for topic, kept_ms in kept.items() if kept_ms >= 0}

    def create_topic(
        self,
        topic: str,
        num_partitions: int,
        *,
        config: Mapping[str, str] | None = None,
        replication: int = -1,
    ) -> bool:
        """Create a topic and wait until it can be used.

        Returns:
            False when it existed already, whatever its configuration.
        """
        options = {
            "num_partitions": num_partitions,
            "replication_factor": replication,
            "configs": dict(config or {}),
        }
        try:
            self._client.create_topics({topic: options}, wait_for_metadata=True)
        except TopicAlreadyExistsError:
            return False
        return True

    def delete_topic(self, topic: str) -> None:
        """Delete a topic with all its records.

        Raises:
            TopicMissing: it does not exist.
        """
        try:
            self._client.delete_topics([topic])
        except UnknownTopicOrPartitionError as error:
            raise TopicMissing(topic, self._config.bootstrap_servers) from error

    def delete_records(self, before: Mapping[TopicPartition, int]) -> None:
        """Delete the records below an offset, as retention does."""
        self._client.delete_records(
            {KafkaTopicPartition(*tp): offset for tp, offset in before.items()}
        )

    # --- offsets --------------------------------------------------------------------------------

    def beginning_offsets(self, topics: Iterable[str]) -> dict[TopicPartition, int]:
        """Return the oldest retained offset of every partition of these topics."""
        return self._offsets(topics, OffsetSpec.EARLIEST)

    def end_offsets(self, topics: Iterable[str]) -> dict[TopicPartition, int]:
        """Return the end offset of every partition of these topics."""
        return self._offsets(topics, OffsetSpec.LATEST)

    def stable_offsets(self, topics: Iterable[str]) -> dict[TopicPartition, int]:
        """Return the last stable offset of every partition of these topics.

        Between it and the end offset records wait for the end of an open transaction.
        """
        return self._offsets(topics, OffsetSpec.LATEST, "read_committed")

    def commit(self, group: str, offsets: Mapping[TopicPartition, int]) -> None:
        """Write next offsets into a consumer group without members.

        Advisory, for lag tools; never read back by us.

        Raises:
            CommitFailed: the group has members, or its coordinator is not there yet.
        """
        wanted = {
            KafkaTopicPartition(*tp): OffsetAndMetadata(offset, "", -1)
            for tp, offset in offsets.items()
        }
        try:
            answers = self._client.alter_group_offsets(group, wanted)
        except KafkaError as error:
            raise CommitFailed(group, str(error)) from error
        for tp, answer in answers.items():
            if answer is not NoError:
                raise CommitFailed(group, f"{tp.topic}[{tp.partition}]: {answer.__name__}")

    def committed(self, group: str) -> dict[TopicPartition, int]:
        """Return the offsets of a consumer group.

        Raises:
            SourceUnavailable: its coordinator did not answer; a new broker has none yet.
        """
        try:
            listed = self._client.list_group_offsets(group)[group]
        except KafkaError as error:
            raise self._no_coordinator(group, error) from error
        return {
            (tp.topic, tp.partition): committed.offset
            for tp, committed in listed.items()
            if committed.offset >= 0
        }

    def group_state(self, group: str) -> tuple[str, int]:
        """Return the state of a consumer group, and its number of members.

        The state is in Kafka's words: Stable, Empty, Dead where there is no such group, ...

        Raises:
            SourceUnavailable: its coordinator did not answer.
        """
        try:
            described = self._client.describe_groups([group])[group]
        except KafkaError as error:
            raise self._no_coordinator(group, error) from error
        if (refused := described["error"]) and GroupIdNotFoundError.__name__ not in refused:
            raise self._no_coordinator(group, refused)
        return ("Dead" if refused else str(described["group_state"]), len(described["members"]))

    def _no_coordinator(self, group: str, cause: object) -> SourceUnavailable:
        return SourceUnavailable(
            self._config.bootstrap_servers,
            self._config.connect_timeout_seconds,
            f"group {group}: {cause}",
        )

    def offsets_for_times(
        self, times_us: Mapping[TopicPartition, int], *, timeout_seconds: float = 10.0
    ) -> dict[TopicPartition, tuple[int, int] | None]:
        """Return the first record at or after a time, of each partition.

        Returns:
            (offset, record time in microseconds) by partition; None where there is no such record,
            or none is known: Kafka does not tell these apart.

        Raises:
            SourceUnavailable: an answer for some partition is missing at the deadline.
        """
        consumer = self._consumer()
        wanted = {KafkaTopicPartition(*tp): -(-time_us // 1000) for tp, time_us in times_us.items()}
        try:
            found = consumer.offsets_for_times(dict(wanted), timeout_ms=int(timeout_seconds * 1000))
        except KafkaError as error:
            raise SourceUnavailable(
                self._config.bootstrap_servers, timeout_seconds, f"offsets for times: {error}"
            ) from error
        finally:
            consumer.close(autocommit=False)
        if missing := [f"{tp.topic}[{tp.partition}]" for tp in wanted if tp not in found]:
            raise SourceUnavailable(
                self._config.bootstrap_servers,
                timeout_seconds,
                f"no offset for a time of {', '.join(missing)}",
            )
        answers = {(tp.topic, tp.partition): at for tp, at in found.items()}
        return {
            tp: None if at is None or at.offset < 0 else (at.offset, at.timestamp * 1000)
            for tp, at in sorted(answers.items())
        }

    def sample(self, topic: str, num_records: int) -> list[Record]:
        """Return the newest records of each partition of a topic, in order.

        Raises:
            TopicMissing: it does not exist.
            BatchUnreadable: one of its newest batches cannot be unpacked.
            SourceUnavailable: the brokers did not answer, or refused to.
        """
        begins, ends = self.beginning_offsets([topic]), self.end_offsets([topic])
        starts = {tp: max(end - num_records, begins[tp]) for tp, end in ends.items()}
        consumer = self._consumer()
        try:
            with self._asking(topic):
                records = _read(consumer, starts, ends)
        finally:
            consumer.close(autocommit=False)
        return sorted(records, key=lambda r: (r.partition, r.offset))

    def _consumer(self) -> Any:
        """Return a short-lived consumer without a group."""
        return guard(
            KafkaConsumer(
                **self._config.options_for(KafkaConsumer.DEFAULT_CONFIG),
                group_id=None,
                auto_offset_reset="none",
                enable_auto_commit=False,
                allow_auto_create_topics=False,
            )
        )

    def _offsets(
        self,
        topics: Iterable[str],
        spec: Any,
        isolation: str = "read_uncommitted",
    ) -> dict[TopicPartition, int]:
        with self._asking("offsets"):
            specs = {
                KafkaTopicPartition(topic, p): spec
                for topic in topics
                for p in self._partitions(topic)
            }
            found = self._client.list_partition_offsets(specs, isolation_level=isolation)
        return {(tp.topic, tp.partition): at.offset for tp, at in sorted(found.items())}

    def _partitions(self, topic: str) -> Sequence[int]:
        for described in self._client.describe_topics([topic]):
            if described["name"] == topic and described["partitions"]:
                return sorted(p["partition_index"] for p in described["partitions"])
        raise TopicMissing(topic, self._config.bootstrap_servers)

    # --- the cluster ----------------------------------------------------------------------------

    def brokers(self) -> list[str]:
        """Return the advertised addresses of the brokers, `host:port`, sorted."""
        return sorted(
            f"{broker['host']}:{broker['port']}"
            for broker in self._client.describe_cluster()["brokers"]
        )

    def broker_version(self) -> str:
        """Return the newest Kafka version that brokers and client both speak, such as `4.2`."""
        return ".".join(map(str, self._client._manager.broker_version))


def _read(
    consumer: Any, starts: Mapping[TopicPartition, int], ends: Mapping[TopicPartition, int]
) -> list[Record]:
    """Return the records of `[start, end)` of each partition, as far as they come within 5 s."""
    consumer.assign([KafkaTopicPartition(*tp) for tp in ends])
    for tp, start in starts.items():
        consumer.seek(KafkaTopicPartition(*tp), start)
    records: list[Record] = []
    num_idle = 0
    while num_idle < 10 and any(
        consumer.position(KafkaTopicPartition(*tp)) < end for tp, end in ends.items()
    ):
        polled = consumer.poll(timeout_ms=500)
        num_idle = 0 if polled else num_idle + 1
        for tp, fetched in polled.items():
            records.extend(_record(tp, each) for each in fetched)
    return records


def _record(tp: KafkaTopicPartition, fetched: Any) -> Record:
    return Record(
        topic=tp.topic,
        partition=tp.partition,
        offset=fetched.offset,
        timestamp_us=fetched.timestamp * 1000,
        key=fetched.key,
        value=fetched.value,
        headers=tuple(fetched.headers),
    )


def _retention_ms(entries: Mapping[str, Any]) -> int:
    """Return how long a topic keeps its records; -1 for one that does not delete them."""
    if "retention.ms" not in entries or "delete" not in entries["cleanup.policy"]["value"]:
        return -1
    return int(entries["retention.ms"]["value"])


def partition_of(key: bytes, num_partitions: int) -> int:
    """Return the partition of a key: murmur2 without its sign, modulo.

    Java's producer and ours do the same.
    """
    return int((murmur2(key) & 0x7FFFFFFF) % num_partitions)
