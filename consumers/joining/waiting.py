"""Events whose partner is not open yet: clicks without their list, purchases without their click.

Clocks differ, so a click may be stamped before the list that it was made in. A click waits for one
grace after its key, a purchase for two, because its click may wait, too. An event with a query id
waits for that list only; one without waits for a list or click of its client.
"""

from __future__ import annotations

from collections.abc import Iterable
from heapq import heappush, merge
from itertools import islice
from typing import Any, TypeAlias

import msgspec

from consumers.events import Click, Purchase
from consumers.joining.entries import OpenClick, OpenExposure
from consumers.joining.multimap import Multimap
from consumers.joining.pending import SETTLE_CLICK, SETTLE_PURCHASE
from weighting.provenance import Position

#: Key, rank, topic, partition, offset, and what is due.
Timer: TypeAlias = tuple[int, int, str, int, int, Any]


class WaitingEvent(msgspec.Struct, eq=False, gc=False):
    """An event and its key.

    Attributes:
        settled: it waits no longer; its timer means nothing.
    """

    key_us: int
    event: Click | Purchase
    settled: bool = False


class WaitingEvents:
    """Waiting events by what they wait for, in the order of their keys.

    Attributes:
        grace_us: how long a click waits; 0 when nothing does.
    """

    __slots__ = (
        "_clicks",
        "_named_clicks",
        "_purchases",
        "_timers",
        "grace_us",
        "num_clicks",
        "num_purchases",
    )

    def __init__(self, grace_us: int, timers: list[Timer]) -> None:
        """Begin with nothing; the end of each wait is put into the heap `timers`."""
        self.grace_us = grace_us
        self._timers = timers
        # In two levels, so that a list of which no click waits asks once, not for each hit.
        self._clicks: dict[tuple[bool, str], Multimap[str, WaitingEvent]] = {}
        # Again by query id alone: any of them may be on a hit that was cut off.
        self._named_clicks: Multimap[str, WaitingEvent] = Multimap()
        self._purchases: Multimap[tuple[bool, bool, str, str], WaitingEvent] = Multimap()
        self.num_clicks = 0
        self.num_purchases = 0

    def __len__(self) -> int:
        """Return the number of events that wait."""
        return self.num_clicks + self.num_purchases

    def park(self, key_us: int, event: Click | Purchase) -> None:
        """Let an event wait."""
        waiting, position = WaitingEvent(key_us, event), event.position
        if isinstance(event, Click):
            self._clicks.setdefault(_of_click(event), Multimap()).add(event.object_id, waiting)
            if event.query_id is not None:
                self._named_clicks.add(event.query_id, waiting)
            self.num_clicks += 1
            end_us, rank = key_us + self.grace_us, SETTLE_CLICK
        else:
            self._purchases.add(_of_purchase(event), waiting)
            self.num_purchases += 1
            end_us, rank = key_us + 2 * self.grace_us, SETTLE_PURCHASE
        place = position.topic, position.partition, position.offset
        heappush(self._timers, (end_us, rank, *place, waiting))

    def settle(self, waiting: WaitingEvent) -> None:
        """End the wait of an event."""
        waiting.settled = True
        event = waiting.event
        if isinstance(event, Purchase):
            self._purchases.remove(_of_purchase(event), waiting)
            self.num_purchases -= 1
            return
        key = _of_click(event)
        of_key = self._clicks[key]
        of_key.remove(event.object_id, waiting)
        if not of_key:
            del self._clicks[key]
        if event.query_id is not None:
            self._named_clicks.remove(event.query_id, waiting)
        self.num_clicks -= 1

    # --- finding --------------------------------------------------------------------------------

    def clicks_for(self, exposure: OpenExposure, most: int) -> list[WaitingEvent]:
        """Return the clicks that wait for a list, in order, at most so many.

        Where its hits were cut, whatever their item.
        """
        found: list[Iterable[WaitingEvent]] = []
        cut = len(exposure.hits) < exposure.list_size
        if cut:
            found.append(self._named_clicks.oldest_first(exposure.query_id))
        for key in ((True, exposure.query_id), (False, exposure.client_id)):
            waiting = self._clicks.get(key)
            if waiting is not None and not (cut and key[0]):
                found += map(waiting.oldest_first, dict.fromkeys(exposure.hits))
        return _oldest(found, most)

    def purchases_for(self, click: OpenClick, most: int) -> list[WaitingEvent]:
        """Return the purchases that wait for a click, in order, at most so many."""
        return _oldest(self._of_bought(False, click), most)

    def returns_for(self, click: OpenClick, most: int) -> list[WaitingEvent]:
        """Return the returns that wait for a purchase after a click, in order, at most so many."""
        return _oldest(self._of_bought(True, click), most)

    def _of_bought(self, returned: bool, click: OpenClick) -> list[Iterable[WaitingEvent]]:
        of_list = returned, True, click.list_id, click.object_id
        of_client = returned, False, click.client_id, click.object_id
        return [self._purchases.oldest_first(of_list), self._purchases.oldest_first(of_client)]

    # --- state ----------------------------------------------------------------------------------

    def snapshot(self, number: int) -> tuple[list[tuple[int, Click]], list[tuple[int, Purchase]]]:
        """Return clicks and purchases of one partition number with their keys, in order."""
        waiting = [t[5] for t in self._timers if t[3] == number and t[1] <= SETTLE_PURCHASE]
        events = [(w.key_us, w.event) for w in waiting if not w.settled]
        events.sort(key=_key)
        clicks = [(key_us, event) for key_us, event in events if isinstance(event, Click)]
        purchases = [(key_us, event) for key_us, event in events if isinstance(event, Purchase)]
        return clicks, purchases

    def restore(self, events: Iterable[tuple[int, Click | Purchase]]) -> None:
        """Restore the events of all partition numbers."""
        for key_us, event in sorted(events, key=_key):
            self.park(key_us, event)


def _oldest(waiting: Iterable[Iterable[WaitingEvent]], most: int) -> list[WaitingEvent]:
    return list(islice(merge(*waiting, key=_order), most))


def _of_click(event: Click) -> tuple[bool, str]:
    return (True, event.query_id) if event.query_id is not None else (False, event.client_id)


def _of_purchase(event: Purchase) -> tuple[bool, bool, str, str]:
    if event.query_id is not None:
        return event.returned, True, event.query_id, event.object_id
    return event.returned, False, event.client_id, event.object_id


def _key(waiting: tuple[int, Click | Purchase]) -> tuple[int, int, Position]:
    key_us, event = waiting
    return key_us, int(isinstance(event, Purchase)), event.position


def _order(waiting: WaitingEvent) -> tuple[int, int, Position]:
    return _key((waiting.key_us, waiting.event))
