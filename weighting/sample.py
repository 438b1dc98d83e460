"""A labelled example, where it came from, and the batch that carries it: values only.

Importing this module loads neither river nor numpy. Times are integer microseconds since the Unix epoch (`*_us`), in event time.
"""

from __future__ import annotations

import enum
from typing import TypeAlias

import msgspec

from weighting.provenance import Poll, Position
from weighting.tasks import TaskName

Attribute: TypeAlias = str | int | float | bool


class CopyKind(enum.StrEnum):
    """Which copy of the same example this is (the stream law of its label depends on it)."""

    FIRST = "first"  #: emitted when the observation window closed, with the label so far
    LATE_POSITIVE = (
        "late_positive"  #: emitted again because the positive label came after the first copy
    )


class Sample(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One labelled (query, item) pair, with the features as they were when the item was shown.

    Late copies carry the features of the first copy, never those of the late event.
    """

    sample_id: str  #: unique per (event, task, copy)
    task: TaskName
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
    polls: tuple[Poll, ...]
    cause: str  #: why it closed: full, flush, end
    watermark_us: int  #: event-time watermark when it closed


class Signal(enum.Enum):
    """What a stream of batches yields in place of a batch."""

    IDLE = "idle"  #: nothing is ready: do other things, then ask again
    ENDED = "ended"  #: no batch follows
