"""Batches of samples as a pure function of the polls, without a source or a wall clock."""

from __future__ import annotations

from collections.abc import Iterable

from consumers.joining.clock import BEGINNING_US, Watermarks
from consumers.joining.items import Items
from consumers.joining.join import Join, JoinConfig
from weighting.provenance import Counts, Poll, Slice, TopicPartition
from weighting.sample import Batch

#: Why a batch closed.
FULL, FLUSH, END = "full", "flush", "end"

_LEAST_OVERFLOW = 256


class Assembler:
    """Watermarks, join and the polls of the next batch; resumes after the last poll.

    Attributes:
        polls: consumed since the last batch.
    """

    def __init__(
        self,
        partitions: Iterable[TopicPartition],
        *,
        join: JoinConfig,
        batch_size: int,
        now: float,
    ) -> None:
        """Begin with nothing consumed.

        Args:
            partitions: of events; each can hold the watermark back.
            join: windows and bounds.
            batch_size: a batch closes at the first event boundary with so many samples.
            now: seconds on the injected clock.
        """
        self.watermarks = Watermarks(
            partitions,
            grace_us=join.grace_us,
            attribution_us=join.attribution_window_us,
            idle_timeout_us=join.idle_timeout_us,
            now=now,
        )
        self.items = Items()
        self.join = Join(join, self.items)
        self.polls: list[Poll] = []
        self._batch_size = batch_size
        self._most_samples = batch_size + max(batch_size, _LEAST_OVERFLOW)

    @property
    def has_samples(self) -> bool:
        """Samples wait for the next batch."""
        return bool(self.join.samples)

    @property
    def is_full(self) -> bool:
        """Samples for a whole batch wait."""
        return len(self.join.samples) >= self._batch_size

    def watermark_us(self) -> int | None:
        """Return the global watermark; None before the first record."""
        watermark_us = self.watermarks.watermark_us
        return watermark_us if watermark_us > BEGINNING_US else None

    def advance(
        self,
        consumed: tuple[Slice, ...],
        idle: tuple[TopicPartition, ...],
        wall_us: int = 0,
    ) -> None:
        """End a poll, and emit samples up to the next batch.

        Args:
            consumed: slices of this poll.
            idle: partitions that hold the watermark back no longer.
            wall_us: wall clock, when everything was found idle; else 0.
        """
        for tp in idle:
            self.watermarks.set_idle(tp)
        if consumed or idle or wall_us:
            self.polls.append(Poll(consumed, idle, wall_us=wall_us))
        self.watermarks.advance(wall_us)
        self.fill()

    def fill(self) -> None:
        """Process events below the watermark until a batch is full, or none is left.

        What is left waits for its batch as events: samples are larger.
        """
        self.join.advance(self.watermarks.watermark_us, self._batch_size)

    def grow(self, added: Iterable[TopicPartition], counts: Counts, now: float) -> None:
        """Wait for partitions of events that were added, from this place in the polls on.

        Args:
            added: those of this pipeline.
            counts: topics that have grown, with their counts, for the journal.
            now: seconds on the injected clock.
        """
        for tp in added:
            self.watermarks.add(tp, now)
        self.polls.append(Poll((), (), counts))

    def close(self, cause: str) -> Batch:
        """Return a batch of the samples that wait.

        One event may bring far more than a batch. Beyond twice `batch_size` (or 256 more) they are
        divided into batches of `batch_size`, and the rest stays.
        """
        waiting = self.join.samples
        num = self._batch_size if len(waiting) > self._most_samples else len(waiting)
        samples, polls = tuple(waiting[:num]), tuple(self.polls)
        del waiting[:num]
        self.polls.clear()
        return Batch(samples=samples, polls=polls, cause=cause, watermark_us=self.join.now_us)
