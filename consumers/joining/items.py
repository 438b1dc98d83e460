"""Text and attributes of items as of an event time.

They come from the compacted `items` topic. The first known text of an item holds at once, and for
all time before it. Every later update waits until the join has reached its event time. So an
exposure gets the text of its own moment, whatever the order in which topics are polled; only a text
that is written after reading began can miss lists that were joined before it was polled.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

from consumers.events import Candidate
from weighting.sample import Attribute

Described: TypeAlias = tuple[str, dict[str, Attribute]]
"""Text and attributes of an item."""

NOTHING: Described = ("", {})


class Items:
    """Known items; `snapshot` resumes after the last update that was applied."""

    def __init__(self) -> None:
        """Begin with no item."""
        self._known: dict[str, Described] = {}

    def __len__(self) -> int:
        """Return the number of known items."""
        return len(self._known)

    def __contains__(self, object_id: str) -> bool:
        """Return whether anything is known of an item."""
        return object_id in self._known

    def get(self, object_id: str) -> Described:
        """Return (text, attributes); `("", {})` when nothing is known."""
        return self._known.get(object_id, NOTHING)

    def describe(
        self, hits: Sequence[str], inline: Mapping[str, Candidate]
    ) -> tuple[Described, ...]:
        """Return (text, attributes) of each hit; inline values take precedence."""
        known = self._known
        if not inline:
            return tuple([known.get(object_id, NOTHING) for object_id in hits])
        described = []
        for object_id in hits:
            text, attributes = known.get(object_id, NOTHING)
            candidate = inline.get(object_id)
            if candidate is not None:
                text = text if candidate.text is None else candidate.text
                attributes = attributes if candidate.attributes is None else candidate.attributes
            described.append((text, attributes))
        return tuple(described)

    def update(self, object_id: str, text: str | None, attributes: dict[str, Attribute]) -> None:
        """Set an item's text and attributes from now on; a text of None deletes the item."""
        if text is None:
            self._known.pop(object_id, None)
        else:
            self._known[object_id] = (text, attributes)

    def snapshot(self) -> dict[str, Described]:
        """Return all known items, sorted."""
        return dict(sorted(self._known.items()))

    def restore(self, known: Mapping[str, Described]) -> None:
        """Restore the state returned by `snapshot`."""
        self._known = dict(known)
