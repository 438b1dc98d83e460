"""A labelled example, where it came from, and the batch that carries it: values only.

Importing this module loads neither river nor numpy. Times are integer microseconds since the Unix epoch (`*_us`), in event time.
"""

from __future__ import annotations

import enum
from typing import TypeAlias

import msgspec

Attribute: TypeAlias = str | int | float | bool


class Task(enum.StrEnum):
    """What is asked of an (item, context) pair."""

    CLICK = "click"  #: shown -> clicked
    PURCHASE = "purchase"  #: clicked -> bought


class CopyKind(enum.StrEnum):
    """Which copy of the same example this is (the stream law of its label depends on it)."""

    FIRST = "first"  #: emitted when the observation window closed, with the label so far
    LATE_POSITIVE = (
        "late_positive"  #: emitted again because the positive label came after the first copy
    )


class Position(msgspec.Struct, frozen=True, order=True, array_like=True, gc=False):
    """Where a record stands in the log; prints as ``clicks[3]@171004``."""

    topic: str
    partition: int
    offset: int

    def __str__(self) -> str:
        """Return ``topic[partition]@offset``."""
        return f"{self.topic}[{self.partition}]@{self.offset}"


class Slice(msgspec.Struct, frozen=True, order=True, array_like=True):
    """A half-open run of offsets ``[start, end)`` of one partition."""

    topic: str
    partition: int
    start: int
    end: int
    num_records: int
    sum64: int  #: sum mod 2^64 of the hashes of its records


class Turn(msgspec.Struct, frozen=True, array_like=True):
    """What was consumed at once: the records of one poll, and the partitions that were found to be idle with it."""

    slices: tuple[Slice, ...]
    idle: tuple[tuple[str, int], ...] = ()  #: (topic, partition)


class Sample(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One labelled (query, item) pair, with the features as they were when the item was shown.

    Late copies carry the features of the first copy, never those of the late event.
    """

    sample_id: str  #: unique per (event, task, copy)
    task: Task
    copy_kind: CopyKind
    label: int  #: 0 or 1
    list_id: str  #: the exposure (query id) it was shown in; "" when none is known
    list_size: int  #: candidates in that exposure; 0 when none is known
    query: str
    item_id: str
    text: str
    attributes: dict[str, Attribute]
    position: int | None  #: 1-based place in the shown list
    shown_us: int  #: event time of the exposure (click task) or of the click (purchase task)
    event_time_us: int  #: event time of the newest event that this sample contains
    elapsed_us: int  #: from `shown_us` to the emission of this copy, in event time
    delay_us: int | None  #: from `shown_us` to the positive event; None for negatives
    window_us: int  #: observation window after which the first copy was emitted
    attribution_us: int  #: attribution window after which the label is final
    inferred: bool  #: joined without a query id
    positions: tuple[Position, ...]  #: every record that it was made from


class Batch(msgspec.Struct, frozen=True, kw_only=True):
    """Samples stepped together, and what was consumed since the batch before it."""

    samples: tuple[Sample, ...]
    turns: tuple[Turn, ...]
    cause: str  #: why it closed: full, flush, end
    watermark_us: int  #: event-time watermark when it closed
