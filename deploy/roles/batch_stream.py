"""Wrappers around a stream of batches: the same items, and something done between two of them.

An item is a batch or a signal that none is ready; the wrappers pass on whatever comes. They run in
the thread that asks for the next item, which may be while the last one is still learned from
(`learner.run_ahead`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TypeVar

from consumers.kafka.source import KafkaSource
from consumers.pipeline import Pipeline
from deploy.process.lifecycle import Progress, Watchdog
from weighting.provenance import TopicPartition

T = TypeVar("T")


def rebuild_on_stall(items: Iterator[T], watchdog: Watchdog, source: KafkaSource) -> Iterator[T]:
    """Replace the consumer between two items when the watchdog asks for it."""
    for item in items:
        yield item
        if watchdog.asks():
            source.rebuild("stall")


def time_reading(items: Iterator[T], progress: Progress) -> Iterator[T]:
    """Let the clock of reading run while an item is waited for, and at no other time."""
    while True:
        with progress.reading():
            try:
                item = next(items)
            except StopIteration:
                return
        yield item


def after_each(items: Iterator[T], report: Callable[[], object]) -> Iterator[T]:
    """Report after each item."""
    for item in items:
        yield item
        report()


def until_ended(items: Iterator[T], ended: Callable[[], bool]) -> Iterator[T]:
    """Stop behind the first item after which `ended` is true."""
    for item in items:
        yield item
        if ended():
            return


def has_read(pipeline: Pipeline, until: Mapping[TopicPartition, int]) -> bool:
    """Return whether a replay has reached its end offsets and the log is read live."""
    next_offsets = pipeline.next_offsets()
    return pipeline.live and all(
        next_offsets.get(tp, offset) >= offset for tp, offset in until.items()
    )
