"""One partition of the log: decoding, deduplication, hashing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from msgspec.structs import replace

from consumers.audit import Hasher
from consumers.codec import decode
from consumers.dead_letter import DeadLetters
from consumers.errors import Invalid
from consumers.events import Click, Exposure, ItemUpdate, Kind, Other, Purchase
from consumers.exclusion import Exclusions
from consumers.joining.clock import BEGINNING_US, Correction, Watermarks
from consumers.joining.dedup import Dedup
from consumers.joining.pending import JoinedEvent
from consumers.source import Record
from consumers.tolerant import Repair
from weighting.provenance import Audit, Slice, TopicPartition

_MODULUS = 1 << 64
_NAMES = {Exposure: "exposure", Click: "click", Purchase: "purchase", Other: "other"}


class Counts:
    """Counts of one partition since the last `clear`.

    Attributes:
        outcomes: (event, outcome) -> records; the outcomes are `telemetry.OUTCOMES`.
        num_bytes: of record values.
        num_ahead: events whose time was ahead of the other clients', and was corrected.
        num_behind: events older than the attribution window, whose time was corrected.
        num_cut: queries longer than the limit.
        repairs: kind of field, result -> fields that are not as the schema says.
    """

    __slots__ = ("num_ahead", "num_behind", "num_bytes", "num_cut", "outcomes", "repairs")

    def __init__(self) -> None:
        """Begin with nothing."""
        self.outcomes: Counter[tuple[str, str]] = Counter()
        self.repairs: Counter[tuple[str, str]] = Counter()
        self.clear()

    def clear(self) -> None:
        """Begin again with nothing."""
        self.outcomes.clear()
        self.repairs.clear()
        self.num_bytes = 0
        self.num_ahead = 0
        self.num_behind = 0
        self.num_cut = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Collaborators:
    """Objects that all partitions share.

    Attributes:
        watermarks: make event times monotone.
        push: hands an event to the join, with its key.
        correct: gives an event in the join another time.
        max_item_wait_us: an item update waits no longer for its event time.
        dead_letters: take the records that cannot be read.
        excluded: events that are left out.
    """

    watermarks: Watermarks
    push: Callable[[int, JoinedEvent], None]
    correct: Callable[[Correction], None]
    max_item_wait_us: int
    dead_letters: DeadLetters
    excluded: Exclusions | None


class Partition:
    """Next offset, audit and event ids of one partition.

    Attributes:
        next_offset: of the next record to consume.
        newest_record_us: append time of the newest record that was handed to the join.
    """

    __slots__ = (
        "_hasher",
        "_last",
        "_num_records",
        "_shared",
        "_sum64",
        "audit",
        "counts",
        "dedup",
        "kind",
        "newest_record_us",
        "next_offset",
        "tp",
    )

    def __init__(self, tp: TopicPartition, kind: Kind, dedup: Dedup, shared: Collaborators) -> None:
        """Begin at offset 0; `next_offset` may be set before anything is consumed."""
        self.tp = tp
        self.kind = kind
        self.dedup = dedup
        self.audit = Audit()
        self.counts = Counts()
        self.next_offset = 0
        self.newest_record_us = 0
        self._shared = shared
        self._hasher = Hasher(*tp)
        # Of the records consumed at or after the next offset.
        self._num_records = 0
        self._sum64 = 0
        self._last = (0, 0)

    def digest(self, record: Record) -> int:
        """Return the hash of one record."""
        return self._hasher(record)

    def consume(self, records: Sequence[Record], now: float) -> dict[str, int]:
        """Decode records and hand their events to the join.

        Args:
            records: of this partition, at least one.
            now: seconds on the injected clock.

        Returns:
            event -> event time of the last such event.
        """
        kind, hasher, outcomes = self.kind, self._hasher, self.counts.outcomes
        accept = self._accept
        self.dedup.forget(self._shared.watermarks.watermark_us)
        num_bytes = sum64 = hashed = 0
        times_us: dict[str, int] = {}
        repairs: list[Repair] = []
        for record in records:
            hashed = hasher(record)
            sum64 += hashed
            num_bytes += len(record.value or b"")
            try:
                event = decode(kind, record, repairs)
            except Invalid as invalid:
                self._shared.dead_letters.put(record, invalid)
                outcomes[kind, "invalid"] += 1
                continue
            if isinstance(event, ItemUpdate):
                outcomes["item", self._accept_item(event, record)] += 1
                continue
            name, outcome = _NAMES[event.__class__], accept(event, record, now)
            outcomes[name, outcome] += 1
            if outcome != "excluded" and event.time_us is not None:
                times_us[name] = event.time_us
        self.counts.repairs.update((each.field, each.result) for each in repairs)
        if self._shared.watermarks.corrections:
            self._correct()
        self._num_records += len(records)
        self._sum64 += sum64
        self._last = (records[-1].offset, hashed)
        self.counts.num_bytes += num_bytes
        return times_us

    def advance_to(self, end: int) -> Slice | None:
        """Move the next offset to `end`; return the slice before it, if any."""
        start = self.next_offset
        if end <= start:
            return None
        num_records, sum64 = self._num_records, self._sum64 % _MODULUS
        if num_records:
            self.audit.add(num_records, sum64, self._last)
        self._num_records = self._sum64 = 0
        self.next_offset = end
        if self.kind is Kind.ITEM:  # compaction may delete what was read once
            num_records = sum64 = 0
        return Slice(*self.tp, start, end, num_records, sum64)

    def _accept_item(self, update: ItemUpdate, record: Record) -> str:
        watermark_us = self._shared.watermarks.watermark_us
        key_us = max(update.time_us, watermark_us)
        latest_us = watermark_us + self._shared.max_item_wait_us
        if key_us > latest_us and watermark_us > BEGINNING_US:
            self.counts.num_ahead += 1
            key_us = latest_us
        self._shared.push(key_us, update)
        return "accepted" if record.key == update.object_id.encode() else "miskeyed"

    def _accept(
        self, event: Exposure | Click | Purchase | Other, record: Record, now: float
    ) -> str:
        """Hand an event to the join; return the record's outcome."""
        shared = self._shared
        if shared.excluded is not None and shared.excluded.covers(event):
            return "excluded"
        if event.time_us is None:
            return "ignored"
        time_us, key_us, watermark_us = shared.watermarks.observe(
            self.tp, event.client_id, record.offset, event.time_us, now
        )
        is_late = key_us > event.time_us
        if time_us > event.time_us:
            self.counts.num_behind += 1
            event = replace(event, time_us=time_us)
        if isinstance(event, Other):
            return "ignored"
        if isinstance(event, Exposure) and not event.hits:
            return "no_hits"  # no sample comes of it
        identity = event.identity
        if identity is not None and self.dedup.seen(identity, self.tp[1], key_us, watermark_us):
            return "duplicate"
        if not isinstance(event, Purchase) and event.num_cut_chars:
            self.counts.num_cut += 1
        shared.push(key_us, event)
        self.newest_record_us = record.timestamp_us
        if record.key != event.client_id.encode():
            return "miskeyed"
        return "late" if is_late else "accepted"

    def _correct(self) -> None:
        """Correct the events whose times the clients after them have contradicted."""
        corrections = self._shared.watermarks.corrections
        self.counts.num_ahead += len(corrections)
        for correction in corrections:
            self._shared.correct(correction)
        corrections.clear()
