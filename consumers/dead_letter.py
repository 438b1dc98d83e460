"""Dead letters: the original bytes of unreadable records with reason, stage and position.

They go to a topic of their own. A circuit breaker per topic stops reading when too many of the last
records were set aside, so that one bad producer release does not drain a topic.
"""

from __future__ import annotations

import logging
from typing import Literal, TypeAlias

import msgspec

from consumers.errors import DeadLetterFlood, Invalid, SnapshotRefused, Unreadable
from consumers.source import Record, Sink
from consumers.telemetry import Telemetry

_logger = logging.getLogger(__name__)

#: Format of the headers.
VERSION = "1"

#: Format of the breaker's snapshot.
FORMAT = 1

Policy: TypeAlias = Literal["none", "data", "all"]
"""Treatment of records that cannot be read.

none: reading stops at the first. data: it is set aside, with the breaker. all: it is set aside.
"""

#: Longer values are cut, so that a letter always fits; the whole record is still in its topic.
MAX_VALUE_BYTES = 512 * 1024
_MAX_ERROR_CHARS = 1000

#: The breaker opens when more than this share of the last records of a topic would be set aside;
#: of fewer records, when as many would.
MAX_SHARE = 0.05
WINDOW_RECORDS = 10_000
_CHUNK_RECORDS = WINDOW_RECORDS // 100


class _Chunk(msgspec.Struct, array_like=True):
    """Polls of at least a hundred records, or the chunk being filled.

    Attributes:
        counts: reason -> records set aside.
    """

    num_records: int = 0
    counts: dict[str, int] = {}


class _Recent(msgspec.Struct, array_like=True):
    """The last records of one topic: whole polls, the fewest that make 10,000.

    Attributes:
        num_records: in all chunks.
        chunks: about a hundred.
        counts: reason -> records set aside, in all chunks.
    """

    num_records: int = 0
    chunks: list[_Chunk] = []
    counts: dict[str, int] = {}

    def advance(self, num_records: int) -> None:
        """Count records, and drop the chunks that the window has passed."""
        if not self.chunks or self.chunks[-1].num_records >= _CHUNK_RECORDS:
            self.chunks.append(_Chunk())
        self.chunks[-1].num_records += num_records
        self.num_records += num_records
        while self.num_records - self.chunks[0].num_records >= WINDOW_RECORDS:
            passed = self.chunks.pop(0)
            self.num_records -= passed.num_records
            for reason, count in passed.counts.items():
                self.counts[reason] -= count
                if not self.counts[reason]:
                    del self.counts[reason]

    def add(self, reason: str) -> int:
        """Count a record that was set aside; return the sum in the window."""
        for counts in (self.chunks[-1].counts, self.counts):
            counts[reason] = counts.get(reason, 0) + 1
        return sum(self.counts.values())


class _State(msgspec.Struct, array_like=True):
    format: int
    topics: dict[str, _Recent]


class DeadLetters:
    """Writer of records that are set aside, with a circuit breaker.

    The owner calls `flush` before what it consumed counts as done.

    The breaker's state is a function of the calls of `seen` and `put`; `snapshot` resumes after the
    last of them.
    """

    def __init__(
        self, sink: Sink, topic: str, telemetry: Telemetry, policy: Policy = "data"
    ) -> None:
        """Write to `topic` through `sink`, as far as `policy` allows."""
        self._sink = sink
        self._topic = topic
        self._telemetry = telemetry
        self._policy = policy
        self._logged: set[tuple[str, str]] = set()
        self._recent: dict[str, _Recent] = {}

    def seen(self, topic: str, num_records: int) -> None:
        """Count the records of one topic in one poll, before any of them is set aside."""
        self._recent.setdefault(topic, _Recent()).advance(num_records)

    def put(self, record: Record, invalid: Invalid) -> None:
        """Set one record aside.

        Compaction keeps the newest copy per position, so setting it aside twice is harmless.

        Raises:
            Unreadable: the policy is `none`.
            DeadLetterFlood: the policy is `data`, and with this record more than 5 % of the topic's
                last 10,000 would be set aside.
        """
        if self._policy == "none":
            raise Unreadable(invalid)
        self._break(invalid)
        self._send(record, invalid)
        self._telemetry.dead_letters.labels(invalid.position.topic, invalid.reason).inc()
        self._log(invalid)

    def _break(self, invalid: Invalid) -> None:
        """Count an unreadable record; stop where there are too many."""
        topic = invalid.position.topic
        if topic not in self._recent:
            self.seen(topic, 1)
        recent = self._recent[topic]
        num_unreadable = recent.add(invalid.reason)
        limit = MAX_SHARE * max(recent.num_records, WINDOW_RECORDS)
        if self._policy == "data" and num_unreadable > limit:
            reason = max(sorted(recent.counts), key=recent.counts.__getitem__)
            raise DeadLetterFlood(topic, num_unreadable, recent.num_records, reason, invalid)

    def _send(self, record: Record, invalid: Invalid) -> None:
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

    def _log(self, invalid: Invalid) -> None:
        """Warn of the first record per topic and reason."""
        position = invalid.position
        first = (position.topic, invalid.reason) not in self._logged
        self._logged.add((position.topic, invalid.reason))
        _logger.log(
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

    def snapshot(self) -> bytes:
        """Return the breaker's state; equal states give equal bytes."""
        return msgspec.msgpack.encode(_State(FORMAT, self._recent), order="deterministic")

    def restore(self, data: bytes) -> None:
        """Restore the state returned by `snapshot`.

        Raises:
            SnapshotRefused: the state is of another format.
        """
        try:
            state = msgspec.msgpack.decode(data, type=_State)
        except msgspec.DecodeError as error:
            raise SnapshotRefused(
                f"a snapshot of the dead letters' breaker cannot be read: {error}"
            ) from error
        if state.format != FORMAT:
            raise SnapshotRefused(
                f"a snapshot of the breaker has the format {state.format}, "
                f"and this code reads {FORMAT}."
            )
        self._recent = state.topics
