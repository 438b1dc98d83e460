"""Text and attributes of items as they were at an event time, from the compacted `items` topic.

The first text known of an item holds at once, and for all time before it; every later update waits until the join has reached its event
time. So an exposure sees the text of its own moment, whatever the order in which topics are polled; only a text that is written after
reading began can miss lists that were joined before it was polled.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

from consumers.events import Candidate
from weighting.sample import Attribute

Described: TypeAlias = tuple[str, dict[str, Attribute]]  # text, attributes

_NOTHING: Described = ("", {})


class Items:
    """What is known of each item; `snapshot` resumes after the last update that was applied."""

    def __init__(self) -> None:
        """Know nothing."""
        self._known: dict[str, Described] = {}

    def __len__(self) -> int:
        """Return how many items are known."""
        return len(self._known)

    def __contains__(self, object_id: str) -> bool:
        """Say whether anything is known of it."""
        return object_id in self._known

    def get(self, object_id: str) -> Described:
        """Return (text, attributes); `("", {})` when nothing is known."""
        return self._known.get(object_id, _NOTHING)

    def describe(
        self, hits: Sequence[str], inline: Mapping[str, Candidate]
    ) -> tuple[Described, ...]:
        """Return (text, attributes) of each hit: what was written inline wins."""
        known = self._known
        if not inline:
            return tuple([known.get(object_id, _NOTHING) for object_id in hits])
        described = []
        for object_id in hits:
            text, attributes = known.get(object_id, _NOTHING)
            candidate = inline.get(object_id)
            if candidate is not None:
                text = text if candidate.text is None else candidate.text
                attributes = attributes if candidate.attributes is None else candidate.attributes
            described.append((text, attributes))
        return tuple(described)

    def update(self, object_id: str, text: str | None, attributes: dict[str, Attribute]) -> None:
        """Learn an item's text and attributes from now on; None forgets it."""
        if text is None:
            self._known.pop(object_id, None)
        else:
            self._known[object_id] = (text, attributes)

    def snapshot(self) -> dict[str, Described]:
        """Return all that is known, in sorted order."""
        return dict(sorted(self._known.items()))

    def restore(self, known: Mapping[str, Described]) -> None:
        """Take back what `snapshot` returned."""
        self._known = dict(known)
