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
from msgspec.structs import replace

from consumers.events import Click, Exposure, ItemUpdate, Purchase
from consumers.joining import pending
from consumers.joining.attribution import Attribution
from consumers.joining.clock import BEGINNING_US, Correction
from consumers.joining.entries import OpenClick, OpenExposure, PackedExposure
from consumers.joining.items import Items
from consumers.joining.open_entries import OpenEntries
from consumers.joining.pending import JoinedEvent, Pending, PendingEvents
from consumers.joining.tally import Tally
from weighting.constraints import Count, NotNegativeInt, check, check_order
from weighting.sample import Sample
from weighting.tasks import CLICK, TASKS, TaskName

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
    max_hits: Annotated[
        Count,
        Meta(description="Hits of a list that become samples, from its top; the rest is dropped."),
    ] = 200

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
    """Open entries, and waiting and pending events with their keys, of one partition number.

    All in order.
    """

    exposures: list[OpenExposure]
    observed: list[PackedExposure]
    clicks: list[OpenClick]
    waiting_clicks: list[tuple[int, Click]]
    waiting_purchases: list[tuple[int, Purchase]]
    pending: PendingEvents


class Join:
    """Open entries and pending events; `snapshot` resumes after the last event processed.

    A click or purchase whose partner is not open yet waits for it (see `waiting`).

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
        self._max_hits = config.max_hits
        self._items = items
        self._pending = Pending()
        self.tally = Tally()
        self._open = OpenEntries(
            windows_us=self._windows_us,
            attribution_us=config.attribution_window_us,
            grace_us=config.grace_us,
            max_entries=config.max_pending,
            tally=self.tally,
        )
        attribution = Attribution(
            self._windows_us,
            config.attribution_window_us,
            items=items,
            entries=self._open,
            tally=self.tally,
        )
        self._handlers: Mapping[int, Callable[[Any, int], None]] = {
            pending.ITEM: attribution.item,
            pending.EXPOSURE: attribution.exposure,
            pending.CLICK: attribution.action,
            pending.PURCHASE: attribution.action,
            pending.SETTLE_CLICK: attribution.settle,
            pending.SETTLE_PURCHASE: attribution.settle,
            pending.OBSERVE_EXPOSURE: attribution.observe_exposure,
            pending.OBSERVE_CLICK: attribution.observe_click,
        }
        self.now_us = BEGINNING_US
        self.samples: list[Sample] = attribution.samples

    @property
    def num_pending(self) -> int:
        """Number of events that wait for the watermark."""
        return len(self._pending)

    @property
    def num_waiting(self) -> int:
        """Number of clicks and purchases whose list or click is not there yet."""
        return len(self._open.waiting)

    @property
    def last_turn(self) -> tuple[int, int]:
        """Key and number of the click that was opened last, for `restore`."""
        return self._open.last_turn

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

        The first text of an item holds at once. Hits beyond the cap are dropped.
        """
        if isinstance(event, Exposure):
            if len(event.hits) > self._max_hits:
                event = _without_hits_beyond(self._max_hits, event)
        elif isinstance(event, ItemUpdate) and event.object_id not in self._items:
            self._items.update(event.object_id, event.text, event.attributes)
            return
        self._pending.push(key_us, event)

    def correct(self, correction: Correction) -> None:
        """Give an event that still waits another time and key."""
        self._pending.correct(correction)

    def advance(self, watermark_us: int, limit: int) -> bool:
        """Process everything with a key below the watermark, or until `limit` samples wait.

        Returns:
            whether `limit` samples wait.
        """
        samples, due, timers = self.samples, self._pending.due(watermark_us), self._open.timers
        while len(samples) < limit:
            if due and not (timers and timers[0] < due[0]):
                key_us, rank, _, _, _, what = due.popleft()
            elif timers and timers[0][0] < watermark_us:
                key_us, rank, _, _, _, what = heappop(timers)
            else:
                break
            self._reach(key_us)
            self._handlers[rank](what, key_us)
        return len(samples) >= limit

    def forget(self, before_us: int) -> None:
        """Close what is final before a key; `advance` does so once per second of event time."""
        self._open.forget(before_us)

    def _reach(self, key_us: int) -> None:
        if key_us // _FORGET_US != self.now_us // _FORGET_US:
            self._open.forget(key_us)
        self.now_us = key_us

    # --- state ----------------------------------------------------------------------------------

    def snapshot(self, number: int) -> OpenPart:
        """Return the state of one partition number."""
        entries, waiting = self._open.snapshot(number), self._open.waiting.snapshot(number)
        return OpenPart(*entries, *waiting, self._pending.snapshot(number))

    def pending_items(self) -> list[tuple[int, ItemUpdate]]:
        """Return the item updates that wait for their time, in order."""
        return self._pending.items()

    def restore(
        self,
        parts: Iterable[OpenPart],
        pending_items: Sequence[tuple[int, ItemUpdate]],
        now_us: int,
        last_turn: tuple[int, int],
    ) -> None:
        """Restore what `snapshot` and `pending_items` returned; the join must be new."""
        assert not self._pending
        self.now_us = now_us
        exposures: list[OpenExposure] = []
        observed: list[PackedExposure] = []
        clicks: list[OpenClick] = []
        waiting: list[tuple[int, Click | Purchase]] = []
        for part in parts:
            exposures += part.exposures
            observed += part.observed
            clicks += part.clicks
            waiting += part.waiting_clicks
            waiting += part.waiting_purchases
            self._pending.restore(part.pending)
        self._open.restore(exposures, observed, clicks, last_turn)
        self._open.waiting.restore(waiting)
        for key_us, update in pending_items:
            self._pending.push(key_us, update)


def _without_hits_beyond(most: int, event: Exposure) -> Exposure:
    hits = event.hits[:most]
    candidates = {hit: event.candidates[hit] for hit in hits if hit in event.candidates}
    return replace(
        event, hits=hits, candidates=candidates, num_cut_hits=len(event.hits) - len(hits)
    )
