"""The model in use, swapped in one assignment; and the one before it.

Only the watcher's thread swaps; only the event loop marks the first answer. A reader takes one
reference and ends on the model that it began with.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import lru_cache

from learner.artifact import Scorer, Version
from serving.errors import NotFound, NotReady
from serving.rollout.comparison import Replayed

#: Stands in the headers before the first model, and before its first event.
NO_VERSION = "none"
#: Newest answers of a version by which it is judged.
NUM_OUTCOMES = 100


@dataclass(eq=False, slots=True, kw_only=True)
class LoadedModel:
    """A version, loaded and warm.

    Attributes:
        version: its description in the store.
        scorer: confined to the inference thread once the model is in use.
        probes: golden requests, then those of queries that it knows, with its scores.
        outcomes: of its newest answers; False where it failed.
        first_answer_seconds: wall clock of its first answer; set once, by the event loop.
    """

    version: Version
    scorer: Scorer
    probes: Sequence[Replayed] = ()
    outcomes: deque[bool] = field(default_factory=lambda: deque(maxlen=NUM_OUTCOMES))
    first_answer_seconds: float | None = None

    @property
    def num_failures(self) -> int:
        """Number of failures among the newest outcomes; any thread may ask."""
        return self.outcomes.copy().count(False)

    @property
    def name(self) -> str:
        """The version's name, as in ``v000123``."""
        return self.version.name

    @property
    def event_time(self) -> str | None:
        """Event time of the newest sample that it contains, RFC 3339; None before the first."""
        return None if self.version.event_time_us is None else rfc3339(self.version.event_time_us)


class Slot:
    """The model in use, and the one before it.

    `held` is one tuple, so that no reader sees the new model with the wrong predecessor.
    """

    def __init__(self) -> None:
        """Start empty."""
        self.held: tuple[LoadedModel | None, LoadedModel | None] = (None, None)
        self.swaps = 0

    @property
    def current(self) -> LoadedModel | None:
        """The model in use."""
        return self.held[0]

    @property
    def previous(self) -> LoadedModel | None:
        """The model that was in use before."""
        return self.held[1]

    def swap(self, model: LoadedModel) -> None:
        """Put `model` in use; the one in use becomes the previous one."""
        self.held = (model, self.held[0])
        self.swaps += 1

    def resolve(self, name: str) -> LoadedModel:
        """Return the model of that name.

        Args:
            name: ``champion`` or ``previous``, with or without ``@``, or a version.

        Raises:
            NotReady: there is no model yet.
            NotFound: another name; lists the known ones.
        """
        current, previous = self.held
        if current is None:
            raise NotReady("no model has been loaded yet")
        known = {"champion": current, current.name: current}
        if previous is not None:
            known = {"champion": current, "previous": previous, previous.name: previous, **known}
        found = known.get(name.removeprefix("@"))
        if found is None:
            raise NotFound(name, known)
        return found


@lru_cache(maxsize=256)  # every answer says the event time of the version in use
def rfc3339(time_us: int) -> str:
    """Return microseconds since the Unix epoch as RFC 3339 in UTC, whole seconds.

    >>> rfc3339(1_795_471_692_000_000)
    '2026-11-23T22:08:12Z'
    """
    return datetime.fromtimestamp(time_us // 1_000_000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
