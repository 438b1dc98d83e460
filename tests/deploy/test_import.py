"""A shop's past as events: each row once, in order of time, with ids that follow from the rows."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import Any

import pytest

from consumers.codec import decode
from consumers.events import Click, Exposure, ItemUpdate, Kind, Purchase
from consumers.pipeline import Topics
from consumers.source import Record
from deploy.admin.history import command
from deploy.admin.history.convert import Event
from deploy.errors import TableRefused, Unsafe, UsageError, WriteFailed
from deploy.tables.values import LeftOut
from tests.deploy.fitting import write_csv
from tests.fakes.disk import Fail, FaultyDisk, on
from tests.fakes.log import Shelf
from tests.fakes.paper import Paper

NOW = 1_800_000_000.0  #: in January 2027, after the history
SHOWN = """
rows: shown
columns:
  query_id: search
  client_id: visitor
  query: term
  item: sku
  text: title
  position: rank
  time: shown_at
  clicked: clicked
  purchased: bought
  price: price
attributes: [brand]
first_position: 0
time: {format: "%d.%m.%Y %H:%M:%S", zone: Europe/Berlin}
scenario: search
"""
EVENTS = """
rows: events
columns: {event: what, client_id: visitor, query_id: search, item: sku, time: at, query: term,
          position: rank, quantity: quantity}
events: {exposure: [impression], click: [click, tap], purchase: [order]}
"""


def rows() -> list[dict[str, Any]]:
    return [
        {
            "search": f"s-{number}",
            "visitor": f"v-{number % 2}",
            "term": "red shoe",
            "sku": f"SKU-{place}",
            "title": f"shoe {place}",
            "brand": "Alba" if place else "",
            "rank": 2 - place,
            "shown_at": f"{3 - number}.10.2026 12:00:00",
            "clicked": int(place == 1),
            "bought": int(place == 1 and number == 0),
            "price": "59.90",
        }
        for number in range(3)
        for place in range(3)
    ]


def converted(
    tmp_path: Path, rows: list[dict[str, Any]], mapping: str = SHOWN, *, skip: bool = False
) -> tuple[list[Event], LeftOut]:
    history = write_csv(tmp_path / "history.csv", rows)
    (tmp_path / "mapping.yaml").write_text(mapping)
    return command.events_of(
        history, tmp_path / "mapping.yaml", skip_invalid=skip, clock=lambda: NOW
    )


def read(event: Event) -> Any:
    record = Record(
        topic="t", partition=0, offset=0, timestamp_us=-1, key=event.key, value=event.value
    )
    return decode(event.kind, record)


def test_a_row_per_shown_item_becomes_lists_clicks_and_purchases(tmp_path: Path) -> None:
    events, _ = converted(tmp_path, rows())
    read_again = [read(event) for event in events]
    lists = [e for e in read_again if isinstance(e, Exposure)]
    clicks = [e for e in read_again if isinstance(e, Click)]
    bought = [e for e in read_again if isinstance(e, Purchase)]
    assert (len(lists), len(clicks), len(bought)) == (3, 3, 1)
    assert [e.query_id for e in lists] == ["s-2", "s-1", "s-0"]  # oldest first
    assert lists[0].hits == ("SKU-2", "SKU-1", "SKU-0")  # by rank
    assert {(e.query_id, e.object_id) for e in clicks} == {(f"s-{n}", "SKU-1") for n in range(3)}
    assert all(
        e.client_id.encode() == event.key for e, event in zip(read_again, events, strict=True)
    )
    first = json.loads(events[0].value)
    assert first["timestamp"] == "2026-10-01T10:00:00Z"  # noon in Berlin
    assert first["query_attributes"]["scenario"] == "search"
    assert first["query_attributes"]["candidates"][0] == {
        "object_id": "SKU-2",
        "text": "shoe 2",
        "attributes": {"brand": "Alba"},
    }
    order = [(event.time_us, event.kind) for event in events]
    assert order == sorted(order, key=lambda each: each[0])


def test_the_same_history_gives_the_same_events_in_any_order_of_its_rows(tmp_path: Path) -> None:
    plain, _ = converted(tmp_path, rows())
    again, _ = converted(tmp_path, rows()[::-1])
    assert [event.value for event in plain] == [event.value for event in again]
    ids = [json.loads(event.value) for event in plain]
    found = [(e.get("query_attributes") or e.get("event_attributes"))["event_id"] for e in ids]
    assert len(set(found)) == len(found)
    twice, left = converted(tmp_path, rows() + rows())
    assert [event.value for event in twice] == [event.value for event in plain]
    assert left.counts == {"the same item in the same list again": 9}


def test_a_row_per_event_with_the_shop_s_own_words(tmp_path: Path) -> None:
    base = {"visitor": "v", "search": "s", "term": "mug", "rank": "", "quantity": ""}
    at = "2026-10-01T10:00:0{}+02:00"
    history: list[dict[str, Any]] = [
        {**base, "what": "order", "sku": "B", "at": at.format(5), "quantity": 1},
        {**base, "what": "impression", "sku": "A", "at": at.format(0), "rank": 1},
        {**base, "what": "impression", "sku": "B", "at": at.format(0), "rank": 2},
        {**base, "what": "tap", "sku": "B", "at": at.format(3)},
        {**base, "what": "wishlist", "sku": "B", "at": at.format(4)},
        {**base, "what": "order", "sku": "B", "at": at.format(6), "quantity": -1},
        {**base, "what": "tap", "sku": "B", "at": at.format(3)},
    ]
    events, left = converted(tmp_path, history, EVENTS)
    assert [event.kind for event in events] == ["exposure", "click", "purchase", "purchase"]
    assert [read(event).returned for event in events[2:]] == [False, True]
    assert left.counts == {
        "event 'wishlist' is none that the mapping names": 1,
        "the same click again": 1,
    }
    assert left.first["the same click again"] == [7]


def test_texts_can_go_to_the_topic_of_items_whenever_they_change(tmp_path: Path) -> None:
    history = rows()
    history[0]["title"] = "new name"  # of the newest list
    events, _ = converted(tmp_path, history, SHOWN + "items: topic\n")
    items = [read(event) for event in events if event.kind is Kind.ITEM]
    assert all(isinstance(item, ItemUpdate) for item in items)
    assert [item.text for item in items if item.object_id == "SKU-0"] == ["shoe 0", "new name"]
    assert b"candidates" not in b"".join(event.value for event in events)


@pytest.mark.parametrize(
    ("column", "value", "says"),
    [
        ("shown_at", "2026-10-01", r"row 2, column 'shown_at': .* expected a time like %d"),
        ("shown_at", "29.03.2026 02:30:00", r"clocks of Europe/Berlin showed"),
        ("clicked", "maybe", r"row 2, column 'clicked': found 'maybe', expected true or false"),
        ("clicked", "", r"row 2, column 'clicked': found None, expected true or false"),
        ("shown_at", "31.12.9999 12:00:00", r"row 2, column 'shown_at': .* years 1970 to 2286"),
        ("shown_at", "20.01.2027 12:00:00", r"row 2, column 'shown_at': .* not in the future"),
        ("price", "1_5", r"row 2, column 'price': found '1_5', expected a number"),
        ("rank", "1_0", r"row 2, column 'rank': found '1_0', expected a whole number"),
        ("term", "other", r"row 2, column 'term': found 'other', expected 'red shoe', as in row 1"),
        ("rank", -1, r"row 2, column 'rank': found '-1', expected a whole number >= 0"),
        ("visitor", "v" * 101, r"length <= 100"),
        ("sku", "", r"row 2, column 'sku'"),
    ],
)
def test_a_wrong_row_is_named_or_left_out_and_counted(
    tmp_path: Path, column: str, value: Any, says: str
) -> None:
    history = rows()
    history[1][column] = value
    with pytest.raises(TableRefused, match=says):
        converted(tmp_path, history)
    events, left = converted(tmp_path, history, skip=True)
    assert sum(left.counts.values()) >= 1
    assert events


def test_a_history_without_a_row_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mapping.yaml").write_text(SHOWN)
    (tmp_path / "history.csv").write_text(",".join(rows()[0]) + "\n")
    with pytest.raises(TableRefused, match=r"history.csv: no row to make events of"):
        command.events_of(tmp_path / "history.csv", tmp_path / "mapping.yaml", skip_invalid=True)


@pytest.mark.parametrize(
    ("mapping", "says"),
    [
        ("rows: wide\ncolumns: {}", r"Invalid enum value 'wide'"),
        ("rows: shown\ncolumns: {query_id: a}", r"found none for query, item, time, clicked"),
        (SHOWN.replace("sku", "id"), r"column 'id' is not in the history, which has search"),
        (SHOWN.replace("Berlin", "Bärlin"), r"time.zone: found 'Europe/Bärlin'"),
        (SHOWN + "colour: red", r"unknown field `colour`. Keys are rows, columns"),
        ("rows: shown\nrows: shown", r"the key is there twice"),
        (EVENTS.replace("order", "tap"), r"events: 'tap' is there 2 times, expected once"),
        ("", r"Expected `object`, got `null`"),
    ],
)
def test_a_mapping_that_cannot_be_used_is_refused(tmp_path: Path, mapping: str, says: str) -> None:
    with pytest.raises(TableRefused, match=says):
        converted(tmp_path, rows(), mapping)


def test_a_mapping_in_another_encoding_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mapping.yaml").write_bytes(SHOWN.replace("term", "wört").encode("latin-1"))
    with pytest.raises(TableRefused, match=r"mapping.yaml: .* expected text in UTF-8"):
        command.events_of(tmp_path / "a.csv", tmp_path / "mapping.yaml", skip_invalid=False)


def test_an_attribute_that_is_an_object_is_named_by_row_and_column(tmp_path: Path) -> None:
    lines = [{**row, "brand": {"a": 1} if n == 1 else ["b", 2]} for n, row in enumerate(rows())]
    history = tmp_path / "history.jsonl"
    history.write_text("\n".join(map(json.dumps, lines)))
    (tmp_path / "mapping.yaml").write_text(SHOWN)
    with pytest.raises(TableRefused, match=r"row 2, column 'brand': .* expected a text, a number"):
        command.events_of(history, tmp_path / "mapping.yaml", skip_invalid=False)


def test_a_dry_run_shows_counts_events_and_every_reason(tmp_path: Path) -> None:
    history = rows()
    history[4]["clicked"] = "maybe"
    events, left = converted(tmp_path, history, skip=True)
    paper = Paper()
    assert command.show(events, left, paper.output()) == 0
    assert paper.written[0].startswith("0 items, 3 exposures, 2 clicks, 1 purchases, from 2026-10")
    assert paper.written[1] == (
        "left out: 1 rows: column 'clicked': expected true or false, or 1 or 0 (row 5)"
    )
    assert json.loads(paper.written[2])["query_id"] == "s-2"
    assert paper.written[-1] == "dry run: nothing was written"
    paper = Paper()
    command.show(events, left, paper.output(as_json=True))
    (told,) = paper.objects
    assert told["events"] == {"items": 0, "exposures": 3, "clicks": 2, "purchases": 1}


def test_files_have_one_kind_each_and_are_the_same_when_written_again(tmp_path: Path) -> None:
    events, left = converted(tmp_path, rows())
    for _ in range(2):
        command.write(events, left, tmp_path / "out", Paper().output())
        found = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
        assert set(found) == {
            "items.ndjson",
            "exposures.ndjson",
            "clicks.ndjson",
            "purchases.ndjson",
        }
        assert found["clicks.ndjson"].count(b"\n") == 3


def test_a_folder_that_cannot_be_written_is_one_clear_error(tmp_path: Path) -> None:
    events, left = converted(tmp_path, rows())
    file = tmp_path / "file"
    file.write_text("mine")
    long = tmp_path / ("y" * 300)
    for folder in (file, file / "below", long):
        with pytest.raises(WriteFailed, match="cannot be written"):
            command.write(events, left, folder, Paper().output())
    taken = tmp_path / "taken"
    (taken / "clicks.ndjson").mkdir(parents=True)
    with pytest.raises(UsageError, match=r"clicks\.ndjson is a folder"):
        command.write(events, left, taken, Paper().output())
    assert [path.name for path in taken.iterdir()] == ["clicks.ndjson"]


@pytest.mark.parametrize(("op", "nth"), [("create", 3), ("write", 0), ("write", 2), ("fsync", 1)])
def test_a_full_disk_is_an_error_and_files_of_before_stay_as_they_were(
    tmp_path: Path, op: str, nth: int
) -> None:
    events, left = converted(tmp_path, rows())
    out = tmp_path / "out"
    command.write(events[:1], left, out, Paper().output())
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    disk = FaultyDisk(on(op, nth, Fail(errno.ENOSPC)))
    with pytest.raises(WriteFailed, match="No space left"):
        command.write(events, left, out, Paper().output(), disk=disk)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_events_go_to_their_topics_under_their_keys_and_only_to_empty_ones(tmp_path: Path) -> None:
    events, left = converted(tmp_path, rows())
    topics, shelf = Topics(), Shelf()
    ends = {(topic, 0): 0 for topic in topics.kinds()}
    command.send(events, left, shelf, topics, ends, Paper().output())
    assert [(key, value) for _, key, value, _ in shelf.sent] == [(e.key, e.value) for e in events]
    assert shelf.num_flushes == 1
    assert {topic for topic, *_ in shelf.sent} == {"exposures", "clicks", "purchases"}
    with pytest.raises(Unsafe, match=r"clicks\[0\] ends at 3\. .* Nothing was written"):
        command.send(events, left, shelf, topics, {**ends, ("clicks", 0): 3}, Paper().output())
    assert len(shelf.sent) == len(events)
    with pytest.raises(UsageError, match=r"kafka.topics.exposures: got none"):
        command.send(events, left, shelf, Topics(exposures=None), {}, Paper().output())


def test_the_example_maps_the_example_of_a_history() -> None:
    examples = Path(__file__).parents[2] / "examples"
    mapping, history = examples / "history-mapping.yaml", examples / "history.csv"
    events, left = command.events_of(history, mapping, skip_invalid=False)
    assert left.counts == {}
    assert len(events) > len(history.read_text().splitlines()) / 3


def test_exactly_one_destination() -> None:
    for folder, to_kafka, dry_run in ((None, False, False), (Path(), True, False)):
        with pytest.raises(UsageError, match="exactly one of --dry-run, --out DIR, --send"):
            command.chosen(folder, to_kafka=to_kafka, dry_run=dry_run)
