"""Events on the command line: check a file, send it, look at a topic and at what was set aside."""

from __future__ import annotations

import base64
import contextlib
import itertools
import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from consumers import codec
from consumers.errors import Invalid
from consumers.events import Event, ItemUpdate, Kind
from consumers.kafka.options import KafkaConfig
from consumers.kafka.sink import KafkaSink
from consumers.kafka.source import KafkaSource
from consumers.pipeline import Topics
from consumers.source import Record, Sink, Source
from deploy.errors import UsageError
from deploy.process.terminal import Output
from weighting.provenance import TopicPartition

SCHEMAS = Path(__file__).parents[1] / "schemas"

_POLL_SECONDS = 0.5
_MAX_OBJECT_BYTES = 1024 * 1024  # of a file that is one object over several lines
_MAX_EMPTY_POLLS = (
    20  # a partition may end in records that are never delivered, such as a transaction's
)


@contextlib.contextmanager
def open_lines(name: str) -> Iterator[BinaryIO]:
    """Open a file for its lines; `-` is standard input.

    Raises:
        UsageError: it cannot be opened.
    """
    if name == "-":
        yield sys.stdin.buffer
        return
    try:
        stream = Path(name).open("rb")
    except OSError as error:
        raise UsageError(
            f"{name}: {error.strerror}. Name a file with one JSON object a line, or - for standard input."
        ) from error
    with stream:
        yield stream


def reading(config: KafkaConfig, topic: str) -> contextlib.closing[KafkaSource]:
    """Return a topic, to be read and closed by a `with`."""
    return contextlib.closing(KafkaSource(config, [topic]).start())


def writing(config: KafkaConfig, *topics: str) -> contextlib.closing[KafkaSink]:
    """Return topics, to be written and closed by a `with`."""
    return contextlib.closing(KafkaSink(config, topics).start())


def validate(lines: Iterable[bytes], name: str, out: Output) -> int:
    """Check every line as an event, or the one object that the file is; write what is wrong with which, and return the exit code."""
    num_valid, invalid = 0, []
    for number, line in _numbered(lines):
        try:
            read(line, name, number, kind_of(line))
            num_valid += 1
        except Invalid as error:
            invalid.append(_refusal(number, error))
            if not out.as_json:
                out.write(_told(name, number, error))
    if out.as_json:
        out.write(json.dumps({"file": name, "valid": num_valid, "invalid": invalid}))
    else:
        out.tell(f"{num_valid} valid, {len(invalid)} invalid")
    return 1 if invalid else 0


def send(
    sink: Sink,
    lines: Iterable[bytes],
    name: str,
    topic: str,
    topics: Topics,
    out: Output,
    *,
    pace: Callable[[], None] = lambda: None,
) -> int:
    """Write every line that is an event of this topic's kind, keyed as it must be; skip the others; return the exit code.

    What is wrong is told at its first line: with a wrong topic it is the same in every one.

    Args:
        sink: where to.
        lines: one JSON object each, or all of them one.
        name: of the file.
        topic: where to; one that `topics` does not name takes every kind.
        topics: what each topic carries.
        out: where to tell.
        pace: called before each record; waits where it should.
    """
    num_sent = num_refused = 0
    told: set[str] = set()
    for number, line in _numbered(lines):
        try:
            event = read(line, name, number, topics.kinds().get(topic) or kind_of(line))
        except Invalid as error:
            num_refused += 1
            if error.error not in told:
                out.tell(_told(name, number, error))
            told.add(error.error)
            continue
        pace()
        sink.send(topic, key_of(event), line)
        num_sent += 1
    sink.flush()
    if out.as_json:
        out.write(json.dumps({"topic": topic, "sent": num_sent, "refused": num_refused}))
    else:
        once = ", each error told at its first line" if num_refused > len(told) else ""
        out.tell(f"{num_sent} sent to {topic}, {num_refused} refused{once}")
    return 1 if num_refused else 0


def tail(source: Source, out: Output, *, partition: int | None = None, start: int = -10) -> None:
    """Write the records from `start` (below zero: counted from the end) up to the end offsets of now, one JSON object a line.

    Raises:
        UsageError: the topic has no such partition.
    """
    assigned = source.assignment()
    chosen = [tp for tp in assigned if partition is None or tp[1] == partition]
    if not chosen:
        raise UsageError(f"--partition: got {partition}, expected one of 0 to {len(assigned) - 1}")
    for record in _records(source, chosen, start):
        shown = {
            "position": f"{record.topic}[{record.partition}]@{record.offset}",
            "time": datetime.fromtimestamp(record.timestamp_us / 1e6, UTC).isoformat()
            if record.timestamp_us >= 0
            else None,
            "key": _shown(record.key),
            "value": _shown(record.value),
        }
        if record.headers:
            shown["headers"] = {name: _shown(value) for name, value in record.headers}
        out.write(json.dumps(shown, ensure_ascii=False))


def dead_letters(
    source: Source,
    topics: Topics,
    out: Output,
    *,
    reason: str | None = None,
    sink: Sink | None = None,
) -> int:
    """Write what was set aside, one JSON object a line; with a `sink`, send it again and take it off the topic of dead letters.

    1. Send the original bytes to their topic, keyed by the client_id in them. 2. Flush. 3. Delete the dead letters. 4. Flush.
    What cannot be sent, since its bytes name no client_id or its topic is none of ours, stays; so does everything if 2 fails.

    Returns:
        The exit code: 1 if something could not be sent.
    """
    sent: list[tuple[str, bytes | None]] = []
    num_shown = num_kept = 0
    for record in _newest_by_key(source):
        headers = {
            name.removeprefix("steelyard-"): value.decode(errors="replace")
            for name, value in record.headers
        }
        if reason is not None and headers.get("reason") != reason:
            continue
        num_shown += 1
        out.write(json.dumps(headers | {"value": _shown(record.value)}, ensure_ascii=False))
        topic = headers.get("position", "").partition("[")[0]
        key = _key_in(record.value or b"", topics.kinds().get(topic))
        if sink is not None and key is not None:
            sink.send(topic, key, record.value)  # 1
            sent.append((record.topic, record.key))
        elif sink is not None:
            num_kept += 1
            out.tell(
                f"{headers.get('position')}: kept: its bytes name no client_id, or its topic is none of ours"
            )
    if sink is not None:
        sink.flush()  # 2
        for topic, letter in sent:
            sink.send(topic, letter, None)  # 3
        sink.flush()  # 4
        out.tell(f"{len(sent)} sent again, {num_kept} kept")
    else:
        out.tell(f"{num_shown} dead letters")
    return 1 if num_kept else 0


def read(line: bytes, name: str, number: int, kind: Kind) -> Event:
    """Decode one line of a file.

    Raises:
        Invalid: it is not such an event.
    """
    record = Record(topic=name, partition=0, offset=number, timestamp_us=-1, key=None, value=line)
    return codec.decode(kind, record)


def kind_of(line: bytes) -> Kind:
    """Return what a line is by the fields that only it has; an action where nothing says otherwise."""
    try:
        fields = msgspec.json.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return Kind.CLICK  # whose decoder then says what is wrong
    if not isinstance(fields, dict) or "action_name" in fields:
        return Kind.CLICK
    if "query_response_hit_ids" in fields or "user_query" in fields:
        return Kind.EXPOSURE
    return Kind.ITEM if "object_id" in fields else Kind.CLICK


def key_of(event: Event) -> bytes:
    """Return the record key that an event must have."""
    return (event.object_id if isinstance(event, ItemUpdate) else event.client_id).encode()


def schemas() -> dict[str, dict[str, Any]]:
    """Return the JSON Schemas of the events, by name."""
    return codec.schemas()


def write_schemas(folder: Path = SCHEMAS) -> list[Path]:
    """Write one `<event>.schema.json` each; return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, schema in schemas().items():
        path = folder / f"{name}.schema.json"
        path.write_text(json.dumps(schema, indent=2) + "\n", encoding="utf-8")
        written.append(path)
    return written


def _numbered(lines: Iterable[bytes]) -> Iterator[tuple[int, bytes]]:
    """Lines that are not empty, with their numbers; where the first is not whole, the one object that all of them may be."""
    numbered = ((number, line.strip()) for number, line in enumerate(lines, 1) if line.strip())
    head = list(itertools.islice(numbered, 1))
    if head and "truncated" in _flaw(head[0][1]):
        num_bytes = 0
        for entry in numbered:
            head.append(entry)
            num_bytes += len(entry[1])
            if num_bytes > _MAX_OBJECT_BYTES:
                break
        whole = b"\n".join(line for _, line in head)
        if not _flaw(whole):
            head = [(head[0][0], whole)]
    yield from head
    yield from numbered


def _flaw(text: bytes) -> str:
    """Why this is no JSON, in the parser's words; empty when it is."""
    try:
        msgspec.json.decode(text, type=msgspec.Raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        return str(error)
    return ""


def _records(source: Source, chosen: Iterable[TopicPartition], start: int) -> Iterator[Record]:
    begins, ends = source.beginning_offsets(), source.end_offsets()
    left = {}
    for tp in source.assignment():
        begin, end = begins.get(tp, 0), ends.get(tp, 0)
        wanted = min(max(begin, start if start >= 0 else end + start), end) if tp in chosen else end
        source.seek(*tp, wanted)
        if wanted < end:
            left[tp] = end
    source.pause([tp for tp in source.assignment() if tp not in left])
    num_empty = 0
    while left and num_empty < _MAX_EMPTY_POLLS:
        records = source.poll(_POLL_SECONDS)
        num_empty = 0 if records else num_empty + 1
        yield from (
            record
            for record in records
            if record.offset < left.get((record.topic, record.partition), 0)
        )
        left = {tp: end for tp, end in left.items() if source.position(*tp) < end}


def _newest_by_key(source: Source) -> Iterable[Record]:
    """What compaction will leave, in the order in which it was written."""
    newest: dict[bytes | None, Record] = {}
    for record in _records(source, source.assignment(), 0):
        newest.pop(record.key, None)
        if record.value is not None:
            newest[record.key] = record
    return newest.values()


def _key_in(value: bytes, kind: Kind | None) -> bytes | None:
    """The key that a record of this kind must have, from bytes that may be no event yet."""
    try:
        fields = msgspec.json.decode(value)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    key = (
        fields.get("object_id" if kind is Kind.ITEM else "client_id")
        if isinstance(fields, dict)
        else None
    )
    return (
        str(key).encode() if kind is not None and isinstance(key, str | int) and str(key) else None
    )


def _shown(value: bytes | None) -> Any:
    """JSON as itself, other text as text, other bytes as `{"base64": ...}`."""
    if value is None:
        return None
    try:
        return json.loads(value) if value[:1] in (b"{", b"[") else value.decode()
    except (ValueError, RecursionError):
        pass
    try:
        return value.decode()
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(value).decode()}


def _refusal(number: int, error: Invalid) -> dict[str, Any]:
    return {"line": number, "reason": error.reason, "field": _field(error), "error": error.error}


def _field(error: Invalid) -> str | None:
    match = re.search(r"at `(\$[^`]*)`", error.error)
    return match[1] if match else None


def _told(name: str, number: int, error: Invalid) -> str:
    return f"{name}:{number}: {error.error}"
