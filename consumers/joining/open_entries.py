"""Exposures and clicks whose label may still change: indexes, timers and eviction."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from heapq import heappop, heappush
from itertools import islice
from typing import Any, TypeAlias

import msgspec

from consumers.events import Click, Purchase
from consumers.joining.multimap import Multimap
from consumers.joining.pending import OBSERVE_CLICK, OBSERVE_EXPOSURE
from consumers.joining.tally import Tally
from weighting.provenance import Position
from weighting.sample import Attribute
from weighting.tasks import CLICK, PURCHASE, TaskName

#: How many exposures of a query id, and of a client, are searched for the item of one click.
_MAX_CANDIDATES = 100


class Positive(msgspec.Struct, array_like=True, gc=False):
    """The event that made a label positive."""

    time_us: int
    position: Position
    inferred: bool


class OpenExposure(msgspec.Struct, array_like=True, eq=False, gc=False):
    """An exposure whose clicks may still come, with its texts then.

    Attributes:
        opened_us: key at which it was processed.
        timer_us: key at which it is observed; once it is, the last key at which a click is
            credited.
        observed: its first copies were emitted.
        described: text and attributes of each hit.
        clicked: index of the hit -> its first click.
    """

    position: Position
    opened_us: int
    timer_us: int
    observed: bool
    query_id: str
    client_id: str
    query: str
    hits: tuple[str, ...]
    described: tuple[tuple[str, dict[str, Attribute]], ...]
    time_us: int
    clicked: dict[int, Positive]


class OpenClick(msgspec.Struct, array_like=True, eq=False, gc=False):
    """A click whose purchase may still come, with features as shown.

    Attributes:
        opened_us: key at which it was processed.
        timer_us: key at which it is observed; once it is, the last key at which a purchase is
            credited.
        observed: its first copy was emitted.
        expired: counted as final; kept for another attribution window, to tell a late purchase
            from an orphan.
        ordinal: 1-based place in the list.
        sources: positions of the records that it was made from.
        newest_us: event time of the newest event in `sources`.
    """

    position: Position
    opened_us: int
    timer_us: int
    observed: bool
    expired: bool
    list_id: str
    list_size: int
    client_id: str
    query: str
    object_id: str
    text: str
    attributes: dict[str, Attribute]
    ordinal: int | None
    time_us: int
    inferred: bool
    sources: tuple[Position, ...]
    newest_us: int
    purchase: Positive | None


OpenEntry: TypeAlias = OpenExposure | OpenClick
_Timer: TypeAlias = tuple[int, int, str, int, int, Any]  # the last: an entry


class OpenEntries:
    """Open exposures and clicks, whatever the partition that their record came from.

    The partition number decides only in which part of a snapshot an entry is. An entry waits in
    the heap of timers until it is observed, then in a queue, in the order of observation, until it
    is final.

    Attributes:
        timers: a heap of observations, ordered like `pending.PendingEvent`.
    """

    def __init__(
        self,
        *,
        windows_us: Mapping[TaskName, int],
        attribution_us: int,
        max_entries: int,
        tally: Tally,
    ) -> None:
        """Begin with nothing open.

        Args:
            windows_us: observation window of each task.
            attribution_us: how long a positive is credited.
            max_entries: beyond it the oldest are evicted.
            tally: counts the entries that are final or evicted.
        """
        self._windows_us = windows_us
        self._attribution_us = attribution_us
        self._max_entries = max_entries
        self._results = tally.results
        self._exposures_by_query: Multimap[str, OpenExposure] = Multimap()
        self._exposures_by_client: Multimap[str, OpenExposure] = Multimap()
        self._click_by_list: dict[tuple[str, str], OpenClick] = {}
        self._clicks_by_client: Multimap[tuple[str, str], OpenClick] = Multimap()
        self.timers: list[_Timer] = []
        self._observed_exposures: deque[OpenExposure] = deque()
        self._observed_clicks: deque[OpenClick] = deque()
        self._expired_clicks: deque[OpenClick] = deque()
        self.num_exposures = 0
        self.num_clicks = 0

    # --- finding --------------------------------------------------------------------------------

    def exposures_for(self, event: Click) -> Iterator[tuple[OpenExposure, bool]]:
        """Yield the exposures that a click may belong to, and whether each is inferred.

        Those with its query id come first, then those of its client; the newest first, and a
        bounded number of each.
        """
        if event.query_id is not None:
            named = self._exposures_by_query.newest_first(event.query_id)
            for exposure in islice(named, _MAX_CANDIDATES):
                yield exposure, False
        of_client = self._exposures_by_client.newest_first(event.client_id)
        for exposure in islice(of_client, _MAX_CANDIDATES):
            yield exposure, True

    def click_of(self, list_id: str, object_id: str) -> OpenClick | None:
        """Return the open click of an item in a list, if there is one."""
        return self._click_by_list.get((list_id, object_id))

    def click_for(self, event: Purchase) -> tuple[OpenClick | None, bool]:
        """Return the click that a purchase may belong to, and whether it is inferred."""
        if event.query_id is not None:
            click = self._click_by_list.get((event.query_id, event.object_id))
            if click is not None:
                return click, False
        click = self._clicks_by_client.newest((event.client_id, event.object_id))
        return click, click is not None

    def forgotten_us(self, click: OpenClick) -> int:
        """Return the last key at which a purchase of this click is late, not an orphan."""
        return max(click.time_us + 2 * self._attribution_us, click.timer_us)

    # --- opening, observing, closing ------------------------------------------------------------

    def open_exposure(self, exposure: OpenExposure) -> None:
        """Add an exposure; evict others where there is no room."""
        self._add_exposure(exposure)
        if self.num_exposures + self.num_clicks > self._max_entries:
            self._evict()

    def open_click(self, click: OpenClick) -> None:
        """Add a click; evict others where there is no room."""
        self._add_click(click)
        if self.num_exposures + self.num_clicks > self._max_entries:
            self._evict()

    def observed(self, entry: OpenEntry, now_us: int) -> None:
        """Keep an entry for late positives, now that its first copies were emitted."""
        entry.observed = True
        entry.timer_us = max(entry.time_us + self._attribution_us, now_us)
        if isinstance(entry, OpenExposure):
            self._observed_exposures.append(entry)
        else:
            self._observed_clicks.append(entry)

    def forget(self, before_us: int) -> None:
        """Close the entries that became final before a key."""
        exposures, clicks = self._observed_exposures, self._observed_clicks
        while exposures and exposures[0].timer_us < before_us:
            exposure = exposures.popleft()
            self._results["exposure", "matched" if exposure.clicked else "expired"] += 1
            self._close(exposure)
        while clicks and clicks[0].timer_us < before_us:
            click = clicks.popleft()
            if click.purchase is None:
                self._results["click", "expired"] += 1
            click.expired = True
            self._expired_clicks.append(click)
        expired = self._expired_clicks
        while expired and self.forgotten_us(expired[0]) < before_us:
            self._close(expired.popleft())

    def _add_exposure(self, exposure: OpenExposure) -> None:
        self._exposures_by_query.add(exposure.query_id, exposure)
        self._exposures_by_client.add(exposure.client_id, exposure)
        self.num_exposures += 1
        if not exposure.observed:
            self._set_timer(OBSERVE_EXPOSURE, exposure)

    def _add_click(self, click: OpenClick) -> None:
        if click.list_id:
            self._click_by_list[click.list_id, click.object_id] = click
        self._clicks_by_client.add((click.client_id, click.object_id), click)
        self.num_clicks += 1
        if not click.observed:
            self._set_timer(OBSERVE_CLICK, click)

    def _set_timer(self, rank: int, entry: OpenEntry) -> None:
        at = entry.position
        timer = (entry.timer_us, rank, at.topic, at.partition, at.offset, entry)
        heappush(self.timers, timer)

    def _close(self, entry: OpenEntry) -> None:
        """Forget an entry that was taken out of its queue."""
        if isinstance(entry, OpenExposure):
            self._exposures_by_query.remove(entry.query_id, entry)
            self._exposures_by_client.remove(entry.client_id, entry)
            self.num_exposures -= 1
            return
        of_list = entry.list_id, entry.object_id
        if self._click_by_list.get(of_list) is entry:
            del self._click_by_list[of_list]
        self._clicks_by_client.remove((entry.client_id, entry.object_id), entry)
        self.num_clicks -= 1

    def _evict(self) -> None:
        while self.num_exposures + self.num_clicks > self._max_entries:
            if self._expired_clicks:
                self._close(self._expired_clicks.popleft())  # counted when it expired
                continue
            entry = self._pop_evicted()
            event = "exposure" if isinstance(entry, OpenExposure) else "click"
            self._results[event, "evicted"] += 1
            self._close(entry)

    def _pop_evicted(self) -> OpenEntry:
        """Remove the entry that ends soonest; those not yet observed go last."""
        exposures, clicks = self._observed_exposures, self._observed_clicks
        if exposures and (not clicks or exposures[0].timer_us <= clicks[0].timer_us):
            return exposures.popleft()
        if clicks:
            return clicks.popleft()
        entry: OpenEntry = heappop(self.timers)[5]
        return entry

    # --- state ----------------------------------------------------------------------------------

    def num_due(self, before_us: int) -> int:
        """Return the number of first copies of the entries that are observed before a key."""
        timers, found, places = self.timers, 0, [0]
        while places:  # down the heap, as far as keys are below
            place = places.pop()
            if place >= len(timers) or timers[place][0] >= before_us:
                continue
            entry = timers[place][5]
            found += len(entry.hits) if isinstance(entry, OpenExposure) else 1
            places += (2 * place + 1, 2 * place + 2)
        return found

    def unobserved_exposures(self) -> list[int]:
        """Return the keys at which exposures will be observed."""
        return [timer[0] for timer in self.timers if timer[1] == OBSERVE_EXPOSURE]

    def snapshot(self, number: int) -> tuple[list[OpenExposure], list[OpenClick]]:
        """Return the entries of one partition number, in processing order."""
        entries: list[OpenEntry] = [timer[5] for timer in self.timers]
        for queue in (self._observed_exposures, self._observed_clicks, self._expired_clicks):
            entries.extend(queue)
        of_number = [entry for entry in entries if entry.position.partition == number]
        of_number.sort(key=_processing_order)
        exposures = [entry for entry in of_number if isinstance(entry, OpenExposure)]
        clicks = [entry for entry in of_number if isinstance(entry, OpenClick)]
        return exposures, clicks

    def restore(self, exposures: Sequence[OpenExposure], clicks: Sequence[OpenClick]) -> None:
        """Restore the entries of all partition numbers; nothing else may be open."""
        assert not self.num_exposures + self.num_clicks
        exposures = sorted(exposures, key=_processing_order)  # across parts, too
        clicks = sorted(clicks, key=_processing_order)
        texts: dict[str, str] = {}  # one string per text, as it was before
        for exposure in exposures:
            exposure.described = tuple(
                (texts.setdefault(text, text), attributes)
                for text, attributes in exposure.described
            )
            self._add_exposure(exposure)
        for click in clicks:
            click.text = texts.setdefault(click.text, click.text)
            self._add_click(click)
        window_us = self._windows_us
        exposures = sorted(exposures, key=lambda e: _observation_order(e, window_us[CLICK]))
        clicks = sorted(clicks, key=lambda c: _observation_order(c, window_us[PURCHASE]))
        self._observed_exposures.extend(e for e in exposures if e.observed)
        self._observed_clicks.extend(c for c in clicks if c.observed and not c.expired)
        self._expired_clicks.extend(c for c in clicks if c.expired)


def _processing_order(entry: OpenEntry) -> tuple[int, Position]:
    return entry.opened_us, entry.position


def _observation_order(entry: OpenEntry, window_us: int) -> tuple[int, Position]:
    return max(entry.time_us + window_us, entry.opened_us), entry.position
