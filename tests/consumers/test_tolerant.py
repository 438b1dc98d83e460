"""Records that are not as the schema says: what a sample needs decides, the rest is repaired."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consumers.codec import decode
from consumers.errors import Invalid
from consumers.events import (
    MAX_ELEMENTS,
    Click,
    Event,
    Exposure,
    ItemUpdate,
    Kind,
    Other,
    Purchase,
)
from consumers.pipeline import Topics
from consumers.tolerant import FIELDS, RESULTS, Repair
from tests.consumers.single import empty, with_items
from tests.consumers.test_codec import NOW_US, action, exposure, record

BROKEN_TEXT = "shoe \ud83d"  # half an emoji

scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(10**30, 10**60)
    | st.sampled_from([2**63, 2**64, -(2**63) - 1])
    | st.floats()
    | st.text(max_size=20)
    | st.text(min_size=101, max_size=120)
    | st.just(BROKEN_TEXT)
    | st.just("-1")
)
values = st.recursive(
    scalars,
    lambda each: (
        st.lists(each, max_size=4) | st.dictionaries(st.text(max_size=8), each, max_size=4)
    ),
    max_leaves=8,
)

OF_EXPOSURE = (
    "application",
    "session_id",
    "user_id",
    "query_response_id",
    "object_id_field",
    "user_query",
    "query_attributes",
    "query_attributes.event_id",
    "query_attributes.page",
    "query_attributes.scenario",
    "query_attributes.model_version",
    "query_attributes.candidates",
    "unknown",
)
OF_ACTION = (
    "query_id",
    "user_query",
    "application",
    "session_id",
    "user_id",
    "message_type",
    "message",
    "unknown",
    "event_attributes.event_id",
    "event_attributes.position",
    "event_attributes.position.ordinal",
    "event_attributes.transaction_id",
    "event_attributes.price",
    "event_attributes.revenue",
    "event_attributes.currency",
    "event_attributes.quantity",
    "event_attributes.unknown",
    "event_attributes.object.object_id_type",
    "event_attributes.object.object_id_field",
    "event_attributes.object.internal_id",
    "event_attributes.object.text",
    "event_attributes.object.attributes",
    "event_attributes.object.attributes.x",
    "event_attributes.object.unknown",
)


def with_value(fields: dict[str, Any], path: str, value: object) -> dict[str, Any]:
    *parents, last = path.split(".")
    inner = fields
    for name in parents:
        inner = inner.setdefault(name, {})
    inner[last] = value
    return fields


def read(kind: Kind, fields: dict[str, Any] | bytes) -> tuple[Event, list[Repair]]:
    repairs: list[Repair] = []
    return decode(kind, record(fields), repairs), repairs


def error_of(kind: Kind, fields: dict[str, Any] | bytes) -> tuple[str, str]:
    with pytest.raises(Invalid) as raised:
        decode(kind, record(fields))
    return raised.value.reason, raised.value.error


# --- what is decoded can be written --------------------------------------------------------------


LONG_INTEGERS = (2**63, 2**64, 2**70, -(2**63) - 1, 10**299, 10**301)
TOPIC_OF = {kind: topic for topic, kind in Topics().kinds().items()}


@st.composite
def odd_records(draw: st.DrawFn) -> tuple[Kind, dict[str, Any]]:
    """A record of any kind, with odd values in a few of its fields."""
    kind = draw(st.sampled_from((Kind.EXPOSURE, Kind.CLICK, Kind.PURCHASE, Kind.ITEM)))
    odd = values | st.sampled_from(LONG_INTEGERS)
    described = {"object_id": "A", "text": "a shoe", "attributes": {"x": draw(odd)}}
    paths: tuple[str, ...]
    if kind is Kind.EXPOSURE:
        paths = (*OF_EXPOSURE, "query_id", "query_response_hit_ids")
        fields = exposure(query_attributes={"candidates": [described]})
    elif kind is Kind.ITEM:
        paths, fields = ("object_id", "text", "attributes", "timestamp"), described
    else:
        paths = (*OF_ACTION, "event_attributes.object.object_id")
        fields = action(kind, event_attributes={"object": described})
    for path in draw(st.lists(st.sampled_from(paths), max_size=3)):
        with contextlib.suppress(AttributeError, TypeError):  # its parent is odd already
            with_value(fields, path, draw(odd))
    return kind, fields


@given(odd_records())
@settings(max_examples=200)
def test_an_event_that_was_decoded_can_be_written(given: tuple[Kind, dict[str, Any]]) -> None:
    kind, fields = given
    with contextlib.suppress(Invalid):
        event = decode(kind, record(fields))
        assert msgspec.msgpack.decode(msgspec.msgpack.encode(event), type=type(event)) == event


@given(st.lists(odd_records(), max_size=8))
@settings(max_examples=30, deadline=None)
def test_a_checkpoint_can_be_written_whatever_was_read(
    given: list[tuple[Kind, dict[str, Any]]],
) -> None:
    log = empty(items=True)
    for kind, fields in given:
        log.append(TOPIC_OF[kind], 0, json.dumps(fields).encode(), key=b"c")
    bench = with_items(log)
    list(bench.live())
    assert set(bench.pipeline.snapshot()) == {"part-0", "rank-0"}


@pytest.mark.parametrize("number", LONG_INTEGERS, ids=str)
def test_no_integer_in_an_event_stops_a_checkpoint(number: int) -> None:
    shown = {"object_id": "A", "text": "t", "attributes": {"x": number}}
    clicked = {"object": shown, "position": {"ordinal": number}}
    item = {"object_id": "A", "text": "t", "attributes": {"x": number}}
    log = empty(items=True)
    for topic, fields in (
        ("items", item),
        ("exposures", exposure(query_attributes={"candidates": [shown]})),
        ("clicks", action(query_id="q", event_attributes=clicked)),
        ("clicks", action(event_attributes=clicked)),
        ("purchases", action("purchase", event_attributes=clicked)),
    ):
        log.append(topic, 0, json.dumps(fields).encode(), key=b"A" if topic == "items" else b"c")
    bench = with_items(log)
    list(bench.live())
    assert bench.shelf.sent == []
    assert set(bench.pipeline.snapshot()) == {"part-0", "rank-0"}
    assert bench.count("consumer_odd_fields_total", field="position") == 3


@given(st.sampled_from(OF_EXPOSURE), values)
def test_whatever_a_field_holds_that_no_sample_needs_the_exposure_is_kept(
    path: str, value: object
) -> None:
    event, repairs = read(Kind.EXPOSURE, with_value(exposure(), path, value))
    assert isinstance(event, Exposure)
    assert (event.query_id, event.client_id, event.hits) == ("q", "c", ("A", "B"))
    assert event.time_us == NOW_US
    assert all(each.field in FIELDS and each.result in RESULTS for each in repairs)
    event.user_query.encode()
    json.dumps([candidate.attributes for candidate in event.candidates.values()], allow_nan=False)


@given(st.sampled_from(("click", "purchase")), st.sampled_from(OF_ACTION), values)
def test_whatever_a_field_holds_that_no_sample_needs_the_label_is_kept(
    name: str, path: str, value: object
) -> None:
    event, _ = read(Kind.CLICK, with_value(action(name), path, value))
    assert isinstance(event, Click if name == "click" else Purchase)
    assert (event.client_id, event.object_id, event.time_us) == ("c", "A", NOW_US)
    if isinstance(event, Click):
        (event.text or "").encode()
        json.dumps(event.attributes, allow_nan=False)


@given(st.sampled_from(("attributes", "attributes.x", "timestamp", "unknown")), values)
def test_whatever_a_field_of_an_item_holds_its_text_is_kept(path: str, value: object) -> None:
    event, _ = read(Kind.ITEM, with_value({"object_id": "A", "text": "a shoe"}, path, value))
    assert isinstance(event, ItemUpdate)
    assert (event.object_id, event.text) == ("A", "a shoe")
    json.dumps(event.attributes, allow_nan=False)


@pytest.mark.parametrize(
    ("kind", "path", "value", "repair"),
    [
        ("purchase", "event_attributes.price", "59.90", ("amount", "repaired")),
        ("purchase", "event_attributes.price", "a lot", ("amount", "dropped")),
        ("purchase", "event_attributes.transaction_id", 1.5, ("unused", "dropped")),
        ("click", "user_id", 1821196507152684, ("unused", "dropped")),
        ("click", "session_id", "s" * 101, ("unused", "dropped")),
        ("click", "message", "m" * 1025, ("unused", "dropped")),
        ("click", "dwell_time", float("nan"), ("unused", "dropped")),
        ("click", "query_id", 17, ("query_id", "repaired")),
        ("click", "query_id", {"id": 17}, ("query_id", "dropped")),
        ("click", "client_id", 17.0, ("client_id", "repaired")),
        ("click", "event_attributes.event_id", 1.5, ("event_id", "repaired")),
        ("click", "event_attributes.position.ordinal", "3", ("position", "repaired")),
        ("click", "event_attributes.position.ordinal", "third", ("position", "dropped")),
        ("click", "event_attributes.position.ordinal", 2**63, ("position", "dropped")),
        ("click", "event_attributes.position.ordinal", -(2**70), ("position", "dropped")),
        ("click", "event_attributes.position", [], ("position", "repaired")),
        ("click", "event_attributes.object.attributes", {"a": 2**64}, ("attributes", "repaired")),
        ("click", "event_attributes.object.object_id", 2**63, ("object_id", "repaired")),
        ("click", "event_attributes.object.attributes", {"a": {}}, ("attributes", "dropped")),
        ("click", "event_attributes.object.attributes", [], ("attributes", "repaired")),
        ("click", "event_attributes.object.text", 501, ("text", "repaired")),
        ("exposure", "query_attributes", [], ("unused", "repaired")),
        ("exposure", "user_query", BROKEN_TEXT, ("user_query", "repaired")),
        ("exposure", "user_query", 501, ("user_query", "repaired")),
        ("exposure", "user_query", None, ("user_query", "repaired")),
        ("exposure", "user_query", ["shoe"], ("user_query", "dropped")),
        ("exposure", "query_response_hit_ids", [1, "B"], ("hits", "repaired")),
        ("exposure", "query_response_hit_ids", {}, ("hits", "repaired")),
        ("exposure", "query_response_hit_ids", None, ("hits", "repaired")),
        ("exposure", "query_response_hit_ids", "", ("hits", "repaired")),
        ("exposure", "query_attributes.candidates", [1], ("candidates", "dropped")),
        ("exposure", "timestamp", 1_795_471_710_120, ("timestamp", "repaired")),
    ],
)
def test_what_is_odd_is_repaired_where_its_meaning_is_certain_and_counted(
    kind: str, path: str, value: object, repair: tuple[str, str]
) -> None:
    shown = kind == "exposure"
    fields = with_value(exposure() if shown else action(kind), path, value)
    event, repairs = read(Kind.EXPOSURE if shown else Kind.CLICK, fields)
    assert isinstance(event, Exposure | Click | Purchase)
    assert [(each.field, each.result) for each in repairs] == [repair]


def test_an_integer_beyond_64_bits_is_a_float() -> None:
    given = {"gtin": 2**64, "low": -(2**63) - 1, "most": 2**63 - 1, "least": -(2**63)}
    event, repairs = read(Kind.ITEM, {"object_id": "A", "text": "x", "attributes": given})
    assert isinstance(event, ItemUpdate)
    assert event.attributes == {**given, "low": float(-(2**63))}
    kinds = {name: type(value) for name, value in event.attributes.items()}
    assert kinds == {"gtin": float, "low": float, "most": int, "least": int}
    assert repairs == [
        Repair("attributes", f"$.attributes.{name}", "repaired") for name in ("gtin", "low")
    ]


@pytest.mark.parametrize("hits", [{"query_response_hit_ids": None}, {}])
def test_a_search_whose_empty_list_was_left_out_found_nothing(hits: dict[str, Any]) -> None:
    fields = {**exposure(), **hits}
    if not hits:
        del fields["query_response_hit_ids"]
    event, repairs = read(Kind.EXPOSURE, fields)
    assert isinstance(event, Exposure)
    assert (event.query_id, event.user_query, event.hits) == ("q", "red running shoes", ())
    assert repairs == [Repair("hits", "$.query_response_hit_ids", "repaired")]


@pytest.mark.parametrize(
    ("changed", "missing"),
    [
        ({"user_query": None}, "query_response_hit_ids"),
        ({"user_query": []}, "query_response_hit_ids"),
        ({"query_id": None}, "query_id"),
        ({"action_name": "click"}, "query_response_hit_ids"),
    ],
)
def test_what_may_be_no_search_at_all_did_not_find_nothing(
    changed: dict[str, Any], missing: str
) -> None:
    _, error = error_of(Kind.EXPOSURE, exposure(query_response_hit_ids=None, **changed))
    assert error.endswith(f" - at `$.{missing}`")


def test_each_record_with_an_odd_field_that_is_not_in_the_schema_is_counted() -> None:
    repairs: list[Repair] = []
    for _ in range(2):
        decode(Kind.CLICK, record(action(dwell_time=float("nan"))), repairs)
    assert repairs == [Repair("unused", "$", "dropped")] * 2


def test_ids_that_are_numbers_are_their_decimal_text() -> None:
    shown, _ = read(Kind.EXPOSURE, exposure(query_id=7, query_response_hit_ids=[1, 2.0, "3"]))
    assert isinstance(shown, Exposure)
    assert (shown.query_id, shown.hits) == ("7", ("1", "2", "3"))
    clicked, _ = read(
        Kind.CLICK, action(client_id=17.0, event_attributes={"object": {"object_id": 2.0}})
    )
    assert isinstance(clicked, Click)
    assert (clicked.client_id, clicked.object_id) == ("17", "2")


@pytest.mark.parametrize("object_id", [1.5, 1e17, True, [], {}, "A\ud83d", "", "x" * 257])
def test_an_id_of_no_certain_meaning_refuses_the_record(object_id: object) -> None:
    fields = action(event_attributes={"object": {"object_id": object_id}})
    reason, error = error_of(Kind.CLICK, fields)
    assert reason == ("not_utf8" if object_id == "A\ud83d" else "schema")
    assert error.endswith("`$.event_attributes.object.object_id`")


def test_text_is_repaired_without_the_broken_character_only() -> None:
    for value in (BROKEN_TEXT, "caf\xe9"):
        fields = exposure(user_query="?", query_attributes={"candidates": [{"object_id": "A"}]})
        raw = json.dumps(fields).encode()
        encoded = json.dumps(value).encode() if value == BROKEN_TEXT else b'"caf\xe9"'
        event, _ = read(Kind.EXPOSURE, raw.replace(b'"?"', encoded))
        assert isinstance(event, Exposure)
        assert event.user_query == value[:-1] + "\ufffd"


def test_a_byte_order_mark_is_read_past() -> None:
    event, repairs = read(Kind.CLICK, b"\xef\xbb\xbf" + json.dumps(action()).encode())
    assert isinstance(event, Click)
    assert repairs == [Repair("encoding", "$", "repaired")]


def test_lists_of_texts_are_features_and_what_is_nested_is_none() -> None:
    given = {
        "tags": ["new", "sale"],
        "sizes": [38, 39.5, None],
        "many": [str(n) for n in range(MAX_ELEMENTS + 1)],
        "nested": {"a": 1},
        "price": 9.5,
        "worth": float("inf"),
    }
    attributes = {"object": {"object_id": "A", "attributes": given}}
    event, repairs = read(Kind.CLICK, action(event_attributes=attributes))
    assert isinstance(event, Click)
    assert event.attributes == {
        "tags": ["new", "sale"],
        "sizes": ["38", "39.5"],
        "many": given["many"][:MAX_ELEMENTS],  # type: ignore[index]
        "price": 9.5,
    }
    at = "$.event_attributes.object.attributes"
    assert {(each.path, each.result) for each in repairs} == {
        (f"{at}.sizes", "repaired"),
        (f"{at}.many", "repaired"),
        (f"{at}.nested", "dropped"),
        (f"{at}.worth", "dropped"),
    }
    plain, none = read(Kind.ITEM, {"object_id": "A", "text": "x", "attributes": {"tags": ["a"]}})
    assert isinstance(plain, ItemUpdate)
    assert (plain.attributes, none) == ({"tags": ["a"]}, [])


@pytest.mark.parametrize(
    ("name", "value", "returned"),
    [
        ("quantity", "1", False),
        ("quantity", "0", True),
        ("quantity", "-1", True),
        ("quantity", "0,000", True),
        ("price", "59,90 EUR", False),
        ("price", "-59,90", True),
        ("price", "\u221259.90", True),
        ("price", "-\u20ac59.90", True),
        ("price", "59.90-", True),
        ("price", "EUR -1.234,56", True),
        ("price", "minus five", False),
        ("revenue", "-1e2", True),
        ("quantity", float("nan"), False),
    ],
)
def test_a_return_is_known_by_its_sign_also_in_text(
    name: str, value: object, returned: bool
) -> None:
    event, _ = read(Kind.PURCHASE, action("purchase", event_attributes={name: value}))
    assert isinstance(event, Purchase)
    assert event.returned is returned


# --- times ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "timestamp",
    [
        "2026-11-23T22:08:30.12+00",
        "2026-11-23T22:08:30,120Z",
        "2026-11-23 22:08:30.120 +0000",
        "2026-11-23T23:08:30.120+01",
        "2026-11-23 22:08:30.120 UTC",
        "20261123T220830.120Z",
        "2026-11-23T23:08:30.120+01:00[Europe/Berlin]",
        " 2026-11-23T22:08:30.120Z ",
        1_795_471_710_120,
        1_795_471_710.12,
        1_795_471_710_120_000,
        1_795_471_710_120_000_000,
        "1795471710120",
        "1795471710.12",
    ],
)
def test_a_time_that_can_be_read_in_one_way_only_is_read(timestamp: object) -> None:
    event, repairs = read(Kind.CLICK, action(timestamp=timestamp))
    assert event.time_us == NOW_US
    assert repairs == [Repair("timestamp", "$.timestamp", "repaired")]


def test_a_time_without_seconds_is_read() -> None:
    event, _ = read(Kind.CLICK, action(timestamp="2026-11-23T22:08Z"))
    assert event.time_us == NOW_US - 30_120_000


@pytest.mark.parametrize(
    ("timestamp", "reason"),
    [
        ("2026-11-23T22:08:30", "naive_timestamp"),
        ("2026-11-23 22:08", "schema"),
        ("2026-11-23", "schema"),
        ("11/23/2026 22:08", "schema"),
        ("yesterday", "schema"),
        ("20261123220830", "schema"),
        (0, "schema"),
        (-1, "schema"),
        (True, "schema"),
        (1_795_471_710_120_0, "schema"),
        (float("nan"), "schema"),
        ([2026, 11, 23, 22, 8], "schema"),
        ({"$date": 1}, "schema"),
        ("2026-11-23T22:08:30Z" + " " * 64, "schema"),
        ("A" + " " * 1_000_000 + "B", "schema"),
        ("A" + " -" * 500_000 + "B", "schema"),
        ("[" * 1_000_000, "schema"),
        ("1" * 1_000_000, "schema"),
    ],
    ids=lambda value: str(value)[:24],
)
def test_a_time_that_might_be_another_is_refused(timestamp: object, reason: str) -> None:
    found, error = error_of(Kind.CLICK, action(timestamp=timestamp))
    assert found == reason
    assert error.endswith("- at `$.timestamp`")


@pytest.mark.parametrize("number", ["-1" + " " * 63, "-1" + " " * 1_000_000, "1" * 1_000_000])
def test_a_text_longer_than_any_number_is_none(number: str) -> None:
    given = {"price": number, "quantity": number, "position": {"ordinal": number}}
    event, repairs = read(Kind.PURCHASE, action("purchase", event_attributes=given))
    assert isinstance(event, Purchase)
    assert not event.returned
    assert sorted((each.field, each.result) for each in repairs) == [
        ("amount", "dropped"),
        ("amount", "dropped"),
        ("position", "dropped"),
    ]


# --- actions that are not ours --------------------------------------------------------------------


@pytest.mark.parametrize("kind", [Kind.CLICK, Kind.PURCHASE, Kind.EXPOSURE])
@pytest.mark.parametrize(
    "fields",
    [
        {"action_name": "page_exit"},
        {"action_name": ""},
        {"action_name": "Click "},
        {"action_name": "a" * 101, "client_id": "c"},
        {"action_name": "x", "client_id": ["c"], "timestamp": "yesterday"},
        {"action_name": "x", "client_id": BROKEN_TEXT, "timestamp": float("nan")},
        {"action_name": "x", "event_attributes": 1, "message": BROKEN_TEXT},
    ],
)
def test_an_action_that_is_not_ours_is_never_a_dead_letter(
    kind: Kind, fields: dict[str, Any]
) -> None:
    event, repairs = read(kind, fields)
    assert isinstance(event, Other)
    assert event.time_us is None
    event.client_id.encode()
    assert repairs == []


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        (Kind.EXPOSURE, {"action_name": "view", "query_response_hit_ids": ["A"]}),
        (Kind.EXPOSURE, {"action_name": "view", "query_response_hit_ids": None}),
        (Kind.EXPOSURE, exposure(action_name="view", query_response_hit_ids=None)),
        (Kind.ITEM, {"action_name": "view"}),
        (Kind.ITEM, {"action_name": "view", "object_id": "A"}),
    ],
)
def test_an_action_that_is_not_ours_is_none_of_the_topics_kind(
    kind: Kind, fields: dict[str, Any]
) -> None:
    event, repairs = read(kind, fields)
    assert isinstance(event, Other)
    assert repairs == []


@pytest.mark.parametrize("odd", [{}, {"session_id": "s" * 101}])
def test_a_whole_exposure_or_item_is_one_whatever_action_it_names(odd: dict[str, Any]) -> None:
    shown, _ = read(Kind.EXPOSURE, exposure(action_name="search", **odd))
    assert isinstance(shown, Exposure)
    item, _ = read(Kind.ITEM, {"action_name": "set", "object_id": 1, "text": "a shoe"})
    assert isinstance(item, ItemUpdate)


def test_an_action_on_the_items_topic_is_ignored() -> None:
    log = empty(items=True)
    fields = {"action_name": "view", "client_id": "c", "timestamp": "2026-11-23T22:08:30Z"}
    log.append("items", 0, json.dumps(fields).encode(), key=b"c")
    bench = with_items(log)
    assert bench.run() == []
    assert bench.shelf.sent == []
    assert bench.count("consumer_events_total", topic="items", outcome="ignored") == 1


@given(values, values, values, values)
def test_no_head_and_no_body_makes_a_dead_letter_of_an_action_that_is_not_ours(
    client_id: object, timestamp: object, query_id: object, attributes: object
) -> None:
    fields = {
        "action_name": "add_to_cart",
        "client_id": client_id,
        "timestamp": timestamp,
        "query_id": query_id,
        "event_attributes": attributes,
    }
    assert isinstance(read(Kind.CLICK, fields)[0], Other)


def test_the_time_of_an_action_that_is_not_ours_counts_where_it_has_one() -> None:
    fields = {"action_name": "add_to_cart", "client_id": "c", "timestamp": 1_795_471_710_120}
    event, _ = read(Kind.CLICK, fields)
    assert isinstance(event, Other)
    assert (event.client_id, event.time_us) == ("c", NOW_US)


# --- the first true reason ------------------------------------------------------------------------


def test_the_reason_is_the_first_that_is_true_in_the_order_of_the_fields() -> None:
    fields: dict[str, Any] = {}
    expected = [
        ("action_name", "click", "`action_name`"),
        ("client_id", "c", "`client_id`"),
        ("timestamp", "2026-11-23T22:08:30.120Z", "`timestamp`"),
        ("event_attributes", {}, "`event_attributes`"),
        ("event_attributes", {"object": {}}, "`object` - at `$.event_attributes`"),
        (
            "event_attributes",
            {"object": {"object_id": "A"}},
            "`object_id` - at `$.event_attributes.object`",
        ),
    ]
    for name, value, missing in expected:
        assert error_of(Kind.CLICK, fields) == (
            "schema",
            f"Object missing required field {missing}",
        )
        fields[name] = value
    assert isinstance(read(Kind.CLICK, fields)[0], Click)


@pytest.mark.parametrize(
    ("hits", "reason", "found", "index"),
    [
        (["A", float("nan")], "schema", "`str`, got `float`", 1),
        (["A", 1.5, "B\ud83d"], "schema", "`str`, got `float`", 1),
        ([1, "B\ud83d", float("nan")], "not_utf8", "Unicode, got a part of a character", 1),
        ([["B\ud83d"]], "schema", "`str`, got `array`", 0),
        (["A", "", "B\ud83d"], "schema", "`str` of length >= 1", 1),
    ],
)
def test_the_first_hit_that_is_none_is_the_reason(
    hits: list[object], reason: str, found: str, index: int
) -> None:
    assert error_of(Kind.EXPOSURE, exposure(query_response_hit_ids=hits)) == (
        reason,
        f"Expected {found} - at `$.query_response_hit_ids[{index}]`",
    )


def test_broken_bytes_are_the_reason_before_what_they_leave_out() -> None:
    assert error_of(Kind.CLICK, b'{"client_id":"\xff"}')[0] == "not_utf8"
    assert error_of(Kind.CLICK, b'{"action_name":"click","x":NaN}') == (
        "schema",
        "Object missing required field `client_id`",
    )
    assert error_of(Kind.CLICK, b"[]") == ("schema", "Expected `object`, got `array`")


def test_no_name_of_a_field_is_a_label_of_its_own() -> None:
    given: dict[str, object] = {f"name {n}": {} for n in range(50)}
    attributes = {"object": {"object_id": "A", "attributes": given}}
    _, repairs = read(Kind.CLICK, action(event_attributes=attributes))
    assert {(each.field, each.result) for each in repairs} == {("attributes", "dropped")}
