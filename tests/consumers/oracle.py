"""Reference implementation of the join: one global sort, plain lists, nothing incremental.

It shares only `Sample` with the code that it judges.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from consumers.source import Record
from weighting.provenance import Position
from weighting.sample import CopyKind, Sample
from weighting.tasks import CLICK, PURCHASE, TaskName

FOREVER = 2**62
EPOCH = datetime.fromisoformat("1970-01-01T00:00:00+00:00")
RANKS = {"exposure": 1, "click": 2, "purchase": 3}


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
        identity = extra.get("event_id") or (value["query_id"], extra.get("page"))
        kind, hits, item = "exposure", value["query_response_hit_ids"], ""
    else:
        extra = value["event_attributes"]
        kind, hits, texts, identity, item = (
            value["action_name"],
            [],
            [],
            extra.get("event_id"),
            extra["object"]["object_id"],
        )
    return {
        "kind": kind,
        "time": time_us,
        "client": value["client_id"],
        "query_id": value.get("query_id"),
        "query": value.get("user_query") or "",
        "hits": hits,
        "texts": texts,
        "item": item,
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
    events = []
    for partition in records.values():
        watermark, seen = -FOREVER, set()
        for record in partition:
            event = read(record)
            if event is None:
                outcome.unreadable.add((record.topic, record.partition, record.offset))
                continue
            event["key"] = max(event["time"], watermark)
            watermark = max(watermark, event["time"] - grace_us)
            if event["identity"] is not None and event["identity"] in seen:
                outcome.num_duplicates += 1
                continue
            seen.add(event["identity"])
            outcome.num_late += event["key"] > event["time"]
            events.append(event)
    events.sort(key=lambda e: (e["key"], RANKS[e["kind"]], e["position"]))

    shown: list[dict[str, Any]] = []
    clicked: list[dict[str, Any]] = []
    # Any way in which something can be found, oldest first.
    by_key: dict[tuple[Any, ...], list[dict[str, Any]]] = {}

    def sample(
        task: TaskName,
        copy: CopyKind,
        of: dict[str, Any],
        key: int,
        positive: dict[str, Any] | None,
        index: int = 0,
    ) -> None:
        click = task == CLICK
        sample_id = f"{of['position']}{f'/{index}' if click else ''}/{task}/{copy}"
        assert sample_id not in outcome.samples
        exposure = of if click else of["exposure"]
        place = index if click else of["index"]
        newest = [e["time"] for e in (of, positive, exposure) if e is not None]
        sources = [exposure, positive] if click else [exposure, of, positive]
        outcome.samples[sample_id] = Sample(
            sample_id=sample_id,
            task=task,
            copy_kind=copy,
            label=int(positive is not None),
            list_id=exposure["query_id"] if exposure else of["query_id"] or "",
            list_size=len(exposure["hits"]) if exposure else 0,
            query=exposure["query"] if exposure else of["query"],
            item_id=of["hits"][index] if click else of["item"],
            text=exposure["texts"][place] if exposure else "",
            attributes={},
            position=place + 1 if exposure else None,
            shown_us=of["time"],
            event_time_us=max(newest),
            elapsed_us=key - of["time"],
            delay_us=None if positive is None else max(positive["time"] - of["time"], 0),
            window_us=click_window_us if click else observation_window_us,
            attribution_us=attribution_window_us,
            inferred=(not click and of["inferred"])
            or (positive is not None and positive["inferred"]),
            positions=tuple(e["position"] for e in sources if e is not None),
        )

    def open_for(of: dict[str, Any], event: dict[str, Any]) -> bool:
        return bool(event["key"] <= of["final"]) and bool(
            event["time"] - of["time"] <= attribution_window_us
        )

    def add(event: dict[str, Any], *key: Any) -> None:
        by_key.setdefault((event["position"].partition, *key), []).append(event)

    def find(event: dict[str, Any], *key: Any) -> list[dict[str, Any]]:
        """Events added under this key in the partition number of the event, newest first."""
        return by_key.get((event["position"].partition, *key), [])[::-1]

    for event in events:
        if event["kind"] == "exposure":
            event["observed"] = max(event["time"] + click_window_us, event["key"])
            event["final"] = max(event["time"] + attribution_window_us, event["observed"])
            event["positives"] = {}
            shown.append(event)
            add(event, "query", event["query_id"])
            add(event, "client", event["client"])
        elif event["kind"] == "click":
            exact = [
                e
                for e in find(event, "query", event["query_id"])
                if event["item"] in e["hits"] and open_for(e, event)
            ]
            inferred = [
                e
                for e in find(event, "client", event["client"])
                if event["item"] in e["hits"] and open_for(e, event)
            ]
            exposure = next(iter(exact or inferred), None)
            event["inferred"] = exposure is not None and not exact
            index = 0
            if exposure is not None:
                index = exposure["hits"].index(event["item"])
                if index in exposure["positives"]:
                    continue
                exposure["positives"][index] = event
            event |= {"exposure": exposure, "index": index, "purchase": None}
            event["list_id"] = exposure["query_id"] if exposure else event["query_id"]
            event["observed"] = max(event["time"] + observation_window_us, event["key"])
            event["final"] = max(event["time"] + attribution_window_us, event["observed"])
            if event["list_id"] and find(event, "list", event["list_id"], event["item"]):
                continue
            clicked.append(event)
            add(event, "list", event["list_id"], event["item"])
            add(event, "item", event["client"], event["item"])
        else:
            exact = (
                find(event, "list", event["query_id"], event["item"]) if event["query_id"] else []
            )
            inferred = find(event, "item", event["client"], event["item"])
            click = next(iter(exact or inferred), None)
            event["inferred"] = not exact
            if click is not None and click["purchase"] is None and open_for(click, event):
                click["purchase"] = event

    for exposure in shown:
        for index in range(len(exposure["hits"])):
            positive = exposure["positives"].get(index)
            in_time = positive is not None and positive["key"] <= exposure["observed"]
            sample(
                CLICK,
                CopyKind.FIRST,
                exposure,
                exposure["observed"],
                positive if in_time else None,
                index,
            )
            if positive is not None and not in_time:
                sample(CLICK, CopyKind.LATE_POSITIVE, exposure, positive["key"], positive, index)
    for click in clicked:
        purchase = click["purchase"]
        in_time = purchase is not None and purchase["key"] <= click["observed"]
        sample(PURCHASE, CopyKind.FIRST, click, click["observed"], purchase if in_time else None)
        if purchase is not None and not in_time:
            sample(PURCHASE, CopyKind.LATE_POSITIVE, click, purchase["key"], purchase)
    return outcome
