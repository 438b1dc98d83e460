"""Where what we could not read goes: the original bytes with reason, stage and position, on a topic of their own."""

from __future__ import annotations

import logging

from consumers.errors import Invalid
from consumers.source import Record, Sink
from consumers.telemetry import Telemetry

_log = logging.getLogger(__name__)

#: Format of the headers.
VERSION = "1"

#: Longer values are cut, so that a letter always fits; the whole record is still where its position says.
MAX_VALUE_BYTES = 512 * 1024
_MAX_ERROR_CHARS = 1000


class DeadLetters:
    """Sets records aside; the owner flushes it before what it consumed counts as done."""

    def __init__(self, sink: Sink, topic: str, telemetry: Telemetry) -> None:
        """Write to `topic` through `sink`."""
        self._sink = sink
        self._topic = topic
        self._telemetry = telemetry
        self._told: set[tuple[str, str]] = set()

    def put(self, record: Record, invalid: Invalid) -> None:
        """Set one record aside; compaction keeps the newest copy per position, so setting it aside twice is harmless."""
        position = invalid.position
        value = record.value or b""  # a null value would delete the key of a compacted topic
        headers = [
            ("steelyard-position", str(position).encode()),
            ("steelyard-stage", invalid.stage.encode()),
            ("steelyard-reason", invalid.reason.encode()),
            ("steelyard-error", invalid.error[:_MAX_ERROR_CHARS].encode(errors="replace")),
            ("steelyard-version", VERSION.encode()),
        ]
        if len(value) > MAX_VALUE_BYTES:
            headers.append(("steelyard-size", str(len(value)).encode()))
            value = value[:MAX_VALUE_BYTES]
        key = f"{position.topic}-{position.partition}-{position.offset}".encode()
        self._sink.send(self._topic, key, value, headers)
        self._telemetry.dead_letters.labels(position.topic, invalid.reason).inc()
        first = (position.topic, invalid.reason) not in self._told
        self._told.add((position.topic, invalid.reason))
        _log.log(
            logging.WARNING if first else logging.DEBUG,
            "%s: %s. Set aside as a dead letter; reading goes on at %s[%d]@%d.",
            position,
            invalid.error,
            position.topic,
            position.partition,
            position.offset + 1,
        )

    def flush(self) -> None:
        """Wait until all that was set aside is safe.

        Raises:
            SinkUnavailable: something was not acknowledged.
        """
        self._sink.flush()
