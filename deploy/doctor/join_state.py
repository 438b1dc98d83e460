"""Estimate of the memory that the join needs, from the rate of recent records."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import pairwise

from consumers.events import Click, Event, Exposure, Kind
from consumers.joining.join import JoinConfig
from consumers.source import Record
from deploy.doctor.check_result import CheckResult

#: Measured by `benchmarks.join_state`, deduplication included.
BYTES_PER_LIST = 440
BYTES_PER_HIT = 15
BYTES_PER_CLICK = 1300

_AREA = "Kafka"
_LEAST_SPAN_US = 200_000  # records written in less are a burst, and no rate


def join_state(
    topic: str, kind: Kind, events: Sequence[tuple[Record, Event]], join: JoinConfig
) -> Iterator[CheckResult]:
    """Estimate what a topic's events leave open in the join; nothing without a rate.

    Args:
        topic: its name.
        kind: what it carries.
        events: the newest of each partition with their records.
        join: its windows and bounds.
    """
    rate = events_per_second([record for record, _ in events])
    if rate is None or kind not in (Kind.EXPOSURE, Kind.CLICK):
        return
    # A click is kept twice as long, to tell a late purchase from an orphan.
    seconds = join.attribution_window_us / 1e6 * (1 if kind is Kind.EXPOSURE else 2)
    num_open = min(rate * seconds, join.max_pending)
    megabytes = num_open * _bytes_each([event for _, event in events], join) / 1e6
    what = "lists" if kind is Kind.EXPOSURE else "clicks"
    text = (
        f"{topic}: open {what} will need about {megabytes:,.0f} MB of memory at {rate:,.1f} "
        f"events/s for {seconds / 86_400:.3g} d"
    )
    if num_open < join.max_pending:
        yield CheckResult.ok(_AREA, text)
        return
    kept_days = join.max_pending / rate / 86_400
    yield CheckResult.warn(
        _AREA,
        f"{text}, and join.max_pending evicts them after {kept_days:.3g} d",
        "raise join.max_pending if the memory is there, or shorten join.attribution_window",
    )


def events_per_second(records: Sequence[Record]) -> float | None:
    """Return the rate of the newest records; None where their times do not tell."""
    times_us: defaultdict[int, list[int]] = defaultdict(list)
    for record in records:
        times_us[record.partition].append(record.timestamp_us)
    rate = 0.0
    for of_partition in times_us.values():
        steps = [later - earlier for earlier, later in pairwise(sorted(of_partition))]
        if sum(steps) >= _LEAST_SPAN_US:
            rate += len(steps) / (sum(steps) / 1e6)
    return rate or None


def _bytes_each(events: Sequence[Event], join: JoinConfig) -> float:
    sizes = [
        BYTES_PER_LIST + BYTES_PER_HIT * min(len(event.hits), join.max_hits)
        for event in events
        if isinstance(event, Exposure)
    ]
    sizes += [BYTES_PER_CLICK for event in events if isinstance(event, Click)]
    return sum(sizes) / len(sizes) if sizes else 0.0
