"""Records in, batches out, as one generator: the door of this folder.

Hot path: one core takes 30,000 events/s from broker to samples, held by `benchmarks/ingest.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

from msgspec import Meta

from consumers import state
from consumers.assembler import Assembler
from consumers.dead_letter import DeadLetters
from consumers.errors import PartitionsMismatch, SnapshotRefused
from consumers.events import Kind
from consumers.exclusion import Exclusions
from consumers.joining.dedup import Dedup
from consumers.joining.join import JoinConfig
from consumers.reading.growth import CARRY, Growth
from consumers.reading.partition import Collaborators, Partition
from consumers.reading.reader import STOP, Reader
from consumers.reading.replay import Replay, Replayed
from consumers.reading.schedule import Observe, Schedule
from consumers.reporting import Reporting
from consumers.source import Source
from consumers.telemetry import Telemetry
from weighting.constraints import Count, NotNegative, check
from weighting.provenance import Audit, Counts, Gap, Offsets, TopicPartition
from weighting.sample import Batch, Signal


@dataclass(frozen=True, slots=True, kw_only=True)
class Topics:
    """Names of the topics."""

    exposures: Annotated[str | None, Meta(description="Exposures; null without any.")] = "exposures"
    clicks: Annotated[str, Meta(description="Clicks.")] = "clicks"
    purchases: Annotated[str, Meta(description="Purchases.")] = "purchases"
    items: Annotated[str | None, Meta(description="Item catalogue; null without one.")] = "items"
    dead_letter: Annotated[str, Meta(description="Dead letters.")] = "steelyard.deadletter"

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
    """Close of a batch: at the first event boundary with `size` samples, or after a wait."""

    size: Annotated[Count, Meta(description="Least number of samples.")] = 32
    flush_seconds: Annotated[
        NotNegative, Meta(description="Longest wait of a sample, on the injected clock.")
    ] = 1.0

    def __post_init__(self) -> None:
        """Check every field."""
        check(self, "batch")


class Pipeline:
    """Records of a log to batches of samples, each sample once; run by one thread.

    State and next offsets are consistent whenever `batches` has yielded. `snapshot` resumes after
    the last record consumed.

    Attributes:
        live: whether `batches` has reached the log as it grows.

    Example:
        for batch in pipeline.batches():
            if batch is not Signal.IDLE:
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
        world: int = 1,
        counts: Mapping[str, int] | None = None,
        on_new_partitions: str = CARRY,
        excluded: Exclusions | None = None,
        on_gap: str = STOP,
        retention_seconds: Mapping[str, float] = {},
        observe: Observe = lambda *_: None,
    ) -> None:
        """Take a started source and its collaborators.

        Args:
            source: the log; its assignment decides which partitions are read.
            topics: the kind of each topic.
            join: windows and bounds.
            batch: when a batch closes.
            clock: seconds since the Unix epoch; decides idleness and flushes only.
            dead_letters: take the records that cannot be read.
            telemetry: the series.
            rank: of this pipeline among those that share the partitions.
            world: number of them.
            counts: topic -> partitions that the state to be restored has read; those that were
                added since are taken over later. None: all that the log has.
            on_new_partitions: `carry`, or `stop`: raise `PartitionsAdded`.
            excluded: events that are left out.
            on_gap: `stop`, or `record`: skip records that retention deleted, and keep a `Gap`.
            retention_seconds: how long a topic keeps its records, where known; for telemetry.
            observe: called about once a second with next offsets, the last known end offsets, and
                the partitions that wait for others.

        Raises:
            PartitionsMismatch: topics that are joined have different partition counts.
        """
        self._kinds = kinds = topics.kinds()
        self._growth = Growth(
            source,
            kinds,
            {**source.partition_counts(), **(counts or {})},
            policy=on_new_partitions,
            world=world,
            attribution_us=join.attribution_window_us,
        )
        read = self._growth.counts
        assigned = [tp for tp in source.assignment() if tp[1] < read[tp[0]]]
        self._numbers = _numbers(kinds, assigned)
        self._rank = rank
        self._clock = clock
        self._dead_letters = dead_letters
        self._assembler = Assembler(
            [tp for tp in assigned if kinds[tp[0]] is not Kind.ITEM],
            join=join,
            batch_size=batch.size,
            now=clock(),
        )
        self._window_us = join.attribution_window_us
        self._dedups: dict[str, Dedup] = {}  # by topic
        self._shared = Collaborators(
            watermarks=self._assembler.watermarks,
            push=self._assembler.join.push,
            correct=self._assembler.join.correct,
            max_item_wait_us=join.attribution_window_us + join.grace_us,
            dead_letters=dead_letters,
            excluded=excluded,
        )
        self._partitions = {tp: self._partition(tp) for tp in assigned}
        self._reporting = Reporting(
            telemetry,
            self._partitions,
            self._assembler,
            grace_us=join.grace_us,
            retention_seconds=retention_seconds,
        )
        self._reader = Reader(
            source,
            self._partitions,
            dead_letters=dead_letters,
            reporting=self._reporting,
            on_gap=on_gap,
        )
        self._schedule = Schedule(
            self._reader,
            self._assembler,
            self._reporting,
            join=join,
            flush_seconds=batch.flush_seconds,
            clock=clock,
            observe=observe,
            growth=self._growth,
            grow=self._grow,
        )
        self._telemetry = telemetry
        self._restored = Offsets()
        self._opened = False
        self.live = False
        telemetry.start(kinds, assigned)

    # --- reading --------------------------------------------------------------------------------

    def batches(
        self,
        tail: Iterable[Replayed] = (),
        until: Mapping[TopicPartition, int] | None = None,
        *,
        end: bool = False,
    ) -> Iterator[Batch | Signal]:
        """Yield batches for ever, and IDLE whenever none is ready.

        Waits no longer than 0.1 s for records. The items topic is read to its present end before
        any event.

        Args:
            tail: journaled batches after the restored state, minus the polls that it already
                includes: consumed first, exactly as they were then.
            until: next offsets up to which the log is then read in the canonical order; None to go
                live at once.
            end: whether to end there.

        Raises:
            OffsetLost: the log does not hold the next offset of a partition.
            LogTruncated: the record consumed last is another one now.
            SourceUnavailable: the brokers did not answer when reading began.
        """
        self.open()
        reader, schedule = self._reader, self._schedule
        replay = Replay(reader.source, reader.positions())
        yield from reader.verify_last(replay)
        if until is not None:
            self._assembler.watermarks.set_busy(reader.behind(reader.events, until))
        self._assembler.fill()
        yield from schedule.journaled(tail, replay)
        if until is not None:
            yield from schedule.canonical(until)
        self.live = True
        if not end:
            yield from schedule.live()

    def open(self) -> None:
        """Position the source, once; `batches` does so if nobody has.

        Raises:
            OffsetLost: the log does not hold the next offset of a partition; `on_gap` is `stop`.
            SourceUnavailable: the brokers did not answer.
        """
        if not self._opened:
            self._opened = True
            self._reader.open(self._restored)

    def drain(self, until_us: int | None = None) -> Iterator[Batch]:
        """Yield what is left when the stream has ended.

        Args:
            until_us: event time up to which windows close; by default the newest event time.
        """
        newest_us = self._assembler.watermarks.newest_us
        yield from self._schedule.drained(newest_us if until_us is None else until_us)

    # --- partitions that are added --------------------------------------------------------------

    def counts(self) -> dict[str, int]:
        """Return topic -> number of its partitions that are read, by all ranks together."""
        return dict(self._growth.counts)

    def _partition(self, tp: TopicPartition) -> Partition:
        dedup = self._dedups.setdefault(tp[0], Dedup(self._window_us))
        return Partition(tp, self._kinds[tp[0]], dedup, self._shared)

    def _grow(self, counts: Counts) -> list[TopicPartition]:
        """Read these partition counts from this place in the polls on; return what is new."""
        if not counts:
            return []
        present_us = self._assembler.watermarks.present_us
        added = self._growth.take_over(counts, self._partitions, present_us)
        for tp in added:
            self._reader.admit(self._partition(tp))
        events = [tp for tp in added if self._kinds[tp[0]] is not Kind.ITEM]
        self._numbers = sorted({*self._numbers, *(number for _, number in events)})
        self._assembler.grow(events, counts, self._clock())
        self._telemetry.admit(added)
        return added

    # --- places ---------------------------------------------------------------------------------

    @property
    def gaps(self) -> Sequence[Gap]:
        """Records that can never be read, found by this pipeline."""
        return self._reader.gaps

    def next_offsets(self) -> Offsets:
        """Return the offset of the next record to consume, of every partition."""
        return self._reader.next_offsets()

    def watermark_us(self) -> int | None:
        """Return the event time before which no more is expected; None before the first record."""
        return self._assembler.watermark_us()

    def report_offsets(self, ends: Mapping[TopicPartition, int], now: float) -> None:
        """Report how far every partition is behind the end of the log; from any thread."""
        self._reporting.offsets(ends, now)

    def event_offsets(self) -> Offsets:
        """Return the next offset of every partition of events; from any thread."""
        partitions = list(self._partitions.items())
        return Offsets((tp, p.next_offset) for tp, p in partitions if p.kind is not Kind.ITEM)

    def num_records(self) -> int:
        """Return the number of events consumed so far, those of before included; any thread."""
        partitions = list(self._partitions.values())
        return sum(each.audit.num_records for each in partitions if each.kind is not Kind.ITEM)

    def num_ready(self) -> int:
        """Return about how many samples are read and wait for a batch; from any thread."""
        return self._reporting.num_ready

    def num_polls(self) -> int:
        """Return the number of polls in the snapshot that are in no batch yet."""
        return len(self._assembler.polls)

    def audits(self) -> dict[TopicPartition, Audit]:
        """Return the audit of every partition, for the manifest."""
        return {tp: partition.audit for tp, partition in self._partitions.items()}

    # --- state ----------------------------------------------------------------------------------

    def snapshot(self) -> dict[str, bytes]:
        """Return the state as deterministic bytes: `part-<p>` per partition number, `rank-<r>`."""
        parts = {f"part-{p}": state.encode(self._partition_state(p)) for p in self._numbers}
        self._reporting.snapshotted(sum(map(len, parts.values())))
        return {**parts, f"rank-{self._rank}": state.encode(self._rank_state())}

    def begin(self, next_offsets: Mapping[TopicPartition, int]) -> None:
        """Start without state at these offsets; partitions without one at their beginning."""
        assert not self._opened, "begin comes before reading"
        self._restored = Offsets(next_offsets)
        self._reader.move((tp, o) for tp, o in self._restored.items() if tp in self._partitions)

    def restore(
        self,
        parts: Mapping[str, bytes],
        next_offsets: Mapping[TopicPartition, int],
        *,
        same_ranks: bool = True,
    ) -> None:
        """Restore the state returned by `snapshot` and `next_offsets`, on a new pipeline.

        Args:
            parts: of all ranks; those of other partitions are left alone.
            next_offsets: of all partitions.
            same_ranks: whether the partitions were spread over as many ranks as they are now.

        Raises:
            SnapshotRefused: the state is of another format, or of other partitions than the log.
        """
        assert not self._opened, "restore comes before reading"
        snapshot = state.read(parts, self._numbers, self._rank, same_ranks=same_ranks)
        missing = [tp for tp in self._reader.events if tp not in next_offsets]
        if missing:
            raise SnapshotRefused(
                f"offsets are missing for {missing}. "
                "Topics and partition counts must be those of the checkpoint."
            )
        for number, of_number in snapshot.partitions.items():
            self._restore_partitions(number, of_number)
        opened = [of_number.open for of_number in snapshot.partitions.values()]
        rank = snapshot.rank
        self._assembler.join.restore(opened, rank.pending_items, rank.now_us, rank.last_turn)
        self._restore_rank(snapshot.rank)
        self._growth.restore(snapshot.rank.grown, same_ranks=same_ranks)
        self._restored = Offsets(next_offsets).moved(snapshot.item_offsets)
        self._reader.move((tp, self._restored.get(tp, 0)) for tp in self._partitions)

    def _partition_state(self, number: int) -> state.PartitionState:
        partitions, watermarks = self._events_of(number), self._assembler.watermarks
        return state.PartitionState(
            format=state.FORMAT,
            clocks=watermarks.snapshot(number),
            dedup={
                topic: one.dedup.snapshot(number, watermarks.watermark_us)
                for topic, one in partitions
            },
            open=self._assembler.join.snapshot(number),
            audits={topic: partition.audit for topic, partition in partitions},
        )

    def _rank_state(self) -> state.RankState:
        assembler = self._assembler
        items = [(*tp, self._partitions[tp]) for tp in self._reader.items]
        return state.RankState(
            format=state.FORMAT,
            watermark_us=assembler.watermarks.watermark_us,
            now_us=assembler.join.now_us,
            last_turn=assembler.join.last_turn,
            samples=assembler.join.samples,
            polls=assembler.polls,
            items=assembler.items.snapshot(),
            pending_items=assembler.join.pending_items(),
            item_offsets=[(topic, p, partition.next_offset) for topic, p, partition in items],
            item_audits=[(topic, p, partition.audit) for topic, p, partition in items],
            breaker=self._dead_letters.snapshot(),
            grown=self._growth.snapshot(assembler.watermarks.watermark_us),
        )

    def _restore_partitions(self, number: int, snapshot: state.PartitionState) -> None:
        self._assembler.watermarks.restore(number, snapshot.clocks, self._clock())
        for topic, partition in self._events_of(number):
            partition.dedup.restore(number, snapshot.dedup[topic])
            partition.audit = snapshot.audits[topic]

    def _restore_rank(self, snapshot: state.RankState) -> None:
        assembler = self._assembler
        assembler.polls.extend(snapshot.polls)
        assembler.items.restore(snapshot.items)
        assembler.join.samples.extend(snapshot.samples)
        assembler.watermarks.advance_to(snapshot.watermark_us)
        for topic, p, audit in snapshot.item_audits:
            self._partitions[topic, p].audit = audit
        if snapshot.breaker:
            self._dead_letters.restore(snapshot.breaker)

    def _events_of(self, number: int) -> list[tuple[str, Partition]]:
        """Return the event partitions of a partition number, by topic."""
        events = self._reader.events
        return [(topic, self._partitions[topic, p]) for topic, p in events if p == number]


def _numbers(kinds: Mapping[str, Kind], assigned: Iterable[TopicPartition]) -> list[int]:
    """Return the partition numbers that every event topic has.

    Raises:
        PartitionsMismatch: the topics have different ones.
    """
    numbers: dict[str, set[int]] = {
        topic: set() for topic, kind in kinds.items() if kind is not Kind.ITEM
    }
    for topic, partition in assigned:
        if topic in numbers:
            numbers[topic].add(partition)
    first, *others = numbers.values()
    if any(other != first for other in others):
        raise PartitionsMismatch({topic: len(of_topic) for topic, of_topic in numbers.items()})
    return sorted(first)
