"""Digest of the records read from a partition, to compare it with the log.

Anyone can recompute it from Kafka: it needs offsets and raw bytes, no codec of ours. Sums of hashes
are additive: the difference of two audits is the audit of the records between them. It detects
faults, not forgeries.

Hot path: about 2 us per record, held by `benchmarks/ingest.py`.
"""

from __future__ import annotations

from hashlib import blake2b
from struct import Struct

from consumers.source import Record

_pack = Struct("<qq").pack


class Hasher:
    """Hash of the records of one partition.

    BLAKE2b-64 over (len(topic), partition, topic, offset, len(value) or -1, value).
    """

    __slots__ = ("_prefix",)

    def __init__(self, topic: str, partition: int) -> None:
        """Hash the fields that all its records share."""
        name = topic.encode()
        self._prefix = blake2b(_pack(len(name), partition) + name, digest_size=8)

    def __call__(self, record: Record) -> int:
        """Return the hash of one record as an unsigned 64-bit number."""
        value = record.value
        hashed = self._prefix.copy()
        if value is None:
            hashed.update(_pack(record.offset, -1))
        else:
            hashed.update(_pack(record.offset, len(value)) + value)
        return int.from_bytes(hashed.digest(), "little")
