"""What the doctor asks of Kafka: the brokers, the topics, who wrote to them and how, and the clock."""

from __future__ import annotations

import socket
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from consumers import codec
from consumers.errors import Invalid, SourceUnavailable
from consumers.events import Event, ItemUpdate, Kind
from consumers.joining.join import JoinConfig
from consumers.kafka.admin import partition_of
from consumers.source import Record
from deploy.doctor.check_result import CheckResult
from deploy.settings.config import LogConfig
from weighting.provenance import TopicPartition

AREA = "Kafka"
TIME = "time"
NUM_SAMPLED = 200
"""Records looked at per topic, the newest, spread over its partitions."""

MAX_INVALID_RATIO = 0.01
"""The share of unreadable records that also raises the alert."""

MAX_CLOCK_AHEAD_SECONDS = 60.0


class Admin(Protocol):
    """What we ask of the brokers; `consumers.kafka.admin.KafkaAdmin` once started."""

    def brokers(self) -> list[str]:
        """Return the addresses that they advertise."""

    def broker_version(self) -> str:
        """Return the version that they speak."""

    def topics(self) -> dict[str, int]:
        """Return every topic with its partition count."""

    def topic_config(self, topic: str) -> dict[str, str]:
        """Return its whole configuration."""

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


@dataclass(frozen=True, slots=True, kw_only=True)
class _Sampled:
    """Recent records of one topic, decoded."""

    topic: str
    kind: Kind
    num_partitions: int
    records: Sequence[Record]
    events: Sequence[tuple[Record, Event]]
    reasons: Counter[str]


def examine_kafka(
    log: LogConfig,
    join: JoinConfig,
    admin: Admin,
    *,
    next_offsets: Mapping[TopicPartition, int],
    now_seconds: float,
    reach: Callable[[str], str | None] = reach,
) -> Iterator[CheckResult]:
    """Look at everything about the log.

    Args:
        log: where it should be.
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
    yield from _compaction(log, admin, counts)
    yield from _retention(log, join, admin, list(events))
    yield from _retained(log, admin, counts, next_offsets)
    for topic, kind in kinds.items():
        sampled = _sample(admin, topic, kind, counts[topic])
        if not sampled.records:
            yield _ok(f"{topic}: no records yet")
            continue
        yield from _readable(sampled)
        if kind is not Kind.ITEM:
            yield from _partitioner(sampled)
        yield from _keys(sampled)
        yield from _identity(sampled)
        yield from _times(sampled, join, now_seconds)


def unreachable(log: LogConfig, error: Exception) -> CheckResult:
    """Return the one finding about brokers that do not answer, or refuse to."""
    what, _, remedy = str(error).partition(". ")
    remedy = (
        remedy
        if isinstance(error, SourceUnavailable)
        else "check the brokers' log and the rights of this client, then try again"
    )
    return CheckResult(
        area=AREA,
        mark="X",
        text=what if log.bootstrap_servers in what else f"{log.bootstrap_servers}: {what}",
        remedy=remedy,
    )


def _reached(
    log: LogConfig, admin: Admin, reach: Callable[[str], str | None]
) -> Iterator[CheckResult]:
    brokers = admin.brokers()
    plural = "broker" if len(brokers) == 1 else "brokers"
    yield _ok(
        f"reachable: {len(brokers)} {plural} at {log.bootstrap_servers}, protocol of Kafka {admin.broker_version()}"
    )
    for address in brokers:
        why = reach(address)
        if why is None:
            yield _ok(f"advertised address {address} can be connected to from here")
        else:
            remedy = (
                "set advertised.listeners of that broker to an address that this machine can reach"
            )
            yield _bad(f"advertised address {address}: {why}", remedy)


def _existence(log: LogConfig, counts: Mapping[str, int]) -> Iterator[CheckResult]:
    topics = log.topics
    if topics.exposures is None:
        yield _odd(
            "no topic of exposures: without them there are no negatives and no candidates",
            "set kafka.topics.exposures",
        )
    wanted = [
        topic
        for topic in (
            topics.exposures,
            topics.clicks,
            topics.purchases,
            topics.items,
            topics.dead_letter,
        )
        if topic is not None
    ]
    missing = [topic for topic in wanted if topic not in counts]
    if not missing:
        yield _ok(f"topics exist: {', '.join(f'{topic} ({counts[topic]})' for topic in wanted)}")
    num_partitions = max((counts[topic] for topic in wanted if topic in counts), default=4)
    for topic in missing:
        compact = (
            " --config cleanup.policy=compact"
            if topic in (topics.items, topics.dead_letter)
            else ""
        )
        yield _bad(
            f"topic {topic} is missing",
            _topics_sh(log, f"--create --topic {topic} --partitions {num_partitions}{compact}"),
        )


def _partition_counts(log: LogConfig, events: Mapping[str, int]) -> Iterator[CheckResult]:
    if len(set(events.values())) > 1:
        most = max(events.values())
        short = [topic for topic, count in events.items() if count < most]
        listed = ", ".join(f"{topic} {count}" for topic, count in events.items())
        remedies = " && ".join(
            _topics_sh(log, f"--alter --topic {topic} --partitions {most}") for topic in short
        )
        yield _bad(
            f"partitions differ: {listed}",
            f"{remedies}    (changes where keys go: drain the join first)",
        )
    elif events:
        yield _ok(f"partitions agree: {next(iter(events.values()))} each")


def _compaction(log: LogConfig, admin: Admin, counts: Mapping[str, int]) -> Iterator[CheckResult]:
    for topic in (log.topics.items, log.topics.dead_letter):
        if topic is None or topic not in counts:
            continue
        policy = admin.topic_config(topic).get("cleanup.policy", "")
        if "compact" in policy:
            yield _ok(f"{topic} is compacted")
        else:
            remedy = _configs_sh(log, topic, "cleanup.policy=compact")
            yield _bad(
                f"{topic}: cleanup.policy is {policy or 'unknown'}, expected compact", remedy
            )


def _retention(
    log: LogConfig, join: JoinConfig, admin: Admin, topics: Sequence[str]
) -> Iterator[CheckResult]:
    needed_ms = (join.attribution_window_us + join.grace_us) // 1000
    for topic in topics:
        retention_ms = int(admin.topic_config(topic).get("retention.ms", "-1"))
        if 0 <= retention_ms < needed_ms:
            what = f"{topic}: records are kept {_days(retention_ms)}, the attribution window with its grace needs {_days(needed_ms)}"
            yield _bad(what, _configs_sh(log, topic, f"retention.ms={needed_ms}"))
        else:
            kept = "for ever" if retention_ms < 0 else _days(retention_ms)
            yield _ok(f"{topic}: records are kept {kept}, {_days(needed_ms)} are needed")


def _retained(
    log: LogConfig,
    admin: Admin,
    counts: Mapping[str, int],
    next_offsets: Mapping[TopicPartition, int],
) -> Iterator[CheckResult]:
    topics = sorted({topic for topic, _ in next_offsets if topic in counts})
    if not topics:
        return
    begins, ends = admin.beginning_offsets(topics), admin.end_offsets(topics)
    lost = [
        tp
        for tp in sorted(next_offsets)
        if tp in begins and not begins[tp] <= next_offsets[tp] <= ends[tp]
    ]
    for topic, partition in lost:
        tp = (topic, partition)
        what = f"the newest checkpoint goes on at {topic}[{partition}]@{next_offsets[tp]}, retained is [{begins[tp]}, {ends[tp]})"
        yield _bad(
            what,
            "start from a store whose checkpoint is still retained, or from an empty one: steelyard learn --set store.root=DIR",
        )
    if not lost:
        yield _ok("the offsets of the newest checkpoint are retained")


def _sample(admin: Admin, topic: str, kind: Kind, num_partitions: int) -> _Sampled:
    records = admin.sample(topic, -(-NUM_SAMPLED // num_partitions))
    events: list[tuple[Record, Event]] = []
    reasons: Counter[str] = Counter()
    for record in records:
        try:
            events.append((record, codec.decode(kind, record)))
        except Invalid as invalid:
            reasons[invalid.reason] += 1
    return _Sampled(
        topic=topic,
        kind=kind,
        num_partitions=num_partitions,
        records=records,
        events=events,
        reasons=reasons,
    )


def _readable(sampled: _Sampled) -> Iterator[CheckResult]:
    num_invalid, num_records = sum(sampled.reasons.values()), len(sampled.records)
    if not num_invalid:
        yield _ok(f"{sampled.topic}: {num_records} of {num_records} sampled records can be read")
        return
    top = ", ".join(f"{reason} {count}" for reason, count in sampled.reasons.most_common(3))
    what = f"{sampled.topic}: {num_records - num_invalid} of {num_records} sampled records can be read; the others: {top}"
    remedy = f"steelyard events tail {sampled.topic} | head, and the producer against: steelyard events schema"
    yield (
        _bad(what, remedy) if num_invalid > MAX_INVALID_RATIO * num_records else _odd(what, remedy)
    )


def _partitioner(sampled: _Sampled) -> Iterator[CheckResult]:
    """murmur2(key) modulo the partition count must be the partition; librdkafka's default hashes CRC32 instead (its CONFIGURATION.md)."""
    n = sampled.num_partitions
    partitions = {record.key: record.partition for record in sampled.records if record.key}
    if not partitions:
        return  # `_keys` tells
    num_off = sum(partition_of(key, n) != partition for key, partition in partitions.items())
    if not num_off:
        yield _ok(
            f"{sampled.topic}: partitioner: {len(partitions)} of {len(partitions)} sampled keys are on their murmur2 partition"
        )
        return
    what = f"{sampled.topic}: partitioner: {num_off} of {len(partitions)} sampled keys are not on their murmur2 partition"
    num_crc = sum(
        zlib.crc32(key) % n == partition
        for key, partition in partitions.items()
        if partition_of(key, n) != partition
    )
    if num_crc > 0.9 * num_off:
        what += f"; {num_crc} of these are where librdkafka's default, consistent_random, puts them (CRC32)"
        remedy = "set partitioner=murmur2_random in that producer (librdkafka: C, C++, C#, Go, Node, PHP, Python, Ruby, Rust)"
    else:
        remedy = (
            "let every producer choose the partition by murmur2 of the key, as Java does (librdkafka: partitioner=murmur2_random);"
            " records from before a change of the partition count also look like this"
        )
    yield _bad(what, f"{remedy}. Else clicks and purchases of one client do not meet")


def _keys(sampled: _Sampled) -> Iterator[CheckResult]:
    name = "object_id" if sampled.kind is Kind.ITEM else "client_id"
    num_without = sum(not record.key for record in sampled.records)
    num_other = sum(
        bool(record.key) and record.key != _wanted_key(event) for record, event in sampled.events
    )
    if num_without or num_other:
        what = f"{sampled.topic}: of {len(sampled.records)} sampled records {num_without} have no key, {num_other} another than their {name}"
        yield _bad(what, f"let the producer use the {name} as the record's key")
    else:
        yield _ok(f"{sampled.topic}: every sampled key is the record's {name}")


def _identity(sampled: _Sampled) -> Iterator[CheckResult]:
    if sampled.kind not in (Kind.CLICK, Kind.PURCHASE) or not sampled.events:
        return
    events = [event for _, event in sampled.events]
    num_identified = sum(getattr(event, "identity", b"") is not None for event in events)
    num_joinable = sum(getattr(event, "query_id", "") is not None for event in events)
    for num, what, why in (
        (
            num_identified,
            "an event id",
            "a producer's retry counts twice; set event_attributes.event_id or the headers ce_source and ce_id",
        ),
        (
            num_joinable,
            "a query_id",
            "the join is inferred from client and item; pass on the query_id of the answer that was clicked in",
        ),
    ):
        text = f"{sampled.topic}: {num} of {len(events)} sampled events have {what}"
        yield _ok(text) if num == len(events) else _odd(text, f"without it {why}")


def _times(sampled: _Sampled, join: JoinConfig, now_seconds: float) -> Iterator[CheckResult]:
    newest_seconds = max(record.timestamp_us for record in sampled.records) / 1e6
    if newest_seconds > now_seconds + MAX_CLOCK_AHEAD_SECONDS:
        what = f"{sampled.topic}: the newest record is {newest_seconds - now_seconds:.0f} s ahead of this machine's clock"
        yield CheckResult(
            area=TIME,
            mark="X",
            text=what,
            remedy="set this clock, or that of the broker or producer: timedatectl set-ntp true",
        )
    else:
        yield CheckResult(
            area=TIME,
            mark="ok",
            text=f"{sampled.topic}: the newest record is {now_seconds - newest_seconds:.0f} s old",
        )
    if sampled.kind is Kind.ITEM:
        return
    num_ahead = sum(event.clamped for _, event in sampled.events)
    num_old = sum(
        record.timestamp_us - event.time_us > join.attribution_window_us
        for record, event in sampled.events
    )
    if num_ahead or num_old:
        what = f"{sampled.topic}: of {len(sampled.events)} sampled events {num_ahead} are from the future, {num_old} older than the window"
        yield CheckResult(
            area=TIME,
            mark="!",
            text=what,
            remedy="let `timestamp` be when it happened, with the offset of its time zone",
        )


def _wanted_key(event: Event) -> bytes:
    return (event.object_id if isinstance(event, ItemUpdate) else event.client_id).encode()


def _topics_sh(log: LogConfig, rest: str) -> str:
    return f"kafka-topics.sh --bootstrap-server {log.bootstrap_servers} {rest}"


def _configs_sh(log: LogConfig, topic: str, config: str) -> str:
    return f"kafka-configs.sh --bootstrap-server {log.bootstrap_servers} --alter --topic {topic} --add-config {config}"


def _days(ms: int) -> str:
    return f"{ms / 86_400_000:.2f}".rstrip("0").rstrip(".") + " d"


def _ok(text: str) -> CheckResult:
    return CheckResult(area=AREA, mark="ok", text=text)


def _odd(text: str, remedy: str) -> CheckResult:
    return CheckResult(area=AREA, mark="!", text=text, remedy=remedy)


def _bad(text: str, remedy: str) -> CheckResult:
    return CheckResult(area=AREA, mark="X", text=text, remedy=remedy)
