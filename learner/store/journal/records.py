"""Records of the journal, positions and ranges in its segments."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Annotated, TypeAlias

import msgspec

from weighting.provenance import Poll

FOLDER = "journal"
_SEGMENT = re.compile(r"([0-9]{6,15})-([0-9]{4,9})")
_COUNT = Annotated[int, msgspec.Meta(ge=0)]
SegmentName: TypeAlias = Annotated[str, msgspec.Meta(pattern=rf"^{_SEGMENT.pattern}$")]

Fingerprint: TypeAlias = Mapping[str, str | int | float | bool | None]


class JournalPosition(msgspec.Struct, frozen=True, array_like=True):
    """Position at which a journal record begins."""

    segment: SegmentName
    byte: _COUNT


class JournalRange(msgspec.Struct, frozen=True, array_like=True):
    """The part ``[start, end)`` of a segment.

    Without an end it is open: all that follows, in this segment and the next ones of the owner.
    """

    segment: SegmentName
    start: _COUNT
    end: _COUNT | None

    def holds(self, place: JournalPosition) -> bool:
        """Return whether a position lies in it; its end does."""
        return (
            place.segment == self.segment
            and self.start <= place.byte
            and (self.end is None or place.byte <= self.end)
        )


class Part(msgspec.Struct, frozen=True, array_like=True):
    """Source of one rank's batch.

    Attributes:
        polls: all since the batch before.
        cause: why the batch closed; None for a rank that had none.
        num_samples: in the batch.
    """

    polls: tuple[Poll, ...]
    cause: str | None
    num_samples: int = 0

    @property
    def has_batch(self) -> bool:
        """Return whether the rank had a batch in this step."""
        return self.cause is not None


NO_BATCH = Part((), None)


class Open(msgspec.Struct, frozen=True, array_like=True, tag="open"):
    """Head of a segment; its number counts from 0."""

    epoch: int
    number: int
    fingerprint: dict[str, str | int | float | bool | None]


class Step(msgspec.Struct, frozen=True, array_like=True, tag="step"):
    """Input of a step, by rank; written before anything of the step is applied."""

    step: int
    parts: tuple[Part, ...]

    @property
    def num_samples(self) -> int:
        """Number of samples of all ranks."""
        return sum(part.num_samples for part in self.parts)


class Outcome(msgspec.Struct, frozen=True, array_like=True, tag="outcome"):
    """Number of micro-batches of a step, where out of memory changed it."""

    step: int
    num_micro_batches: int


JournalRecord: TypeAlias = Step | Outcome


def segment_name(epoch: int, number: int) -> str:
    """Return the name of an owner's `number`-th segment (from 0)."""
    return f"{epoch:06d}-{number:04d}"


def segment_epoch(segment: str) -> int:
    """Return the owner epoch in a segment's name, 0 if it is none."""
    match = _SEGMENT.fullmatch(segment)
    return int(match[1]) if match else 0


def truncate(timeline: Sequence[JournalRange], place: JournalPosition) -> tuple[JournalRange, ...]:
    """Return a timeline up to a position, empty if that is not on it."""
    for index, span in enumerate(timeline):
        if span.holds(place):
            return (*timeline[:index], JournalRange(span.segment, span.start, place.byte))
    return ()


def following_segment(segment: str) -> str:
    """Return the name of the owner's next segment."""
    match = _SEGMENT.fullmatch(segment)
    assert match is not None
    return segment_name(int(match[1]), int(match[2]) + 1)
