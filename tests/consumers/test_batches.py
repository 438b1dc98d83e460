"""Batches that cannot be unpacked: named with their place and remedy, and never asked for again."""

from __future__ import annotations

import re
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import kafka.errors
import pytest
from kafka import TopicPartition, codec
from kafka.consumer.fetcher import Fetcher, RecordTooLargeError
from kafka.record.memory_records import MemoryRecords, MemoryRecordsBuilder

from consumers.errors import BatchUnreadable, ConsumersError
from consumers.kafka.batches import guard
from deploy.cli.exit_codes import UNSAFE, exit_code
from tests.consumers.test_kafka_source import Client, Cluster, started

CODECS = {"none": 0, "gzip": 1, "snappy": 2, "lz4": 3, "zstd": 4}
TP = TopicPartition("t", 1)
MAGIC_AT, ATTRIBUTES_AT, PAYLOAD_AT = 16, 22, 61


def batch(codec_name: str, offset: int = 0, num_records: int = 3) -> bytearray:
    builder = MemoryRecordsBuilder(2, CODECS[codec_name], 100_000, offset=offset)
    for n in range(num_records):
        builder.append(n, b"key", b"value %d " % n * 20)
    builder.close()
    return bytearray(builder.buffer())


def unpacked(data: bytes, check_crcs: bool = True) -> list[Any]:
    """What a guarded consumer makes of the bytes of a fetch."""
    fetcher = SimpleNamespace(_parse_fetched_data=None, PartitionRecords=Fetcher.PartitionRecords)
    guard(SimpleNamespace(_fetcher=fetcher))
    records = fetcher.PartitionRecords(0, TP, MemoryRecords(data), check_crcs=check_crcs)
    taken: list[Any] = []
    while part := records.take(100):  # it keeps an error for the call after the records before it
        taken += part
        if not records:
            break
    return taken


@pytest.mark.parametrize("name", CODECS)
def test_every_codec_is_read_with_what_is_installed(name: str) -> None:
    assert [r.value for r in unpacked(bytes(batch(name)))] == [
        b"value %d " % n * 20 for n in range(3)
    ]


def torn(name: str) -> bytearray:
    """A batch whose checksum would be right: its producer compressed badly."""
    data = batch(name)
    data[PAYLOAD_AT + 4 : PAYLOAD_AT + 24] = b"\xff" * 20
    return data


def with_magic(magic: int) -> bytearray:
    data = batch("none")
    data[MAGIC_AT] = magic
    return data


def with_codec(number: int) -> bytearray:
    data = batch("gzip")
    data[ATTRIBUTES_AT] = number
    return data


def rotten() -> bytearray:
    data = batch("none")
    data[-3] ^= 1
    return data


@pytest.mark.parametrize(
    ("data", "check_crcs", "cause", "remedy"),
    [
        pytest.param(rotten(), True, "failed crc check", "disk of its broker", id="checksum"),
        pytest.param(torn("gzip"), False, "cannot be read: ", "disk of its broker", id="gzip"),
        pytest.param(torn("lz4"), False, "cannot be read: ", "disk of its broker", id="lz4"),
        pytest.param(torn("snappy"), False, "cannot be read: ", "disk of its broker", id="snappy"),
        pytest.param(torn("zstd"), False, "cannot be read: ", "disk of its broker", id="zstd"),
        pytest.param(with_magic(3), True, "unknown batch format", "same formats", id="magic 3"),
        pytest.param(with_magic(99), True, "unknown batch format", "same formats", id="magic 99"),
        pytest.param(with_codec(6), False, "compression type: 6", "gzip, lz4", id="codec 6"),
    ],
)
def test_what_is_wrong_with_a_batch_is_told_with_its_place_and_remedy(
    data: bytearray, check_crcs: bool, cause: str, remedy: str
) -> None:
    with pytest.raises(BatchUnreadable, match=re.escape(cause)) as raised:
        unpacked(bytes(batch("none") + data), check_crcs)
    assert remedy in str(raised.value)
    assert str(raised.value).startswith("t[1]@3: "), "behind the records of the batch before"
    assert exit_code(raised.value) == UNSAFE
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("name", "package"), [("lz4", "lz4"), ("snappy", "python-snappy"), ("zstd", "zstandard")]
)
def test_a_missing_codec_names_the_package(
    name: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = bytes(batch(name))
    monkeypatch.setattr(codec, f"has_{name}", lambda: False)
    with pytest.raises(BatchUnreadable, match=rf"@0: .*{name}.*pip install {package},"):
        unpacked(data)


# --- passing or fixed -----------------------------------------------------------------------------

#: What the client raises for an answer that stays the same as long as the batch does.
FIXED = {
    "CorruptRecordError",
    "IncompatibleBrokerVersion",
    "InvalidRecordError",
    "KafkaError",
    "UnsupportedCodecError",
    "UnsupportedCompressionTypeError",
    "UnsupportedForMessageFormatError",
    "UnsupportedVersionError",
}
#: Places in the log that are gone; `test_kafka_source` has them.
LOST = {"LogTruncationError", "OffsetOutOfRangeError"}


def client_errors() -> Iterator[type[Exception]]:
    for name in dir(kafka.errors):
        kind = getattr(kafka.errors, name)
        if isinstance(kind, type) and issubclass(kind, kafka.errors.KafkaError):
            yield kind


def answered(error: Exception) -> Any:
    """A poll whose client raises while it takes the answer to a fetch apart."""

    def fault(client: Client) -> None:
        client._fetcher._parse_fetched_data(
            SimpleNamespace(topic_partition=TP, fetched_offset=client.positions[TP])
        )

    def parse(completed: Any) -> None:
        raise error

    return fault, parse


@pytest.mark.parametrize(
    "kind", [*client_errors(), RecordTooLargeError], ids=lambda kind: kind.__name__
)
def test_what_passes_makes_a_new_client_and_what_does_not_stops(kind: type[Exception]) -> None:
    if kind.__name__ in LOST:
        return
    fault, parse = answered(kind("why"))
    cluster, causes = Cluster(parse=parse), list[str]()
    source = started(cluster, rebuilt=causes.append)
    cluster.faults = [fault] * 3
    if kind.__name__ in FIXED or kind is RecordTooLargeError:
        for _ in range(3):
            with pytest.raises(BatchUnreadable, match=r"t\[1\]@3: .*Reading has stopped before it"):
                source.poll(0.1)
        assert not causes
    else:
        for _ in range(400):
            source.poll(0.1)
        assert causes == ["poll"] * 3
        assert source.position("t", 1) == 100


def test_an_error_of_the_connection_passes_though_its_class_could_name_a_batch() -> None:
    """Brokers that are upgraded one by one may refuse a version for a while."""

    def fault(client: Client) -> None:
        raise kafka.errors.UnsupportedVersionError("no common version")

    cluster, causes = Cluster(), list[str]()
    source = started(cluster, rebuilt=causes.append)
    cluster.faults = [fault]
    assert source.poll(0.1) == []
    assert causes == ["poll"]


def test_memory_that_is_short_is_not_the_batchs_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    def decompressed(data: bytes) -> bytes:
        raise MemoryError

    monkeypatch.setattr("kafka.record.default_records.lz4_decode", decompressed)
    with pytest.raises(MemoryError):
        unpacked(bytes(batch("lz4")))
    assert not issubclass(MemoryError, ConsumersError)
