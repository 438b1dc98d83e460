"""Batches that can never be read, told from faults of the brokers that pass.

Whatever the client raises while it unpacks a batch depends on the bytes alone: a new client would
raise it again. So does what the brokers answer instead of a batch that they cannot hand out.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from kafka.consumer.fetcher import Fetcher, RecordTooLargeError
from kafka.errors import (
    CorruptRecordError,
    InvalidRecordError,
    KafkaError,
    UnsupportedCodecError,
    UnsupportedCompressionTypeError,
    UnsupportedForMessageFormatError,
    UnsupportedVersionError,
)

from consumers.errors import BatchUnreadable

_FORMATS = (0, 1, 2)
_MAX_CAUSE_CHARS = 200
_PACKAGES = {"lz4": "lz4", "snappy": "python-snappy", "zstd": "zstandard"}
#: Answers to a fetch that stay the same as long as the batch does.
_FIXED = (
    CorruptRecordError,
    InvalidRecordError,
    RecordTooLargeError,
    UnsupportedCodecError,
    UnsupportedCompressionTypeError,
    UnsupportedForMessageFormatError,
    UnsupportedVersionError,
)


def is_fixed(error: Exception) -> bool:
    """Return whether an answer to a fetch is about the batch, so that asking again is in vain."""
    # The client raises the root itself for a batch that does not end within its answer.
    return isinstance(error, _FIXED) or type(error) is KafkaError


def guard(consumer: Any) -> Any:
    """Let a consumer raise `BatchUnreadable` for such batches; return it."""
    fetcher = consumer._fetcher
    parse = fetcher._parse_fetched_data

    def parse_located(completed: Any) -> Any:
        try:
            return parse(completed)
        except KafkaError as error:
            if not is_fixed(error):
                raise
            raise _unreadable(completed.topic_partition, completed.fetched_offset, error) from error

    fetcher.PartitionRecords = _Located
    fetcher._parse_fetched_data = parse_located
    return consumer


class _Located(Fetcher.PartitionRecords):  # type: ignore[misc]
    """Records of one answer; an error names their partition and the offset that it stops at."""

    def _unpack_records(self, tp: Any, records: Any, *deserializers: Any) -> Iterator[Any]:
        try:
            yield from super()._unpack_records(tp, _Known(records), *deserializers)
        except MemoryError:
            raise
        except Exception as error:
            raise _unreadable(tp, self.next_fetch_offset, error) from error


class _Known:
    """Batches of the formats that there are; the client takes any later one for format 2."""

    def __init__(self, records: Any) -> None:
        self._records = records

    def next_batch(self) -> Any:
        batch = self._records.next_batch()
        if batch is not None and batch.magic not in _FORMATS:
            raise UnsupportedVersionError(f"unknown batch format (magic) {batch.magic}")
        return batch


def _unreadable(tp: Any, offset: int, error: Exception) -> BatchUnreadable:
    cause = str(error) if isinstance(error, KafkaError) else f"{type(error).__name__}: {error}"
    cause = " ".join(cause.split())[:_MAX_CAUSE_CHARS].rstrip(".")
    return BatchUnreadable(tp.topic, tp.partition, offset, cause, _remedy(error, cause))


def _remedy(error: Exception, cause: str) -> str:
    if isinstance(error, UnsupportedCodecError):
        for codec, package in _PACKAGES.items():
            if codec in cause:
                return f"Install the package that decompresses it: pip install {package}"
        return "Let its producer compress with gzip, lz4, snappy or zstd"
    if isinstance(error, UnsupportedVersionError | UnsupportedForMessageFormatError):
        return "Use brokers and a client library that speak the same formats"
    if isinstance(error, UnsupportedCompressionTypeError):
        return "Use brokers of Kafka 2.1 or newer, or another codec than zstd"
    if isinstance(error, RecordTooLargeError):
        return "Raise kafka.options.max_partition_fetch_bytes"
    return "Check the disk of its broker"
