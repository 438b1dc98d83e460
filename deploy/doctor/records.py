"""Checks of recent records of a topic: readable, well keyed, joinable, and of this time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from consumers import codec
from consumers.errors import Invalid
from consumers.events import Event, ItemUpdate, Kind, Other
from consumers.joining.join import JoinConfig
from consumers.source import Record
from deploy.doctor.check_result import CheckResult
from deploy.doctor.clocks import TOLERANCE_SECONDS, examine_clocks
from deploy.doctor.join_state import join_state

TIME = "time"
NUM_SAMPLED = 200
"""Number of records sampled per topic, the newest, spread over its partitions."""

MAX_INVALID_RATIO = 0.01
"""Share of unreadable records that also raises the alert."""

_AREA = "Kafka"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """Recent records of one topic, decoded.

    Attributes:
        topic: its name.
        kind: what it carries.
        num_partitions: its partition count.
        records: the newest of each partition.
        events: those that could be decoded.
        reasons: of those that could not.
    """

    topic: str
    kind: Kind
    num_partitions: int
    records: Sequence[Record]
    events: Sequence[tuple[Record, Event]]
    reasons: Counter[str]

    @classmethod
    def decoded(
        cls, topic: str, kind: Kind, num_partitions: int, records: Sequence[Record]
    ) -> Sample:
        """Return a sample of these records."""
        events: list[tuple[Record, Event]] = []
        reasons = Counter[str]()
        for record in records:
            try:
                events.append((record, codec.decode(kind, record)))
            except Invalid as invalid:
                reasons[invalid.reason] += 1
        return cls(
            topic=topic,
            kind=kind,
            num_partitions=num_partitions,
            records=records,
            events=events,
            reasons=reasons,
        )


def examine_records(sample: Sample, join: JoinConfig, now_seconds: float) -> Iterator[CheckResult]:
    """Run all checks of one topic's records.

    Args:
        sample: at least one record.
        join: windows of the join.
        now_seconds: since the Unix epoch, by our clock.
    """
    yield _readable(sample)
    yield _keys(sample)
    if sample.kind in (Kind.CLICK, Kind.PURCHASE) and sample.events:
        yield from _identity(sample)
    yield _newest(sample, now_seconds)
    if sample.kind is not Kind.ITEM:
        newest_seconds = max(record.timestamp_us for record in sample.records) / 1e6
        latest_seconds = max(now_seconds, newest_seconds)  # `_newest` reports a clock behind it
        yield from examine_clocks(sample.topic, sample.events, latest_seconds)
        yield from join_state(sample.topic, sample.kind, sample.events, join)


def _readable(sample: Sample) -> CheckResult:
    num_invalid, num_records = sum(sample.reasons.values()), len(sample.records)
    counted = f"{num_records - num_invalid} of {num_records} sampled records can be read"
    if not num_invalid:
        return CheckResult.ok(_AREA, f"{sample.topic}: {counted}")
    top = ", ".join(f"{reason} {count}" for reason, count in sample.reasons.most_common(3))
    text = f"{sample.topic}: {counted}; the others: {top}"
    remedy = (
        f"steelyard events tail {sample.topic} | head, and the producer against: steelyard events "
        "schema"
    )
    too_many = num_invalid > MAX_INVALID_RATIO * num_records
    return (CheckResult.fail if too_many else CheckResult.warn)(_AREA, text, remedy)


def _keys(sample: Sample) -> CheckResult:
    name = "object_id" if sample.kind is Kind.ITEM else "client_id"
    ours = [(record, event) for record, event in sample.events if not isinstance(event, Other)]
    num_without = sum(not record.key for record, _ in ours)
    keyed = [(record.key, _wanted_key(event)) for record, event in ours if record.key]
    num_other = sum(key != wanted for key, wanted in keyed)
    if not num_without and not num_other:
        return CheckResult.ok(_AREA, f"{sample.topic}: every sampled key is the record's {name}")
    text = (
        f"{sample.topic}: of {len(ours)} sampled events {num_without} have no key, "
        f"{num_other} another than their {name}"
    )
    return CheckResult.fail(_AREA, text, f"let the producer use the {name} as the record's key")


def _identity(sample: Sample) -> Iterator[CheckResult]:
    events = [event for _, event in sample.events]
    num_identified = sum(getattr(event, "identity", b"") is not None for event in events)
    yield _counted(
        sample,
        num_identified,
        "an event id",
        "without it a producer's retry counts twice; set event_attributes.event_id or the headers "
        "ce_source and ce_id",
    )
    num_joinable = sum(getattr(event, "query_id", "") is not None for event in events)
    yield _counted(
        sample,
        num_joinable,
        "a query_id",
        "without it the join is inferred from client and item; pass on the query_id of the answer "
        "that was clicked in",
    )


def _counted(sample: Sample, num_events: int, what: str, remedy: str) -> CheckResult:
    total = len(sample.events)
    text = f"{sample.topic}: {num_events} of {total} sampled events have {what}"
    if num_events == total:
        return CheckResult.ok(_AREA, text)
    return CheckResult.warn(_AREA, text, remedy)


def _newest(sample: Sample, now_seconds: float) -> CheckResult:
    """Compare the newest record with this machine's clock."""
    newest_seconds = max(record.timestamp_us for record in sample.records) / 1e6
    age_seconds = now_seconds - newest_seconds
    if age_seconds >= -TOLERANCE_SECONDS:
        return CheckResult.ok(
            TIME, f"{sample.topic}: the newest record is {max(age_seconds, 0):.0f} s old"
        )
    return CheckResult.fail(
        TIME,
        f"{sample.topic}: the newest record is {-age_seconds:.0f} s ahead of this machine's clock",
        "set this clock, or that of the broker or producer: timedatectl set-ntp true",
    )


def _wanted_key(event: Event) -> bytes:
    return (event.object_id if isinstance(event, ItemUpdate) else event.client_id).encode()
