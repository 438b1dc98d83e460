"""Events of an item, decoded and on the wire (UBI 1.3 names).

Times are integer microseconds since the Unix epoch, in event time. The wire types (`*Wire`) are the
source of the published JSON Schemas.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Annotated, TypeAlias

import msgspec
from msgspec import Meta

from weighting.provenance import Position
from weighting.sample import Attribute

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

#: Actions that are learned from.
ACTIONS = ("click", "purchase")

#: Texts of one attribute that are features; further ones are dropped.
MAX_ELEMENTS = 16


class Kind(enum.StrEnum):
    """The kind of events of a topic."""

    EXPOSURE = "exposure"
    CLICK = "click"
    PURCHASE = "purchase"
    ITEM = "item"


# --- decoded ------------------------------------------------------------------------------------
# The codec builds these by position: msgspec takes fields by keyword at several times the price.


class Candidate(msgspec.Struct, frozen=True, gc=False):
    """One item of an exposure with its inline text and attributes."""

    object_id: str
    text: str | None = None
    attributes: dict[str, Attribute] | None = None


class Exposure(msgspec.Struct, frozen=True, gc=False):
    """Shown: a query with its ranked candidates.

    Attributes:
        hits: object ids in display order.
        candidates: inline text and attributes, by object id.
        identity: equal for two records of the same event; None when nothing identifies it.
        num_cut_chars: characters cut off the query.
        num_cut_hits: hits after the last in `hits`, which were dropped.
        scenario: what the list was shown for; "" when nothing says.
    """

    query_id: str
    client_id: str
    user_query: str
    hits: tuple[str, ...]
    candidates: dict[str, Candidate]
    time_us: int
    position: Position
    identity: bytes | None
    num_cut_chars: int = 0
    num_cut_hits: int = 0
    scenario: str = ""


class Click(msgspec.Struct, frozen=True, gc=False):
    """Clicked: one item, with its query id where the shop knows it."""

    query_id: str | None
    client_id: str
    object_id: str
    ordinal: int | None
    user_query: str
    text: str | None
    attributes: dict[str, Attribute] | None
    time_us: int
    position: Position
    identity: bytes | None
    num_cut_chars: int = 0


class Purchase(msgspec.Struct, frozen=True, gc=False):
    """Bought: one item, with its query id where the shop knows it.

    Attributes:
        returned: the item was given back: no purchase, but the end of one.
        value: price times quantity, in the event's currency; None if it is not told.
    """

    query_id: str | None
    client_id: str
    object_id: str
    time_us: int
    position: Position
    identity: bytes | None
    returned: bool = False
    value: float | None = None


class ItemUpdate(msgspec.Struct, frozen=True, gc=False):
    """Described: text and attributes of an item from now on; `text=None` deletes it."""

    object_id: str
    text: str | None
    attributes: dict[str, Attribute]
    time_us: int
    position: Position


class Other(msgspec.Struct, frozen=True, gc=False):
    """An action that is not learned from; its time still counts, where it has one.

    Attributes:
        client_id: "" when none is given.
    """

    client_id: str
    time_us: int | None
    position: Position


Event: TypeAlias = Exposure | Click | Purchase | ItemUpdate | Other

# --- on the wire --------------------------------------------------------------------------------

Name: TypeAlias = Annotated[str, Meta(max_length=100)]
Id: TypeAlias = Annotated[str, Meta(min_length=1, max_length=100)]
# The join writes its state as msgpack, which has no longer integers.
Int64: TypeAlias = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
ObjectId: TypeAlias = Annotated[str, Meta(min_length=1, max_length=256)] | Int64
Hit: TypeAlias = Annotated[str, Meta(min_length=1, max_length=256)]
Timestamp: TypeAlias = Annotated[datetime, Meta(tz=True, description="RFC 3339 with an offset")]
Texts: TypeAlias = Annotated[list[str], Meta(max_length=MAX_ELEMENTS)]
WireAttributes: TypeAlias = dict[str, str | Int64 | float | bool | Texts | None]


class CandidateWire(msgspec.Struct, omit_defaults=True, gc=False):
    """Inline text and attributes of one hit."""

    object_id: ObjectId
    text: str | None = None
    attributes: WireAttributes | None = None


class QueryAttributesWire(msgspec.Struct, omit_defaults=True, gc=False):
    """The free object of an exposure: the fields that we read."""

    event_id: str | int | None = None
    page: str | int | None = None
    scenario: Name | None = None
    model_version: str | int | None = None
    candidates: Annotated[list[CandidateWire], Meta(description="in hit order")] | None = None


class ExposureWire(msgspec.Struct, omit_defaults=True, gc=False):
    """A UBI query with its ranked hits."""

    query_id: Id
    client_id: Id
    timestamp: Timestamp
    user_query: Annotated[str, Meta(description='"" for a recommendation')]
    query_response_hit_ids: Annotated[
        tuple[Hit, ...], Meta(description="display order; empty when nothing was found")
    ]
    query_attributes: QueryAttributesWire | None = None
    application: Name | None = None
    session_id: Name | None = None
    user_id: Name | None = None
    query_response_id: str | None = None
    object_id_field: Name | None = None


class ObjectWire(msgspec.Struct, omit_defaults=True, gc=False):
    """The item that an event is about."""

    object_id: ObjectId
    object_id_type: Name | None = None
    object_id_field: Name | None = None
    internal_id: ObjectId | None = None
    text: str | None = None
    attributes: WireAttributes | None = None


class PositionWire(msgspec.Struct, omit_defaults=True, gc=False):
    """Place of the item in the list; `{}` says nothing."""

    ordinal: Annotated[Int64, Meta(description="1-based")] | None = None


class EventAttributesWire(msgspec.Struct, omit_defaults=True, gc=False):
    """Attributes of a click or a purchase."""

    object: ObjectWire
    event_id: str | int | None = None
    position: PositionWire | None = None
    transaction_id: str | int | None = None
    price: Annotated[float, Meta(description="of one piece; below zero: a return")] | None = None
    revenue: (
        Annotated[
            float, Meta(description="what was paid, where there is no price; below zero: a return")
        ]
        | None
    ) = None
    currency: str | None = None
    quantity: Annotated[float, Meta(description="zero or below: a return")] | None = None


class ActionWire(msgspec.Struct, omit_defaults=True, gc=False):
    """A UBI event: click, purchase, or an action that is not learned from."""

    action_name: Annotated[
        str,
        Meta(
            min_length=1,
            max_length=100,
            examples=["click", "purchase", "add_to_cart", "watch", "view", "impression"],
        ),
    ]
    client_id: Id
    timestamp: Timestamp
    event_attributes: EventAttributesWire
    query_id: Name | None = None
    user_query: str | None = None
    application: Name | None = None
    session_id: Name | None = None
    user_id: Name | None = None
    message_type: Name | None = None
    message: Annotated[str, Meta(max_length=1024)] | None = None


class ForeignWire(msgspec.Struct, gc=False):
    """What is read of an action that is not learned from."""

    client_id: str
    timestamp: datetime | None


class ItemWire(msgspec.Struct, omit_defaults=True, gc=False):
    """Text and attributes of an item; a null value of the record deletes it."""

    object_id: ObjectId
    text: str
    attributes: WireAttributes | None = None
    timestamp: Timestamp | None = None


# --- writers ------------------------------------------------------------------------------------

_encode = msgspec.json.Encoder().encode


def _timestamp(time_us: int) -> datetime:
    return EPOCH + timedelta(microseconds=time_us)


def _wire(attributes: Mapping[str, Attribute] | None) -> WireAttributes | None:
    return dict(attributes) if attributes else None


def encode_exposure(
    *,
    query_id: str,
    client_id: str,
    time_us: int,
    user_query: str,
    hits: Sequence[str],
    candidates: Sequence[Candidate] = (),
    event_id: str | None = None,
    page: int | None = None,
    scenario: str | None = None,
    model_version: str | None = None,
) -> bytes:
    """Write an exposure; the record's key must be `client_id`."""
    written = [
        CandidateWire(object_id=c.object_id, text=c.text, attributes=_wire(c.attributes))
        for c in candidates
    ] or None
    attributes = QueryAttributesWire(
        event_id=event_id,
        page=page,
        scenario=scenario,
        model_version=model_version,
        candidates=written,
    )
    return _encode(
        ExposureWire(
            query_id=query_id,
            client_id=client_id,
            timestamp=_timestamp(time_us),
            user_query=user_query,
            query_response_hit_ids=tuple(hits),
            query_attributes=attributes if attributes != QueryAttributesWire() else None,
        )
    )


def encode_click(
    *,
    client_id: str,
    object_id: str,
    time_us: int,
    query_id: str | None = None,
    ordinal: int | None = None,
    event_id: str | None = None,
    user_query: str | None = None,
    text: str | None = None,
    attributes: Mapping[str, Attribute] | None = None,
) -> bytes:
    """Write a click; the record's key must be `client_id`."""
    return _encode(
        ActionWire(
            action_name="click",
            query_id=query_id,
            client_id=client_id,
            timestamp=_timestamp(time_us),
            user_query=user_query,
            message_type="INTERACTION",
            event_attributes=EventAttributesWire(
                event_id=event_id,
                object=ObjectWire(object_id=object_id, text=text, attributes=_wire(attributes)),
                position=None if ordinal is None else PositionWire(ordinal=ordinal),
            ),
        )
    )


def encode_purchase(
    *,
    client_id: str,
    object_id: str,
    time_us: int,
    query_id: str | None = None,
    event_id: str | None = None,
    transaction_id: str | None = None,
    price: float | None = None,
    currency: str | None = None,
    quantity: float | None = None,
) -> bytes:
    """Write a purchase; the record's key must be `client_id`."""
    return _encode(
        ActionWire(
            action_name="purchase",
            query_id=query_id,
            client_id=client_id,
            timestamp=_timestamp(time_us),
            message_type="CONVERSION",
            event_attributes=EventAttributesWire(
                event_id=event_id,
                object=ObjectWire(object_id=object_id),
                transaction_id=transaction_id,
                price=price,
                currency=currency,
                quantity=quantity,
            ),
        )
    )


def encode_item(
    *,
    object_id: str,
    text: str,
    attributes: Mapping[str, Attribute] | None = None,
    time_us: int | None = None,
) -> bytes:
    """Write an item's text; the record's key must be `object_id`."""
    timestamp = None if time_us is None else _timestamp(time_us)
    return _encode(
        ItemWire(object_id=object_id, text=text, attributes=_wire(attributes), timestamp=timestamp)
    )
