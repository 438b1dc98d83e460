"""Exclusion of events by keyed hash or by place in the log.

They are looked up before anything else is done with an event.
"""

from __future__ import annotations

import hmac
from hashlib import sha256
from typing import TypeAlias

import msgspec
from cachetools import LRUCache, cached

from consumers.events import Click, Exposure, Other, Purchase
from weighting.provenance import Slice, TopicPartition

FORMAT = 1
_MAX_CLIENTS = 100_000  # whose answers are cached

_Event: TypeAlias = Exposure | Click | Purchase | Other


class ExclusionList(msgspec.Struct, frozen=True, kw_only=True):
    """Entries of a list; never a person's id, always its keyed hash.

    Attributes:
        client_ids: HMAC-SHA256 in hex, sorted.
        event_ids: the same of event ids.
        slices: places in the log.
    """

    format: int = FORMAT
    client_ids: tuple[str, ...] = ()
    event_ids: tuple[str, ...] = ()
    slices: tuple[Slice, ...] = ()

    @property
    def num(self) -> int:
        """Number of entries."""
        return len(self.client_ids) + len(self.event_ids) + len(self.slices)

    def digest(self) -> str:
        """Return the sha256 by which manifests name the list."""
        return sha256(msgspec.json.encode(self, order="sorted")).hexdigest()


def keyed(key: bytes, identity: str) -> str:
    """Return the hash under which an id is written down."""
    return hmac.new(key, identity.encode(), sha256).hexdigest()


class Exclusions:
    """Lookup of events in an exclusion list."""

    def __init__(self, listed: ExclusionList, key: bytes) -> None:
        """Take the list and the key that its hashes were made with."""
        self._key = key
        self._clients = frozenset(listed.client_ids)
        self._events = frozenset(listed.event_ids)
        self._slices: dict[TopicPartition, list[Slice]] = {}
        for part in listed.slices:
            self._slices.setdefault((part.topic, part.partition), []).append(part)
        cache: LRUCache[str, bool] = LRUCache(_MAX_CLIENTS)
        self._has_client = cached(cache, key=str)(self._lists_client)

    def covers(self, event: _Event) -> bool:
        """Return whether this event is left out."""
        return (
            self._covers_place(event)
            or self._has_client(event.client_id)
            or bool(self._events and self._lists_event(event))
        )

    def _covers_place(self, event: _Event) -> bool:
        at = event.position
        parts = self._slices.get((at.topic, at.partition), ())
        return any(part.start <= at.offset < part.end for part in parts)

    def _lists_client(self, client_id: str) -> bool:
        return keyed(self._key, client_id) in self._clients

    def _lists_event(self, event: _Event) -> bool:
        """Return whether the list has the id that the event's producer gave it."""
        kind, _, rest = (getattr(event, "identity", None) or b"").partition(b"\0")
        event_id = rest.rpartition(b"\0")[2].decode(errors="replace")
        return kind in (b"e", b"c") and keyed(self._key, event_id) in self._events
