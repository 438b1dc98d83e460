"""Whose events are left out of training: named by keyed hashes, or by place, and looked up before anything else is done with an event."""

from __future__ import annotations

import hmac
from hashlib import sha256

import msgspec

from consumers.events import Click, Exposure, Other, Purchase
from weighting.provenance import Slice

FORMAT = 1
_MAX_KNOWN = 100_000


class ExclusionList(msgspec.Struct, frozen=True, kw_only=True):
    """What is left out: never a person's id, always its keyed hash."""

    format: int = FORMAT
    client_ids: tuple[str, ...] = ()  #: HMAC-SHA256 in hex, sorted
    event_ids: tuple[str, ...] = ()
    slices: tuple[Slice, ...] = ()

    @property
    def num(self) -> int:
        """How many entries it has."""
        return len(self.client_ids) + len(self.event_ids) + len(self.slices)

    def digest(self) -> str:
        """Return the sha256 by which manifests name the list."""
        return sha256(msgspec.json.encode(self, order="sorted")).hexdigest()


def keyed(key: bytes, identity: str) -> str:
    """Return the hash under which an id is written down."""
    return hmac.new(key, identity.encode(), sha256).hexdigest()


class Exclusions:
    """Says of an event whether it is left out."""

    def __init__(self, listed: ExclusionList, key: bytes) -> None:
        """Take the list and the key that its hashes were made with."""
        self._key = key
        self._clients = frozenset(listed.client_ids)
        self._events = frozenset(listed.event_ids)
        self._slices: dict[tuple[str, int], list[Slice]] = {}
        for part in listed.slices:
            self._slices.setdefault((part.topic, part.partition), []).append(part)
        self._known: dict[
            str, bool
        ] = {}  # client ids that were looked up before; a cache, so of bounded size

    def covers(self, event: Exposure | Click | Purchase | Other) -> bool:
        """Say whether this event is left out."""
        position = event.position
        if any(
            part.start <= position.offset < part.end
            for part in self._slices.get((position.topic, position.partition), ())
        ):
            return True
        client = self._known.get(event.client_id)
        if client is None:
            if len(self._known) >= _MAX_KNOWN:
                self._known.clear()
            client = self._known[event.client_id] = (
                keyed(self._key, event.client_id) in self._clients
            )
        return client or (bool(self._events) and self._named(event))

    def _named(self, event: Exposure | Click | Purchase | Other) -> bool:
        """Say whether the list has the id that the event's producer gave it."""
        kind, _, rest = (getattr(event, "identity", None) or b"").partition(b"\0")
        return (
            kind in (b"e", b"c")
            and keyed(self._key, rest.rpartition(b"\0")[2].decode(errors="replace")) in self._events
        )
