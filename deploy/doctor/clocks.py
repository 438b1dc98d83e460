"""Clocks of clients and producers, compared with those of the events around theirs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence

from consumers.events import Click, Event, Exposure, Other, Purchase
from consumers.source import Record
from deploy.doctor.check_result import CheckResult

#: A clock that is off by less than this is right.
TOLERANCE_SECONDS = 60.0

_TOLERANCE_US = int(TOLERANCE_SECONDS * 1e6)
_AREA = "time"
_NUM_NEIGHBOURS, _LEAST_NEIGHBOURS = 8, 3
_REMEDY = (
    "the learner counts them (steelyard_event_clock_corrected_total, outcome late) and keeps the "
    "others right; stamp events on one clock, best the server's, set by NTP, with the offset of "
    "its time zone. steelyard events tail shows the record"
)


def examine_clocks(
    topic: str, events: Sequence[tuple[Record, Event]], now_seconds: float
) -> Iterator[CheckResult]:
    """Report event times that the events around them contradict.

    Args:
        topic: its name.
        events: with their records, each partition in the order of the log.
        now_seconds: since the Unix epoch; nothing can be later.
    """
    errors_us: list[tuple[int, Record]] = []
    of_partition: defaultdict[int, list[tuple[Record, str, int]]] = defaultdict(list)
    for record, event in events:
        if isinstance(event, Exposure | Click | Purchase | Other) and event.time_us is not None:
            stamped = (record, event.client_id, event.time_us)
            of_partition[record.partition].append(stamped)
    for stamps in of_partition.values():
        for index, (record, _, _) in enumerate(stamps):
            error_us = _error_us(stamps, index, int(now_seconds * 1e6))
            if error_us:
                errors_us.append((error_us, record))
    if not errors_us:
        return
    num_ahead = sum(error_us > 0 for error_us, _ in errors_us)
    worst_us, worst = max(errors_us, key=lambda error: abs(error[0]))
    yield CheckResult.warn(
        _AREA,
        f"{topic}: of {len(events)} sampled events {num_ahead} are more than a minute ahead of the "
        f"clients around them, {len(errors_us) - num_ahead} behind; most, by "
        f"{worst_us / 1e6:+,.0f} s, {worst.topic}[{worst.partition}]@{worst.offset}",
        _REMEDY,
    )


def _error_us(stamps: Sequence[tuple[Record, str, int]], index: int, now_us: int) -> int:
    """Return how far an event is ahead of those after it, or (below 0) behind those before it."""
    _, client_id, time_us = stamps[index]
    if time_us > now_us + _TOLERANCE_US:
        return time_us - now_us
    after = _median(stamps[index + 1 :], client_id)
    if after is not None and time_us > after + _TOLERANCE_US:
        return time_us - after
    before = _median(stamps[index - 1 :: -1] if index else (), client_id)
    if before is not None and time_us < before - _TOLERANCE_US:
        return time_us - before
    return 0


def _median(stamps: Sequence[tuple[Record, str, int]], client_id: str) -> int | None:
    """Return the median time of the next events of other clients; None for too few."""
    others = [time_us for _, client, time_us in stamps if client != client_id]
    nearest = sorted(others[:_NUM_NEIGHBOURS])
    return nearest[len(nearest) // 2] if len(nearest) >= _LEAST_NEIGHBOURS else None
