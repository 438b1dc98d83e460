"""Batches of samples as a pure function of the polls, without a source or a wall clock."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from consumers.joining.clock import BEGINNING_US, Watermarks
from consumers.joining.items import Items
from consumers.joining.join import Join, JoinConfig
from weighting.provenance import Poll, Slice, TopicPartition
from weighting.sample import Batch

#: Why a batch closed.
FULL, FLUSH, END = "full", "flush", "end"


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
            partitions, grace_us=join.grace_us, idle_timeout_us=join.idle_timeout_us, now=now
        )
        self.items = Items()
        self.join = Join(join, self.items)
        self.polls: list[Poll] = []
        self._batch_size = batch_size

    @property
    def has_samples(self) -> bool:
        """Samples wait for the next batch."""
        return bool(self.join.samples)

    def watermark_us(self) -> int | None:
        """Return the global watermark; None before the first record."""
        watermark_us = self.watermarks.watermark_us
        return watermark_us if watermark_us > BEGINNING_US else None

    def advance(
        self, consumed: tuple[Slice, ...], idle: tuple[TopicPartition, ...]
    ) -> Iterator[Batch]:
        """End a poll and yield the batches that became full.

        Args:
            consumed: slices of this poll.
            idle: partitions that hold the watermark back no longer.
        """
        for tp in idle:
            self.watermarks.set_idle(tp)
        if consumed or idle:
            self.polls.append(Poll(consumed, idle))
        self.watermarks.advance()
        yield from self.process()

    def process(self) -> Iterator[Batch]:
        """Process everything below the watermark; yield the batches that became full."""
        watermark_us = self.watermarks.watermark_us
        while self.join.advance(watermark_us, self._batch_size):
            yield self.close(FULL)

    def close(self, cause: str) -> Batch:
        """Return a batch of the samples that wait."""
        samples, polls = tuple(self.join.samples), tuple(self.polls)
        self.join.samples.clear()
        self.polls.clear()
        return Batch(samples=samples, polls=polls, cause=cause, watermark_us=self.join.now_us)
