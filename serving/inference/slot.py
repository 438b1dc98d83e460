"""The version in use: swapped in one assignment; the last one kept.

Writers: the watcher's thread swaps; the event loop marks the first answer. Readers take one reference and end on what they began with.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from learner.artifact import Scorer, Scores, Version
from serving.errors import NotFound, NotReady

NO_VERSION = "none"  #: what the headers say before the first model, and before its first event


@dataclass(eq=False, slots=True, kw_only=True)
class Serving:
    """A version, loaded and warm."""

    version: Version
    scorer: Scorer
    golden: Sequence[
        Scores
    ] = ()  #: its scores on the golden requests: the next version is compared with them
    first_answer_seconds: float | None = field(
        default=None
    )  #: wall clock of its first answer; set once, by the event loop

    @property
    def name(self) -> str:
        """The version's name, as in ``v000123``."""
        return self.version.name

    @property
    def event_time(self) -> str | None:
        """Event time of the newest sample that it contains, RFC 3339; None before the first."""
        return None if self.version.event_time_us is None else rfc3339(self.version.event_time_us)


class Slot:
    """Holds the version in use and the one before it.

    `held` is one tuple, so that a reader never sees the new version with the wrong predecessor.
    """

    def __init__(self) -> None:
        """Start empty."""
        self.held: tuple[Serving | None, Serving | None] = (None, None)
        self.swaps = 0

    @property
    def current(self) -> Serving | None:
        """The version in use."""
        return self.held[0]

    @property
    def previous(self) -> Serving | None:
        """The version that was in use before."""
        return self.held[1]

    def swap(self, serving: Serving) -> None:
        """Put `serving` in use; what was in use becomes the previous one."""
        self.held = (serving, self.held[0])
        self.swaps += 1

    def resolve(self, model: str) -> Serving:
        """Return what `model` names: ``champion`` or ``previous``, with or without ``@``, or a version.

        Raises:
            NotReady: there is no model yet.
            NotFound: another name; says the known ones.
        """
        current, previous = self.held
        if current is None:
            raise NotReady("no model has been loaded yet")
        known = {"champion": current, current.name: current}
        if previous is not None:
            known = {
                "champion": current,
                "previous": previous,
                previous.name: previous,
                current.name: current,
            }
        found = known.get(model.removeprefix("@"))
        if found is None:
            raise NotFound(model, known)
        return found


def rfc3339(time_us: int) -> str:
    """Return microseconds since the Unix epoch as RFC 3339 in UTC, whole seconds.

    >>> rfc3339(1_795_471_692_000_000)
    '2026-11-23T22:08:12Z'
    """
    return datetime.fromtimestamp(time_us // 1_000_000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
