"""The order of it all, as one generator: records in, batches out. The door of this folder.

Hot path: one core takes 30,000 events/s from broker to samples, held by `benchmarks/ingest.py`.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import NamedTuple, TypeVar

import msgspec

from consumers.audit import Hasher
from consumers.clock import BEGINNING_US, Watermarks
from consumers.codec import decode
from consumers.dead_letter import DeadLetters
from consumers.dedup import Dedup
from consumers.errors import Invalid, LogTruncated, OffsetLost, PartitionsMismatch, SnapshotRefused
from consumers.events import Click, Exposure, ItemUpdate, Kind, Other, Purchase
from consumers.exclusion import Exclusions
from consumers.items import Items
from consumers.join import Join, JoinConfig, OpenPart
from consumers.replay import Replay
from consumers.source import Record, Source, TopicPartition
from consumers.telemetry import Telemetry
from weighting.provenance import Audit, Gap, Poll, Slice
from weighting.sample import Attribute, Batch, Sample, Signal

FULL, FLUSH, END = "full", "flush", "end"  #: why a batch closed
STOP, RECORD = (
    "stop",
    "record",
)  #: what to do about records that retention took before they were read

_log = logging.getLogger(__name__)

#: Format of the snapshots.
FORMAT = 2

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
        named = {
            self.exposures: Kind.EXPOSURE,
            self.clicks: Kind.CLICK,
            self.purchases: Kind.PURCHASE,
            self.items: Kind.ITEM,
        }
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
            raise ValueError(
                f"batch.flush_seconds: got {self.flush_seconds}, expected a number >= 0"
            )


class Replayed(NamedTuple):
    """What a journal says of one batch; or, without a cause, that an operator moved offsets here."""

    polls: Sequence[Poll]
    cause: str | None
    moved: Sequence[tuple[str, int, int]] = ()  #: (topic, partition, next offset)


class _Reader:
    """Where one partition stands, and what was counted in it since telemetry was told."""

    __slots__ = (
        "audit",
        "counts",
        "dedup",
        "hasher",
        "kind",
        "newest_record_us",
        "next_offset",
        "num_bytes",
        "num_clamped",
        "num_cut",
    )

    def __init__(self, kind: Kind, dedup: Dedup, hasher: Hasher) -> None:
        self.kind = kind
        self.dedup = dedup
        self.hasher = hasher
        self.audit = Audit()
        self.next_offset = 0
        self.newest_record_us = 0
        self.counts: Counter[tuple[str, str]] = Counter()  # (event, outcome)
        self.num_bytes = 0
        self.num_clamped = 0
        self.num_cut = 0


class _PartState(msgspec.Struct, array_like=True):
    """All that is kept of one partition number, whoever reads it."""

    format: int
    clocks: dict[str, tuple[int, int, bool]]
    dedup: dict[str, dict[str, object]]
    open: OpenPart
    audits: dict[str, Audit]


class _RankState(msgspec.Struct, array_like=True):
    """All that is kept of one pipeline beside its partitions."""

    format: int
    watermark_us: int
    now_us: int
    samples: list[Sample]  # emitted and not yet in a batch
    polls: list[Poll]  # consumed and not yet in a batch
    items: dict[str, tuple[str, dict[str, Attribute]]]
    pending_items: list[tuple[int, ItemUpdate]]
    item_offsets: list[tuple[str, int, int]]
    item_audits: list[tuple[str, int, Audit]]
    breaker: bytes  # of the dead letters


_S = TypeVar("_S", _PartState, _RankState)


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
        rank: int = 0,
        excluded: Exclusions | None = None,
        on_gap: str = STOP,
        retention_seconds: Mapping[str, float] = {},
        observe: Callable[
            [
                Mapping[TopicPartition, int],
                Mapping[TopicPartition, int],
                Collection[TopicPartition],
            ],
            object,
        ] = lambda *_: None,
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
            rank: of this pipeline among those that share the partitions.
            excluded: whose events are left out.
            on_gap: `stop`, or `record`: go on behind records that retention took, and say so for good.
            retention_seconds: how long the records of a topic are kept, where that is known; for telemetry.
            observe: hears about once a second of next offsets, of the end offsets known last, and which partitions wait for others.

        Raises:
            PartitionsMismatch: topics that are joined have different partition counts.
        """
        self._source = source
        self._config = join
        self._batch = batch
        self._clock = clock
        self._dead_letters = dead_letters
        self._telemetry = telemetry
        self._rank = rank
        self._excluded = excluded
        self._on_gap = on_gap
        self._retention_seconds = dict(retention_seconds)
        self._observe = observe
        self._ends: dict[TopicPartition, int] = {}
        kinds = topics.kinds()
        assigned = source.assignment()
        numbers = {
            topic: {p for t, p in assigned if t == topic}
            for topic, kind in kinds.items()
            if kind is not Kind.ITEM
        }
        if any(of_topic != numbers[topics.clicks] for of_topic in numbers.values()):
            raise PartitionsMismatch({topic: len(of_topic) for topic, of_topic in numbers.items()})
        self._numbers = sorted(numbers[topics.clicks])
        self._event_partitions = [tp for tp in assigned if kinds[tp[0]] is not Kind.ITEM]
        self._item_partitions = [tp for tp in assigned if kinds[tp[0]] is Kind.ITEM]
        self._readers = {
            tp: _Reader(kinds[tp[0]], Dedup(join.attribution_window_us), Hasher(*tp))
            for tp in assigned
        }
        self._watermarks = Watermarks(
            self._event_partitions,
            grace_us=join.grace_us,
            idle_timeout_us=join.idle_timeout_us,
            now=clock(),
        )
        self._items = Items()
        self._join = Join(join, self._items)
        self._restored: dict[TopicPartition, int] = {}
        self._known: dict[
            TopicPartition, tuple[int, int]
        ] = {}  # offset and hash of the record consumed last, where it is retained
        self._opened = False
        self._paused: list[TopicPartition] = []
        self._polls: list[Poll] = []  # consumed since the last batch
        self._waiting_since: float | None = (
            None  # when the oldest sample that waits was emitted, on the injected clock
        )
        self._kept_house = float("-inf")
        self.gaps: list[Gap] = []  #: records that can never be read, found by this pipeline
        self.live = False  #: whether `batches` has reached the log as it grows
        self._told_waiting = False  # in this pause
        telemetry.start(kinds, assigned)

    # --- reading ----------------------------------------------------------------------------------------------------------------

    def batches(
        self,
        tail: Iterable[Replayed] = (),
        until: Mapping[TopicPartition, int] | None = None,
        *,
        end: bool = False,
    ) -> Iterator[Batch | Signal]:
        """Yield batches for ever, and None whenever nothing is ready, so that the caller can do other things.

        Waits no longer than 0.1 s for records. The items topic is read to the end that it has now before any event is.

        Args:
            tail: what a journal says of the batches after the restored state, the turns that it contains left out: consumed first,
                exactly as they were then.
            until: next offsets up to which the log is then read in the one order that no clock or poll can change; None to go on live.
            end: whether to end there.

        Raises:
            OffsetLost: the log does not hold the next offset of a partition.
            LogTruncated: the record consumed last is another one now.
            SourceUnavailable: the brokers did not answer when reading began.
        """
        self.open()
        replay = Replay(self._source, self._positions())
        yield from self._recognise(replay)
        if until is not None:
            self._watermarks.set_busy(
                tp
                for tp in self._event_partitions
                if self._readers[tp].next_offset < until.get(tp, 0)
            )
        yield from self._process(
            self._watermarks.watermark_us
        )  # what was ready when the state was taken
        yield from self._again(tail, replay)
        if until is not None:
            yield from self._in_order(until)
        self.live = True
        if not end:
            yield from self._live()

    def open(self) -> None:
        """Position the source, once; `batches` does so if nobody has.

        Raises:
            OffsetLost: the log does not hold the next offset of a partition, and `on_gap` is to stop.
            SourceUnavailable: the brokers did not answer.
        """
        if self._opened:
            return
        self._opened = True
        beginnings, ends = self._source.beginning_offsets(), self._source.end_offsets()
        for tp, reader in self._readers.items():
            offset = self._restored.get(tp)
            if offset is None:
                offset = beginnings[tp]
            elif not beginnings[tp] <= offset <= ends.get(tp, offset):
                offset = self._lost(OffsetLost(*tp, offset, beginnings[tp], ends.get(tp)))
            reader.next_offset = offset
            last = reader.audit.last
            if (
                last is not None
                and reader.kind is not Kind.ITEM
                and beginnings[tp] <= last[0] < ends.get(tp, 0)
            ):
                self._known[tp] = last
                offset = last[0]
            self._source.seek(*tp, offset)

    def _recognise(self, replay: Replay) -> Iterator[Signal]:
        """Read the record that was consumed last in every partition once more: brokers that lost it may have another one in its place."""
        for tp, (offset, known) in self._known.items():
            reader = self._readers[tp]
            for record in (
                yield from replay.read(Poll((Slice(*tp, offset, offset + 1, 1, known),), ()))
            ):
                if reader.hasher(record) != known:
                    raise LogTruncated(*tp, reader.next_offset, offset)
            if reader.next_offset != offset + 1:
                replay.move(tp, reader.next_offset)

    def _live(self) -> Iterator[Batch | Signal]:
        """The log as it grows: what is consumed together, and which partition is idle, is for polls and clock to say."""
        ends: Mapping[TopicPartition, int] = {}
        if self._item_partitions:
            self._source.pause(self._event_partitions)
        while self._item_partitions and (not ends or self._behind(self._item_partitions, ends)):
            if not ends:
                ends = self._source.end_offsets()
            yield from self._advance(
                self._consume(self._poll(), self._positions(), self._clock()), ()
            )
            yield Signal.IDLE
        if self._item_partitions:
            self._source.resume(self._event_partitions)
        while True:
            records, now = self._poll(), self._clock()
            consumed = self._consume(records, self._positions(), now)
            num_batches = 0
            for batch in self._advance(consumed, self._keep_house(now)):
                num_batches += 1
                yield batch
            if (
                self._waiting_since is not None
                and self._clock() - self._waiting_since >= self._batch.flush_seconds
            ):
                yield self._close(FLUSH)
            elif not num_batches:
                yield Signal.IDLE

    def _again(self, tail: Iterable[Replayed], replay: Replay) -> Iterator[Batch | Signal]:
        """What a journal says: the same turns, and the same flushes."""
        for polls, cause, moved in tail:
            for topic, partition, offset in moved:
                replay.move((topic, partition), offset)
                self._readers[topic, partition].next_offset = offset
            for poll in polls:
                records = yield from replay.read(poll)
                ends = {(part.topic, part.partition): part.end for part in poll.slices}
                for part in poll.slices:  # past what was lost before it
                    self._readers[part.topic, part.partition].next_offset = part.start
                yield from self._advance(self._consume(records, ends, self._clock()), poll.idle)
            if cause == FLUSH:
                yield self._close(FLUSH)
        replay.close()

    def _in_order(self, until: Mapping[TopicPartition, int]) -> Iterator[Batch | Signal]:
        """The log up to `until` as a pure function of it: no flush, and a partition holds the others back until it is read to its end."""
        wanted = {
            tp: max(until.get(tp, 0), reader.next_offset) for tp, reader in self._readers.items()
        }
        busy = {tp for tp in self._event_partitions if self._readers[tp].next_offset < wanted[tp]}
        if self._item_partitions:
            self._source.pause(self._event_partitions)
        items_first = bool(self._item_partitions)
        while busy or items_first:
            if items_first and not self._behind(self._item_partitions, wanted):
                items_first = False
                self._source.resume(self._event_partitions)
            records = [
                record
                for record in self._poll()
                if record.offset < wanted[record.topic, record.partition]
            ]
            ends = {tp: min(offset, wanted[tp]) for tp, offset in self._positions().items()}
            consumed = self._consume(records, ends, self._clock())
            done = sorted(tp for tp in busy if self._readers[tp].next_offset >= wanted[tp])
            busy.difference_update(done)
            self._source.pause(done)
            yield from self._advance(consumed, tuple(done))
            yield Signal.IDLE
        for tp, offset in wanted.items():
            self._source.seek(*tp, offset)
        self._source.resume(self._event_partitions)
        self._paused = []

    def drain(self, until_us: int | None = None) -> Iterator[Batch]:
        """Yield what is left when the stream has ended: every event, and every observation that ends by `until_us`.

        Args:
            until_us: event time up to which windows close; the newest event time seen by default.
        """
        self._watermarks.advance_to(
            (self._watermarks.newest_us if until_us is None else until_us) + 1
        )
        yield from self._process(self._watermarks.watermark_us)
        self._join.forget(self._watermarks.watermark_us)
        self._tell_join()
        if self._join.samples:
            yield self._close(END)

    def next_offsets(self) -> dict[TopicPartition, int]:
        """Return the offset of the next record to consume, of every partition."""
        return {tp: reader.next_offset for tp, reader in self._readers.items()}

    def watermark_us(self) -> int | None:
        """Return the event time before which nothing more is expected; None before the first record."""
        return (
            self._watermarks.watermark_us if self._watermarks.watermark_us > BEGINNING_US else None
        )

    def _poll(self) -> Sequence[Record]:
        try:
            return self._source.poll(_POLL_TIMEOUT_SECONDS)
        except OffsetLost as lost:
            offset = self._lost(lost)
            self._readers[lost.topic, lost.partition].next_offset = offset
            self._source.seek(lost.topic, lost.partition, offset)
            return []

    def _lost(self, lost: OffsetLost) -> int:
        """Return where to go on after records that retention took, if the operator wants that; otherwise stop."""
        missing = lost.num_missing
        if missing:
            self._telemetry.lost_records.labels(lost.topic).inc(missing)
        if self._on_gap != RECORD or not missing or lost.beginning is None:
            raise lost
        self.gaps.append(
            Gap(
                topic=lost.topic,
                partition=lost.partition,
                start=lost.next_offset,
                end=lost.beginning,
                reason="retention",
                policy=self._on_gap,
            )
        )
        _log.error(
            "%s[%d]: records [%d, %d) are lost to retention; going on behind them, as kafka.on_gap says.",
            lost.topic,
            lost.partition,
            lost.next_offset,
            lost.beginning,
        )
        return lost.beginning

    def _positions(self) -> dict[TopicPartition, int]:
        position = self._source.position
        return {tp: position(*tp) for tp in self._readers}

    def _behind(
        self, partitions: Iterable[TopicPartition], ends: Mapping[TopicPartition, int]
    ) -> bool:
        return any(self._readers[tp].next_offset < ends[tp] for tp in partitions)

    def _consume(
        self, records: Sequence[Record], ends: Mapping[TopicPartition, int], now: float
    ) -> tuple[Slice, ...]:
        """Decode, order, deduplicate and hand to the join; what cannot be read is set aside. Returns what was consumed up to `ends`."""
        observe, push, excluded = self._watermarks.observe, self._join.push, self._excluded
        at: tuple[str, int] = ("", -1)
        ages: dict[str, int] = {}
        sums: dict[
            TopicPartition, list[int]
        ] = {}  # number of records, sum of hashes, last offset, last hash
        for topic, num_records in Counter(record.topic for record in records).items():
            self._dead_letters.seen(topic, num_records)
        for record in records:
            if record.partition != at[1] or record.topic != at[0]:
                at = (record.topic, record.partition)
                reader = self._readers[at]
                kind, counts, seen, hasher = (
                    reader.kind,
                    reader.counts,
                    reader.dedup.seen,
                    reader.hasher,
                )
                total = sums.setdefault(at, [0, 0, 0, 0])
            hashed = hasher(record)
            total[0] += 1
            total[1] += hashed
            total[2] = record.offset
            total[3] = hashed
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
                counts[
                    "item", "accepted" if record.key == event.object_id.encode() else "miskeyed"
                ] += 1
                push(max(time_us, self._watermarks.watermark_us), event)
                continue
            name = _NAMES[event.__class__]
            if excluded is not None and excluded.covers(event):
                counts[name, "excluded"] += 1
                continue
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
        slices = []
        for tp, end in ends.items():
            reader = self._readers[tp]
            if end > reader.next_offset:
                num_records, sum64, last, last_hash = sums.get(tp, (0, 0, 0, 0))
                sum64 %= 1 << 64
                counted = (
                    (0, 0) if reader.kind is Kind.ITEM else (num_records, sum64)
                )  # compaction may take what was read once
                slices.append(Slice(*tp, reader.next_offset, end, *counted))
                if num_records:
                    reader.audit.add(num_records, sum64, (last, last_hash))
                reader.next_offset = end
        if records:
            self._tell(ages, now)
        return tuple(slices)

    def _advance(
        self, consumed: tuple[Slice, ...], idle: Iterable[TopicPartition]
    ) -> Iterator[Batch]:
        """End a turn: from here on nothing but what was consumed, and who is idle, decides."""
        idle = tuple(idle)
        for tp in idle:
            self._watermarks.set_idle(tp)
        if consumed or idle:
            self._polls.append(Poll(consumed, idle))
        self._hold_back()
        yield from self._process(self._watermarks.advance())

    def _process(self, watermark_us: int) -> Iterator[Batch]:
        join, size = self._join, self._batch.size
        while join.advance(watermark_us, size):
            yield self._close(FULL)
        if join.samples and self._waiting_since is None:
            self._waiting_since = self._clock()
        self._tell_join()

    def _close(self, cause: str) -> Batch:
        samples, polls = tuple(self._join.samples), tuple(self._polls)
        self._join.samples.clear()
        self._polls.clear()
        self._waiting_since = None
        return Batch(samples=samples, polls=polls, cause=cause, watermark_us=self._join.now_us)

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

    def _keep_house(self, now: float) -> list[TopicPartition]:
        """Return the partitions that are idle from now on, and tell how far behind we are; asks for end offsets about once a second."""
        if now - self._kept_house < min(_HOUSEKEEPING_SECONDS, self._config.idle_timeout_us / 2e6):
            return []
        self._kept_house = now
        ends = self._source.end_offsets()
        self._ends.update(ends)
        self._observe(self.next_offsets(), self._ends, self._paused)
        self._tell_lag(ends, now)
        self._tell_waiting()
        return [
            tp
            for tp in self._watermarks.quiet(now)
            if tp in ends and self._readers[tp].next_offset >= ends[tp]
        ]

    # --- telemetry --------------------------------------------------------------------------------------------------------------

    def _tell(self, ages: Mapping[str, int], now: float) -> None:
        telemetry = self._telemetry
        for name, time_us in ages.items():
            telemetry.event_age.labels(name).observe(max(now - time_us / 1e6, 0))
        for (topic, _), reader in self._readers.items():
            for (event, outcome), count in reader.counts.items():
                telemetry.events.labels(topic, event, outcome).inc(count)
                reader.audit.count(outcome, count)
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
        telemetry.unaccounted.set(
            sum(reader.audit.num_unaccounted for reader in self._readers.values())
        )
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
                behind = (
                    now - reader.newest_record_us / 1e6
                    if lag and reader.newest_record_us > 0
                    else 0
                )
                telemetry.lag_seconds.labels(*labels).set(max(behind, 0))
                if topic in self._retention_seconds:
                    telemetry.retention_headroom.labels(*labels).set(
                        self._retention_seconds[topic] - max(behind, 0)
                    )

    def _tell_waiting(self) -> None:
        """Say once per pause which event would close the lists that are open: event time moves with events only."""
        if not self._watermarks.all_idle:
            self._told_waiting = False
        elif not self._told_waiting:
            self._told_waiting = True
            num_lists, key_us = self._join.waiting_lists()
            if num_lists:
                later_than = datetime.fromtimestamp(
                    (key_us + self._config.grace_us) / 1e6, UTC
                ).isoformat()
                _log.info(
                    "everything is read; waiting for an event",
                    extra={"later_than": later_than, "open_lists": num_lists},
                )

    # --- state ------------------------------------------------------------------------------------------------------------------

    def snapshot(self) -> dict[str, bytes]:
        """Return every owner's state as deterministic bytes: `part-<p>` per partition number, and `rank-<r>`."""
        encode = msgspec.msgpack.encode
        parts = {}
        for number in self._numbers:
            readers = {topic: reader for (topic, p), reader in self._event_readers() if p == number}
            dedup = {topic: reader.dedup.snapshot() for topic, reader in readers.items()}
            audits = {topic: reader.audit for topic, reader in readers.items()}
            parts[f"part-{number}"] = encode(
                _PartState(
                    FORMAT,
                    self._watermarks.snapshot(number),
                    dedup,
                    self._join.snapshot(number),
                    audits,
                )
            )
        self._telemetry.state_bytes.set(sum(map(len, parts.values())))
        items = [(*tp, self._readers[tp]) for tp in self._item_partitions]
        parts[f"rank-{self._rank}"] = encode(
            _RankState(
                FORMAT,
                self._watermarks.watermark_us,
                self._join.now_us,
                self._join.samples,
                self._polls,
                self._items.snapshot(),
                self._join.pending_items(),
                [(topic, p, reader.next_offset) for topic, p, reader in items],
                [(topic, p, reader.audit) for topic, p, reader in items],
                self._dead_letters.snapshot(),
            )
        )
        return parts

    def num_polls(self) -> int:
        """Return how many turns the snapshot contains that no batch has named yet."""
        return len(self._polls)

    def audits(self) -> dict[TopicPartition, Audit]:
        """Return what was consumed of every partition, as the manifest tells it."""
        return {tp: reader.audit for tp, reader in self._readers.items()}

    def restore(
        self,
        parts: Mapping[str, bytes],
        next_offsets: Mapping[TopicPartition, int],
        *,
        same_ranks: bool = True,
    ) -> None:
        """Take back what `snapshot` and `next_offsets` returned; to be called before `batches`, on a new pipeline.

        Args:
            parts: of all ranks; those of other partitions are left alone.
            next_offsets: of all partitions.
            same_ranks: whether the partitions were spread over as many ranks as they are now.

        Raises:
            SnapshotRefused: the state is of another format, or of other partitions than the log has now.
        """
        assert not self._opened, "restore comes before reading"
        ranks = sorted(name for name in parts if name.startswith("rank-"))
        expected = {
            *(f"part-{number}" for number in self._numbers),
            *([f"rank-{self._rank}"] if same_ranks else ranks[:1]),
        }
        missing = [tp for tp in self._event_partitions if tp not in next_offsets]
        if not expected <= set(parts) or missing:
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
                    reader.audit = state.audits[topic]
            opened.append(state.open)
        if same_ranks:
            rank = _decode(parts[f"rank-{self._rank}"], _RankState)
            self._polls.extend(rank.polls)
            self._dead_letters.restore(rank.breaker)
        else:
            rank = self._merged([_decode(parts[name], _RankState) for name in ranks])
        self._items.restore(rank.items)
        self._join.restore(opened, rank.pending_items, rank.now_us)
        self._join.samples.extend(rank.samples)
        self._watermarks.advance_to(rank.watermark_us)
        self._restored = dict(next_offsets)
        if len(ranks) > 1:  # the manifest has the least of all ranks
            self._restored.update({(topic, p): offset for topic, p, offset in rank.item_offsets})
        for topic, p, audit in rank.item_audits:
            self._readers[topic, p].audit = audit
        for tp, reader in self._readers.items():
            reader.next_offset = self._restored.get(tp, 0)

    def _merged(self, ranks: Sequence[_RankState]) -> _RankState:
        """Return the state of ranks that were another number: the least that all have seen; samples go to who reads their partition."""
        least = min(ranks, key=lambda rank: [offset for _, _, offset in rank.item_offsets])
        own = set(self._numbers)
        return _RankState(
            FORMAT,
            min(rank.watermark_us for rank in ranks),
            min(rank.now_us for rank in ranks),
            [
                sample
                for rank in ranks
                for sample in rank.samples
                if sample.positions[0].partition in own
            ],
            [],
            least.items,
            least.pending_items,
            least.item_offsets,
            least.item_audits,
            b"",  # counted anew
        )

    def _event_readers(self) -> Iterable[tuple[TopicPartition, _Reader]]:
        return ((tp, self._readers[tp]) for tp in self._event_partitions)


def polls_of(part: bytes) -> list[Poll]:
    """Return the turns that a `rank-<r>` part of a snapshot contains and no batch has named yet.

    Raises:
        SnapshotRefused: the part is of another format.
    """
    return _decode(part, _RankState).polls


def _decode(data: bytes, kind: type[_S]) -> _S:
    try:
        state = msgspec.msgpack.decode(data, type=kind)
    except msgspec.DecodeError as error:
        raise SnapshotRefused(f"a snapshot of {kind.__name__} cannot be read: {error}") from error
    if state.format != FORMAT:
        raise SnapshotRefused(
            f"a snapshot has the format {state.format}, and this code reads {FORMAT}. Migrate the checkpoint first."
        )
    return state
