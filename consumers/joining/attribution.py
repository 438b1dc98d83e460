"""Attribution of clicks to lists, of purchases to clicks, and of returns to purchases.

An event that can be credited is, at once. One that cannot waits (see `waiting`), and is asked again
when a list or click opens that it may belong to; when its wait ends, it is settled by what is open
then. An event with a query id is credited to another list only then.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from consumers.events import Click, Exposure, ItemUpdate, Purchase
from consumers.joining.entries import OpenClick, OpenExposure, Positive, ShownList
from consumers.joining.items import Described, Items
from consumers.joining.labels import Labels
from consumers.joining.open_entries import MAX_CANDIDATES, OpenEntries
from consumers.joining.tally import Tally
from consumers.joining.waiting import WaitingEvent
from weighting.provenance import Position
from weighting.sample import CopyKind, Sample
from weighting.tasks import CLICK, PURCHASE, TaskName


class Attribution:
    """What an event, or the end of a wait or window, does to the open entries.

    Attributes:
        samples: emitted and not yet taken by the owner.
    """

    def __init__(
        self,
        windows_us: Mapping[TaskName, int],
        attribution_us: int,
        *,
        items: Items,
        entries: OpenEntries,
        tally: Tally,
    ) -> None:
        """Take the observation window of each task, and what is known, open and counted."""
        self._windows_us = windows_us
        self._attribution_us = attribution_us
        self._items = items
        self._open = entries
        self._waiting = entries.waiting
        self._tally = tally
        self._results = tally.results
        self._labels = Labels(windows_us, attribution_us)
        self.samples: list[Sample] = []

    def observe_exposure(self, shown: ShownList, now_us: int) -> None:
        """Emit the first copies of an exposure whose observation window has closed."""
        self.samples += self._labels.first_copies(shown.exposure(), now_us)
        self._open.observed_exposure(shown, now_us)

    def observe_click(self, click: OpenClick, now_us: int) -> None:
        """Emit the first copy of a click whose observation window has closed."""
        self.samples.append(self._labels.purchase(click, CopyKind.FIRST, now_us))
        self._open.observed_click(click, now_us)

    def settle(self, waiting: WaitingEvent, now_us: int) -> None:
        """Settle an event whose wait has ended, unless that was done before."""
        if not waiting.settled:
            self._waiting.settle(waiting)
            self._settled(waiting.event, now_us, final=True)
            self._open.evict()

    # --- events ---------------------------------------------------------------------------------

    def item(self, event: ItemUpdate, now_us: int) -> None:
        """Set what is known of an item."""
        self._items.update(event.object_id, event.text, event.attributes)

    def exposure(self, event: Exposure, now_us: int) -> None:
        """Open a list, and credit it with the clicks that waited for it."""
        described = self._items.describe(event.hits, event.candidates)
        self._tally.num_missing_texts += [text for text, _ in described].count("")
        self._tally.num_cut_hits += event.num_cut_hits
        exposure = OpenExposure(
            event.position,
            now_us,
            max(event.time_us + self._windows_us[CLICK], now_us),
            False,
            event.query_id,
            event.client_id,
            event.user_query,
            event.hits,
            len(event.hits) + event.num_cut_hits,
            described,
            event.time_us,
            {},
            event.scenario,
        )
        shown = self._open.open_exposure(exposure)
        if self._waiting.num_clicks:
            for waiting in self._waiting.clicks_for(exposure, MAX_CANDIDATES):
                if self._settled_by(shown, waiting.event, now_us):
                    self._waiting.settle(waiting)
        self._open.evict()

    def action(self, event: Click | Purchase, now_us: int) -> None:
        """Credit a click, a purchase or a return, or let it wait."""
        if not self._settled(event, now_us, final=not self._waiting.grace_us):
            self._waiting.park(now_us, event)
        self._open.evict()

    def _settled(self, event: Click | Purchase, now_us: int, *, final: bool) -> bool:
        """Settle an event if that can be done now; if it is `final`, it must."""
        if isinstance(event, Click):
            return self._settled_click(event, now_us, final=final)
        if event.returned:
            return self._settled_return(event, now_us, final=final)
        return self._settled_purchase(event, now_us, final=final)

    # --- clicks ---------------------------------------------------------------------------------

    def _settled_click(self, event: Click, now_us: int, *, final: bool) -> bool:
        shown, index, inferred = self._exposure_of(event, now_us, final)
        return self._apply_click(event, shown, index, inferred, now_us, final)

    def _settled_by(self, shown: ShownList, event: Click | Purchase, now_us: int) -> bool:
        """Settle a waiting click if the list just opened does; the older ones did not."""
        assert isinstance(event, Click)
        exposure = shown.exposure()
        if not self._credits(exposure, event, now_us):
            return False
        index, named = _index(exposure.hits, event), event.query_id is not None
        if index < 0 and not (named and _may_be_beyond(exposure, event)):
            return False
        return self._apply_click(event, shown, index, not named, now_us, False)

    def _apply_click(
        self,
        event: Click,
        shown: ShownList | None,
        index: int,
        inferred: bool,
        now_us: int,
        final: bool,
    ) -> bool:
        exposure = None if shown is None else shown.exposure()
        again = exposure is not None and index in exposure.clicked
        if not final and (exposure is None or (inferred and again)):
            return False  # the next list of this client may be the right one
        if again:
            self._results["click", "duplicate"] += 1
        elif shown is not None and exposure is not None and index >= 0:
            self._results["click", "inferred" if inferred else "matched"] += 1
            self._credit_click(exposure, index, event, inferred, now_us)
            shown.keep(exposure)
            self._open_click(event, exposure, index, inferred, now_us)
        else:
            opened = self._open_click(event, exposure, index, inferred, now_us)
            result = "orphan" if exposure is None else "beyond_cap"
            self._results["click", result if opened else "duplicate"] += 1
        return True

    def _exposure_of(
        self, event: Click, now_us: int, final: bool
    ) -> tuple[ShownList | None, int, bool]:
        """Return the exposure to credit with a click, the index in it, and whether inferred.

        An exposure whose hits were cut may have shown any item further down: its index is -1.
        """
        beyond = None
        for shown in self._open.exposures_of_query(event.query_id, event.object_id):
            exposure = shown.exposure()
            if self._credits(exposure, event, now_us):
                index = _index(exposure.hits, event)
                if index >= 0:
                    return shown, index, False
                if beyond is None and _may_be_beyond(exposure, event):
                    beyond = shown
        if beyond is not None:
            return beyond, -1, False
        if final or event.query_id is None:
            for shown in self._open.exposures_of_client(event.client_id, event.object_id):
                exposure = shown.exposure()
                index = _index(exposure.hits, event)
                if index >= 0 and self._credits(exposure, event, now_us):
                    return shown, index, True
        return None, -1, False

    def _credits(self, exposure: OpenExposure, event: Click, now_us: int) -> bool:
        """Return whether an exposure may still be credited with a click."""
        in_window = event.time_us - exposure.time_us <= self._attribution_us
        return in_window and now_us <= exposure.timer_us

    def _credit_click(
        self, exposure: OpenExposure, index: int, event: Click, inferred: bool, now_us: int
    ) -> None:
        exposure.clicked[index] = Positive(event.time_us, event.position, inferred)
        self._tally.delays_us.append(("click", max(event.time_us - exposure.time_us, 0)))
        if exposure.observed:
            late = self._labels.click(exposure, index, CopyKind.LATE_POSITIVE, now_us)
            self.samples.append(late)

    def _open_click(
        self, event: Click, exposure: OpenExposure | None, index: int, inferred: bool, now_us: int
    ) -> bool:
        """Open a click unless its list has one of this item, with features as shown."""
        listed = _alone(event) if exposure is None else _in_list(event, exposure, index)
        before = self._open.click_of(listed.list_id, event.object_id)
        if before is not None and now_us <= self._open.forgotten_us(before):
            return False
        text, attributes = self._described(event, exposure, index)
        if index < 0 and not text:
            self._tally.num_missing_texts += 1
        click = OpenClick(
            event.position,
            now_us,
            0,
            max(event.time_us + self._windows_us[PURCHASE], now_us),
            False,
            False,
            listed.list_id,
            listed.list_size,
            event.client_id,
            listed.query,
            event.object_id,
            text,
            attributes,
            listed.ordinal,
            event.time_us,
            inferred,
            listed.sources,
            listed.newest_us,
            None,
            scenario=listed.scenario,
        )
        self._open.open_click(click)
        self._settle_waiting_for(click, now_us)
        return True

    def _settle_waiting_for(self, click: OpenClick, now_us: int) -> None:
        """Settle the purchases that waited for this click."""
        if self._waiting.num_purchases:
            for waiting in self._waiting.purchases_for(click, MAX_CANDIDATES):
                if self._settled(waiting.event, now_us, final=False):
                    self._waiting.settle(waiting)

    def _described(self, event: Click, exposure: OpenExposure | None, index: int) -> Described:
        """Return text and attributes as shown, or those of the click."""
        if exposure is not None and index >= 0:
            text, attributes = exposure.described[index]
            return text or event.text or "", attributes or event.attributes or {}
        text, attributes = self._items.get(event.object_id)
        return (
            text if event.text is None else event.text,
            attributes if event.attributes is None else event.attributes,
        )

    # --- purchases and returns ------------------------------------------------------------------

    def _settled_purchase(self, event: Purchase, now_us: int, *, final: bool) -> bool:
        click, inferred = self._click_of(event, now_us, final)
        if click is None:
            result = "orphan"
        elif click.purchase is not None:
            result = "duplicate"
        elif self._is_late(click, event, now_us):
            result = "late"
        else:
            result = "inferred" if inferred else "matched"
        credited = result in ("matched", "inferred")
        if not (final or credited) and (click is None or inferred):
            return False  # the next click of this client may be the right one
        if click is not None and credited and not self._returned(click, event, now_us):
            self._credit_purchase(click, event, inferred, now_us)
        self._results["purchase", result] += 1
        return True

    def _click_of(self, event: Purchase, now_us: int, final: bool) -> tuple[OpenClick | None, bool]:
        """Return the click that a purchase may belong to, and whether it is inferred."""
        click, inferred = None, False
        if event.query_id is not None:
            click = self._open.click_of(event.query_id, event.object_id)
        if click is None and (final or event.query_id is None):
            click = self._open.newest_click(event.client_id, event.object_id)
            inferred = True
        if click is not None and now_us > self._open.forgotten_us(click):
            click = None
        return click, inferred

    def _is_late(self, click: OpenClick, event: Click | Purchase, now_us: int) -> bool:
        """Return whether a click may no longer be credited with a purchase."""
        over = click.observed and now_us > click.timer_us
        return over or event.time_us - click.time_us > self._attribution_us

    def _credit_purchase(
        self, click: OpenClick, event: Purchase, inferred: bool, now_us: int
    ) -> None:
        click.purchase = Positive(event.time_us, event.position, inferred, event.value)
        self._tally.delays_us.append(("purchase", max(event.time_us - click.time_us, 0)))
        if click.observed:
            late = self._labels.purchase(click, CopyKind.LATE_POSITIVE, now_us)
            self.samples.append(late)

    def _returned(self, click: OpenClick, purchase: Purchase, now_us: int) -> bool:
        """Return whether a return waited for this purchase; its wait is over then."""
        if not self._waiting.num_purchases:
            return False
        for waiting in self._waiting.returns_for(click, MAX_CANDIDATES):
            event = waiting.event
            if event.time_us >= purchase.time_us and not self._is_late(click, event, now_us):
                self._waiting.settle(waiting)
                named = event.query_id is not None
                self._results["return", "matched" if named else "inferred"] += 1
                return True
        return False

    def _settled_return(self, event: Purchase, now_us: int, *, final: bool) -> bool:
        """Take the label of a purchase back, if no positive copy of it was emitted yet.

        Otherwise it stays: one example has one positive copy at most, and a copy cannot be undone.
        """
        click, inferred = self._bought(event, final)
        if click is None:
            if final:
                self._results["return", "orphan"] += 1
            return final
        if self._is_late(click, event, now_us):
            result = "late"
        elif click.observed:
            click.returned = True
            result = "after_training"
        else:
            click.purchase = None
            result = "inferred" if inferred else "matched"
        self._results["return", result] += 1
        return True

    def _bought(self, event: Purchase, final: bool) -> tuple[OpenClick | None, bool]:
        """Return the click whose purchase is returned, and whether it is inferred."""
        if event.query_id is not None:
            click = self._open.click_of(event.query_id, event.object_id)
            if click is not None and _was_bought(click, event):
                return click, False
        if final or event.query_id is None:
            for click in self._open.clicks_of(event.client_id, event.object_id):
                if _was_bought(click, event):
                    return click, True
        return None, False


class _Listed(NamedTuple):
    """Fields of an open click that its list gives; see `OpenClick`."""

    list_id: str
    list_size: int
    query: str
    ordinal: int | None
    sources: tuple[Position, ...]
    newest_us: int
    scenario: str


def _alone(event: Click) -> _Listed:
    """Return what a click says of a list that is not there."""
    list_id = event.query_id or ""
    return _Listed(list_id, 0, event.user_query, None, (event.position,), event.time_us, "")


def _in_list(event: Click, exposure: OpenExposure, index: int) -> _Listed:
    """Return what a list says; an item that was cut off it has the place that the click names."""
    return _Listed(
        exposure.query_id,
        exposure.list_size,
        exposure.query,
        index + 1 if index >= 0 else event.ordinal,
        (exposure.position, event.position),
        max(exposure.time_us, event.time_us),
        exposure.scenario,
    )


def _was_bought(click: OpenClick, event: Purchase) -> bool:
    """Return whether a return can be of what was bought after this click."""
    purchase = click.purchase
    return purchase is not None and not click.returned and purchase.time_us <= event.time_us


def _index(hits: Sequence[str], event: Click) -> int:
    """Return the 0-based index of the clicked item in a list; -1 when it was not in it."""
    ordinal, object_id = event.ordinal, event.object_id
    if ordinal is not None and 0 < ordinal <= len(hits) and hits[ordinal - 1] == object_id:
        return ordinal - 1
    return hits.index(object_id) if object_id in hits else -1


def _may_be_beyond(exposure: OpenExposure, event: Click) -> bool:
    """Return whether a click may be on a hit that was cut off the list."""
    num_kept = len(exposure.hits)
    if event.ordinal is None:
        return num_kept < exposure.list_size
    return num_kept < event.ordinal <= exposure.list_size
