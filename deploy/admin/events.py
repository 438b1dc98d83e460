"""Events from a file: check them, send them; and the JSON Schemas of events."""

from __future__ import annotations

import contextlib
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import msgspec

from consumers import codec
from consumers.errors import Invalid
from consumers.events import Kind
from consumers.kafka.options import KafkaConfig
from consumers.kafka.sink import KafkaSink
from consumers.pipeline import Topics
from consumers.source import Sink
from consumers.tolerant import Repair
from deploy.admin.event_file import key_of, kind_of, name_of, numbered, read
from deploy.admin.topic_names import unread
from deploy.process.terminal import Output

_KINDS = {
    Kind.EXPOSURE: "exposure",
    Kind.CLICK: "action",
    Kind.PURCHASE: "action",
    Kind.ITEM: "item",
}
SCHEMAS = Path(__file__).parents[1] / "schemas"


def writing(config: KafkaConfig, *topics: str) -> contextlib.closing[KafkaSink]:
    """Return a sink of topics, to be closed by a `with`."""
    return contextlib.closing(KafkaSink(config, topics).start())


def validate(lines: Iterable[bytes], name: str, out: Output) -> int:
    """Check every line, or the one object of the file, as an event; write errors and repairs.

    Returns:
        The exit code: 1 if a line is no event.
    """
    taken_for = Counter[str]()
    invalid: list[dict[str, Any]] = []
    repaired: list[dict[str, Any]] = []
    for number, line in numbered(lines):
        kind, repairs = kind_of(line), list[Repair]()
        try:
            event = read(line, name, number, kind, repairs)
        except Invalid as error:
            invalid.append(_refusal(number, kind, error))
            _tell(out, f"{name}:{number}: {_KINDS[kind]}: {error.error}")
            continue
        what = name_of(event)
        taken_for[what] += 1
        for each in repairs:
            repaired.append({"line": number, "event": what, **msgspec.structs.asdict(each)})
            _tell(out, f"{name}:{number}: {what}: {each.field} {each.result} - at `{each.path}`")
    num_valid = taken_for.total()
    if out.as_json:
        counts = {"valid": num_valid, "events": dict(taken_for)}
        out.write(json.dumps({"file": name, **counts, "invalid": invalid, "repaired": repaired}))
    else:
        kinds = ", ".join(f"{count} {what}" for what, count in taken_for.items())
        listed = f" ({kinds})" if kinds else ""
        fields = f", {len(repaired)} fields repaired or dropped" if repaired else ""
        out.report(f"{num_valid} valid{listed}, {len(invalid)} invalid{fields}")
    return 1 if invalid else 0


def _tell(out: Output, line: str) -> None:
    if not out.as_json:
        out.write(line)


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
    """Send every line that is an event of this topic's kind, under its key; skip the others.

    An error is reported at its first line: with a wrong topic it is the same in every one.

    Args:
        sink: takes the records.
        lines: one JSON object each, or all of them one.
        name: of the file.
        topic: the topic; one that `topics` does not name takes every kind, with a warning.
        topics: the kind of each topic.
        out: takes the result and the errors.
        pace: called before each record; waits where it should.

    Returns:
        The exit code: 1 if a line was skipped.
    """
    if (warning := unread(topic, topics)) is not None:
        out.report(warning)
    num_sent = num_refused = 0
    reported: set[str] = set()
    for number, line in numbered(lines):
        try:
            kind = topics.kinds().get(topic) or kind_of(line)
            event = read(line, name, number, kind)
        except Invalid as error:
            num_refused += 1
            if error.error not in reported:
                out.report(_message(name, number, error))
            reported.add(error.error)
            continue
        pace()
        sink.send(topic, key_of(event), line)
        num_sent += 1
    sink.flush()
    if out.as_json:
        out.write(json.dumps({"topic": topic, "sent": num_sent, "refused": num_refused}))
    else:
        repeated = num_refused > len(reported)
        once = ", each error reported at its first line" if repeated else ""
        out.report(f"{num_sent} sent to {topic}, {num_refused} refused{once}")
    return 1 if num_refused else 0


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


def _refusal(number: int, kind: Kind, error: Invalid) -> dict[str, Any]:
    return {
        "line": number,
        "event": _KINDS[kind],
        "reason": error.reason,
        "field": _field(error),
        "error": error.error,
    }


def _field(error: Invalid) -> str | None:
    match = re.search(r"at `(\$[^`]*)`", error.error)
    return match[1] if match else None


def _message(name: str, number: int, error: Invalid) -> str:
    return f"{name}:{number}: {error.error}"
