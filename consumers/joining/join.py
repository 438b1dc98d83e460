"""The join of exposures, clicks and purchases in event time.

Events and timers are processed in the order of their keys (see `clock`): everything below the
watermark and nothing else. So the samples and their order are a pure function of the log, whatever
the order of polls.

Hot path: below 12 us per exposure of ten hits, held by `benchmarks/ingest.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from heapq import heappop
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from consumers.events import Click, Exposure, ItemUpdate, Purchase
from consumers.joining import pending
from consumers.joining.clock import BEGINNING_US
from consumers.joining.items import Described, Items
from consumers.joining.labels import Labels
from consumers.joining.open_entries import (
    OpenClick,
    OpenEntries,
    OpenEntry,
    OpenExposure,
    Positive,
)
from consumers.joining.pending import JoinedEvent, Pending, PendingEvents
from consumers.joining.tally import Tally
from weighting.constraints import Count, NotNegativeInt, check, check_order
from weighting.sample import CopyKind, Sample
from weighting.tasks import CLICK, PURCHASE, TASKS, TaskName

_FORGET_US = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class JoinConfig:
    """Windows of the join, in event time."""

    click_window_us: Annotated[
        NotNegativeInt,
        Meta(description="From an exposure to the first copies of its click samples."),
    ] = 60 * 1_000_000
    observation_window_us: Annotated[
        NotNegativeInt, Meta(description="From a click to the first copy of its purchase sample.")
    ] = 900 * 1_000_000
    attribution_window_us: Annotated[
        int, Meta(description="Time to credit a positive; also the window of deduplication.")
    ] = 7 * 86_400 * 1_000_000
    grace_us: Annotated[NotNegativeInt, Meta(description="Extra wait for disorder.")] = (
        600 * 1_000_000
    )
    idle_timeout_us: Annotated[
        NotNegativeInt,
        Meta(description="Quiet time after which a partition read to its end holds nothing back."),
    ] = 30 * 1_000_000
    max_pending: Annotated[
        Count, Meta(description="Open exposures and clicks; beyond it the oldest are evicted.")
    ] = 2_000_000

    def __post_init__(self) -> None:
        """Check every field, and that no window is longer than attribution."""
        check(self, "join")
        for window in ("click_window_us", "observation_window_us"):
            check_order(self, "join", window, "attribution_window_us")


def windows_us(config: JoinConfig) -> Mapping[TaskName, int]:
    """Return the observation window of every task."""
    settings = {name: task.window.removeprefix("join.") for name, task in TASKS.items()}
    return {name: getattr(config, f"{setting}_us") for name, setting in settings.items()}


class OpenPart(msgspec.Struct, array_like=True):
    """Open entries and pending events of one partition number, in order."""

    exposures: list[OpenExposure]
    clicks: list[OpenClick]
    pending: PendingEvents


class Join:
    """Open entries and pending events; `snapshot` resumes after the last event processed.

    Click task: when the watermark passes exposure + click window, one first copy per candidate is
    emitted with the label so far. A later click inside the attribution window emits that candidate
    again as a late positive. Purchase task: the same from each click, with the observation window.

    Attributes:
        now_us: key of the event or timer processed last.
        samples: emitted and not yet taken by the owner.
        tally: counts that the owner reports and clears.
    """

    def __init__(self, config: JoinConfig, items: Items) -> None:
        """Begin with nothing open; the join updates `items` in event time."""
        self._windows_us = windows_us(config)
        self._attribution_us = config.attribution_window_us
        self._items = items
        self._pending = Pending()
        self._labels = Labels(self._windows_us, config.attribution_window_us)
        self.tally = Tally()
        self._open = OpenEntries(
            windows_us=self._windows_us,
            attribution_us=config.attribution_window_us,
            max_entries=config.max_pending,
            tally=self.tally,
        )
        self._handlers: Mapping[int, Callable[[Any], None]] = {
            pending.ITEM: self._item,
            pending.EXPOSURE: self._exposure,
            pending.CLICK: self._click,
            pending.PURCHASE: self._purchase,
        }
        self.now_us = BEGINNING_US
        self.samples: list[Sample] = []

    @property
    def num_pending(self) -> int:
        """Number of events that wait for the watermark."""
        return len(self._pending)

    @property
    def num_open_exposures(self) -> int:
        """Number of exposures whose clicks may still come."""
        return self._open.num_exposures

    @property
    def num_open_clicks(self) -> int:
        """Number of clicks whose purchase may still come."""
        return self._open.num_clicks

    def num_ready(self, watermark_us: int) -> int:
        """Return about how many samples wait for a batch, emitted or due below the watermark."""
        return len(self.samples) + self._pending.num_due + self._open.num_due(watermark_us)

    def waiting_lists(self) -> tuple[int, int]:
        """Return the number of lists without samples, and their last key."""
        keys = [
            max(event[5].time_us + self._windows_us[CLICK], event[0])
            for event in self._pending
            if event[1] == pending.EXPOSURE
        ]
        keys += self._open.unobserved_exposures()
        return len(keys), max(keys, default=BEGINNING_US)

    def push(self, key_us: int, event: JoinedEvent) -> None:
        """Keep an event until the watermark has passed its key.

        The first text of an item holds at once.
        """
        if isinstance(event, ItemUpdate) and event.object_id not in self._items:
            self._item(event)
        else:
            self._pending.push(key_us, event)

    def advance(self, watermark_us: int, limit: int) -> bool:
        """Process everything with a key below the watermark, or until `limit` samples wait.

        Returns:
            whether `limit` samples wait.
        """
        samples, due, timers = self.samples, self._pending.due(watermark_us), self._open.timers
        while len(samples) < limit:
            if due and not (timers and timers[0] < due[0]):
                key_us, rank, _, _, _, event = due.popleft()
                self._reach(key_us)
                self._handlers[rank](event)
            elif timers and timers[0][0] < watermark_us:
                key_us, _, _, _, _, entry = heappop(timers)
                self._reach(key_us)
                self._observe(entry)
            else:
                break
        return len(samples) >= limit

    def forget(self, before_us: int) -> None:
        """Close what is final before a key; `advance` does so once per second of event time."""
        self._open.forget(before_us)

    def _reach(self, key_us: int) -> None:
        if key_us // _FORGET_US != self.now_us // _FORGET_US:
            self._open.forget(key_us)
        self.now_us = key_us

    def _observe(self, entry: OpenEntry) -> None:
        """Emit the first copies of an entry whose observation window has closed."""
        if isinstance(entry, OpenExposure):
            self.samples += self._labels.first_copies(entry, self.now_us)
        else:
            self.samples.append(self._labels.purchase(entry, CopyKind.FIRST, self.now_us))
        self._open.observed(entry, self.now_us)

    # --- events ---------------------------------------------------------------------------------

    def _item(self, event: ItemUpdate) -> None:
        self._items.update(event.object_id, event.text, event.attributes)

    def _exposure(self, event: Exposure) -> None:
        described = self._items.describe(event.hits, event.candidates)
        self.tally.num_missing_texts += [text for text, _ in described].count("")
        exposure = OpenExposure(
            event.position,
            self.now_us,
            max(event.time_us + self._windows_us[CLICK], self.now_us),
            False,
            event.query_id,
            event.client_id,
            event.user_query,
            event.hits,
            described,
            event.time_us,
            {},
        )
        self._open.open_exposure(exposure)

    def _click(self, event: Click) -> None:
        exposure, index, inferred = self._exposure_of(event)
        list_id = event.query_id or ""
        if exposure is not None:
            if index in exposure.clicked:
                self.tally.results["click", "duplicate"] += 1
                return
            self.tally.results["click", "inferred" if inferred else "matched"] += 1
            self._credit_click(exposure, index, event, inferred)
            list_id = exposure.query_id
        before = self._open.click_of(list_id, event.object_id)
        again = before is not None and self.now_us <= self._open.forgotten_us(before)
        if exposure is None:
            self.tally.results["click", "duplicate" if again else "orphan"] += 1
        if not again:
            self._open.open_click(self._opened(event, exposure, index, list_id, inferred))

    def _credit_click(
        self, exposure: OpenExposure, index: int, event: Click, inferred: bool
    ) -> None:
        exposure.clicked[index] = Positive(event.time_us, event.position, inferred)
        self.tally.delays_us.append(("click", max(event.time_us - exposure.time_us, 0)))
        if exposure.observed:
            late = self._labels.click(exposure, index, CopyKind.LATE_POSITIVE, self.now_us)
            self.samples.append(late)

    def _opened(
        self, event: Click, exposure: OpenExposure | None, index: int, list_id: str, inferred: bool
    ) -> OpenClick:
        """Return the open click of an event, with features as shown."""
        shown = exposure is not None
        text, attributes = self._described(event, exposure, index)
        if not shown and not text:
            self.tally.num_missing_texts += 1
        return OpenClick(
            event.position,
            self.now_us,
            max(event.time_us + self._windows_us[PURCHASE], self.now_us),
            False,
            False,
            list_id,
            len(exposure.hits) if exposure else 0,
            event.client_id,
            exposure.query if exposure else event.user_query,
            event.object_id,
            text,
            attributes,
            index + 1 if shown else None,
            event.time_us,
            inferred,
            (exposure.position, event.position) if exposure else (event.position,),
            max(exposure.time_us, event.time_us) if exposure else event.time_us,
            None,
        )

    def _described(self, event: Click, exposure: OpenExposure | None, index: int) -> Described:
        """Return text and attributes as shown, or those of the click."""
        if exposure is not None:
            text, attributes = exposure.described[index]
            return text or event.text or "", attributes or event.attributes or {}
        text, attributes = self._items.get(event.object_id)
        return (
            text if event.text is None else event.text,
            attributes if event.attributes is None else event.attributes,
        )

    def _purchase(self, event: Purchase) -> None:
        click, inferred = self._open.click_for(event)
        if click is None or self.now_us > self._open.forgotten_us(click):
            result = "orphan"
        elif click.purchase is not None:
            result = "duplicate"
        elif self._is_late(click, event):
            result = "late"
        else:
            result = "inferred" if inferred else "matched"
            self._credit_purchase(click, event, inferred)
        self.tally.results["purchase", result] += 1

    def _credit_purchase(self, click: OpenClick, event: Purchase, inferred: bool) -> None:
        click.purchase = Positive(event.time_us, event.position, inferred)
        self.tally.delays_us.append(("purchase", max(event.time_us - click.time_us, 0)))
        if click.observed:
            late = self._labels.purchase(click, CopyKind.LATE_POSITIVE, self.now_us)
            self.samples.append(late)

    # --- attribution ----------------------------------------------------------------------------

    def _exposure_of(self, event: Click) -> tuple[OpenExposure | None, int, bool]:
        """Return the exposure credited with a click, the index in it, and whether inferred."""
        for exposure, inferred in self._open.exposures_for(event):
            index = _index(exposure.hits, event)
            if index >= 0 and self._credits(exposure, event):
                return exposure, index, inferred
        return None, -1, False

    def _credits(self, exposure: OpenExposure, event: Click) -> bool:
        """Return whether an exposure may still be credited with a click."""
        in_window = event.time_us - exposure.time_us <= self._attribution_us
        return in_window and self.now_us <= exposure.timer_us

    def _is_late(self, click: OpenClick, event: Purchase) -> bool:
        """Return whether a click may no longer be credited with a purchase."""
        final = click.observed and self.now_us > click.timer_us
        return final or event.time_us - click.time_us > self._attribution_us

    # --- state ----------------------------------------------------------------------------------

    def snapshot(self, number: int) -> OpenPart:
        """Return the state of one partition number."""
        exposures, clicks = self._open.snapshot(number)
        return OpenPart(exposures, clicks, self._pending.snapshot(number))

    def pending_items(self) -> list[tuple[int, ItemUpdate]]:
        """Return the item updates that wait for their time, in order."""
        return self._pending.items()

    def restore(
        self,
        parts: Iterable[OpenPart],
        pending_items: Sequence[tuple[int, ItemUpdate]],
        now_us: int,
    ) -> None:
        """Restore what `snapshot` and `pending_items` returned; the join must be new."""
        assert not self._pending
        self.now_us = now_us
        exposures: list[OpenExposure] = []
        clicks: list[OpenClick] = []
        for part in parts:
            exposures += part.exposures
            clicks += part.clicks
            self._pending.restore(part.pending)
        self._open.restore(exposures, clicks)
        for key_us, update in pending_items:
            self._pending.push(key_us, update)


def _index(hits: Sequence[str], event: Click) -> int:
    """Return the 0-based index of the clicked item in a list; -1 when it was not in it."""
    ordinal, object_id = event.ordinal, event.object_id
    if ordinal is not None and 0 < ordinal <= len(hits) and hits[ordinal - 1] == object_id:
        return ordinal - 1
    return hits.index(object_id) if object_id in hits else -1
