"""An oracle of its own: log, manifests and journal read without the code under test."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from kafka import KafkaConsumer, TopicPartition

from benchmarks.crashing.log import LAST, SECOND, TOPICS
from consumers.source import Record
from tests.consumers.oracle import oracle
from weighting.sample import Sample

#: Windows that a few minutes fill. No partition ever counts as idle, so that the samples are a
#: function of the log alone.
WINDOWS_US = {
    "click_window": 20,
    "observation_window": 60,
    "attribution_window": 600,
    "grace": 5,
    "idle_timeout": 86_400,
}
MODULUS = 1 << 64

Records = Mapping[tuple[str, int], list[Record]]
"""Every record of every partition."""


def expected_samples(records: Records) -> dict[str, Sample]:
    """Return the samples of a naive join by id, without those of the log's last events.

    The last events are read, too: they tell which clocks were wrong shortly before them.
    """
    windows = {
        f"{name}_us": seconds * SECOND
        for name, seconds in WINDOWS_US.items()
        if name != "idle_timeout"
    }
    samples = oracle(records, **windows).samples
    return {name: s for name, s in samples.items() if not s.list_id.startswith(LAST)}


def number_and_sum(names: Collection[str]) -> tuple[int, int]:
    """Return the number of names, and the sum modulo 2^64 of BLAKE2b-64 of each."""
    digests = (hashlib.blake2b(name.encode(), digest_size=8).digest() for name in names)
    return len(names), sum(int.from_bytes(each, "little") for each in digests) % MODULUS


def hash64(record: Record) -> int:
    """Return BLAKE2b-64 over topic, partition, offset and value."""
    topic, value = record.topic.encode(), record.value
    data = struct.pack("<qq", len(topic), record.partition) + topic
    data += struct.pack("<qq", record.offset, -1 if value is None else len(value)) + (value or b"")
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")


def read_log(bootstrap_servers: str) -> dict[tuple[str, int], list[Record]]:
    """Return every record of every partition."""
    servers = bootstrap_servers
    consumer = KafkaConsumer(bootstrap_servers=servers, enable_auto_commit=False, group_id=None)
    partitions = [
        TopicPartition(topic, p)
        for topic in TOPICS
        for p in sorted(consumer.partitions_for_topic(topic))
    ]
    found: dict[tuple[str, int], list[Record]] = {(tp.topic, tp.partition): [] for tp in partitions}
    try:
        consumer.assign(partitions)
        ends = consumer.end_offsets(partitions)
        consumer.seek_to_beginning(*partitions)
        while any(consumer.position(tp) < ends[tp] for tp in partitions):
            for tp, records in consumer.poll(timeout_ms=500).items():
                found[tp.topic, tp.partition] += [
                    Record(tp.topic, tp.partition, r.offset, r.timestamp * 1000, r.key, r.value)
                    for r in records
                ]
    finally:
        consumer.close()
    return found


def manifests(root: Path) -> Iterator[dict[str, Any]]:
    """Yield every manifest, oldest first."""
    for path in sorted((root / "man").glob("M-*")):
        yield json.loads(path.read_bytes())


def newest_checkpoint(root: Path) -> dict[str, Any] | None:
    """Return the newest manifest of a version."""
    for path in sorted((root / "man").glob("M-*"), reverse=True):
        found: dict[str, Any] = json.loads(path.read_bytes())
        if found["kind"] == "checkpoint":
            return found
    return None


def num_claims(root: Path) -> int:
    """Return the newest owner's number."""
    names = [path.name for path in (root / "epoch").glob("*")]
    return max((int(name) for name in names if name.isdecimal()), default=0)


def newest_segment(root: Path) -> str:
    """Return the name of the newest owner's journal segment."""
    return max((path.name for path in (root / "journal").glob("*-0000")), default="")


def is_live(root: Path, before: str) -> bool:
    """Return whether an owner newer than this segment has journaled a step.

    Its segment then holds more than the magic word and the first frame.
    """
    segment = newest_segment(root)
    if segment <= before:
        return False
    path = root / "journal" / segment
    with path.open("rb") as file:
        head = file.read(12)
    return len(head) == 12 and path.stat().st_size > 16 + struct.unpack("<I", head[8:])[0]


def event_id(record: Record) -> str | None:
    """Return the event id of a record, None where it has none or cannot be read."""
    try:
        value = json.loads(record.value or b"")
        name = (value.get("event_attributes") or value["query_attributes"])["event_id"]
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
    return name if isinstance(name, str) else None
