"""All that a checkpoint consists of, with digests; canonical JSON, with a format version.

A manifest is trusted only whole: the text is canonical, `self` is the sha256 of all the rest, every path stays inside the version's own
folder. Times are integer microseconds since the Unix epoch; names on disk are those of the operator's page (`created`, `watermark`).

A ``checkpoint`` is a version. The other kinds have no files; they say what the state of their parent stands on from there on: a ``fence``
that there is a new owner, a ``restore`` that an operator or a divergence went back, a ``reset`` that offsets were moved. Format 1 knew
checkpoints only; it is still read.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any

import msgspec

from learner.errors import Corrupt, FormatUnknown
from learner.store import journal
from learner.store.blobs import Digest
from weighting.provenance import Audit, Gap

FORMAT = 2
FORMATS = (1, 2)
CHECKPOINT = "checkpoint"
KINDS = (CHECKPOINT, "fence", "restore", "reset")
MAX_MANIFEST_BYTES = 16 << 20
MANIFEST = "manifest.json"

_VERSION = re.compile(r"v([0-9]{6,15})")
_MARK = re.compile(r"M-([0-9]{8,15})")
_NUMBER = Annotated[int, msgspec.Meta(ge=1)]
_COUNT = Annotated[int, msgspec.Meta(ge=0)]


class EventTimeRange(msgspec.Struct, frozen=True, kw_only=True):
    """Event times of the oldest and the newest sample that the model contains."""

    min: int  #: microseconds
    max: int  #: microseconds


class Parent(msgspec.Struct, frozen=True, kw_only=True, rename={"digest": "self"}):
    """The version that this one went on from."""

    version: str
    digest: str  #: its `self`


class ResumePoint(msgspec.Struct, frozen=True, kw_only=True):
    """Where the journal goes on from a cut."""

    segment: journal.SegmentName
    byte: _COUNT  #: where the next record begins
    skip: tuple[
        _COUNT, ...
    ] = ()  #: by rank: how many turns of the next record the state contains already

    @property
    def place(self) -> journal.JournalPosition:
        """Without what is skipped."""
        return journal.JournalPosition(self.segment, self.byte)


class Input(msgspec.Struct, frozen=True, kw_only=True):
    """A topic as it was read."""

    id: str  #: "" where the broker tells none
    num_partitions: _COUNT


class Trained(msgspec.Struct, frozen=True, kw_only=True):
    """The samples that the model contains."""

    num: _COUNT = 0
    sum64: _COUNT = 0  #: sum mod 2^64 of the hashes of their ids


class Reset(msgspec.Struct, frozen=True, kw_only=True, rename={"command": "order"}):
    """Offsets that an operator moved behind a step: records in between count twice, or never."""

    command: int
    step: _COUNT  #: it took effect behind this one,
    skip: tuple[_COUNT, ...] = ()  #: and behind so many turns of the next, by rank
    offsets: dict[
        str, dict[int, tuple[int, int]]
    ]  #: topic -> partition -> next offset before and after


class Exclusions(msgspec.Struct, frozen=True, kw_only=True, rename={"command": "order"}):
    """A list of what was taken out of the model; the list itself is not kept."""

    sha256: str
    num: _COUNT
    command: int


class Replay(msgspec.Struct, frozen=True, kw_only=True, rename={"command": "order"}):
    """A replay that is not over."""

    mode: str  #: as-it-was, anew
    until: dict[str, dict[int, int]]  #: topic -> partition -> end offset
    command: int
    into: str = "live"  #: live, or shadow: a store of its own, whose learner ends there


class RunState(
    msgspec.Struct, frozen=True, kw_only=True, rename={"commands_taken": "orders_taken"}
):
    """What holds from one manifest to the next, whatever is learned in between."""

    timeline: tuple[
        journal.JournalRange, ...
    ] = ()  #: the parts of the journal that count, from the oldest kept checkpoint on
    gaps: tuple[Gap, ...] = ()
    resets: tuple[Reset, ...] = ()
    quarantine: tuple[
        tuple[int, int], ...
    ] = ()  #: steps ``[from, to)`` of this timeline that are not learned
    exclusions: Exclusions | None = None
    bit_exact: bool = (
        True  #: false from the first resume under another fingerprint or world size on
    )
    commands_taken: int = 0  #: the newest order that was carried out
    world_size: int = 1
    replay: Replay | None = None
    superseded: tuple[
        tuple[int, int], ...
    ] = ()  #: numbers ``[from, to)`` of manifests that this one did not go on from

    def leaves_out(self, seq: int) -> bool:
        """Return whether manifest number `seq` is one that this one did not go on from."""
        return any(first <= seq < end for first, end in self.superseded)


class CheckpointMetadata(
    msgspec.Struct, frozen=True, kw_only=True, rename={"watermark_us": "watermark"}
):
    """Where in the log and in training a checkpoint stands, as its owner tells it; the rest of the manifest is ours."""

    step: _COUNT
    samples: _COUNT
    offsets: dict[str, dict[int, int]]  #: topic -> partition -> next offset
    event_time: EventTimeRange | None  #: None before the first sample
    watermark_us: int | None  #: event-time watermark; None before the first record
    weighting: dict[str, str | int | float | bool | list[float] | None]  #: scheme, exponent, clip
    evaluation: dict[str, float]  #: finite numbers only; leave out what is not known yet
    fresh_events: tuple[
        tuple[int, int], ...
    ]  #: (event time in microseconds, count) newly contained since the parent
    config_sha256: str
    fingerprint: dict[str, str | int | float | bool | None]  #: of the environment (RELIABILITY D7)
    journal: ResumePoint | None = None  #: None where nothing is journaled
    audit: dict[str, dict[int, Audit]] = {}  #: topic -> partition -> what was read
    inputs: dict[str, Input] = {}  #: topic -> as it was read
    trained: Trained = Trained()


class Manifest(
    CheckpointMetadata,
    frozen=True,
    kw_only=True,
    rename={"watermark_us": "watermark", "created_us": "created"},
):
    """A cut, who made it, what holds, and the files that it consists of."""

    format: int
    kind: str
    version: str
    epoch: _NUMBER
    seq: _NUMBER
    parent: Parent | None
    created_us: int
    files: dict[str, Digest]  #: path below the root -> digest
    run_state: RunState = RunState()  #: on disk its fields stand among the others


def version_name(seq: int) -> str:
    """Return the name of version number `seq`: ``v000123``."""
    return f"v{seq:06d}"


def version_seq(name: str) -> int | None:
    """Return the number in a version's name, None if it is not one; so a name never becomes a path."""
    return _number(_VERSION, name, version_name)


def mark_name(seq: int) -> str:
    """Return the name of the commit mark of version number `seq`, below the root."""
    return f"man/M-{seq:08d}"


def mark_seq(name: str) -> int | None:
    """Return the number in a file name of ``man/``, None if it is not a commit mark."""
    return _number(_MARK, name, lambda seq: f"M-{seq:08d}")


def folder_name(epoch: int, seq: int) -> str:
    """Return the folder of a version below the root; the owner epoch keeps two owners from colliding."""
    return f"blobs/{epoch:06d}-{seq:08d}"


def _number(pattern: re.Pattern[str], name: str, write: Callable[[int], str]) -> int | None:
    match = pattern.fullmatch(name)
    seq = int(match[1]) if match else 0
    return seq if seq and write(seq) == name else None


def check_path(path: str) -> str | None:
    """Return what is wrong with a path in a manifest: absolute, not normalised, hidden, or with ``..``; None if nothing is."""
    if not path or "\0" in path or "\\" in path:
        return "empty, or with a NUL or a backslash"
    for part in path.split("/"):
        if part in ("", ".", ".."):
            return "absolute, not normalised, or with '..'"
        if part.startswith("."):
            return "hidden"
    return None


def canonical(value: object) -> bytes:
    """Return JSON with sorted keys, UTF-8 and no insignificant space: equal values give equal bytes.

    Raises:
        ValueError: a number is not finite, or text is not Unicode.
    """
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    ).encode()


def encode(manifest: Manifest) -> bytes:
    """Return the manifest with its `self`, canonical.

    Raises:
        ValueError: a field is not what `decode` would accept, such as a number that is not finite; names it.
    """
    fields = msgspec.to_builtins(manifest, str_keys=True)
    fields["audit"] = _each_audit(fields["audit"], _audit_to_object)
    fields |= fields.pop("run_state")
    try:
        _convert(fields)
    except msgspec.ValidationError as error:
        raise ValueError(f"checkpoint: {error}") from error
    for key in fields:
        try:
            canonical(fields[key])
        except ValueError as error:
            raise ValueError(
                f"checkpoint: {key}: got {fields[key]!r}, expected finite numbers and Unicode text; leave the key out"
            ) from error
    data = canonical({**fields, "self": hashlib.sha256(canonical(fields)).hexdigest()})
    if len(data) > MAX_MANIFEST_BYTES:
        raise ValueError(
            f"checkpoint: manifest: got {len(data)} bytes, expected at most {MAX_MANIFEST_BYTES}"
        )
    return data


def decode(data: bytes, *, where: str) -> tuple[Manifest, dict[str, Any]]:
    """Return a manifest that is whole, as a struct and as it is written.

    Args:
        data: the file.
        where: its path below the root, for errors.

    Raises:
        Corrupt: not canonical JSON, `self` does not hold, a field is missing or of another type, or a path leaves the version's folder.
        FormatUnknown: whole, but of a format or kind that we do not read.
    """
    try:
        raw = json.loads(data)
        whole = isinstance(raw, dict) and canonical(raw) == data
    except (ValueError, RecursionError) as error:
        raise Corrupt(
            where, expected="a manifest in canonical JSON", found=f"{len(data)} bytes that are not"
        ) from error
    if not whole:
        raise Corrupt(where, expected="a manifest in canonical JSON", found="JSON in another form")
    _check_self(raw, where)
    for key, known in (("format", FORMATS), ("kind", KINDS)):
        if raw.get(key) not in known:
            raise FormatUnknown(
                where,
                key=key,
                expected=f"one of {', '.join(map(str, known))}",
                found=repr(raw.get(key)),
            )
    try:
        manifest = _convert(raw)
    except msgspec.ValidationError as error:
        raise Corrupt(where, expected="the fields of a manifest", found=str(error)) from error
    _check_names(manifest, where)
    return manifest, raw


def cut(raw: Mapping[str, Any]) -> CheckpointMetadata:
    """Return the cut in a manifest that `decode` gave as it is written."""
    return msgspec.convert(_with_audits(raw), CheckpointMetadata, str_keys=True)


def _convert(fields: dict[str, Any]) -> Manifest:
    return msgspec.convert({**_with_audits(fields), "run_state": fields}, Manifest, str_keys=True)


def _with_audits(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields with audits as `Audit` reads them; on disk they are objects with keys."""
    try:
        return {**fields, "audit": _each_audit(fields.get("audit", {}), _audit_from_object)}
    except (AttributeError, KeyError, TypeError):
        return dict(fields)  # not what `encode` writes: refused by the conversion that follows


def _each_audit(audit: Mapping[str, Any], change: Callable[[Any], object]) -> dict[str, Any]:
    return {topic: {p: change(one) for p, one in parts.items()} for topic, parts in audit.items()}


def _audit_to_object(values: Sequence[object]) -> dict[str, object]:
    return dict(zip(Audit.__struct_fields__, values, strict=True))


def _audit_from_object(values: Mapping[str, object]) -> list[object]:
    return [values[name] for name in Audit.__struct_fields__]


def _check_self(raw: Mapping[str, Any], where: str) -> None:
    rest = {key: value for key, value in raw.items() if key != "self"}
    found = hashlib.sha256(canonical(rest)).hexdigest()
    if raw.get("self") != found:
        raise Corrupt(where, expected=f"self {raw.get('self')!r}", found=f"{found!r} over the rest")


def _check_names(manifest: Manifest, where: str) -> None:
    if manifest.version != version_name(manifest.seq):
        raise Corrupt(
            where, expected=f"version {version_name(manifest.seq)}", found=repr(manifest.version)
        )
    if manifest.parent is not None and version_seq(manifest.parent.version) is None:
        raise Corrupt(
            where, expected="a version's name as parent", found=repr(manifest.parent.version)
        )
    folder = folder_name(manifest.epoch, manifest.seq)
    if manifest.files and manifest.kind != CHECKPOINT:
        raise Corrupt(
            where, expected=f"a {manifest.kind} without files", found=f"{len(manifest.files)} files"
        )
    for path in manifest.files:
        wrong = check_path(path) or (None if path.startswith(f"{folder}/") else f"outside {folder}")
        if wrong:
            raise Corrupt(
                where,
                expected="normalised paths inside the version's folder",
                found=f"{path!r}: {wrong}",
            )
