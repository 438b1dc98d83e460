"""Manifest of a checkpoint: metadata, run state, files with digests, and their names on disk.

Times are integer microseconds since the Unix epoch; the
names on disk are those of the operator's page (`created`, `watermark`).

A ``checkpoint`` is a version. The other kinds have no files; they say what the state of their
parent stands on from then on: a ``fence`` that there is a new owner, a ``restore`` that an operator
or a divergence went back, a ``reset`` that offsets were moved. Format 1 knew checkpoints only; it
is still read.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Annotated

import msgspec

from learner.store.blobs import Digest
from learner.store.journal.records import JournalPosition, JournalRange, SegmentName
from weighting.provenance import Audit, Gap, Offsets

FORMAT = 2
FORMATS = (1, 2)
CHECKPOINT = "checkpoint"
KINDS = (CHECKPOINT, "fence", "restore", "reset")
MAX_MANIFEST_BYTES = 16 << 20
MANIFEST = "manifest.json"
TRAINING = "training/"  #: begins the path of a file that only the learner reads

_VERSION = re.compile(r"v([0-9]{6,15})")
_MARK = re.compile(r"M-([0-9]{8,15})")
_NUMBER = Annotated[int, msgspec.Meta(ge=1)]
_COUNT = Annotated[int, msgspec.Meta(ge=0)]
_DISK_NAMES = {"created_us": "created", "learned": "trained", "watermark_us": "watermark"}


class EventTimeRange(msgspec.Struct, frozen=True, kw_only=True):
    """Event times of the oldest and the newest learned sample, in microseconds."""

    min: int
    max: int


class Parent(msgspec.Struct, frozen=True, kw_only=True, rename={"digest": "self"}):
    """Parent version, with its `self`."""

    version: str
    digest: str


class ResumePoint(msgspec.Struct, frozen=True, kw_only=True):
    """Position of a checkpoint in the journal.

    Attributes:
        segment: of the journal.
        byte: where the next record begins.
        skip: by rank, the number of polls of the next record that the state contains already.
    """

    segment: SegmentName
    byte: _COUNT
    skip: tuple[_COUNT, ...] = ()

    @property
    def place(self) -> JournalPosition:
        """Position of the next record, `skip` left aside."""
        return JournalPosition(self.segment, self.byte)


class Input(msgspec.Struct, frozen=True, kw_only=True):
    """A topic as it was read; `id` is "" where the broker gives none."""

    id: str
    num_partitions: _COUNT


class LearnedSamples(msgspec.Struct, frozen=True, kw_only=True):
    """Number of learned samples, and sum mod 2^64 of the hashes of their ids."""

    num: _COUNT = 0
    sum64: _COUNT = 0


class FitSource(msgspec.Struct, frozen=True, kw_only=True):
    """Origin of a version that was learned from a file, before any record of a log.

    Attributes:
        file: its name, without folders.
        sha256: of its bytes.
        rows: learned.
        epochs: taken.
        best_epoch: whose state this is.
        figures: on queries or times held back.
    """

    file: str
    sha256: str
    rows: _COUNT
    epochs: _COUNT
    best_epoch: _COUNT
    figures: dict[str, float] = {}


class Reset(msgspec.Struct, frozen=True, kw_only=True, rename={"command": "order"}):
    """Offsets that an operator moved.

    Records in between count twice, or never.

    Attributes:
        command: the operator command.
        step: it took effect after this one,
        skip: and after so many polls of the next, by rank.
        offsets: topic -> partition -> next offset before and after.
    """

    command: int
    step: _COUNT
    skip: tuple[_COUNT, ...] = ()
    offsets: dict[str, dict[int, tuple[int, int]]]

    @property
    def moved_to(self) -> Offsets:
        """Next offsets from then on, of the partitions that were moved."""
        return Offsets(
            ((topic, partition), after)
            for topic, partitions in self.offsets.items()
            for partition, (_, after) in partitions.items()
        )


class Exclusions(msgspec.Struct, frozen=True, kw_only=True, rename={"command": "order"}):
    """Digest and length of the list of events excluded; the list is not kept."""

    sha256: str
    num: _COUNT
    command: int


class Replay(msgspec.Struct, frozen=True, kw_only=True, rename={"command": "order"}):
    """A replay that is not over.

    Attributes:
        mode: as-it-was, anew.
        until: topic -> partition -> end offset.
        command: the operator command.
        into: live, or shadow: a store of its own, whose learner ends there.
        since: samples of the version that it went back to.
        samples: to be learned, as planned.
    """

    mode: str
    until: dict[str, dict[int, int]]
    command: int
    into: str = "live"
    since: int = 0
    samples: int = 0

    @property
    def end_offsets(self) -> Offsets:
        """Offsets at which it is over."""
        return Offsets.from_nested(self.until)


class RunState(
    msgspec.Struct, frozen=True, kw_only=True, rename={"commands_taken": "orders_taken"}
):
    """State handed from one manifest to the next.

    Attributes:
        timeline: valid parts of the journal, from the oldest kept checkpoint on.
        gaps: records that can never be read.
        resets: offsets that an operator moved.
        quarantine: steps ``[from, to)`` of this timeline that are not learned.
        exclusions: what was taken out of the model.
        bit_exact: false from the first resume under another fingerprint or world size on.
        commands_taken: the newest operator command that was carried out.
        world_size: number of ranks.
        replay: the one that is not over, if any.
        superseded: numbers ``[from, to)`` of older manifests that are not its ancestors.
    """

    timeline: tuple[JournalRange, ...] = ()
    gaps: tuple[Gap, ...] = ()
    resets: tuple[Reset, ...] = ()
    quarantine: tuple[tuple[int, int], ...] = ()
    exclusions: Exclusions | None = None
    bit_exact: bool = True
    commands_taken: int = 0
    world_size: int = 1
    replay: Replay | None = None
    superseded: tuple[tuple[int, int], ...] = ()

    def leaves_out(self, seq: int) -> bool:
        """Return whether manifest number `seq` is superseded."""
        return any(first <= seq < end for first, end in self.superseded)


class CheckpointMetadata(msgspec.Struct, frozen=True, kw_only=True, rename=_DISK_NAMES):
    """Position of a checkpoint in the log and in training; its owner provides it.

    Attributes:
        step: optimizer updates.
        samples: number of samples stepped on.
        offsets: topic -> partition -> next offset; in memory take `next_offsets`.
        event_time: None before the first sample.
        watermark_us: event-time watermark; None before the first record.
        weighting: scheme, exponent, clip.
        evaluation: finite numbers only; what is not known yet is left out.
        fresh_events: (event time in microseconds, count) newly contained since the parent.
        config_sha256: of the settings that learning depends on.
        fingerprint: of the environment (RELIABILITY D7).
        journal: None where nothing is journaled.
        audit: topic -> partition -> what was read.
        inputs: topic -> as it was read.
        learned: the samples that the model contains.
        samples_per_second: measured rate of learning, 0 where it is not known.
        fit: file that the state was learned from, if no log was; else left out on disk.
    """

    step: _COUNT
    samples: _COUNT
    offsets: dict[str, dict[int, int]]
    event_time: EventTimeRange | None
    watermark_us: int | None
    weighting: Mapping[str, str | int | float | bool | list[float] | None]
    evaluation: dict[str, float]
    fresh_events: tuple[tuple[int, int], ...]
    config_sha256: str
    fingerprint: dict[str, str | int | float | bool | None]
    journal: ResumePoint | None = None
    audit: dict[str, dict[int, Audit]] = {}
    inputs: dict[str, Input] = {}
    learned: LearnedSamples = LearnedSamples()
    samples_per_second: float = 0.0
    fit: FitSource | None = None

    @property
    def next_offsets(self) -> Offsets:
        """First offsets that the state does not contain."""
        return Offsets.from_nested(self.offsets)


class Manifest(CheckpointMetadata, frozen=True, kw_only=True, rename=_DISK_NAMES):
    """Metadata, owner, run state, and the files of a checkpoint.

    Attributes:
        epoch: fencing token of the owner.
        files: path below the root -> digest.
        run_state: on disk its fields stand among the others.
    """

    format: int
    kind: str
    version: str
    epoch: _NUMBER
    seq: _NUMBER
    parent: Parent | None
    created_us: int
    files: dict[str, Digest]
    run_state: RunState = RunState()


def version_name(seq: int) -> str:
    """Return the name of version number `seq`: ``v000123``."""
    return f"v{seq:06d}"


def version_seq(name: str) -> int | None:
    """Return the number in a version's name, None if it is not one.

    So a name never becomes a path.
    """
    return _number(_VERSION, name, version_name)


def mark_name(seq: int) -> str:
    """Return the name of the commit mark of version number `seq`, below the root."""
    return f"man/M-{seq:08d}"


def mark_seq(name: str) -> int | None:
    """Return the number in a commit mark's name, None if it is none."""
    return _number(_MARK, name, lambda seq: f"M-{seq:08d}")


def folder_name(epoch: int, seq: int) -> str:
    """Return the folder of a version; its epoch keeps two owners apart."""
    return f"blobs/{epoch:06d}-{seq:08d}"


def _number(pattern: re.Pattern[str], name: str, write: Callable[[int], str]) -> int | None:
    match = pattern.fullmatch(name)
    seq = int(match[1]) if match else 0
    return seq if seq and write(seq) == name else None


def check_path(path: str) -> str | None:
    """Return the problem with a path in a manifest, None if there is none.

    Refused is what is absolute, not normalised, hidden, or has a ``..``.
    """
    if not path or "\0" in path or "\\" in path:
        return "empty, or with a NUL or a backslash"
    for part in path.split("/"):
        if part in ("", ".", ".."):
            return "absolute, not normalised, or with '..'"
        if part.startswith("."):
            return "hidden"
    return None


def canonical(value: object) -> bytes:
    """Encode as canonical JSON: equal values give equal bytes.

    Sorted keys, UTF-8, no insignificant space.

    Raises:
        ValueError: a number is not finite, or text is not Unicode.
    """
    text = json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )
    return text.encode()
