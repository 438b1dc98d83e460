"""Events that wait for the watermark, in the total order of processing."""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Iterator
from itertools import chain
from typing import TypeAlias

import msgspec
from msgspec.structs import replace

from consumers.events import Click, Exposure, ItemUpdate, Purchase
from consumers.joining.clock import Correction

# Order at the same key: an item's text before the exposure that shows it, every event before the
# timers that it may still meet, and the end of a wait before the first copies that it may change.
ITEM, EXPOSURE, CLICK, PURCHASE = range(4)
SETTLE_CLICK, SETTLE_PURCHASE, OBSERVE_EXPOSURE, OBSERVE_CLICK = range(4, 8)

_RANKS = {ItemUpdate: ITEM, Exposure: EXPOSURE, Click: CLICK, Purchase: PURCHASE}

JoinedEvent: TypeAlias = Exposure | Click | Purchase | ItemUpdate
PendingEvent: TypeAlias = tuple[int, int, str, int, int, JoinedEvent]
"""Key, rank, topic, partition, offset, event."""


class PendingEvents(msgspec.Struct, array_like=True):
    """Pending events of one partition number with their keys, in order."""

    exposures: list[tuple[int, Exposure]]
    clicks: list[tuple[int, Click]]
    purchases: list[tuple[int, Purchase]]


class Pending:
    """Events by key, then rank, then position.

    A key that is pushed is never below the watermark: the events that are due stay the first.
    """

    def __init__(self) -> None:
        """Begin empty."""
        self._events: list[PendingEvent] = []
        self._sorted = True  # sorting what is nearly sorted costs a third of a heap
        self._due: deque[PendingEvent] = deque()
        self._corrections: list[Correction] = []

    def __len__(self) -> int:
        """Return the number of events that wait."""
        return len(self._due) + len(self._events)

    @property
    def num_due(self) -> int:
        """Number of events below the watermark."""
        return len(self._due)

    def __iter__(self) -> Iterator[PendingEvent]:
        """Iterate over the events that wait, in no order."""
        return chain(self._due, self._events)

    def push(self, key_us: int, event: JoinedEvent) -> None:
        """Add an event."""
        position, rank = event.position, _RANKS[event.__class__]
        self._sorted = False
        self._events.append(
            (key_us, rank, position.topic, position.partition, position.offset, event)
        )

    def correct(self, correction: Correction) -> None:
        """Give an event another time and key, unless it is due or was taken already."""
        self._corrections.append(correction)

    def due(self, watermark_us: int) -> deque[PendingEvent]:
        """Return the events below the watermark; the caller removes them."""
        self._sort()
        if self._corrections:
            self._apply_corrections()
        end = bisect_left(self._events, (watermark_us,))
        self._due.extend(self._events[:end])
        del self._events[:end]
        return self._due

    def _sort(self) -> None:
        if not self._sorted:
            self._events.sort()
            self._sorted = True

    def _apply_corrections(self) -> None:
        corrected: list[tuple[int, JoinedEvent]] = []
        for correction in self._corrections:
            place = (*correction.partition, correction.offset)
            index = bisect_left(self._events, (correction.before_us,))
            for at in range(index, len(self._events)):
                event = self._events[at]
                if event[0] != correction.before_us:
                    break
                if event[2:5] == place:
                    del self._events[at]
                    changed = replace(event[5], time_us=correction.time_us)
                    corrected.append((correction.key_us, changed))
                    break
        self._corrections.clear()
        for key_us, changed in corrected:
            self.push(key_us, changed)
        self._sort()

    def snapshot(self, number: int) -> PendingEvents:
        """Return the events of one partition number, in order."""
        events = [(e[0], e[5]) for e in sorted(e for e in self if e[3] == number)]
        return PendingEvents(
            exposures=[(key_us, e) for key_us, e in events if isinstance(e, Exposure)],
            clicks=[(key_us, e) for key_us, e in events if isinstance(e, Click)],
            purchases=[(key_us, e) for key_us, e in events if isinstance(e, Purchase)],
        )

    def items(self) -> list[tuple[int, ItemUpdate]]:
        """Return the item updates of all partitions, in order."""
        events = sorted(e for e in self if e[1] == ITEM)
        return [(e[0], e[5]) for e in events if isinstance(e[5], ItemUpdate)]

    def restore(self, state: PendingEvents) -> None:
        """Add the events of one partition number that `snapshot` returned."""
        for events in (state.exposures, state.clicks, state.purchases):
            for key_us, event in events:
                self.push(key_us, event)
