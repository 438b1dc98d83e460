"""Exposures and clicks whose label may still change: what is kept of each."""

from __future__ import annotations

from typing import TypeAlias

import msgspec

from consumers.joining.items import NOTHING, Described
from weighting.provenance import Position
from weighting.sample import Attribute


class Positive(msgspec.Struct, array_like=True, gc=False):
    """The event that made a label positive.

    Attributes:
        value: what was paid, of a purchase that tells it.
    """

    time_us: int
    position: Position
    inferred: bool
    value: float | None = None


class OpenExposure(msgspec.Struct, array_like=True, eq=False, gc=False):
    """An exposure whose clicks may still come, with its texts then.

    Attributes:
        opened_us: key at which it was processed.
        timer_us: key at which it is observed; once it is, the last key at which a click is
            credited.
        observed: its first copies were emitted.
        hits: the items shown, without those that were cut off.
        list_size: number of items shown.
        described: text and attributes of each hit.
        clicked: index of the hit -> its first click.
        scenario: what the list was shown for; "" when nothing says.
    """

    position: Position
    opened_us: int
    timer_us: int
    observed: bool
    query_id: str
    client_id: str
    query: str
    hits: tuple[str, ...]
    list_size: int
    described: tuple[Described, ...]
    time_us: int
    clicked: dict[int, Positive]
    scenario: str = ""


class ShownList(msgspec.Struct, eq=False, gc=False):
    """Holder of an open exposure, which is packed into bytes once it was observed.

    Most exposures are observed and wait for days for a late click, so this is where memory goes.

    Attributes:
        number: partition number of its record.
        cut: hits were cut off.
        held: the exposure, or its bytes without what is in `described`.
        described: text and attributes of each hit, once it is packed; None when all are empty.
    """

    number: int
    cut: bool
    held: OpenExposure | bytes
    described: tuple[Described, ...] | None = None

    def exposure(self) -> OpenExposure:
        """Return the exposure; a copy once it is packed."""
        held = self.held
        if isinstance(held, OpenExposure):
            return held
        exposure = _unpack(held)
        described = self.described
        exposure.described = (NOTHING,) * len(exposure.hits) if described is None else described
        return exposure

    def keep(self, exposure: OpenExposure) -> None:
        """Take in what changed in an exposure."""
        if not exposure.observed:
            self.held = exposure
            return
        described = exposure.described
        exposure.described = ()
        self.held = bytes(memoryview(_pack(exposure)))  # a copy, since msgspec leaves room to grow
        exposure.described = described
        self.described = described if any(each != NOTHING for each in described) else None

    def may_show(self, object_id: bytes) -> bool:
        """Return whether the list may have shown an item; False is certain."""
        held = self.held
        return self.cut or isinstance(held, OpenExposure) or object_id in held


class OpenClick(msgspec.Struct, array_like=True, eq=False, gc=False):
    """A click whose purchase may still come, with features as shown.

    Attributes:
        opened_us: key at which it was opened.
        turn: its number among the clicks that were opened at that key.
        timer_us: key at which it is observed; once it is, the last key at which a purchase is
            credited.
        observed: its first copy was emitted.
        expired: counted as final; kept for another attribution window, to tell a late purchase
            from an orphan.
        ordinal: 1-based place in the list.
        sources: positions of the records that it was made from.
        newest_us: event time of the newest event in `sources`.
        returned: what was bought was given back after a positive copy had been emitted.
        scenario: that of the list; "" when none is known.
    """

    position: Position
    opened_us: int
    turn: int
    timer_us: int
    observed: bool
    expired: bool
    list_id: str
    list_size: int
    client_id: str
    query: str
    object_id: str
    text: str
    attributes: dict[str, Attribute]
    ordinal: int | None
    time_us: int
    inferred: bool
    sources: tuple[Position, ...]
    newest_us: int
    purchase: Positive | None
    returned: bool = False
    scenario: str = ""


OpenEntry: TypeAlias = ShownList | OpenClick
PackedExposure: TypeAlias = tuple[msgspec.Raw, tuple[Described, ...] | None]
"""What a `ShownList` holds, as it is written."""

_pack = msgspec.msgpack.Encoder().encode
_unpack = msgspec.msgpack.Decoder(OpenExposure).decode
