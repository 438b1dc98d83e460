"""Exposures and clicks whose label may still change: indexes, timers and eviction."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from heapq import heappop, heappush
from itertools import islice

import msgspec

from consumers.events import Click, Purchase
from consumers.joining.clock import BEGINNING_US
from consumers.joining.entries import (
    OpenClick,
    OpenEntry,
    OpenExposure,
    PackedExposure,
    ShownList,
)
from consumers.joining.items import Described
from consumers.joining.multimap import Multimap
from consumers.joining.pending import OBSERVE_CLICK, OBSERVE_EXPOSURE
from consumers.joining.tally import Tally
from consumers.joining.waiting import Timer, WaitingEvent, WaitingEvents
from weighting.provenance import Position
from weighting.tasks import CLICK, PURCHASE, TaskName

#: How many entries of a query id, or of a client, are looked at for one event.
MAX_CANDIDATES = 100

#: A hash of 60 bits takes 32 bytes as an integer, one of 64 takes 48.
_HASH_MASK = 2**60 - 1


class OpenEntries:
    """Open exposures and clicks, whatever the partition that their record came from.

    The partition number decides only in which part of a snapshot an entry is. An entry waits in
    the heap of timers until it is observed, then in a queue, in the order of observation, until it
    is final.

    Attributes:
        timers: a heap of what is due, ordered like `pending.PendingEvent`.
        waiting: events whose partner is not open yet.
        last_turn: key and turn of the click opened last.
    """

    def __init__(
        self,
        *,
        windows_us: Mapping[TaskName, int],
        attribution_us: int,
        grace_us: int,
        max_entries: int,
        tally: Tally,
    ) -> None:
        """Begin with nothing open.

        Args:
            windows_us: observation window of each task.
            attribution_us: how long a positive is credited.
            grace_us: how long an event waits for its partner.
            max_entries: beyond it the oldest are evicted.
            tally: counts the entries that are final or evicted.
        """
        self._windows_us = windows_us
        self._attribution_us = attribution_us
        self._max_entries = max_entries
        self._results = tally.results
        # By hash: the texts are packed in the entry, and looked at there.
        self._exposures_by_query: Multimap[int, ShownList] = Multimap()
        self._exposures_by_client: Multimap[int, ShownList] = Multimap()
        self._click_by_list: dict[tuple[str, str], OpenClick] = {}
        self._clicks_by_client: Multimap[tuple[str, str], OpenClick] = Multimap()
        self.timers: list[Timer] = []
        self.waiting = WaitingEvents(grace_us, self.timers)
        self.last_turn = BEGINNING_US, 0
        self._observed_exposures: deque[ShownList] = deque()
        self._observed_clicks: deque[OpenClick] = deque()
        self._expired_clicks: deque[OpenClick] = deque()
        self.num_exposures = 0
        self.num_clicks = 0

    # --- finding --------------------------------------------------------------------------------

    def exposures_of_query(self, query_id: str | None, object_id: str) -> Iterator[ShownList]:
        """Iterate over the newest exposures of a query id that may show an item, newest first."""
        if query_id is not None:
            for shown in _candidates(self._exposures_by_query, query_id, object_id):
                if shown.exposure().query_id == query_id:
                    yield shown

    def exposures_of_client(self, client_id: str, object_id: str) -> Iterator[ShownList]:
        """Iterate over the newest exposures of a client that may show an item, newest first."""
        for shown in _candidates(self._exposures_by_client, client_id, object_id):
            if shown.exposure().client_id == client_id:
                yield shown

    def click_of(self, list_id: str, object_id: str) -> OpenClick | None:
        """Return the open click of an item in a list, if there is one."""
        return self._click_by_list.get((list_id, object_id))

    def clicks_of(self, client_id: str, object_id: str) -> Iterator[OpenClick]:
        """Iterate over the newest clicks of a client on an item, the newest first."""
        return islice(self._clicks_by_client.newest_first((client_id, object_id)), MAX_CANDIDATES)

    def newest_click(self, client_id: str, object_id: str) -> OpenClick | None:
        """Return the newest click of a client on an item, if there is one."""
        return self._clicks_by_client.newest((client_id, object_id))

    def forgotten_us(self, click: OpenClick) -> int:
        """Return the last key at which a purchase of this click is late, not an orphan."""
        return max(click.time_us + 2 * self._attribution_us, click.timer_us)

    # --- opening, observing, closing ------------------------------------------------------------

    def open_exposure(self, exposure: OpenExposure) -> ShownList:
        """Add an exposure, and return its holder."""
        shown = _holder(exposure)
        self._add_exposure(shown, exposure)
        return shown

    def open_click(self, click: OpenClick) -> None:
        """Add a click, and set its turn."""
        last_us, turn = self.last_turn
        click.turn = turn + 1 if click.opened_us == last_us else 0
        self.last_turn = click.opened_us, click.turn
        self._add_click(click)

    def evict(self) -> None:
        """Evict entries and waiting events until the others have room."""
        while self.num_exposures + self.num_clicks + len(self.waiting) > self._max_entries:
            if self._expired_clicks:
                self._close(self._expired_clicks.popleft())  # counted when it expired
                continue
            evicted = self._pop_evicted()
            if isinstance(evicted, WaitingEvent):
                if not evicted.settled:
                    self.waiting.settle(evicted)
                    self._results[_name(evicted.event), "evicted"] += 1
                continue
            event = "exposure" if isinstance(evicted, ShownList) else "click"
            self._results[event, "evicted"] += 1
            self._close(evicted)

    def observed_exposure(self, shown: ShownList, now_us: int) -> None:
        """Pack an exposure for late positives, now that its first copies were emitted."""
        exposure = shown.exposure()
        exposure.observed = True
        exposure.timer_us = max(exposure.time_us + self._attribution_us, now_us)
        shown.keep(exposure)
        self._observed_exposures.append(shown)

    def observed_click(self, click: OpenClick, now_us: int) -> None:
        """Keep a click for a late positive, now that its first copy was emitted."""
        click.observed = True
        click.timer_us = max(click.time_us + self._attribution_us, now_us)
        self._observed_clicks.append(click)

    def forget(self, before_us: int) -> None:
        """Close the entries that became final before a key."""
        exposures, clicks = self._observed_exposures, self._observed_clicks
        while exposures:
            exposure = exposures[0].exposure()
            if exposure.timer_us >= before_us:
                break
            self._results["exposure", "matched" if exposure.clicked else "expired"] += 1
            self._close(exposures.popleft())
        while clicks and clicks[0].timer_us < before_us:
            click = clicks.popleft()
            if click.purchase is None:
                self._results["click", "expired"] += 1
            click.expired = True
            self._expired_clicks.append(click)
        expired = self._expired_clicks
        while expired and self.forgotten_us(expired[0]) < before_us:
            self._close(expired.popleft())

    def _add_exposure(self, shown: ShownList, exposure: OpenExposure) -> None:
        self._exposures_by_query.add(_hash(exposure.query_id), shown)
        self._exposures_by_client.add(_hash(exposure.client_id), shown)
        self.num_exposures += 1
        if not exposure.observed:
            self._set_timer(OBSERVE_EXPOSURE, exposure, shown)

    def _add_click(self, click: OpenClick) -> None:
        if click.list_id:
            self._click_by_list[click.list_id, click.object_id] = click
        self._clicks_by_client.add((click.client_id, click.object_id), click)
        self.num_clicks += 1
        if not click.observed:
            self._set_timer(OBSERVE_CLICK, click, click)

    def _set_timer(self, rank: int, entry: OpenExposure | OpenClick, held: OpenEntry) -> None:
        at = entry.position
        timer = (entry.timer_us, rank, at.topic, at.partition, at.offset, held)
        heappush(self.timers, timer)

    def _close(self, entry: OpenEntry) -> None:
        """Forget an entry that was taken out of its queue."""
        if isinstance(entry, ShownList):
            exposure = entry.exposure()
            self._exposures_by_query.remove(_hash(exposure.query_id), entry)
            self._exposures_by_client.remove(_hash(exposure.client_id), entry)
            self.num_exposures -= 1
            return
        of_list = entry.list_id, entry.object_id
        if self._click_by_list.get(of_list) is entry:
            del self._click_by_list[of_list]
        self._clicks_by_client.remove((entry.client_id, entry.object_id), entry)
        self.num_clicks -= 1

    def _pop_evicted(self) -> OpenEntry | WaitingEvent:
        """Remove what ends soonest; what is not observed or settled yet goes last."""
        exposures, clicks = self._observed_exposures, self._observed_clicks
        if exposures and (not clicks or exposures[0].exposure().timer_us <= clicks[0].timer_us):
            return exposures.popleft()
        if clicks:
            return clicks.popleft()
        entry: OpenEntry | WaitingEvent = heappop(self.timers)[5]
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
            if isinstance(entry, ShownList):
                found += len(entry.exposure().hits)
            elif isinstance(entry, OpenClick):
                found += 1
            places += (2 * place + 1, 2 * place + 2)
        return found

    def unobserved_exposures(self) -> list[int]:
        """Return the keys at which exposures will be observed."""
        return [timer[0] for timer in self.timers if timer[1] == OBSERVE_EXPOSURE]

    def snapshot(
        self, number: int
    ) -> tuple[list[OpenExposure], list[PackedExposure], list[OpenClick]]:
        """Return the entries of one partition number.

        Returns:
            exposures before their observation, and clicks, in the order of opening; exposures after
            it, packed, in the order of observation.
        """
        entries: list[OpenEntry] = [t[5] for t in self.timers if t[1] >= OBSERVE_EXPOSURE]
        exposures = [
            entry.exposure()
            for entry in entries
            if isinstance(entry, ShownList) and entry.number == number
        ]
        observed = [
            (msgspec.Raw(shown.held), shown.described)
            for shown in self._observed_exposures
            if shown.number == number and isinstance(shown.held, bytes)
        ]
        for queue in (self._observed_clicks, self._expired_clicks):
            entries.extend(queue)
        clicks = [
            entry
            for entry in entries
            if isinstance(entry, OpenClick) and entry.position.partition == number
        ]
        exposures.sort(key=_exposure_order)
        clicks.sort(key=_click_order)
        return exposures, observed, clicks

    def restore(
        self,
        exposures: Sequence[OpenExposure],
        observed: Sequence[PackedExposure],
        clicks: Sequence[OpenClick],
        last_turn: tuple[int, int],
    ) -> None:
        """Restore the entries of all partition numbers; nothing else may be open."""
        assert not self.num_exposures + self.num_clicks
        self.last_turn = last_turn
        share = Sharing()
        shown = [_holder(exposure) for exposure in exposures]
        for raw, described in observed:
            shown.append(_restored(bytes(raw), described))
        opened = sorted(((each.exposure(), each) for each in shown), key=_exposure_order)
        for exposure, each in opened:  # in the order of opening, across parts
            exposure.described = share(exposure.hits, exposure.described)
            each.keep(exposure)
            self._add_exposure(each, exposure)
        window_us = self._windows_us[CLICK]
        opened.sort(key=lambda pair: _observation_order(pair[0], window_us))
        self._observed_exposures.extend(each for exposure, each in opened if exposure.observed)
        self._restore_clicks(sorted(clicks, key=_click_order), share)

    def _restore_clicks(self, clicks: Sequence[OpenClick], share: Sharing) -> None:
        for click in clicks:
            ((click.text, click.attributes),) = share(
                (click.object_id,), ((click.text, click.attributes),)
            )
            self._add_click(click)
        window_us = self._windows_us[PURCHASE]
        clicks = sorted(clicks, key=lambda click: _observation_order(click, window_us))
        self._observed_clicks.extend(c for c in clicks if c.observed and not c.expired)
        self._expired_clicks.extend(c for c in clicks if c.expired)


class Sharing:
    """One object for equal texts and attributes of an item, as it was before a snapshot."""

    def __init__(self) -> None:
        """Begin with nothing."""
        self._known: dict[tuple[str, str], Described] = {}

    def __call__(
        self, hits: Sequence[str], described: Sequence[Described]
    ) -> tuple[Described, ...]:
        """Return the same texts and attributes, shared."""
        return tuple(self._shared(*each) for each in zip(hits, described, strict=True))

    def _shared(self, object_id: str, described: Described) -> Described:
        known = self._known.setdefault((object_id, described[0]), described)
        return known if known == described else described


def _holder(exposure: OpenExposure) -> ShownList:
    cut = len(exposure.hits) < exposure.list_size
    return ShownList(exposure.position.partition, cut, exposure)


def _restored(packed: bytes, described: tuple[Described, ...] | None) -> ShownList:
    shown = ShownList(0, False, packed, described)
    exposure = shown.exposure()
    shown.number = exposure.position.partition
    shown.cut = len(exposure.hits) < exposure.list_size
    return shown


def _hash(text: str) -> int:
    return hash(text) & _HASH_MASK


def _candidates(index: Multimap[int, ShownList], key: str, object_id: str) -> Iterator[ShownList]:
    mark = object_id.encode()
    newest = islice(index.newest_first(_hash(key)), MAX_CANDIDATES)
    return (shown for shown in newest if shown.may_show(mark))


def _name(event: Click | Purchase) -> str:
    if isinstance(event, Click):
        return "click"
    return "return" if event.returned else "purchase"


def _exposure_order(opened: OpenExposure | tuple[OpenExposure, ShownList]) -> tuple[int, Position]:
    exposure = opened if isinstance(opened, OpenExposure) else opened[0]
    return exposure.opened_us, exposure.position


def _click_order(click: OpenClick) -> tuple[int, int]:
    return click.opened_us, click.turn


def _observation_order(entry: OpenExposure | OpenClick, window_us: int) -> tuple[int, Position]:
    return max(entry.time_us + window_us, entry.opened_us), entry.position
