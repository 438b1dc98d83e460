"""Exposure meets click meets purchase, in event time: what is still open, what it becomes, and what was too late.

Events and timers are taken in the order of their keys (see `clock`), everything below the watermark and nothing else. So the samples and
their order are a pure function of the log, whatever the order of polls.

Hot path: below 12 us per exposure of ten hits, held by `benchmarks/ingest.py`.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from typing import Annotated, TypeAlias, TypeVar

import msgspec
from msgspec import Meta
from msgspec.structs import replace

from consumers.clock import BEGINNING_US
from consumers.events import Click, Exposure, ItemUpdate, Purchase
from consumers.items import Items
from weighting.constraints import Count, NotNegativeInt, check, check_order
from weighting.provenance import Position
from weighting.sample import Attribute, CopyKind, Sample
from weighting.tasks import CLICK, PURCHASE, TaskName

#: How many of a client's exposures, newest first, are searched for a click without a query id.
_MAX_INFERRED_EXPOSURES = 1000

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


class Positive(msgspec.Struct, array_like=True, gc=False):
    """The event that made a label positive."""

    time_us: int
    position: Position
    inferred: bool


class OpenExposure(msgspec.Struct, array_like=True, eq=False, gc=False):
    """An exposure whose clicks may still come, with texts as they were when it was shown."""

    position: Position
    opened_us: int  #: key at which it was processed
    timer_us: (
        int  #: key at which it is observed; once it is, the last key at which a click is credited
    )
    observed: bool  #: its first copies were emitted
    query_id: str
    client_id: str
    query: str
    hits: tuple[str, ...]
    described: tuple[tuple[str, dict[str, Attribute]], ...]  #: text and attributes of each hit
    time_us: int
    clicked: dict[int, Positive]  #: index of the hit -> its first click


class OpenClick(msgspec.Struct, array_like=True, eq=False, gc=False):
    """A click whose purchase may still come, with its features as they were when it was shown."""

    position: Position
    opened_us: int
    timer_us: int  #: key at which it is observed; once it is, the last key at which a purchase is credited
    observed: bool  #: its first copy was emitted
    expired: bool  #: counted as final; kept for another attribution window, to tell a late purchase from an orphan
    list_id: str
    list_size: int
    client_id: str
    query: str
    object_id: str
    text: str
    attributes: dict[str, Attribute]
    ordinal: int | None  #: 1-based
    time_us: int
    inferred: bool
    sources: tuple[Position, ...]
    newest_us: int  #: event time of the newest event in `sources`
    purchase: Positive | None


class PendingEvents(msgspec.Struct, array_like=True):
    """Events that wait for the watermark, with their keys, in order."""

    exposures: list[tuple[int, Exposure]]
    clicks: list[tuple[int, Click]]
    purchases: list[tuple[int, Purchase]]


class OpenPart(msgspec.Struct, array_like=True):
    """All that is open in one partition number, in order."""

    exposures: list[OpenExposure]
    clicks: list[OpenClick]
    pending: PendingEvents


class _Part:
    """Indexes of what is open in one partition number, each in processing order, newest last; tuples, which the collector lets go."""

    __slots__ = ("click_by_list", "clicks_by_client", "exposures_by_client", "exposures_by_query")

    def __init__(self) -> None:
        self.exposures_by_query: dict[str, tuple[OpenExposure, ...]] = {}
        self.exposures_by_client: dict[str, list[OpenExposure]] = {}
        self.click_by_list: dict[tuple[str, str], OpenClick] = {}
        self.clicks_by_client: dict[tuple[str, str], tuple[OpenClick, ...]] = {}


# Rank of what happens at the same key: an item's text before the exposure that shows it, every event before the timers it may still meet.
(
    _RANK_ITEM,
    _RANK_EXPOSURE,
    _RANK_CLICK,
    _RANK_PURCHASE,
    _RANK_OBSERVE_EXPOSURE,
    _RANK_OBSERVE_CLICK,
) = range(6)

_RANKS = {
    ItemUpdate: _RANK_ITEM,
    Exposure: _RANK_EXPOSURE,
    Click: _RANK_CLICK,
    Purchase: _RANK_PURCHASE,
}

JoinedEvent: TypeAlias = Exposure | Click | Purchase | ItemUpdate
_Pending: TypeAlias = tuple[
    int, int, str, int, int, JoinedEvent
]  # key, rank, topic, partition, offset, event
_K = TypeVar("_K")
_E = TypeVar("_E", OpenExposure, OpenClick)
_Timer: TypeAlias = tuple[int, int, str, int, int, OpenExposure | OpenClick]


class Join:
    """Open exposures and clicks, and the events that wait for the watermark; `snapshot` resumes after the last event processed.

    Labels. Click task: when the watermark passes exposure + click window, one first copy per candidate with the label so far; a click
    that comes later, inside the attribution window, emits that candidate again as a late positive. Purchase task: the same from each
    click, with the observation window.
    """

    def __init__(self, config: JoinConfig, items: Items) -> None:
        """Begin with nothing open; `items` is updated here, in event time."""
        self._config = config
        self._items = items
        # Samples are made from these by `replace`, a few fields at a time: building one from its 19 keywords takes five times as long.
        self._shown = _blank(CLICK, config.click_window_us, config.attribution_window_us)
        self._clicked = _blank(PURCHASE, config.observation_window_us, config.attribution_window_us)
        self._parts: dict[int, _Part] = {}
        self._events: list[_Pending] = []  # those before `_next_event` were processed
        self._next_event = 0
        self._sorted = True  # sorting what is nearly sorted costs a third of a heap
        # An open exposure or click is first in the heap, then in one queue, in the order of observation.
        self._observations: list[_Timer] = []
        self._observed_exposures: deque[OpenExposure] = deque()
        self._observed_clicks: deque[OpenClick] = deque()
        self._expired_clicks: deque[OpenClick] = deque()
        self.now_us = BEGINNING_US  #: key of what was processed last
        self.samples: list[Sample] = []  #: emitted and not yet taken
        self.num_open_exposures = 0
        self.num_open_clicks = 0
        self.num_missing_texts = 0
        self.results: Counter[tuple[str, str]] = (
            Counter()
        )  #: (event, result) -> count, since the owner last cleared it
        self.delays_us: list[
            tuple[str, int]
        ] = []  #: (event, delay) of each joined label, since the owner last cleared it

    @property
    def num_pending(self) -> int:
        """How many events wait for the watermark."""
        return len(self._events) - self._next_event

    def waiting_lists(self) -> tuple[int, int]:
        """Return how many shown lists have given no sample yet, and the key that the watermark must pass for all of them to."""
        window_us = self._config.click_window_us
        keys = [
            max(e[5].time_us + window_us, e[0])
            for e in self._events[self._next_event :]
            if e[1] == _RANK_EXPOSURE
        ]
        keys += [timer[0] for timer in self._observations if timer[1] == _RANK_OBSERVE_EXPOSURE]
        return len(keys), max(keys, default=BEGINNING_US)

    def push(self, key_us: int, event: JoinedEvent) -> None:
        """Let an event wait until the watermark has passed its key; the first text of an item holds at once."""
        if isinstance(event, ItemUpdate) and event.object_id not in self._items:
            self._items.update(event.object_id, event.text, event.attributes)
            return
        self._wait(key_us, event)

    def _wait(self, key_us: int, event: JoinedEvent) -> None:
        position = event.position
        rank = _RANKS[event.__class__]
        self._sorted = False
        self._events.append(
            (key_us, rank, position.topic, position.partition, position.offset, event)
        )

    def advance(self, watermark_us: int, limit: int) -> bool:
        """Process everything with a key below the watermark, or until `limit` samples wait; return whether they do."""
        events, observations, samples = self._events, self._observations, self.samples
        if not self._sorted:
            del events[: self._next_event]
            events.sort()
            self._next_event, self._sorted = 0, True
        index, end = self._next_event, bisect_left(events, (watermark_us,))
        while len(samples) < limit:
            if index < end and (not observations or events[index][:2] < observations[0][:2]):
                key_us, rank, _, _, _, event = events[index]
                index += 1
                self._reach(key_us)
                if rank == _RANK_EXPOSURE:
                    self._exposure(event)  # type: ignore[arg-type]
                elif rank == _RANK_CLICK:
                    self._click(event)  # type: ignore[arg-type]
                elif rank == _RANK_PURCHASE:
                    self._purchase(event)  # type: ignore[arg-type]
                else:
                    assert isinstance(event, ItemUpdate)
                    self._items.update(event.object_id, event.text, event.attributes)
            elif observations and observations[0][0] < watermark_us:
                timer = heappop(observations)
                self._reach(timer[0])
                self._observe(timer[5])
            else:
                break
        self._next_event = index
        return len(samples) >= limit

    def forget(self, before_us: int) -> None:
        """Close what ended before a key; `advance` does so about once a second of event time."""
        exposures, clicks, expired = (
            self._observed_exposures,
            self._observed_clicks,
            self._expired_clicks,
        )
        while exposures and exposures[0].timer_us < before_us:
            exposure = exposures.popleft()
            self.results["exposure", "matched" if exposure.clicked else "expired"] += 1
            self._close(exposure)
        while clicks and clicks[0].timer_us < before_us:
            click = clicks.popleft()
            if click.purchase is None:
                self.results["click", "expired"] += 1
            click.expired = True
            expired.append(click)
        while expired and self._forgotten_us(expired[0]) < before_us:
            self._close(expired.popleft())

    def _reach(self, key_us: int) -> None:
        """Move on to a key."""
        if key_us // _FORGET_US != self.now_us // _FORGET_US:
            self.forget(key_us)
        self.now_us = key_us

    # --- events -----------------------------------------------------------------------------------------------------------------

    def _exposure(self, event: Exposure) -> None:
        described = self._items.describe(event.hits, event.candidates)
        self.num_missing_texts += [text for text, _ in described].count("")
        exposure = OpenExposure(
            event.position,
            self.now_us,
            max(event.time_us + self._config.click_window_us, self.now_us),
            False,
            event.query_id,
            event.client_id,
            event.user_query,
            event.hits,
            described,
            event.time_us,
            {},
        )
        self._open(exposure)
        self._evict()

    def _click(self, event: Click) -> None:
        part = self._part(event.position.partition)
        exposure, index, inferred = self._exposure_of(part, event)
        list_id = event.query_id or ""
        if exposure is not None:
            if index in exposure.clicked:
                self.results["click", "duplicate"] += 1
                return
            self.results["click", "inferred" if inferred else "matched"] += 1
            list_id = exposure.query_id
            positive = Positive(event.time_us, event.position, inferred)
            exposure.clicked[index] = positive
            self.delays_us.append(("click", max(event.time_us - exposure.time_us, 0)))
            if exposure.observed:
                self.samples.append(self._click_sample(exposure, index, CopyKind.LATE_POSITIVE))
        before = part.click_by_list.get((list_id, event.object_id))
        again = before is not None and self.now_us <= self._forgotten_us(before)
        if exposure is None:
            self.results["click", "duplicate" if again else "orphan"] += 1
        if not again:
            self._open(self._observed_click(event, exposure, index, list_id, inferred))
            self._evict()

    def _observed_click(
        self, event: Click, exposure: OpenExposure | None, index: int, list_id: str, inferred: bool
    ) -> OpenClick:
        text, attributes = (
            self._items.get(event.object_id) if exposure is None else exposure.described[index]
        )
        if event.text is not None and (exposure is None or not text):
            text = event.text
        if event.attributes is not None and (exposure is None or not attributes):
            attributes = event.attributes
        if exposure is None and not text:
            self.num_missing_texts += 1
        return OpenClick(
            event.position,
            self.now_us,
            max(event.time_us + self._config.observation_window_us, self.now_us),
            False,
            False,
            list_id,
            0 if exposure is None else len(exposure.hits),
            event.client_id,
            event.user_query if exposure is None else exposure.query,
            event.object_id,
            text,
            attributes,
            None if exposure is None else index + 1,
            event.time_us,
            inferred,
            (event.position,) if exposure is None else (exposure.position, event.position),
            event.time_us if exposure is None else max(exposure.time_us, event.time_us),
            None,
        )

    def _purchase(self, event: Purchase) -> None:
        part = self._part(event.position.partition)
        click, inferred = None, False
        if event.query_id is not None:
            click = part.click_by_list.get((event.query_id, event.object_id))
        if click is None:
            clicks = part.clicks_by_client.get((event.client_id, event.object_id))
            click, inferred = (clicks[-1], True) if clicks else (None, False)
        if click is None or self.now_us > self._forgotten_us(click):
            result = "orphan"
        elif click.purchase is not None:
            result = "duplicate"
        elif (
            click.observed and self.now_us > click.timer_us
        ) or event.time_us - click.time_us > self._config.attribution_window_us:
            result = "late"
        else:
            result = "inferred" if inferred else "matched"
            click.purchase = Positive(event.time_us, event.position, inferred)
            self.delays_us.append(("purchase", max(event.time_us - click.time_us, 0)))
            if click.observed:
                self.samples.append(self._purchase_sample(click, CopyKind.LATE_POSITIVE))
        self.results["purchase", result] += 1

    def _exposure_of(self, part: _Part, event: Click) -> tuple[OpenExposure | None, int, bool]:
        """Return the exposure that showed what was clicked, where in it, and whether that was inferred."""
        if event.query_id is not None:
            for exposure in reversed(part.exposures_by_query.get(event.query_id, ())):
                index = _index(exposure.hits, event)
                if index >= 0 and self._credits(exposure, event):
                    return exposure, index, False
        for exposure in reversed(
            part.exposures_by_client.get(event.client_id, [])[-_MAX_INFERRED_EXPOSURES:]
        ):
            index = _index(exposure.hits, event)
            if index >= 0 and self._credits(exposure, event):
                return exposure, index, True
        return None, -1, False

    def _credits(self, exposure: OpenExposure, event: Click) -> bool:
        """Say whether an exposure may still be credited with a click."""
        return (
            self.now_us <= exposure.timer_us
            and event.time_us - exposure.time_us <= self._config.attribution_window_us
        )

    def _forgotten_us(self, click: OpenClick) -> int:
        """Return the last key at which a purchase of this click is late; then it is an orphan."""
        return max(click.time_us + 2 * self._config.attribution_window_us, click.timer_us)

    # --- timers -----------------------------------------------------------------------------------------------------------------

    def _observe(self, entry: OpenExposure | OpenClick) -> None:
        if isinstance(entry, OpenExposure):
            self._observe_exposure(entry)
            self._observed_exposures.append(entry)
        else:
            self.samples.append(self._purchase_sample(entry, CopyKind.FIRST))
            self._observed_clicks.append(entry)
        entry.observed = True
        entry.timer_us = max(entry.time_us + self._config.attribution_window_us, self.now_us)

    def _observe_exposure(self, exposure: OpenExposure) -> None:
        """Emit the first copy of every candidate."""
        samples, clicked = self.samples, exposure.clicked
        prefix = f"{exposure.position}/"
        negative = self._negative(exposure)
        index = 0
        for object_id, (text, attributes) in zip(exposure.hits, exposure.described, strict=True):
            if clicked and index in clicked:
                samples.append(self._click_sample(exposure, index, CopyKind.FIRST))
                index += 1
                continue
            sample_id = f"{prefix}{index}/click/first"
            index += 1
            samples.append(
                replace(
                    negative,
                    sample_id=sample_id,
                    item_id=object_id,
                    text=text,
                    attributes=attributes,
                    position=index,
                )
            )

    def _negative(self, exposure: OpenExposure) -> Sample:
        """Return what all samples of an exposure have in common."""
        return replace(
            self._shown,
            list_id=exposure.query_id,
            list_size=len(exposure.hits),
            query=exposure.query,
            shown_us=exposure.time_us,
            event_time_us=exposure.time_us,
            elapsed_us=self.now_us - exposure.time_us,
            positions=(exposure.position,),
        )

    def _click_sample(self, exposure: OpenExposure, index: int, copy_kind: CopyKind) -> Sample:
        """Return a positive of the click task."""
        click = exposure.clicked[index]
        text, attributes = exposure.described[index]
        shown = replace(
            self._negative(exposure),
            sample_id=f"{exposure.position}/{index}/click/{copy_kind}",
            copy_kind=copy_kind,
            item_id=exposure.hits[index],
            text=text,
            attributes=attributes,
            position=index + 1,
        )
        return replace(
            shown,
            label=1,
            event_time_us=max(exposure.time_us, click.time_us),
            delay_us=max(click.time_us - exposure.time_us, 0),
            inferred=click.inferred,
            positions=(exposure.position, click.position),
        )

    def _purchase_sample(self, click: OpenClick, copy_kind: CopyKind) -> Sample:
        """Return a sample of the purchase task, with the label so far."""
        clicked = replace(
            self._clicked,
            list_id=click.list_id,
            list_size=click.list_size,
            query=click.query,
            item_id=click.object_id,
            text=click.text,
            attributes=click.attributes,
            position=click.ordinal,
        )
        so_far = replace(
            clicked,
            sample_id=f"{click.position}/purchase/{copy_kind}",
            copy_kind=copy_kind,
            shown_us=click.time_us,
            event_time_us=click.newest_us,
            elapsed_us=self.now_us - click.time_us,
            inferred=click.inferred,
            positions=click.sources,
        )
        purchase = click.purchase
        if purchase is None:
            return so_far
        return replace(
            so_far,
            label=1,
            event_time_us=max(click.newest_us, purchase.time_us),
            delay_us=max(purchase.time_us - click.time_us, 0),
            inferred=click.inferred or purchase.inferred,
            positions=(*click.sources, purchase.position),
        )

    # --- what is open -----------------------------------------------------------------------------------------------------------

    def _part(self, number: int) -> _Part:
        part = self._parts.get(number)
        if part is None:
            part = self._parts[number] = _Part()
        return part

    def _open(self, entry: OpenExposure | OpenClick) -> None:
        part, position = self._part(entry.position.partition), entry.position
        if isinstance(entry, OpenExposure):
            part.exposures_by_query[entry.query_id] = (
                *part.exposures_by_query.get(entry.query_id, ()),
                entry,
            )
            of_client = part.exposures_by_client.get(entry.client_id)
            if of_client is None:
                part.exposures_by_client[entry.client_id] = [entry]
            else:
                of_client.append(entry)
            self.num_open_exposures += 1
            rank = _RANK_OBSERVE_EXPOSURE
        else:
            if entry.list_id:
                part.click_by_list[entry.list_id, entry.object_id] = entry
            key = (entry.client_id, entry.object_id)
            part.clicks_by_client[key] = (*part.clicks_by_client.get(key, ()), entry)
            self.num_open_clicks += 1
            rank = _RANK_OBSERVE_CLICK
        if not entry.observed:
            heappush(
                self._observations,
                (entry.timer_us, rank, position.topic, position.partition, position.offset, entry),
            )

    def _close(self, entry: OpenExposure | OpenClick) -> None:
        """Forget an entry that was taken out of its queue."""
        part = self._part(entry.position.partition)
        if isinstance(entry, OpenExposure):
            _remove(part.exposures_by_query, entry.query_id, entry)
            of_client = part.exposures_by_client[entry.client_id]
            if len(of_client) == 1:
                del part.exposures_by_client[entry.client_id]
            else:
                of_client.remove(entry)
            self.num_open_exposures -= 1
        else:
            if part.click_by_list.get((entry.list_id, entry.object_id)) is entry:
                del part.click_by_list[entry.list_id, entry.object_id]
            _remove(part.clicks_by_client, (entry.client_id, entry.object_id), entry)
            self.num_open_clicks -= 1

    def _evict(self) -> None:
        """Make room: what ends soonest goes first, and what was not yet emitted goes last."""
        exposures, clicks = self._observed_exposures, self._observed_clicks
        while self.num_open_exposures + self.num_open_clicks > self._config.max_pending:
            entry: OpenExposure | OpenClick
            if self._expired_clicks:
                self._close(self._expired_clicks.popleft())  # counted when it expired
                continue
            if exposures and (not clicks or exposures[0].timer_us <= clicks[0].timer_us):
                entry = exposures.popleft()
            elif clicks:
                entry = clicks.popleft()
            else:
                entry = heappop(self._observations)[5]
            self.results["exposure" if isinstance(entry, OpenExposure) else "click", "evicted"] += 1
            self._close(entry)

    # --- state ------------------------------------------------------------------------------------------------------------------

    def snapshot(self, number: int) -> OpenPart:
        """Return all that is open and pending in one partition number, in processing order."""
        waiting = [timer[5] for timer in self._observations if timer[3] == number]
        exposures = [e for e in self._observed_exposures if e.position.partition == number]
        clicks = [
            c
            for queue in (self._observed_clicks, self._expired_clicks)
            for c in queue
            if c.position.partition == number
        ]
        pending = sorted(e for e in self._events[self._next_event :] if e[3] == number)
        return OpenPart(
            exposures=sorted(
                exposures + [e for e in waiting if isinstance(e, OpenExposure)],
                key=_processing_order,
            ),
            clicks=sorted(
                clicks + [c for c in waiting if isinstance(c, OpenClick)], key=_processing_order
            ),
            pending=PendingEvents(
                exposures=[(e[0], e[5]) for e in pending if isinstance(e[5], Exposure)],
                clicks=[(e[0], e[5]) for e in pending if isinstance(e[5], Click)],
                purchases=[(e[0], e[5]) for e in pending if isinstance(e[5], Purchase)],
            ),
        )

    def pending_items(self) -> list[tuple[int, ItemUpdate]]:
        """Return the item updates that wait for their time, in order."""
        return [
            (e[0], e[5])
            for e in sorted(e for e in self._events[self._next_event :] if e[1] == _RANK_ITEM)
            if isinstance(e[5], ItemUpdate)
        ]

    def restore(
        self,
        parts: Iterable[OpenPart],
        pending_items: Sequence[tuple[int, ItemUpdate]],
        now_us: int,
    ) -> None:
        """Take back what `snapshot` and `pending_items` returned; the join must be new."""
        assert not self._parts
        assert not self._events
        self.now_us = now_us
        shared: dict[str, str] = {}  # one string per text, as it was before
        exposures: list[OpenExposure] = []
        clicks: list[OpenClick] = []
        for part in parts:
            exposures += part.exposures
            clicks += part.clicks
            waiting: tuple[tuple[int, JoinedEvent], ...] = (
                *part.pending.exposures,
                *part.pending.clicks,
                *part.pending.purchases,
            )
            for key_us, event in waiting:
                self._wait(key_us, event)
        for exposure in exposures:
            exposure.described = tuple(
                (shared.setdefault(text, text), attributes)
                for text, attributes in exposure.described
            )
            self._open(exposure)
        for click in clicks:
            click.text = shared.setdefault(click.text, click.text)
            self._open(click)
        exposures.sort(key=lambda e: _observation_order(e, self._config.click_window_us))
        clicks.sort(key=lambda c: _observation_order(c, self._config.observation_window_us))
        self._observed_exposures.extend(e for e in exposures if e.observed)
        self._observed_clicks.extend(c for c in clicks if c.observed and not c.expired)
        self._expired_clicks.extend(c for c in clicks if c.expired)
        for update in pending_items:
            self._wait(*update)


def _blank(task: TaskName, window_us: int, attribution_us: int) -> Sample:
    return Sample(
        sample_id="",
        task=task,
        copy_kind=CopyKind.FIRST,
        label=0,
        list_id="",
        list_size=0,
        query="",
        item_id="",
        text="",
        attributes={},
        position=None,
        shown_us=0,
        event_time_us=0,
        elapsed_us=0,
        delay_us=None,
        window_us=window_us,
        attribution_us=attribution_us,
        inferred=False,
        positions=(),
    )


def _index(hits: Sequence[str], event: Click) -> int:
    """Return where in the list the clicked item stood, from 0; -1 when it was not in it."""
    ordinal, object_id = event.ordinal, event.object_id
    if ordinal is not None and 0 < ordinal <= len(hits) and hits[ordinal - 1] == object_id:
        return ordinal - 1
    return hits.index(object_id) if object_id in hits else -1


def _remove(index: dict[_K, tuple[_E, ...]], key: _K, entry: _E) -> None:
    """Remove one entry from an index."""
    left = tuple(e for e in index[key] if e is not entry)
    if left:
        index[key] = left
    else:
        del index[key]


def _processing_order(entry: OpenExposure | OpenClick) -> tuple[int, Position]:
    return entry.opened_us, entry.position


def _observation_order(entry: OpenExposure | OpenClick, window_us: int) -> tuple[int, Position]:
    return max(entry.time_us + window_us, entry.opened_us), entry.position
