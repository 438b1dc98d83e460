"""Command `events import`: a history to files of events, or to Kafka."""

from __future__ import annotations

import contextlib
import json
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from consumers.events import Kind
from consumers.pipeline import Topics
from consumers.source import Sink
from deploy.admin.history.convert import Event, convert
from deploy.admin.history.mapping import read_mapping
from deploy.errors import Unsafe, UsageError, WriteFailed
from deploy.process.terminal import Output
from deploy.settings.units import format_time
from deploy.tables.rows import open_table
from deploy.tables.values import LeftOut
from learner.store import blobs
from learner.store.blobs import Disk
from weighting.provenance import TopicPartition

_FIRST_EVENTS = 5
_LINES_AT_ONCE = 4096
_PLURALS = {
    Kind.ITEM: "items",
    Kind.EXPOSURE: "exposures",
    Kind.CLICK: "clicks",
    Kind.PURCHASE: "purchases",
}


def events_of(
    history: Path,
    mapping_file: Path,
    *,
    skip_invalid: bool,
    clock: Callable[[], float] = time.time,
) -> tuple[list[Event], LeftOut]:
    """Read a history, and return its events with what was left out.

    Raises:
        TableRefused: mapping or history cannot be used.
    """
    mapping = read_mapping(mapping_file)
    table = open_table(history, delimiter=mapping.delimiter)
    mapping = read_mapping(mapping_file, table.columns)
    left_out = LeftOut(str(history), skip=skip_invalid)
    return convert(table, mapping, left_out, now_us=int(clock() * 1e6)), left_out


def show(events: Sequence[Event], left_out: LeftOut, out: Output) -> int:
    """Write counts, the first events and every reason why rows are left out; a dry run."""
    first = [json.loads(event.value) for event in events[:_FIRST_EVENTS]]
    lines = [*_summary(events, left_out), *(e.value.decode() for e in events[:_FIRST_EVENTS])]
    result = {
        "events": _counts(events),
        "left_out": left_out.counts,
        "first_rows": left_out.first,
        "first_events": first,
        "written": None,
    }
    out.give(result, [*lines, "dry run: nothing was written"])
    return 0


def write(
    events: Sequence[Event],
    left_out: LeftOut,
    folder: Path,
    out: Output,
    *,
    disk: Disk | None = None,
) -> int:
    """Write one NDJSON file for each kind, all of them or none; return the exit code.

    Raises:
        UsageError: a file cannot be written where the folder is, or a folder has its name.
        WriteFailed: they could not be written; files of before are as they were.
    """
    disk = disk or Disk()
    written: dict[Path, Path] = {}  # final name -> temporary one
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for kind, name in _PLURALS.items():
            path = folder / f"{name}.ndjson"
            if path.is_dir():
                raise UsageError(f"--out: {path} is a folder, expected a file or nothing")
            written[path] = path.with_name(f".{path.name}.{disk.token()}.tmp")
            _write_lines(disk, written[path], [e.value for e in events if e.kind is kind])
        for path, temporary in written.items():
            disk.rename(temporary, path)
        disk.fsync_folder(folder)
    except OSError as error:
        raise WriteFailed(folder, error) from error
    finally:
        for temporary in written.values():
            with contextlib.suppress(OSError):
                disk.unlink(temporary)
    return _told(events, left_out, out, ", ".join(map(str, written)))


def _write_lines(disk: Disk, path: Path, lines: Sequence[bytes]) -> None:
    fd = disk.create(path)
    try:
        for begin in range(0, len(lines), _LINES_AT_ONCE):
            some = lines[begin : begin + _LINES_AT_ONCE]
            blobs.write_all(disk, fd, b"".join(line + b"\n" for line in some))
        disk.fsync(fd)
    finally:
        disk.close(fd)


def send(
    events: Sequence[Event],
    left_out: LeftOut,
    sink: Sink,
    topics: Topics,
    ends: Mapping[TopicPartition, int],
    out: Output,
) -> int:
    """Send all events in order of time; return the exit code.

    Args:
        events: in order of time.
        left_out: of the history.
        sink: takes the records.
        topics: by kind.
        ends: end offsets of these topics.
        out: takes the result.

    Raises:
        Unsafe: a topic has records already: behind them, a history would be late, and what was
            imported before would count twice once readers have forgotten its ids.
        UsageError: a kind of event has no topic.
    """
    names = {kind: topic for topic, kind in topics.kinds().items()}
    lacking = sorted({event.kind for event in events} - set(names))
    if lacking:
        raise UsageError(f"kafka.topics.{_PLURALS[lacking[0]]}: got none, expected a topic")
    used = [f"{topic}[{p}] ends at {end}" for (topic, p), end in sorted(ends.items()) if end > 0]
    if used:
        raise Unsafe(
            f"topics have records already: {', '.join(used[:4])}. A history comes before all "
            "other events: behind them it would be late, and an import that is repeated would "
            "count twice. Delete the topics and create them again (`steelyard topics create`), "
            "or import with --out DIR and send what is missing. Nothing was written."
        )
    with out.progress("events sent", len(events)) as advance:
        for event in events:
            sink.send(names[event.kind], event.key, event.value)
            advance(1)
        sink.flush()
    return _told(events, left_out, out, ", ".join(sorted({names[e.kind] for e in events})))


def _told(events: Sequence[Event], left_out: LeftOut, out: Output, where: str) -> int:
    result = {"events": _counts(events), "left_out": left_out.counts, "written": where}
    out.give(result, [*_summary(events, left_out), f"written to {where}"])
    return 0


def _counts(events: Sequence[Event]) -> dict[str, int]:
    found = Counter(event.kind for event in events)
    return {name: found[kind] for kind, name in _PLURALS.items()}


def _summary(events: Sequence[Event], left_out: LeftOut) -> list[str]:
    counts = ", ".join(f"{number:,} {name}" for name, number in _counts(events).items())
    span = ""
    if events:
        first, last = format_time(events[0].time_us), format_time(events[-1].time_us)
        span = f", from {first} to {last}"
    return [f"{counts}{span}", *left_out.lines()]


def chosen(out_folder: Path | None, *, to_kafka: bool, dry_run: bool) -> None:
    """Refuse options of which not exactly one is given.

    Raises:
        UsageError: none or several.
    """
    if sum((out_folder is not None, to_kafka, dry_run)) != 1:
        raise UsageError("events import: expected exactly one of --dry-run, --out DIR, --send")
