"""Reading orders: which partition is read next, and when a poll ends.

1. `journaled`: the polls and flushes of a journal again.
2. `canonical`: up to given offsets, in the one order that no clock or poll can change.
3. `live`: the log as it grows. What is consumed together, and which partition is idle, depends on
   polls and the clock; so it is journaled.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import TypeAlias

from consumers.assembler import END, FLUSH, FULL, Assembler
from consumers.joining.join import JoinConfig
from consumers.reading.growth import Growth
from consumers.reading.reader import Reader
from consumers.reading.replay import Replay, Replayed
from consumers.reporting import Reporting
from consumers.source import Record
from weighting.provenance import Counts, Slice, TopicPartition
from weighting.sample import Batch, Signal

Observe: TypeAlias = Callable[
    [Mapping[TopicPartition, int], Mapping[TopicPartition, int], Collection[TopicPartition]],
    object,
]
"""Called with next offsets, the last known end offsets, and the paused partitions."""

_HOUSEKEEPING_SECONDS = 1.0
_POLL_TIMEOUT_SECONDS = 0.1
_MAX_RECORDS = 1000
_BATCHES_PER_POLL = 4


class Schedule:
    """Reading orders over one reader and one assembler.

    One poll may bring the samples of many batches. Each poll is followed by one batch at most, then
    the next poll has its turn: while batches wait, that is every fourth time, and for one record.
    So polls come round in bounded work, however much was read.
    """

    def __init__(
        self,
        reader: Reader,
        assembler: Assembler,
        reporting: Reporting,
        *,
        join: JoinConfig,
        flush_seconds: float,
        clock: Callable[[], float],
        observe: Observe,
        growth: Growth,
        grow: Callable[[Counts], Sequence[TopicPartition]],
    ) -> None:
        """Take what is read and where it goes; see `Pipeline` for the rest."""
        self._reader = reader
        self._source = reader.source
        self._assembler = assembler
        self._reporting = reporting
        self._max_pending = join.max_pending // 10
        self._housekeeping_seconds = min(_HOUSEKEEPING_SECONDS, join.idle_timeout_us / 2e6)
        self._flush_seconds = flush_seconds
        self._clock = clock
        self._observe = observe
        self._growth = growth
        self._grow = grow
        self._ends: dict[TopicPartition, int] = {}
        self._paused: list[TopicPartition] = []
        self._housekept = float("-inf")
        # When the oldest sample that waits was emitted, on the injected clock.
        self._waiting_since: float | None = None
        self._num_without_poll = 0

    # --- the orders -----------------------------------------------------------------------------

    def journaled(self, tail: Iterable[Replayed], replay: Replay) -> Iterator[Batch | Signal]:
        """Consume the polls of a journal again, with the same flushes."""
        for polls, cause, moved in tail:
            for topic, partition, offset in moved:
                replay.move((topic, partition), offset)
                self._reader.move([((topic, partition), offset)])
            for poll in polls:
                if poll.counts:
                    for tp in self._grow(poll.counts):
                        replay.add(tp)
                    continue
                records = yield from replay.read(poll)
                slices = {(part.topic, part.partition): part for part in poll.slices}
                # Past what was lost before it.
                self._reader.move((tp, part.start) for tp, part in slices.items())
                ends = {tp: part.end for tp, part in slices.items()}
                consumed = self._reader.consume(records, ends, self._clock())
                self._assembler.advance(consumed, poll.idle, poll.wall_us)
            if cause is not None:
                yield from self._batch(cause)
        replay.close()

    def canonical(self, until: Mapping[TopicPartition, int]) -> Iterator[Batch | Signal]:
        """Read the log up to `until` as a pure function of it.

        Nothing is flushed, and a partition holds the others back until it is read to its end.
        """
        reader = self._reader
        self._grow(self._growth.due())
        offsets = reader.next_offsets()
        wanted = {tp: max(until.get(tp, 0), offset) for tp, offset in offsets.items()}
        busy = set(reader.behind(reader.events, wanted))
        items_first = bool(reader.items)
        if items_first:
            self._source.pause(reader.events)
        while busy or items_first:
            if items_first and not reader.behind(reader.items, wanted):
                items_first = False
                self._source.resume(reader.events)
            consumed = self._consume_up_to(wanted)
            done = tuple(sorted(busy.difference(reader.behind(busy, wanted))))
            busy.difference_update(done)
            self._source.pause(done)
            yield from self._advance(consumed, done)
            yield Signal.IDLE
        while self._assembler.is_full:
            yield from self._batch(FULL)
        yield Signal.IDLE  # the state is that of the end, whatever the batches
        for tp, offset in wanted.items():
            self._source.seek(*tp, offset)
        self._source.resume(reader.events)
        self._paused = []

    def live(self) -> Iterator[Batch | Signal]:
        """Read the log as it grows, for ever; items first."""
        self._grow(self._growth.due())
        yield from self._items_first()
        while True:
            self._grow(self._growth.due())  # between two polls, where the journal has it, too
            consumed, now = self._consume()
            num_batches = 0
            for batch in self._advance(consumed, *self._housekeep(now)):
                num_batches += 1
                yield batch
            if self._flush_due():
                yield from self._batch(FLUSH)
            elif not num_batches:
                yield Signal.IDLE

    def drained(self, until_us: int) -> Iterator[Batch]:
        """Yield what is left, with every window closed that ends by `until_us`."""
        assembler = self._assembler
        assembler.watermarks.advance_to(until_us + 1)
        assembler.fill()
        while assembler.is_full:
            yield from self._batch(FULL)
        assembler.join.forget(assembler.watermarks.watermark_us)
        if assembler.has_samples:
            yield from self._batch(END)
        self._reporting.joined()

    # --- one poll -------------------------------------------------------------------------------

    def _items_first(self) -> Iterator[Batch | Signal]:
        reader = self._reader
        if not reader.items:
            return
        self._source.pause(reader.events)
        ends: Mapping[TopicPartition, int] = {}
        while not ends or reader.behind(reader.items, ends):
            ends = ends or self._source.end_offsets()
            consumed, _ = self._consume()
            yield from self._advance(consumed, ())
            yield Signal.IDLE
        self._source.resume(reader.events)

    def _consume(self) -> tuple[tuple[Slice, ...], float]:
        """Poll once; return what was consumed, and when."""
        records, now = self._poll(), self._clock()
        return self._reader.consume(records, self._reader.positions(), now), now

    def _consume_up_to(self, wanted: Mapping[TopicPartition, int]) -> tuple[Slice, ...]:
        """Poll once, and consume the records below the offsets that are wanted."""
        records = [
            record
            for record in self._poll()
            if record.offset < wanted[record.topic, record.partition]
        ]
        positions = self._reader.positions()
        ends = {tp: min(offset, wanted[tp]) for tp, offset in positions.items()}
        return self._reader.consume(records, ends, self._clock())

    def _poll(self) -> Sequence[Record]:
        """Return the next records; few while batches wait, and seldom."""
        if not self._assembler.is_full:
            self._num_without_poll = 0
            return self._reader.poll(_POLL_TIMEOUT_SECONDS, _MAX_RECORDS)
        self._num_without_poll += 1
        if self._num_without_poll < _BATCHES_PER_POLL:
            return ()
        self._num_without_poll = 0
        return self._reader.poll(0.0, 1)

    def _advance(
        self,
        consumed: tuple[Slice, ...],
        idle: tuple[TopicPartition, ...],
        wall_us: int = 0,
    ) -> Iterator[Batch]:
        """End a poll and yield the next batch if it is full."""
        self._hold_back()
        self._assembler.advance(consumed, idle, wall_us)
        if self._assembler.is_full:
            yield from self._batch(FULL)
        else:
            self._reporting.joined()
        if self._assembler.has_samples and self._waiting_since is None:
            self._waiting_since = self._clock()

    def _batch(self, cause: str) -> Iterator[Batch]:
        """Yield a batch of the samples that wait, then emit those of the next one."""
        self._waiting_since = None
        batch = self._assembler.close(cause)
        self._reporting.joined()
        yield batch
        self._assembler.fill()

    def _flush_due(self) -> bool:
        since = self._waiting_since
        is_due = since is not None and self._clock() - since >= self._flush_seconds
        return is_due and not self._assembler.is_full

    # --- pausing and idleness -------------------------------------------------------------------

    def _hold_back(self) -> None:
        """Pause partitions ahead of the watermark while too many events wait for it.

        Nothing but memory depends on it.
        """
        num_pending, limit = self._assembler.join.num_pending, self._max_pending
        too_many = num_pending > limit or (self._paused and num_pending > limit // 2)
        paused = self._assembler.watermarks.ahead() if too_many else []
        if paused != self._paused:
            self._source.resume([tp for tp in self._paused if tp not in paused])
            self._source.pause([tp for tp in paused if tp not in self._paused])
            self._paused = paused

    def _housekeep(self, now: float) -> tuple[tuple[TopicPartition, ...], int]:
        """Report the lag about once a second; find out what is idle.

        Returns:
            newly idle partitions; and the wall clock in microseconds if everything is idle and it
            vouches for events that the watermark has not passed, else 0.
        """
        if now - self._housekept < self._housekeeping_seconds:
            return (), 0
        self._housekept = now
        before, ends = dict(self._ends), self._source.end_offsets()
        self._ends.update(ends)
        self._observe(self._reader.next_offsets(), self._ends, self._paused)
        self._reporting.lag(ends, self._source.log_ends(ends), self._paused, now)
        self._reporting.added(ends, self._growth.added())
        self._reporting.waiting()
        self._reporting.wrong_clocks(now)
        watermarks = self._assembler.watermarks
        # Read up to where the log ended a moment ago: to the end itself a busy one never is.
        quiet = [tp for tp in watermarks.quiet(now) if tp in ends and tp in before]
        behind = self._reader.behind(quiet, before)
        idle = tuple(tp for tp in quiet if tp not in behind)
        wall_us = int(now * 1e6)
        if watermarks.num_busy > len(idle) or self._reader.behind(self._reader.events, ends):
            return idle, 0
        moves = watermarks.on_time_us(wall_us) > watermarks.watermark_us
        return idle, wall_us if moves else 0
