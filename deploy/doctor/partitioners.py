"""Check that all event topics place a key on the same partition number."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence

from consumers.kafka.admin import partition_of
from deploy.doctor.check_result import CheckResult
from deploy.doctor.records import Sample

_AREA = "Kafka"


def _crc32(key: bytes, num_partitions: int) -> int:
    """Return the partition of librdkafka's default, `consistent_random`."""
    return zlib.crc32(key) % num_partitions


_KNOWN: Mapping[str, Callable[[bytes, int], int]] = {
    "murmur2": partition_of,
    "librdkafka's default (consistent_random, CRC32)": _crc32,
}
_MURMUR2, _LIBRDKAFKA = _KNOWN


def examine_partitioners(samples: Sequence[Sample]) -> Iterator[CheckResult]:
    """Compare the topics of events with each other.

    What counts is that they agree. Changing the partitioner of a live shop would part the events of
    every open client, so nothing is demanded where they do.
    """
    placed = [(sample, keys) for sample in samples if (keys := _placed(sample))]
    explained = [_explanations(keys, sample) for sample, keys in placed]
    common = set(_KNOWN).intersection(*explained)
    if _MURMUR2 in common:
        for sample, keys in placed:
            text = f"{len(keys)} of {len(keys)} sampled keys are on their murmur2 partition"
            yield CheckResult.ok(_AREA, f"{sample.topic}: partitioner: {text}")
        return
    topics = ", ".join(sample.topic for sample, _ in placed)
    keep = "the topics agree. Do not switch a live shop: its keys would move"
    if common:
        text = f"every sampled key of {topics} is where {_LIBRDKAFKA} puts it: {keep}"
        yield CheckResult.ok(_AREA, f"partitioner: {text}")
    elif not any(explained) and (num_shared := _num_agreeing([keys for _, keys in placed])):
        text = f"{num_shared} keys sampled in several of {topics} have one partition each: {keep}"
        yield CheckResult.ok(_AREA, f"partitioner: {text}")
    else:
        for (sample, keys), names in zip(placed, explained, strict=True):
            if _MURMUR2 not in names:
                yield _differing(sample, keys)


def _placed(sample: Sample) -> dict[bytes, int]:
    return {record.key: record.partition for record in sample.records if record.key}


def _explanations(placed: Mapping[bytes, int], sample: Sample) -> set[str]:
    """Return the partitioners that put every key where it is."""
    n = sample.num_partitions
    return {
        name
        for name, place in _KNOWN.items()
        if all(place(key, n) == partition for key, partition in placed.items())
    }


def _num_agreeing(topics: Sequence[Mapping[bytes, int]]) -> int:
    """Return how many keys several topics have, all on the same partition; 0 where one differs."""
    found: dict[bytes, int] = {}
    shared = set()
    for placed in topics:
        for key, partition in placed.items():
            if key not in found:
                found[key] = partition
            elif found[key] != partition:
                return 0
            else:
                shared.add(key)
    return len(shared)


def _differing(sample: Sample, placed: Mapping[bytes, int]) -> CheckResult:
    """Return what is known of a topic that is not placed as the others may be."""
    n = sample.num_partitions
    foreign = {key: p for key, p in placed.items() if partition_of(key, n) != p}
    counted = f"{len(foreign)} of {len(placed)} sampled keys are not on their murmur2 partition"
    text = f"{sample.topic}: partitioner: {counted}"
    num_crc = sum(_crc32(key, n) == p for key, p in foreign.items())
    if num_crc > 0.9 * len(foreign):
        text += (
            f"; {num_crc} of these are where librdkafka's default, consistent_random, puts them "
            "(CRC32)"
        )
        remedy = (
            "set partitioner=murmur2_random in that producer (librdkafka: C, C++, C#, Go, Node, "
            "PHP, Python, Ruby, Rust), or let the others do as it does"
        )
    else:
        remedy = (
            "let every producer choose the partition by murmur2 of the key, as Java does "
            "(librdkafka: partitioner=murmur2_random); records from before a change of the "
            "partition count also look like this"
        )
    why = "The topics differ: several processes would not bring a client's events together"
    return CheckResult.fail(_AREA, text, f"{remedy}. {why}")
