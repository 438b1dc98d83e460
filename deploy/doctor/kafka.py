"""Checks of Kafka: brokers, topics and their configuration, and records sampled from them."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Protocol

from consumers.errors import BatchUnreadable, SourceUnavailable
from consumers.events import Kind
from consumers.joining.join import JoinConfig
from consumers.source import Record
from deploy.doctor import partitioners, records
from deploy.doctor.check_result import CheckResult
from deploy.settings.config import LogConfig
from weighting.provenance import TopicPartition

AREA = "Kafka"


class Admin(Protocol):
    """Questions to the brokers; `consumers.kafka.admin.KafkaAdmin` once started."""

    def brokers(self) -> list[str]:
        """Return the addresses that they advertise."""

    def broker_version(self) -> str:
        """Return the version of their protocol."""

    def topics(self) -> dict[str, int]:
        """Return every topic with its partition count."""

    def topic_config(self, topic: str) -> dict[str, str]:
        """Return the whole configuration of a topic."""

    def beginning_offsets(self, topics: Sequence[str]) -> dict[TopicPartition, int]:
        """Return the oldest retained offsets."""

    def end_offsets(self, topics: Sequence[str]) -> dict[TopicPartition, int]:
        """Return the offsets that the next records get."""

    def sample(self, topic: str, num_records: int) -> list[Record]:
        """Return the newest records of each partition."""


def reach(address: str) -> str | None:
    """Return why an address cannot be connected to, None where it can."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=3).close()
    except (OSError, ValueError) as error:
        return str(error)
    return None


def examine_kafka(
    log: LogConfig,
    join: JoinConfig,
    admin: Admin,
    *,
    next_offsets: Mapping[TopicPartition, int],
    now_seconds: float,
    reach: Callable[[str], str | None] = reach,
) -> Iterator[CheckResult]:
    """Run all checks of the log.

    Args:
        log: its addresses and topics.
        join: how long records must be kept.
        admin: connected.
        next_offsets: of the newest checkpoint; empty without one.
        now_seconds: since the Unix epoch, by our clock.
        reach: connects to an address.

    Raises:
        SourceUnavailable: the brokers stopped answering.
    """
    yield from _reached(log, admin, reach)
    counts = admin.topics()
    kinds = {topic: kind for topic, kind in log.topics.kinds().items() if topic in counts}
    yield from _existence(log, counts)
    events = {topic: counts[topic] for topic, kind in kinds.items() if kind is not Kind.ITEM}
    yield from _partition_counts(log, events)
    yield from _added(counts, next_offsets)
    yield from _compaction(log, admin, counts)
    yield from _retention(log, join, admin, list(events))
    yield from _retained(admin, counts, next_offsets)
    samples = []
    for topic, kind in kinds.items():
        try:
            sampled = admin.sample(topic, -(-records.NUM_SAMPLED // counts[topic]))
        except BatchUnreadable as error:
            yield CheckResult.fail(AREA, f"{error.place}: {error.cause}", error.remedy)
            continue
        if not sampled:
            yield CheckResult.ok(AREA, f"{topic}: no records yet")
            continue
        sample = records.Sample.decoded(topic, kind, counts[topic], sampled)
        yield from records.examine_records(sample, join, now_seconds)
        samples += [] if kind is Kind.ITEM else [sample]
    yield from partitioners.examine_partitioners(samples)


def unreachable(log: LogConfig, error: Exception) -> CheckResult:
    """Return the one result about brokers that do not answer, or refuse to."""
    what, _, remedy = str(error).partition(". ")
    if not isinstance(error, SourceUnavailable):
        remedy = "check the brokers' log and the rights of this client, then try again"
    text = what if log.bootstrap_servers in what else f"{log.bootstrap_servers}: {what}"
    return CheckResult.fail(AREA, text, remedy)


def _reached(
    log: LogConfig, admin: Admin, reach: Callable[[str], str | None]
) -> Iterator[CheckResult]:
    brokers = admin.brokers()
    plural = "broker" if len(brokers) == 1 else "brokers"
    where = f"{len(brokers)} {plural} at {log.bootstrap_servers}"
    yield CheckResult.ok(AREA, f"reachable: {where}, protocol of Kafka {admin.broker_version()}")
    for address in brokers:
        why = reach(address)
        if why is None:
            text = f"advertised address {address} can be connected to from here"
            yield CheckResult.ok(AREA, text)
        else:
            yield CheckResult.fail(
                AREA,
                f"advertised address {address}: {why}",
                "set advertised.listeners of that broker to an address that this machine can reach",
            )


def _existence(log: LogConfig, counts: Mapping[str, int]) -> Iterator[CheckResult]:
    topics = log.topics
    if topics.exposures is None:
        yield CheckResult.warn(
            AREA,
            "no topic of exposures: without them there are no negatives and no candidates",
            "set kafka.topics.exposures",
        )
    named = topics.exposures, topics.clicks, topics.purchases, topics.items, topics.dead_letter
    wanted = [topic for topic in named if topic is not None]
    missing = [topic for topic in wanted if topic not in counts]
    if not missing:
        there = ", ".join(f"{topic} ({counts[topic]})" for topic in wanted)
        yield CheckResult.ok(AREA, f"topics exist: {there}")
    for topic in missing:
        create = f"steelyard topics create --bootstrap-servers {log.bootstrap_servers}"
        yield CheckResult.fail(AREA, f"topic {topic} is missing", create)


def _partition_counts(log: LogConfig, events: Mapping[str, int]) -> Iterator[CheckResult]:
    if len(set(events.values())) > 1:
        most = max(events.values())
        short = [topic for topic, count in events.items() if count < most]
        listed = ", ".join(f"{topic} {count}" for topic, count in events.items())
        remedies = " && ".join(
            _topics_sh(log, f"--alter --topic {topic} --partitions {most}") for topic in short
        )
        remedy = f"{remedies}    (changes where keys go: drain the join first)"
        yield CheckResult.fail(AREA, f"partitions differ: {listed}", remedy)
    elif events:
        count = next(iter(events.values()))
        yield CheckResult.ok(AREA, f"partitions agree: {count} each")


def _added(
    counts: Mapping[str, int], next_offsets: Mapping[TopicPartition, int]
) -> Iterator[CheckResult]:
    """Name partitions that the newest checkpoint has not read."""
    known: dict[str, int] = {}
    for topic, partition in next_offsets:
        known[topic] = max(known.get(topic, 0), partition + 1)
    for topic, count in sorted(known.items()):
        if counts.get(topic, count) > count:
            yield CheckResult.warn(
                AREA,
                f"{topic}: it has {counts[topic]} partitions, the newest checkpoint reads {count}",
                "give all topics of events as many partitions; a learner with "
                "kafka.on_new_partitions: carry (the default) then reads them, too",
            )


def _compaction(log: LogConfig, admin: Admin, counts: Mapping[str, int]) -> Iterator[CheckResult]:
    for topic in (log.topics.items, log.topics.dead_letter):
        if topic is None or topic not in counts:
            continue
        policy = admin.topic_config(topic).get("cleanup.policy", "")
        if "compact" in policy:
            yield CheckResult.ok(AREA, f"{topic} is compacted")
        else:
            text = f"{topic}: cleanup.policy is {policy or 'unknown'}, expected compact"
            remedy = _configs_sh(log, topic, "cleanup.policy=compact")
            yield CheckResult.fail(AREA, text, remedy)


def _retention(
    log: LogConfig, join: JoinConfig, admin: Admin, topics: Sequence[str]
) -> Iterator[CheckResult]:
    needed_ms = (join.attribution_window_us + join.grace_us) // 1000
    for topic in topics:
        retention_ms = int(admin.topic_config(topic).get("retention.ms", "-1"))
        if 0 <= retention_ms < needed_ms:
            yield CheckResult.fail(
                AREA,
                f"{topic}: records are kept {_days(retention_ms)}, the attribution window with its "
                f"grace needs {_days(needed_ms)}",
                _configs_sh(log, topic, f"retention.ms={needed_ms}"),
            )
        else:
            kept = "for ever" if retention_ms < 0 else _days(retention_ms)
            text = f"{topic}: records are kept {kept}, {_days(needed_ms)} are needed"
            yield CheckResult.ok(AREA, text)


def _retained(
    admin: Admin, counts: Mapping[str, int], next_offsets: Mapping[TopicPartition, int]
) -> Iterator[CheckResult]:
    topics = sorted({topic for topic, _ in next_offsets if topic in counts})
    if not topics:
        return
    begins, ends = admin.beginning_offsets(topics), admin.end_offsets(topics)
    there = [tp for tp in sorted(next_offsets) if tp in begins]
    lost = [tp for tp in there if not begins[tp] <= next_offsets[tp] <= ends[tp]]
    for tp in lost:
        place = f"{tp[0]}[{tp[1]}]@{next_offsets[tp]}"
        yield CheckResult.fail(
            AREA,
            f"the newest checkpoint goes on at {place}, retained is [{begins[tp]}, {ends[tp]})",
            "start from a store whose checkpoint is still retained, or from an empty one: "
            "steelyard learn --set store.root=DIR",
        )
    if not lost:
        yield CheckResult.ok(AREA, "the offsets of the newest checkpoint are retained")


def _topics_sh(log: LogConfig, rest: str) -> str:
    return f"kafka-topics.sh --bootstrap-server {log.bootstrap_servers} {rest}"


def _configs_sh(log: LogConfig, topic: str, config: str) -> str:
    servers = log.bootstrap_servers
    alter = f"--alter --topic {topic} --add-config {config}"
    return f"kafka-configs.sh --bootstrap-server {servers} {alter}"


def _days(ms: int) -> str:
    return f"{ms / 86_400_000:.2f}".rstrip("0").rstrip(".") + " d"
