"""A labelled example, its provenance, and the batch that carries it: values only.

Importing this module loads neither river nor numpy. Times are integer microseconds since the Unix
epoch (`*_us`), in event time.
"""

from __future__ import annotations

import enum
from hashlib import blake2b
from typing import TypeAlias

import msgspec

from weighting.provenance import Poll, Position
from weighting.tasks import TaskName

Attribute: TypeAlias = str | int | float | bool | list[str]


class CopyKind(enum.StrEnum):
    """Copies of the same example; the delay correction depends on which one it is.

    Attributes:
        FIRST: emitted when the observation window closed, with the label so far.
        LATE_POSITIVE: emitted again because the positive label came after the first copy.
    """

    FIRST = "first"
    LATE_POSITIVE = "late_positive"


FIRST_COPY, LATE_COPY = CopyKind.FIRST, CopyKind.LATE_POSITIVE
"""The two as names: looking up a member of the class takes as long as hashing a word."""


class Sample(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One labelled (query, item) pair.

    Its features are those of the moment when the item was shown. Late copies carry the features of
    the first copy, never those of the late event.

    Attributes:
        sample_id: unique per (event, task, copy).
        task: name of the task.
        copy_kind: which copy of the example.
        label: 0 or 1.
        list_id: exposure (query id) that it was shown in; "" when none is known.
        list_size: candidates in that exposure; 0 when none is known.
        scenario: what that exposure was shown for, such as search; "" when nothing says.
        client: 64-bit hash of the id of the client that it was shown to; 0 when none is known.
        query: the query's text.
        item_id: identity of the item; "" when it has none.
        text: the item's text.
        attributes: the item's named properties.
        position: 1-based position in the shown list.
        shown_us: event time of the exposure (click task) or of the click (purchase task).
        event_time_us: event time of the newest event that this sample contains.
        elapsed_us: from `shown_us` to the emission of this copy, in event time.
        delay_us: from `shown_us` to the positive event; None for negatives.
        window_us: observation window after which the first copy was emitted.
        attribution_us: attribution window after which the label is final.
        inferred: True when joined without a query id.
        positions: every record that it was made from.
        value: what was paid for the item, of a purchase that tells it.
    """

    sample_id: str
    task: TaskName
    copy_kind: CopyKind
    label: int
    list_id: str
    list_size: int
    scenario: str = ""
    client: int
    query: str
    item_id: str
    text: str
    attributes: dict[str, Attribute]
    position: int | None
    shown_us: int
    event_time_us: int
    elapsed_us: int
    delay_us: int | None
    window_us: int
    attribution_us: int
    inferred: bool
    positions: tuple[Position, ...]
    value: float | None = None

    @property
    def emitted_us(self) -> int:
        """Event time at which this copy was emitted."""
        return self.shown_us + self.elapsed_us


def client_hash(client_id: str) -> int:
    """Return the first 64 bits of BLAKE2b of a client's id, never 0; 0 of no id."""
    if not client_id:
        return 0
    data = client_id.encode("utf-8", "surrogatepass")
    return int.from_bytes(blake2b(data, digest_size=8).digest(), "little") or 1


class Batch(msgspec.Struct, frozen=True, kw_only=True):
    """Samples stepped together, and the polls that were consumed since the batch before.

    Attributes:
        samples: in event order.
        polls: consumed since the batch before.
        cause: why it was closed: full, flush or end.
        watermark_us: event-time watermark when it was closed.
    """

    samples: tuple[Sample, ...]
    polls: tuple[Poll, ...]
    cause: str
    watermark_us: int


class Signal(enum.Enum):
    """Item of a batch stream that is no batch.

    Attributes:
        IDLE: nothing is ready: do other things, then ask again.
        ENDED: no batch follows.
    """

    IDLE = "idle"
    ENDED = "ended"
