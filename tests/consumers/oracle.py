"""Reference implementation of the join: one global sort, plain lists, nothing incremental.

It shares only `Sample` with the code that it judges.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, TypeAlias

from consumers.source import Record
from weighting.provenance import Position
from weighting.sample import CopyKind, Sample
from weighting.tasks import CLICK, PURCHASE, TaskName

Event: TypeAlias = dict[str, Any]
FOREVER = 2**62
EPOCH = datetime.fromisoformat("1970-01-01T00:00:00+00:00")
RANKS = {"exposure": 1, "click": 2, "purchase": 3, "return": 3}
#: How many graces an event waits for what it belongs to.
GRACES = {"click": 1, "purchase": 2, "return": 2}


@dataclass
class Outcome:
    """The samples by id, and where the records are that cannot be read."""

    samples: dict[str, Sample] = field(default_factory=dict)
    unreadable: set[tuple[str, int, int]] = field(default_factory=set)
    num_late: int = 0
    num_duplicates: int = 0


def read(record: Record) -> dict[str, Any] | None:
    """A record as a flat dictionary; None when it cannot be read."""
    try:
        value = json.loads(record.value or b"")
        time_us = (datetime.fromisoformat(value["timestamp"]) - EPOCH) // timedelta(microseconds=1)
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    if "query_response_hit_ids" in value:
        extra = value.get("query_attributes", {})
        candidates = {c["object_id"]: c for c in extra.get("candidates", [])}
        texts = [candidates.get(hit, {}).get("text", "") for hit in value["query_response_hit_ids"]]
        identity: Any = (value["query_id"], extra.get("event_id") or extra.get("page"))
        kind, hits, item = "exposure", value["query_response_hit_ids"], ""
        scenario = extra.get("scenario", "")
    else:
        extra, scenario = value["event_attributes"], ""
        kind, hits, texts, item = value["action_name"], [], [], extra["object"]["object_id"]
        if kind == "purchase" and extra.get("quantity", 1) <= 0:
            kind = "return"
        event_id = extra.get("event_id")
        identity = None if event_id is None else (kind, item, event_id)
    return {
        "kind": kind,
        "time": time_us,
        "client": value["client_id"],
        "query_id": value.get("query_id"),
        "query": value.get("user_query") or "",
        "hits": hits,
        "texts": texts,
        "scenario": scenario,
        "item": item,
        "value": None if extra.get("price") is None else extra["price"] * extra.get("quantity", 1),
        "identity": identity,
        "position": Position(record.topic, record.partition, record.offset),
    }


def oracle(
    records: Mapping[tuple[str, int], Iterable[Record]],
    *,
    click_window_us: int,
    observation_window_us: int,
    attribution_window_us: int,
    grace_us: int,
) -> Outcome:
    """Samples of a log that has ended and whose windows have all closed."""
    outcome = Outcome()
    judge = _Oracle(outcome, click_window_us, observation_window_us, attribution_window_us)
    events = _in_order(records, grace_us, attribution_window_us, outcome)
    steps = [(e["key"], RANKS[e["kind"]], e["position"], e) for e in events]
    for event in events:
        if event["kind"] in GRACES:
            end = event["key"] + GRACES[event["kind"]] * grace_us
            steps.append((end, 2 + RANKS[event["kind"]], event["position"], event))
    for now, _, _, event in sorted(steps, key=lambda step: step[:3]):
        judge.take(event, now, last=event["kind"] in GRACES and not grace_us)
    judge.emit()
    return outcome


def _in_order(
    records: Mapping[tuple[str, int], Iterable[Record]],
    grace_us: int,
    attribution_us: int,
    outcome: Outcome,
) -> list[Event]:
    """Readable events without duplicates, by key; others are counted."""
    events = []
    for partition in records.values():
        clock, seen = _Clock(grace_us, attribution_us), set()
        for record in partition:
            event = read(record)
            if event is None:
                outcome.unreadable.add((record.topic, record.partition, record.offset))
                continue
            is_late = clock.see(event)
            if event["identity"] is not None and event["identity"] in seen:
                outcome.num_duplicates += 1
                continue
            seen.add(event["identity"])
            outcome.num_late += is_late
            events.append(event)
    return sorted(events, key=lambda e: (e["key"], RANKS[e["kind"]], e["position"]))


class _Clock:
    """The clock of one partition, from the whole history of it."""

    def __init__(self, grace_us: int, attribution_us: int) -> None:
        self.grace_us, self.attribution_us = grace_us, attribution_us
        self.slack_us = max(grace_us, 1_000_000)
        self.history: list[tuple[str, int] | None] = []  # None: late
        self.watermark = -FOREVER
        self.doubted: list[tuple[int, int, int, Event]] = []

    def latest(self, start: int = 0, most: int = 15, without: str = "") -> dict[str, int]:
        """Latest times of the last clients that came since `start`."""
        found: dict[str, int] = {}
        for index in range(len(self.history) - 1, start - 1, -1):
            client, time = self.history[index] or (without, 0)
            if client != without:
                found.setdefault(client, time)
            if len(found) == most:
                break
        return found

    def stream_time(self) -> int:
        times = sorted(self.latest().values())
        if len(times) < 2:
            return -FOREVER
        median = times[(len(times) - 1) // 2]
        return min(times[-2], median + self.grace_us // 2)

    def see(self, event: Event) -> bool:
        """Set the key of an event, and perhaps another time; return whether it is late."""
        time = event["time"]
        self.history.append(None if time < self.watermark else (event["client"], time))
        stream = self.stream_time()
        self.watermark = max(self.watermark, stream - self.grace_us)
        if time < stream - self.attribution_us - self.grace_us:
            event["time"] = stream
        event["key"] = max(event["time"], self.watermark)
        if event["key"] == event["time"] > stream + self.slack_us:
            self.doubted.append((len(self.history), event["time"], stream, event))
        self._judge(stream)
        return bool(event["key"] > time)

    def _judge(self, stream: int) -> None:
        while self.doubted:
            since, time, then, event = self.doubted[0]
            if time > stream + self.slack_us:
                asked = self.latest(since, 4, event["client"]).values()
                needed = 3
                if len(asked) < 4:
                    if len(asked) < 2 or len(self.history) - since < 200:
                        return
                    needed = len(asked)
                if sum(t < time - self.slack_us for t in asked) >= needed:
                    event["time"] = then if then > -FOREVER else stream
                    event["key"] = max(event["time"], self.watermark)
            self.doubted.pop(0)


@dataclass
class _Oracle:
    """The join, with everything that ever happened in plain lists."""

    outcome: Outcome
    click_window_us: int
    observation_window_us: int
    attribution_window_us: int
    shown: list[Event] = field(default_factory=list)
    clicked: list[Event] = field(default_factory=list)
    waiting: list[Event] = field(default_factory=list)
    #: Any way in which something can be found, oldest first.
    by_key: dict[tuple[Any, ...], list[Event]] = field(default_factory=dict)

    def take(self, event: Event, now: int, *, last: bool) -> None:
        """An event, or the end of its wait."""
        if event["kind"] == "exposure":
            self.show(event, now)
        elif "settled" not in event:
            event["settled"] = self.settle(event, now, last=last)
            if not event["settled"]:
                self.waiting.append(event)
        elif not event["settled"]:
            self.waiting.remove(event)
            event["settled"] = self.settle(event, now, last=True)

    def settle(self, event: Event, now: int, *, last: bool) -> bool:
        handlers = {"click": self.click, "purchase": self.buy, "return": self.take_back}
        return handlers[event["kind"]](event, now, last)

    def look_again(self, now: int, opened: Event) -> None:
        """Settle what waited for a list or a click."""
        for event in self.waiting.copy():
            if not event["settled"] and _may_belong(event, opened):
                event["settled"] = self.settle(event, now, last=False)
                if event["settled"]:
                    self.waiting.remove(event)

    def show(self, event: Event, now: int) -> None:
        self._open(event, self.click_window_us, now)
        event["positives"] = {}
        self.shown.append(event)
        self._add(event, "query", event["query_id"])
        self._add(event, "client", event["client"])
        self.look_again(now, event)

    def click(self, event: Event, now: int, last: bool) -> bool:
        exact = self._credited(event, now, "query", event["query_id"])
        inferred = self._credited(event, now, "client", event["client"])
        if event["query_id"] and not last:
            inferred = []
        exposure = next(iter(exact or inferred), None)
        event["inferred"] = exposure is not None and not exact
        index, again = 0, False
        if exposure is not None:
            index = exposure["hits"].index(event["item"])
            again = index in exposure["positives"]
        if not last and not exact and (exposure is None or again):
            return False
        if again:
            return True
        event |= {"exposure": exposure, "index": index, "purchase": None}
        if exposure is not None:
            event["credited"] = now
            exposure["positives"][index] = event
        event["list_id"] = exposure["query_id"] if exposure else event["query_id"]
        self._open(event, self.observation_window_us, now)
        if self._clicks(now, "list", event["list_id"], event["item"]):
            return True
        self.clicked.append(event)
        self._add(event, "list", event["list_id"], event["item"])
        self._add(event, "item", event["client"], event["item"])
        self.look_again(now, event)
        return True

    def buy(self, event: Event, now: int, last: bool) -> bool:
        exact = self._clicks(now, "list", event["query_id"], event["item"])
        inferred = self._clicks(now, "item", event["client"], event["item"])
        if event["query_id"] and not last:
            inferred = []
        click = next(iter(exact or inferred), None)
        free = click is not None and click["purchase"] is None and self._is_open(click, event, now)
        if not last and not exact and not free:
            return False
        event["inferred"] = not exact
        if click is not None and free:
            returned = self._return_of(click, event, now)
            if returned is None:
                event["credited"] = now
                click["purchase"] = event
            else:
                returned["settled"] = True
                self.waiting.remove(returned)
        return True

    def _return_of(self, click: Event, purchase: Event, now: int) -> Event | None:
        """A return that waits for this purchase."""
        for event in self.waiting:
            ours = event["kind"] == "return" and _may_belong(event, click)
            if ours and event["time"] >= purchase["time"] and self._is_open(click, event, now):
                return event
        return None

    def take_back(self, event: Event, now: int, last: bool) -> bool:
        exact = self._clicks(now, "list", event["query_id"], event["item"])
        inferred = self._clicks(now, "item", event["client"], event["item"])
        if event["query_id"] and not last:
            inferred = []
        bought = [c for c in exact + inferred if c["purchase"] and "returned" not in c]
        bought = [c for c in bought if c["purchase"]["time"] <= event["time"]]
        if not bought:
            return last
        click = bought[0]
        if self._is_open(click, event, now):
            if now <= click["observed"]:
                click["purchase"] = None
            else:
                click["returned"] = True
        return True

    def emit(self) -> None:
        """All samples, once every window has closed."""
        for exposure in self.shown:
            for index in range(len(exposure["hits"])):
                self._copies(CLICK, exposure, exposure["positives"].get(index), index)
        for click in self.clicked:
            self._copies(PURCHASE, click, click["purchase"])

    def _copies(self, task: TaskName, of: Event, positive: Event | None, index: int = 0) -> None:
        in_time = positive is not None and positive["credited"] <= of["observed"]
        first = positive if in_time else None
        self._sample(task, CopyKind.FIRST, of, of["observed"], first, index)
        if positive is not None and not in_time:
            self._sample(task, CopyKind.LATE_POSITIVE, of, positive["credited"], positive, index)

    def _sample(
        self,
        task: TaskName,
        copy: CopyKind,
        of: Event,
        key: int,
        positive: Event | None,
        index: int,
    ) -> None:
        click = task == CLICK
        sample_id = f"{of['position']}{f'/{index}' if click else ''}/{task}/{copy}"
        assert sample_id not in self.outcome.samples
        exposure = of if click else of["exposure"]
        sources = [exposure, positive] if click else [exposure, of, positive]
        newest = max(e["time"] for e in (of, positive, exposure) if e is not None)
        inferred = not click and of["inferred"]
        self.outcome.samples[sample_id] = Sample(
            sample_id=sample_id,
            task=task,
            copy_kind=copy,
            label=int(positive is not None),
            scenario=exposure["scenario"] if exposure else "",
            client=_hash64(of["client"]),
            query=exposure["query"] if exposure else of["query"],
            item_id=of["hits"][index] if click else of["item"],
            attributes={},
            shown_us=of["time"],
            event_time_us=newest,
            elapsed_us=key - of["time"],
            delay_us=None if positive is None else max(positive["time"] - of["time"], 0),
            window_us=self.click_window_us if click else self.observation_window_us,
            attribution_us=self.attribution_window_us,
            inferred=inferred or (positive is not None and positive["inferred"]),
            positions=tuple(e["position"] for e in sources if e is not None),
            value=None if click or positive is None else positive["value"],
            **self._place(exposure, of, index if click else of["index"]),
        )

    @staticmethod
    def _place(exposure: Event | None, of: Event, index: int) -> dict[str, Any]:
        if exposure is None:
            return {"list_id": of["query_id"] or "", "list_size": 0, "text": "", "position": None}
        return {
            "list_id": exposure["query_id"],
            "list_size": len(exposure["hits"]),
            "text": exposure["texts"][index],
            "position": index + 1,
        }

    def _open(self, event: Event, window_us: int, now: int) -> None:
        event["observed"] = max(event["time"] + window_us, now)
        event["final"] = max(event["time"] + self.attribution_window_us, event["observed"])

    def _is_open(self, of: Event, event: Event, now: int) -> bool:
        in_window = event["time"] - of["time"] <= self.attribution_window_us
        return bool(now <= of["final"] and in_window)

    def _credited(self, event: Event, now: int, *key: Any) -> list[Event]:
        """Exposures under this key that showed the item and are still open for the event."""
        found = self._find(*key)
        return [e for e in found if event["item"] in e["hits"] and self._is_open(e, event, now)]

    def _clicks(self, now: int, *key: Any) -> list[Event]:
        """Clicks under this key, newest first; each is known for two attribution windows."""
        if not key[1]:
            return []
        window = 2 * self.attribution_window_us
        return [c for c in self._find(*key) if now <= max(c["time"] + window, c["final"])]

    def _add(self, event: Event, *key: Any) -> None:
        self.by_key.setdefault(key, []).append(event)

    def _find(self, *key: Any) -> list[Event]:
        """Events added under this key, newest first."""
        return self.by_key.get(key, [])[::-1]


def _hash64(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def _may_belong(event: Event, opened: Event) -> bool:
    """Whether an event that waits may have waited for this list or click."""
    shown = opened["kind"] == "exposure"
    if shown != (event["kind"] == "click"):
        return False
    if event["item"] not in (opened["hits"] if shown else [opened["item"]]):
        return False
    if event["query_id"]:
        return bool(event["query_id"] == opened["query_id" if shown else "list_id"])
    return bool(event["client"] == opened["client"])
