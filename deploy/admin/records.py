"""Records of a topic, printed; dead letters, printed and sent again."""

from __future__ import annotations

import base64
import contextlib
import json
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from typing import Any

from consumers import codec, mending, tolerant
from consumers.errors import Invalid
from consumers.events import Exposure, Kind
from consumers.kafka.options import KafkaConfig
from consumers.kafka.source import KafkaSource
from consumers.pipeline import Topics
from consumers.source import Record, Sink, Source
from deploy.errors import UsageError
from deploy.process.terminal import Output
from weighting.provenance import TopicPartition

_POLL_SECONDS = 0.5
_MAX_EMPTY_POLLS = 20  # a partition may end in records that are never delivered (transactions)


def reading(config: KafkaConfig, topic: str) -> contextlib.closing[KafkaSource]:
    """Return a source of one topic, to be closed by a `with`."""
    return contextlib.closing(KafkaSource(config, [topic]).start())


def tail(source: Source, out: Output, *, partition: int | None = None, start: int = -10) -> None:
    """Write records up to the end offsets of now, one JSON object a line.

    Args:
        source: the topic.
        out: takes the records.
        partition: its number; None for all.
        start: first offset; below zero it is counted from the end.

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
            "time": _time(record),
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
    """Write dead letters, one JSON object a line; with a `sink`, send them again and delete them.

    1. Send the original bytes to their topic, keyed by the client_id in them. 2. Flush. 3. Delete
    the dead letters. 4. Flush. What cannot be sent, since its bytes name no client_id or its topic
    is none of ours, stays; so does everything if 2 fails.

    Returns:
        The exit code: 1 if something could not be sent.
    """
    sent: list[tuple[str, bytes | None]] = []
    num_shown = num_kept = 0
    for record in _newest_by_key(source):
        headers = _headers(record)
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
            out.report(
                f"{headers.get('position')}: kept: its bytes name no client_id, or its topic is "
                "none of ours"
            )
    if sink is None:
        out.report(f"{num_shown} dead letters")
        return 0
    sink.flush()  # 2
    for topic, letter in sent:
        sink.send(topic, letter, None)  # 3
    sink.flush()  # 4
    out.report(f"{len(sent)} sent again, {num_kept} kept")
    return 1 if num_kept else 0


def without_hits(
    source: Source, out: Output, *, num_records: int, top: int, min_clients: int
) -> None:
    """Write the searches that found nothing, those of the most clients first.

    Args:
        source: the topic of exposures.
        out: takes the result.
        num_records: newest records of each partition that are read.
        top: most queries written.
        min_clients: a query of fewer clients is not shown: it may be about one person.
    """
    clients: dict[str, set[str]] = {}
    num_exposures = num_empty = 0
    for record in _records(source, source.assignment(), -num_records):
        with contextlib.suppress(Invalid):
            event = codec.decode(Kind.EXPOSURE, record)
            if isinstance(event, Exposure):
                num_exposures += 1
                num_empty += not event.hits
                if not event.hits and event.user_query:
                    query = " ".join(event.user_query.casefold().split())
                    clients.setdefault(query, set()).add(event.client_id)
    shown = [(query, len(who)) for query, who in clients.items() if len(who) >= min_clients]
    shown.sort(key=lambda each: (-each[1], each[0]))
    queries = [{"query": query, "clients": number} for query, number in shown[:top]]
    lines = [f"{number:>8}  {query}" for query, number in shown[:top]]
    head = f"{num_empty} of {num_exposures} searches found nothing; clients, and their query:"
    out.give({"searches": num_exposures, "no_hits": num_empty, "queries": queries}, [head, *lines])


def _records(source: Source, chosen: Iterable[TopicPartition], start: int) -> Iterator[Record]:
    """Yield the records of chosen partitions from `start` up to the end offsets of now."""
    begins, ends = source.beginning_offsets(), source.end_offsets()
    left = {}
    for tp in source.assignment():
        begin, end = begins.get(tp, 0), ends.get(tp, 0)
        wanted = end
        if tp in chosen:
            wanted = min(max(begin, start if start >= 0 else end + start), end)
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
    """Return the records that compaction will leave, in the order of the log."""
    newest: dict[bytes | None, Record] = {}
    for record in _records(source, source.assignment(), 0):
        newest.pop(record.key, None)
        if record.value is not None:
            newest[record.key] = record
    return newest.values()


def _key_in(value: bytes, kind: Kind | None) -> bytes | None:
    """Return the key that a record of this kind must have; the bytes may be no event yet."""
    try:
        fields = tolerant.parse(value)
    except (ValueError, RecursionError):
        return None
    if kind is None or not isinstance(fields, dict):
        return None
    key = mending.as_id(fields.get("object_id" if kind is Kind.ITEM else "client_id"))
    return key.encode() if key else None


def _headers(record: Record) -> dict[str, str]:
    return {
        name.removeprefix("steelyard-"): value.decode(errors="replace")
        for name, value in record.headers
    }


def _time(record: Record) -> str | None:
    if record.timestamp_us < 0:
        return None
    return datetime.fromtimestamp(record.timestamp_us / 1e6, UTC).isoformat()


def _shown(value: bytes | None) -> Any:
    """Return JSON as itself, other text as text, other bytes as `{"base64": ...}`."""
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
