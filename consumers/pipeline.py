"""The order of it all, as one generator: records in, batches out. The door of this folder.

Hot path: one core takes 30,000 events/s from broker to samples, held by `benchmarks/ingest.py`.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TypeVar

import msgspec

from consumers.clock import BEGINNING_US, Watermarks
from consumers.codec import decode
from consumers.dead_letter import DeadLetters
from consumers.dedup import Dedup
from consumers.errors import Invalid, OffsetLost, PartitionsMismatch, SnapshotRefused
from consumers.events import Click, Exposure, ItemUpdate, Kind, Other, Purchase
from consumers.items import Items
from consumers.join import Join, JoinConfig, OpenPart
from consumers.source import Record, Source, TopicPartition
from consumers.telemetry import Telemetry
from weighting.sample import Attribute, Batch, Sample, Slice

_log = logging.getLogger(__name__)

#: Format of the snapshots.
FORMAT = 1

_POLL_TIMEOUT_SECONDS = 0.1
_HOUSEKEEPING_SECONDS = 1.0
_NAMES = {Exposure: "exposure", Click: "click", Purchase: "purchase", Other: "other"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Topics:
    """Which topic carries what; None where there is none."""

    exposures: str | None = "exposures"
    clicks: str = "clicks"
    purchases: str = "purchases"
    items: str | None = "items"
    dead_letter: str = "steelyard.deadletter"

    def kinds(self) -> dict[str, Kind]:
        """Return the kind of every topic that is read."""
        named = {self.exposures: Kind.EXPOSURE, self.clicks: Kind.CLICK, self.purchases: Kind.PURCHASE, self.items: Kind.ITEM}
        return {topic: kind for topic, kind in named.items() if topic is not None}


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchConfig:
    """When a batch closes: at the first event boundary with at least `size` samples, or after `flush_seconds`."""

    size: int = 32
    flush_seconds: float = 1.0  #: on the injected clock, since the oldest sample that waits

    def __post_init__(self) -> None:
        """Refuse a batch that never closes; the error names key, value and expectation."""
        if self.size < 1:
            raise ValueError(f"batch.size: got {self.size}, expected a number >= 1")
        if self.flush_seconds < 0:
            raise ValueError(f"batch.flush_seconds: got {self.flush_seconds}, expected a number >= 0")


class _Reader:
    """Where one partition stands, and what was counted in it since telemetry was told."""

    __slots__ = (
        "counts",
        "dedup",
        "kind",
        "newest_record_us",
        "next_offset",
        "num_bytes",
        "num_clamped",
        "num_cut",
        "num_records",
        "start",
    )

    def __init__(self, kind: Kind, dedup: Dedup) -> None:
        self.kind = kind
        self.dedup = dedup
        self.start = 0  # of the slice that the next batch will name
        self.num_records = 0  # in that slice
        self.next_offset = 0
        self.newest_record_us = 0
        self.counts: Counter[tuple[str, str]] = Counter()  # (event, outcome)
        self.num_bytes = 0
        self.num_clamped = 0
        self.num_cut = 0


class _PartState(msgspec.Struct, array_like=True):
    format: int
    clocks: dict[str, tuple[int, int, bool]]
    dedup: dict[str, dict[str, object]]
    open: OpenPart


class _ItemsState(msgspec.Struct, array_like=True):
    format: int
    known: dict[str, tuple[str, dict[str, Attribute]]]
    pending: list[tuple[int, ItemUpdate]]


class _IngestState(msgspec.Struct, array_like=True):
    format: int
    watermark_us: int
    now_us: int
    samples: list[Sample]
    slices: list[Slice]  # consumed and not yet named by a batch


_S = TypeVar("_S", _PartState, _ItemsState, _IngestState)


class Pipeline:
    """Records of a log to batches of samples, each sample once; run by one thread.

    State and next offsets are consistent whenever `batches` has yielded. `snapshot` resumes after the last record consumed.

    Example:
        for batch in pipeline.batches():
            if batch is not None:
                learn(batch)
    """

    def __init__(
        self,
        source: Source,
        *,
        topics: Topics,
        join: JoinConfig,
        batch: BatchConfig,
        clock: Callable[[], float],
        dead_letters: DeadLetters,
        telemetry: Telemetry,
    ) -> None:
        """Take a started source and its collaborators.

        Args:
            source: the log; its assignment decides which partitions are read.
            topics: which topic carries what.
            join: windows and bounds.
            batch: when a batch closes.
            clock: seconds since the Unix epoch; decides idleness and flushes only.
            dead_letters: where unreadable records go.
            telemetry: the series.

        Raises:
            PartitionsMismatch: topics that are joined have different partition counts.
        """
        self._source = source
        self._config = join
        self._batch = batch
        self._clock = clock
        self._dead_letters = dead_letters
        self._telemetry = telemetry
        kinds = topics.kinds()
        assigned = source.assignment()
        numbers = {topic: {p for t, p in assigned if t == topic} for topic, kind in kinds.items() if kind is not Kind.ITEM}
        if any(of_topic != numbers[topics.clicks] for of_topic in numbers.values()):
            raise PartitionsMismatch({topic: len(of_topic) for topic, of_topic in numbers.items()})
        self._numbers = sorted(numbers[topics.clicks])
        self._event_partitions = [tp for tp in assigned if kinds[tp[0]] is not Kind.ITEM]
        self._item_partitions = [tp for tp in assigned if kinds[tp[0]] is Kind.ITEM]
        self._readers = {tp: _Reader(kinds[tp[0]], Dedup(join.attribution_window_us)) for tp in assigned}
        self._watermarks = Watermarks(self._event_partitions, grace_us=join.grace_us, idle_timeout_us=join.idle_timeout_us, now=clock())
        self._items = Items()
        self._join = Join(join, self._items)
        self._restored: Mapping[TopicPartition, int] = {}
        self._opened = False
        self._paused: list[TopicPartition] = []
        self._waiting_since: float | None = None  # when the oldest sample that waits was emitted, on the injected clock
        self._kept_house = float("-inf")
        self._told_waiting = False  # in this pause
        telemetry.start(kinds, assigned)

    # --- reading ----------------------------------------------------------------------------------------------------------------

    def batches(self) -> Iterator[Batch | None]:
        """Yield batches for ever, and None whenever nothing is ready, so that the caller can do other things.

        Waits no longer than 0.1 s for records. The items topic is read to the end that it has now before any event is.

        Raises:
            OffsetLost: the log does not hold the next offset of a partition.
            SourceUnavailable: the brokers did not answer when reading began.
        """
        if not self._opened:
            self._seek()
            self._opened = True
            yield from self._read_items()
        while True:
            records = self._source.poll(_POLL_TIMEOUT_SECONDS)
            now = self._clock()
            self._consume(records, now)
            self._keep_house(now)
            self._hold_back()
            num_batches = 0
            for batch in self._process(self._watermarks.advance()):
                num_batches += 1
                yield batch
            if self._waiting_since is not None and self._clock() - self._waiting_since >= self._batch.flush_seconds:
                yield self._close("flush")
            elif not num_batches:
                yield None

    def drain(self, until_us: int | None = None) -> Iterator[Batch]:
        """Yield what is left when the stream has ended: every event, and every observation that ends by `until_us`.

        Args:
            until_us: event time up to which windows close; the newest event time seen by default.
        """
        self._watermarks.advance_to((self._watermarks.newest_us if until_us is None else until_us) + 1)
        yield from self._process(self._watermarks.watermark_us)
        self._join.forget(self._watermarks.watermark_us)
        self._tell_join()
        if self._join.samples:
            yield self._close("end")

    def next_offsets(self) -> dict[TopicPartition, int]:
        """Return the offset of the next record to consume, of every partition."""
        return {tp: reader.next_offset for tp, reader in self._readers.items()}

    def watermark_us(self) -> int | None:
        """Return the event time before which nothing more is expected; None before the first record."""
        return self._watermarks.watermark_us if self._watermarks.watermark_us > BEGINNING_US else None

    def _seek(self) -> None:
        beginnings, ends = self._source.beginning_offsets(), self._source.end_offsets()
        for (topic, partition), reader in self._readers.items():
            tp = (topic, partition)
            offset = self._restored.get(tp)
            if offset is None:
                offset = reader.start = beginnings[tp]
            elif not beginnings[tp] <= offset <= ends.get(tp, offset):
                if offset < beginnings[tp]:
                    self._telemetry.lost_records.labels(topic).inc(beginnings[tp] - offset)
                raise OffsetLost(topic, partition, offset, beginnings[tp], ends.get(tp))
            reader.next_offset = offset
            self._source.seek(topic, partition, offset)

    def _read_items(self) -> Iterator[None]:
        """Read the items topic to the end that it has now, and nothing else meanwhile."""
        if not self._item_partitions:
            return
        self._source.pause(self._event_partitions)
        ends: Mapping[TopicPartition, int] = {}
        while not ends or any(self._readers[tp].next_offset < ends[tp] for tp in self._item_partitions):
            if not ends:
                ends = self._source.end_offsets()
            self._consume(self._source.poll(_POLL_TIMEOUT_SECONDS), self._clock())
            yield None
        self._source.resume(self._event_partitions)

    def _consume(self, records: Sequence[Record], now: float) -> None:
        """Decode, order, deduplicate and hand to the join; what cannot be read is set aside."""
        observe, push = self._watermarks.observe, self._join.push
        at: tuple[str, int] = ("", -1)
        ages: dict[str, int] = {}
        for record in records:
            if record.partition != at[1] or record.topic != at[0]:
                at = (record.topic, record.partition)
                reader = self._readers[at]
                kind, counts, seen = reader.kind, reader.counts, reader.dedup.seen
            reader.num_records += 1
            if record.value is not None:
                reader.num_bytes += len(record.value)
            try:
                event = decode(kind, record)
            except Invalid as invalid:
                self._dead_letters.put(record, invalid)
                counts[kind, "invalid"] += 1
                continue
            if event.clamped:
                reader.num_clamped += 1
            time_us = event.time_us
            if isinstance(event, ItemUpdate):
                counts["item", "accepted" if record.key == event.object_id.encode() else "miskeyed"] += 1
                push(max(time_us, self._watermarks.watermark_us), event)
                continue
            name = _NAMES[event.__class__]
            ages[name] = time_us
            key_us, watermark_us = observe(at, time_us, now)
            if isinstance(event, Other):
                counts[name, "ignored"] += 1
                continue
            if event.identity is not None and seen(event.identity, key_us, watermark_us):
                counts[name, "duplicate"] += 1
                continue
            if record.key != event.client_id.encode():
                counts[name, "miskeyed"] += 1
            elif key_us > time_us:
                counts[name, "late"] += 1
            else:
                counts[name, "accepted"] += 1
            if not isinstance(event, Purchase) and event.num_cut_chars:
                reader.num_cut += 1
            push(key_us, event)
            reader.newest_record_us = record.timestamp_us
        position = self._source.position
        for (topic, partition), reader in self._readers.items():
            reader.next_offset = position(topic, partition)
        if records:
            self._tell(ages, now)

    def _process(self, watermark_us: int) -> Iterator[Batch]:
        join, size = self._join, self._batch.size
        while join.advance(watermark_us, size):
            yield self._close("full")
        if join.samples and self._waiting_since is None:
            self._waiting_since = self._clock()
        self._tell_join()

    def _close(self, cause: str) -> Batch:
        samples = tuple(self._join.samples)
        self._join.samples.clear()
        self._waiting_since = None
        slices = tuple(self._slices())
        for reader in self._readers.values():
            reader.start, reader.num_records = reader.next_offset, 0
        return Batch(samples=samples, slices=slices, cause=cause, watermark_us=self._join.now_us)

    def _slices(self) -> Iterator[Slice]:
        for (topic, partition), reader in self._readers.items():
            if reader.next_offset > reader.start:
                yield Slice(topic, partition, reader.start, reader.next_offset, reader.num_records)

    def _hold_back(self) -> None:
        """Pause partitions that are ahead of the watermark while too many events wait for it; nothing but memory depends on it."""
        limit = self._config.max_pending // 10
        if self._join.num_pending > limit or (self._paused and self._join.num_pending > limit // 2):
            paused = self._watermarks.ahead()
        else:
            paused = []
        if paused != self._paused:
            self._source.resume([tp for tp in self._paused if tp not in paused])
            self._source.pause([tp for tp in paused if tp not in self._paused])
            self._paused = paused

    def _keep_house(self, now: float) -> None:
        """Leave out partitions that are idle, and tell how far behind we are; asks for end offsets, so about once a second."""
        if now - self._kept_house < min(_HOUSEKEEPING_SECONDS, self._config.idle_timeout_us / 2e6):
            return
        self._kept_house = now
        ends = self._source.end_offsets()
        for tp in self._watermarks.quiet(now):
            if tp in ends and self._readers[tp].next_offset >= ends[tp]:
                self._watermarks.set_idle(tp)
        self._tell_lag(ends, now)
        self._tell_waiting()

    # --- telemetry --------------------------------------------------------------------------------------------------------------

    def _tell(self, ages: Mapping[str, int], now: float) -> None:
        telemetry = self._telemetry
        for name, time_us in ages.items():
            telemetry.event_age.labels(name).observe(max(now - time_us / 1e6, 0))
        for (topic, _), reader in self._readers.items():
            for (event, outcome), count in reader.counts.items():
                telemetry.events.labels(topic, event, outcome).inc(count)
            reader.counts.clear()
            telemetry.received_bytes.labels(topic).inc(reader.num_bytes)
            telemetry.clock_clamped.labels(topic).inc(reader.num_clamped)
            telemetry.cut_queries.labels(topic).inc(reader.num_cut)
            reader.num_bytes = reader.num_clamped = reader.num_cut = 0

    def _tell_join(self) -> None:
        join, telemetry = self._join, self._telemetry
        for (event, result), count in join.results.items():
            telemetry.labels.labels(event, result).inc(count)
        for event, delay_us in join.delays_us:
            telemetry.label_delay.labels(event).observe(delay_us / 1e6)
        telemetry.missing_texts.inc(join.num_missing_texts)
        join.results.clear()
        join.delays_us.clear()
        join.num_missing_texts = 0
        telemetry.open_exposures.set(join.num_open_exposures)
        telemetry.open_clicks.set(join.num_open_clicks)
        telemetry.pending_events.set(join.num_pending)

    def _tell_lag(self, ends: Mapping[TopicPartition, int], now: float) -> None:
        telemetry = self._telemetry
        telemetry.dedup_ids.set(sum(len(reader.dedup) for reader in self._readers.values()))
        paused = Counter(topic for topic, _ in self._paused)
        for (topic, partition), reader in self._readers.items():
            labels = (topic, str(partition))
            telemetry.next_offset.labels(*labels).set(reader.next_offset)
            telemetry.paused_partitions.labels(topic).set(paused[topic])
            if (topic, partition) in self._event_partitions:
                watermark_us = self._watermarks.own_watermark((topic, partition))
                if watermark_us > BEGINNING_US:
                    telemetry.watermark.labels(*labels).set(watermark_us / 1e6)
            end = ends.get((topic, partition))
            if end is not None:
                lag = max(end - reader.next_offset, 0)
                telemetry.end_offset.labels(*labels).set(end)
                telemetry.lag_records.labels(*labels).set(lag)
                behind = now - reader.newest_record_us / 1e6 if lag and reader.newest_record_us > 0 else 0
                telemetry.lag_seconds.labels(*labels).set(max(behind, 0))

    def _tell_waiting(self) -> None:
        """Say once per pause which event would close the lists that are open: event time moves with events only."""
        if not self._watermarks.all_idle:
            self._told_waiting = False
        elif not self._told_waiting:
            self._told_waiting = True
            num_lists, key_us = self._join.waiting_lists()
            if num_lists:
                later_than = datetime.fromtimestamp((key_us + self._config.grace_us) / 1e6, UTC).isoformat()
                _log.info("everything is read; waiting for an event", extra={"later_than": later_than, "open_lists": num_lists})

    # --- state ------------------------------------------------------------------------------------------------------------------

    def snapshot(self) -> dict[str, bytes]:
        """Return every owner's state as deterministic bytes: `part-<p>` per partition number, `items`, and `ingest`."""
        encode = msgspec.msgpack.encode
        parts = {}
        for number in self._numbers:
            dedup = {topic: reader.dedup.snapshot() for (topic, p), reader in self._event_readers() if p == number}
            state = _PartState(FORMAT, self._watermarks.snapshot(number), dedup, self._join.snapshot(number))
            parts[f"part-{number}"] = encode(state)
        self._telemetry.state_bytes.set(sum(map(len, parts.values())))
        parts["items"] = encode(_ItemsState(FORMAT, self._items.snapshot(), self._join.pending_items()))
        ingest = _IngestState(FORMAT, self._watermarks.watermark_us, self._join.now_us, self._join.samples, list(self._slices()))
        parts["ingest"] = encode(ingest)
        return parts

    def restore(self, parts: Mapping[str, bytes], next_offsets: Mapping[TopicPartition, int]) -> None:
        """Take back what `snapshot` and `next_offsets` returned; to be called before `batches`, on a new pipeline.

        Raises:
            SnapshotRefused: the state is of another format, or of other partitions than the log has now.
        """
        assert not self._opened, "restore comes before reading"
        expected = {"items", "ingest", *(f"part-{number}" for number in self._numbers)}
        missing = [tp for tp in self._event_partitions if tp not in next_offsets]
        if set(parts) != expected or missing:
            raise SnapshotRefused(
                f"the snapshot has the parts {sorted(parts)} and the log needs {sorted(expected)}"
                f"{f', offsets are missing for {missing}' if missing else ''}. Topics and partition counts must be those of the checkpoint."
            )
        now = self._clock()
        opened = []
        for number in self._numbers:
            state = _decode(parts[f"part-{number}"], _PartState)
            self._watermarks.restore(number, state.clocks, now)
            for (topic, p), reader in self._event_readers():
                if p == number:
                    reader.dedup.restore(state.dedup[topic])
            opened.append(state.open)
        items = _decode(parts["items"], _ItemsState)
        ingest = _decode(parts["ingest"], _IngestState)
        self._items.restore(items.known)
        self._join.restore(opened, items.pending, ingest.now_us)
        self._join.samples.extend(ingest.samples)
        self._watermarks.advance_to(ingest.watermark_us)
        self._restored = dict(next_offsets)
        for tp, reader in self._readers.items():
            reader.start = reader.next_offset = next_offsets.get(tp, 0)
        for consumed in ingest.slices:
            reader = self._readers[consumed.topic, consumed.partition]
            reader.start, reader.num_records = consumed.start, consumed.num_records

    def _event_readers(self) -> Iterable[tuple[TopicPartition, _Reader]]:
        return ((tp, self._readers[tp]) for tp in self._event_partitions)


def _decode(data: bytes, kind: type[_S]) -> _S:
    try:
        state = msgspec.msgpack.decode(data, type=kind)
    except msgspec.DecodeError as error:
        raise SnapshotRefused(f"a snapshot of {kind.__name__} cannot be read: {error}") from error
    if state.format != FORMAT:
        raise SnapshotRefused(f"a snapshot has the format {state.format}, and this code reads {FORMAT}. Migrate the checkpoint first.")
    return state
