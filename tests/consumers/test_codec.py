from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consumers.codec import MAX_TIME_US, decode, schemas
from consumers.errors import Invalid
from consumers.events import (
    Candidate,
    Click,
    Exposure,
    ItemUpdate,
    Kind,
    Other,
    Purchase,
    encode_click,
    encode_exposure,
    encode_item,
    encode_purchase,
)
from consumers.source import Record
from weighting.provenance import Position

NOW_US = 1_795_471_710_120_000  # 2026-11-23T22:08:30.120Z
HEADERS = (("ce_source", b"shop/1"), ("ce_id", b"17"))


def record(
    value: bytes | dict[str, Any] | None,
    *,
    append_us: int = -1,
    headers: tuple[tuple[str, bytes], ...] = (),
) -> Record:
    if isinstance(value, dict):
        value = json.dumps(value).encode()
    return Record("t", 3, 171_004, append_us, b"key", value, headers)


def exposure(**changed: Any) -> dict[str, Any]:
    return {
        "query_id": "q",
        "client_id": "c",
        "timestamp": "2026-11-23T22:08:30.120Z",
        "user_query": "red running shoes",
        "query_response_hit_ids": ["A", "B"],
        **changed,
    }


def action(name: str = "click", **changed: Any) -> dict[str, Any]:
    attributes = {"object": {"object_id": "A"}, **changed.pop("event_attributes", {})}
    return {
        "action_name": name,
        "client_id": "c",
        "timestamp": "2026-11-23T22:08:30.120Z",
        "event_attributes": attributes,
        **changed,
    }


def test_an_exposure_keeps_query_hits_and_what_is_inline() -> None:
    candidates = [
        {
            "object_id": "A",
            "text": "a shoe",
            "attributes": {"brand": "x", "price": 9.5, "new": True, "note": None},
        }
    ]
    event = decode(
        Kind.EXPOSURE,
        record(
            exposure(query_attributes={"candidates": candidates, "whatever": [1]}, extra={"x": 1})
        ),
    )
    assert isinstance(event, Exposure)
    assert (event.query_id, event.client_id, event.user_query, event.hits) == (
        "q",
        "c",
        "red running shoes",
        ("A", "B"),
    )
    assert event.candidates == {
        "A": Candidate("A", "a shoe", {"brand": "x", "price": 9.5, "new": True})
    }
    assert event.time_us == NOW_US
    assert event.position == Position("t", 3, 171_004)


def test_a_search_that_found_nothing_is_an_exposure_without_hits() -> None:
    event = decode(Kind.EXPOSURE, record(exposure(query_response_hit_ids=[])))
    assert isinstance(event, Exposure)
    assert (event.hits, event.user_query) == ((), "red running shoes")


def test_times_with_any_offset_are_the_same_instant() -> None:
    times = [
        "2026-11-23T22:08:30.12Z",
        "2026-11-23T23:08:30.120000+01:00",
        "2026-11-23T16:38:30.120-05:30",
    ]
    assert {decode(Kind.EXPOSURE, record(exposure(timestamp=t))).time_us for t in times} == {NOW_US}


def test_an_integer_id_is_its_decimal_string() -> None:
    event = decode(Kind.CLICK, record(action(event_attributes={"object": {"object_id": 1009}})))
    assert isinstance(event, Click)
    assert event.object_id == "1009"


def test_null_in_an_optional_field_is_absence() -> None:
    event = decode(
        Kind.CLICK,
        record(
            action(
                user_id=None, query_id=None, event_attributes={"position": None, "event_id": None}
            )
        ),
    )
    assert isinstance(event, Click)
    assert (event.query_id, event.ordinal, event.identity) == (None, None, None)


@pytest.mark.parametrize(
    "position",
    [{}, {"xy": {"x": 1, "y": 2}}, {"ordinal": 2}, {"ordinal": 2, "xy": {"x": 1, "y": 2}}],
)
def test_a_position_may_be_an_ordinal_a_point_both_or_nothing(position: dict[str, Any]) -> None:
    event = decode(Kind.CLICK, record(action(event_attributes={"position": position})))
    assert isinstance(event, Click)
    assert event.ordinal == position.get("ordinal")


def test_a_click_on_the_purchases_topic_is_still_a_click() -> None:
    assert isinstance(decode(Kind.PURCHASE, record(action("click"))), Click)
    assert isinstance(decode(Kind.CLICK, record(action("purchase"))), Purchase)
    assert isinstance(
        decode(Kind.CLICK, record(action("add_to_cart", event_attributes={"object": 1}))), Other
    )


# --- identity -------------------------------------------------------------------------------------


def identity(
    kind: Kind, value: dict[str, Any], headers: tuple[tuple[str, bytes], ...] = ()
) -> bytes | None:
    event = decode(kind, record(value, headers=headers))
    assert isinstance(event, Exposure | Click | Purchase)
    return event.identity


def test_identity_is_the_cloud_event_then_the_event_id_then_query_and_page_then_nothing() -> None:
    with_id = action(event_attributes={"event_id": "e"})
    assert identity(Kind.CLICK, with_id, HEADERS) == b"c\0shop/1\0click\0A\x0017"
    by_event_id = b"e\0click\0A\0e"
    assert identity(Kind.CLICK, with_id, HEADERS[:1]) == by_event_id, "half a pair is none"
    assert identity(Kind.CLICK, with_id) == by_event_id
    assert identity(Kind.CLICK, action()) is None
    named = exposure(query_attributes={"event_id": "e", "page": 1})
    assert identity(Kind.EXPOSURE, named) == b"e\0q\0e"
    assert identity(Kind.EXPOSURE, exposure(query_attributes={"page": 2})) == b"q\0q\x002"
    assert identity(Kind.EXPOSURE, exposure()) == b"q\0q\0"


@pytest.mark.parametrize("headers", [(), HEADERS])
def test_an_id_of_an_order_or_a_batch_keeps_its_lines_and_actions_apart(
    headers: tuple[tuple[str, bytes], ...],
) -> None:
    def line(name: str, object_id: str) -> bytes | None:
        attributes = {"event_id": "order-1", "object": {"object_id": object_id}}
        return identity(Kind.PURCHASE, action(name, event_attributes=attributes), headers)

    lines = [("purchase", "A"), ("purchase", "B"), ("click", "A")]
    back = action("purchase", event_attributes={"event_id": "order-1", "quantity": -1})
    assert len({*(line(*each) for each in lines), identity(Kind.PURCHASE, back, headers)}) == 4
    assert line("purchase", "A") == line("purchase", "A")


def test_exposures_of_one_batch_id_are_told_apart_by_their_query_id() -> None:
    first, second = (identity(Kind.EXPOSURE, exposure(query_id=q), HEADERS) for q in "ab")
    assert first != second


@pytest.mark.parametrize(
    ("fields", "value"),
    [
        ({}, None),
        ({"quantity": 2}, None),
        ({"price": 59.9}, 59.9),
        ({"price": 59.5, "quantity": 2}, 119.0),
        ({"price": 59.5, "quantity": 0.5, "revenue": 400}, 29.75),
        ({"revenue": 400, "quantity": 2}, 400.0),
        ({"price": 0}, 0.0),
        ({"price": "12,50"}, 12.5),
        ({"price": "1_5"}, None),
        ({"price": 1e300, "quantity": 1e300}, 1e12),
        ({"price": 59.9, "quantity": -1}, None),
    ],
)
def test_the_value_of_a_purchase_is_price_times_quantity_and_a_return_has_none(
    fields: dict[str, Any], value: float | None
) -> None:
    event = decode(Kind.PURCHASE, record(action("purchase", event_attributes=fields)))
    assert isinstance(event, Purchase)
    assert event.value == value


@pytest.mark.parametrize(
    ("fields", "returned"),
    [
        ({}, False),
        ({"quantity": 1, "price": 59.9}, False),
        ({"price": 0}, False),
        ({"price": None, "quantity": None}, False),
        ({"quantity": 0}, True),
        ({"quantity": -1, "price": 59.9}, True),
        ({"quantity": 1, "price": -59.9}, True),
        ({"revenue": -0.01}, True),
    ],
)
def test_a_purchase_of_nothing_or_for_less_than_nothing_is_a_return(
    fields: dict[str, Any], returned: bool
) -> None:
    event = decode(Kind.PURCHASE, record(action("purchase", event_attributes=fields)))
    assert isinstance(event, Purchase)
    assert event.returned is returned


# --- time and limits ------------------------------------------------------------------------------


@pytest.mark.parametrize("append_us", [-1, 0, NOW_US // 1000, NOW_US, 2 * NOW_US])
def test_an_event_has_its_own_time_whatever_the_record_says(append_us: int) -> None:
    """A record's time is the same clock, or seconds instead of milliseconds."""
    assert decode(Kind.EXPOSURE, record(exposure(), append_us=append_us)).time_us == NOW_US


@pytest.mark.parametrize(
    ("timestamp", "time_us"),
    [("0002-01-01T00:00:00Z", 0), ("9999-12-31T23:59:59-23:00", MAX_TIME_US)],
)
def test_a_time_out_of_all_bounds_is_one_that_can_be_added_to(timestamp: str, time_us: int) -> None:
    assert decode(Kind.EXPOSURE, record(exposure(timestamp=timestamp))).time_us == time_us


def test_a_query_beyond_the_limit_is_cut_and_says_by_how_much() -> None:
    event = decode(Kind.EXPOSURE, record(exposure(user_query="x" * 5000)))
    assert isinstance(event, Exposure)
    assert (len(event.user_query), event.num_cut_chars) == (4096, 904)


@pytest.mark.parametrize(
    ("changed", "path"),
    [
        ({"query_id": "q" * 101}, "$.query_id"),
        ({"client_id": ""}, "$.client_id"),
        ({"client_id": None}, "$.client_id"),
        ({"timestamp": "yesterday"}, "$.timestamp"),
        ({"timestamp": 17_954_717}, "$.timestamp"),
        ({"query_response_hit_ids": "A"}, "$.query_response_hit_ids"),
        ({"query_response_hit_ids": ["A", 3, None]}, "$.query_response_hit_ids[2]"),
    ],
)
def test_what_breaks_the_schema_names_the_path(changed: dict[str, Any], path: str) -> None:
    with pytest.raises(Invalid, match=r"^t\[3\]@171004: ") as raised:
        decode(Kind.EXPOSURE, record(exposure(**changed)))
    assert raised.value.stage == "schema"
    assert raised.value.error.endswith(f"- at `{path}`")


def test_a_naive_timestamp_is_a_reason_of_its_own() -> None:
    with pytest.raises(Invalid, match=r"timezone component - at `\$\.timestamp`") as raised:
        decode(Kind.EXPOSURE, record(exposure(timestamp="2026-11-23T22:08:30")))
    assert raised.value.reason == "naive_timestamp"


@pytest.mark.parametrize(("append_us", "time_us"), [(-1, 0), (2**63 * 1000, MAX_TIME_US)])
def test_a_time_of_the_log_out_of_all_bounds_is_one_that_can_be_written(
    append_us: int, time_us: int
) -> None:
    for value in (None, {"object_id": "A", "text": "a shoe"}):
        assert decode(Kind.ITEM, record(value, append_us=append_us)).time_us == time_us


@given(st.binary(max_size=200), st.sampled_from(list(Kind)))
def test_no_bytes_escape_as_another_exception(value: bytes, kind: Kind) -> None:
    with pytest.raises(Invalid):
        decode(kind, record(value))


# --- items ----------------------------------------------------------------------------------------


def test_a_null_item_is_gone_and_an_item_without_time_has_the_logs() -> None:
    gone = decode(Kind.ITEM, Record("items", 0, 1, 7, b"SKU-1", None))
    assert gone == ItemUpdate("SKU-1", None, {}, 7, Position("items", 0, 1))
    update = decode(
        Kind.ITEM, Record("items", 0, 1, 7, b"SKU-1", encode_item(object_id="SKU-1", text="a shoe"))
    )
    assert update.time_us == 7
    with pytest.raises(Invalid, match="nothing says which item is gone"):
        decode(Kind.ITEM, Record("items", 0, 1, 7, None, None))


# --- writers and schemas --------------------------------------------------------------------------

ids = st.text(st.characters(codec="utf-8"), min_size=1, max_size=100)
times = st.integers(0, 4_000_000_000_000_000)


@given(
    ids,
    ids,
    times,
    st.text(st.characters(codec="utf-8"), max_size=200),
    st.lists(ids, min_size=1, max_size=5),
)
def test_what_is_written_is_what_is_read(
    query_id: str, client_id: str, time_us: int, text: str, hits: list[str]
) -> None:
    shown = decode(
        Kind.EXPOSURE,
        record(
            encode_exposure(
                query_id=query_id,
                client_id=client_id,
                time_us=time_us,
                user_query=text,
                hits=hits,
                candidates=[Candidate(hits[0], text, {"a": 1.5})],
                page=2,
                scenario="search",
            )
        ),
    )
    assert isinstance(shown, Exposure)
    assert (shown.query_id, shown.client_id, shown.time_us, shown.user_query, list(shown.hits)) == (
        query_id,
        client_id,
        time_us,
        text,
        hits,
    )
    assert shown.candidates == {hits[0]: Candidate(hits[0], text, {"a": 1.5})}
    assert shown.scenario == "search"
    clicked = decode(
        Kind.CLICK,
        record(
            encode_click(
                query_id=query_id,
                client_id=client_id,
                object_id=hits[0],
                time_us=time_us,
                ordinal=1,
                event_id="e",
                text=text,
            )
        ),
    )
    assert isinstance(clicked, Click)
    assert (
        clicked.query_id,
        clicked.object_id,
        clicked.time_us,
        clicked.ordinal,
        clicked.text,
    ) == (query_id, hits[0], time_us, 1, text)
    bought = decode(
        Kind.PURCHASE,
        record(
            encode_purchase(
                query_id=query_id,
                client_id=client_id,
                object_id=hits[0],
                time_us=time_us,
                price=59.9,
                currency="EUR",
            )
        ),
    )
    assert isinstance(bought, Purchase)
    assert (bought.query_id, bought.object_id, bought.time_us) == (query_id, hits[0], time_us)
    item = decode(
        Kind.ITEM,
        record(encode_item(object_id=hits[0], text=text, attributes={"a": True}, time_us=time_us)),
    )
    assert isinstance(item, ItemUpdate)
    assert (item.object_id, item.text, item.attributes, item.time_us) == (
        hits[0],
        text,
        {"a": True},
        time_us,
    )


def test_the_schemas_require_what_the_decoder_requires() -> None:
    written = schemas()
    assert sorted(written) == ["click", "exposure", "item", "purchase"]
    for schema in written.values():
        assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
        root = schema["$defs"][schema["$ref"].removeprefix("#/$defs/")]
        assert root["properties"]["timestamp"]
        json.dumps(schema)
    required = {
        name: schema["$defs"][schema["$ref"].removeprefix("#/$defs/")]["required"]
        for name, schema in written.items()
    }
    assert required["exposure"] == [
        "query_id",
        "client_id",
        "timestamp",
        "user_query",
        "query_response_hit_ids",
    ]
    assert (
        required["click"]
        == required["purchase"]
        == ["action_name", "client_id", "timestamp", "event_attributes"]
    )
    assert required["item"] == ["object_id", "text"]
