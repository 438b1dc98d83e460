"""What went in, per partition, as a digest that anyone can recompute from Kafka: no codec of ours is needed, only offsets and raw bytes.

Sums are additive: the difference of two audits is the audit of the records between them. It finds faults, not forgers.

Hot path: about 2 us per record, held by `benchmarks/ingest.py`.
"""

from __future__ import annotations

from hashlib import blake2b
from struct import Struct

import msgspec

from consumers.source import Record

_MODULUS = 1 << 64
_PLACE = Struct("<qq")


class Audit(msgspec.Struct, array_like=True):
    """Everything consumed from one partition so far; every record has exactly one outcome."""

    num_records: int = 0
    sum64: int = 0  #: sum mod 2^64 of the records' hashes
    outcomes: dict[str, int] = {}
    last: tuple[int, int] | None = None  #: offset and hash of the record consumed last

    def add(self, num_records: int, sum64: int, last: tuple[int, int]) -> None:
        """Count records that were consumed together."""
        self.num_records += num_records
        self.sum64 = (self.sum64 + sum64) % _MODULUS
        self.last = last

    def count(self, outcome: str, num_records: int) -> None:
        """Say what became of some of them."""
        known = outcome in self.outcomes
        self.outcomes[outcome] = self.outcomes.get(outcome, 0) + num_records
        if not known:
            self.outcomes = dict(sorted(self.outcomes.items()))  # equal audits are equal bytes

    @property
    def num_unaccounted(self) -> int:
        """How many records have no outcome; 0, or something is wrong with us."""
        return self.num_records - sum(self.outcomes.values())


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
