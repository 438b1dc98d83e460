"""What went in, per partition, as a digest that anyone can recompute from Kafka: no codec of ours is needed, only offsets and raw bytes.

Sums are additive: the difference of two audits is the audit of the records between them. It finds faults, not forgers.

Hot path: about 2 us per record, held by `benchmarks/ingest.py`.
"""

from __future__ import annotations

from hashlib import blake2b
from struct import Struct

from consumers.source import Record

_PLACE = Struct("<qq")


class Hasher:
    """Hashes the records of one partition: BLAKE2b-64 over (len(topic), topic, partition, offset, len(value) or -1, value)."""

    __slots__ = ("_prefix",)

    def __init__(self, topic: str, partition: int) -> None:
        """Take what all its records have in common."""
        name = topic.encode()
        self._prefix = blake2b(_PLACE.pack(len(name), partition) + name, digest_size=8)

    def __call__(self, record: Record) -> int:
        """Return the hash of one record as an unsigned 64-bit number."""
        value = record.value
        hashed = self._prefix.copy()
        if value is None:
            hashed.update(_PLACE.pack(record.offset, -1))
        else:
            hashed.update(_PLACE.pack(record.offset, len(value)) + value)
        return int.from_bytes(hashed.digest(), "little")
