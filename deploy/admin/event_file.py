"""Files of events: one JSON object a line, or one object over several lines."""

from __future__ import annotations

import contextlib
import itertools
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

import msgspec

from consumers import codec, tolerant
from consumers.events import Click, Event, Exposure, ItemUpdate, Kind, Other, Purchase
from consumers.source import Record
from consumers.tolerant import Repair
from deploy.errors import UsageError

_NAMES: dict[type[Event], str] = {
    Exposure: "exposure",
    Click: "click",
    Purchase: "purchase",
    ItemUpdate: "item",
    Other: "skipped action",
}
_MAX_OBJECT_BYTES = 1024 * 1024  # of a file that is one object over several lines


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
            f"{name}: {error.strerror}. Name a file with one JSON object a line, or - for standard "
            "input."
        ) from error
    with stream:
        yield stream


def read(
    line: bytes, name: str, number: int, kind: Kind, repairs: list[Repair] | None = None
) -> Event:
    """Decode one line of a file; `repairs` takes what is repaired or dropped.

    Raises:
        Invalid: it is not such an event.
    """
    record = Record(topic=name, partition=0, offset=number, timestamp_us=-1, key=None, value=line)
    return codec.decode(kind, record, repairs)


def kind_of(line: bytes) -> Kind:
    """Return the kind of a line by the fields that only that kind has; an action by default."""
    try:
        fields = tolerant.parse(line)
    except (ValueError, RecursionError):
        return Kind.CLICK  # whose decoder then says what is wrong
    if not isinstance(fields, dict) or "action_name" in fields:
        return Kind.CLICK
    if "query_response_hit_ids" in fields or "user_query" in fields:
        return Kind.EXPOSURE
    return Kind.ITEM if "object_id" in fields else Kind.CLICK


def name_of(event: Event) -> str:
    """Return what an event was taken for."""
    if isinstance(event, Purchase) and event.returned:
        return "return"
    return _NAMES[type(event)]


def key_of(event: Event) -> bytes:
    """Return the record key that an event must have."""
    return (event.object_id if isinstance(event, ItemUpdate) else event.client_id).encode()


def numbered(lines: Iterable[bytes]) -> Iterator[tuple[int, bytes]]:
    """Yield lines that are not empty, with their numbers.

    Where the first one is cut off, all of them may be one object, which is yielded instead.
    """
    rest = ((number, line.strip()) for number, line in enumerate(lines, 1) if line.strip())
    head = list(itertools.islice(rest, 1))
    if head and "truncated" in _flaw(head[0][1]):
        num_bytes = 0
        for entry in rest:
            head.append(entry)
            num_bytes += len(entry[1])
            if num_bytes > _MAX_OBJECT_BYTES:
                break
        whole = b"\n".join(line for _, line in head)
        if not _flaw(whole):
            head = [(head[0][0], whole)]
    yield from head
    yield from rest


def _flaw(text: bytes) -> str:
    """Return why this is no JSON, in the parser's words; empty when it is."""
    try:
        msgspec.json.decode(text, type=msgspec.Raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        return str(error)
    return ""
