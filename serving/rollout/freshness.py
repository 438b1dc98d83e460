"""Freshness: event time to the first answer from a version that contains the event."""

from __future__ import annotations

from typing import Protocol

from serving.inference.slot import LoadedModel, Slot
from serving.telemetry import Telemetry

#: Newest (freshness, events) pairs behind the quantiles.
NUM_KEPT = 4096


class FreshEvents(Protocol):
    """The part of the store that freshness uses."""

    def fresh_events(self, after: str | None, upto: str) -> list[tuple[int, int]]:
        """Return the events that `upto` contains and `after` does not.

        Returns:
            (event time in microseconds, number of events) pairs.
        """
        ...


class Freshness:
    """Freshness of each event, observed once, with exact quantiles over the newest events.

    The watcher's thread updates it; any thread may read it. A version that gave no answer before
    the next one came leaves its events to that one.
    """

    def __init__(self, store: FreshEvents, slot: Slot, telemetry: Telemetry) -> None:
        """Take the collaborators; `begin` says which version was served before this process."""
        self._store, self._slot, self._telemetry = store, slot, telemetry
        self._upto: str | None = None
        self._observed: list[LoadedModel] = []
        self._newest: tuple[tuple[float, int], ...] = ()

    def begin(self, version: str | None) -> None:
        """Skip the events in `version`: an earlier process gave its first answer."""
        self._upto = version

    def update(self) -> None:
        """Observe the events of every model that has given its first answer since the last call."""
        held = [
            model
            for model in reversed(self._slot.held)
            if model is not None and model.first_answer_seconds is not None
        ]
        new = [model for model in held if model not in self._observed]
        self._observed = held
        for model in new:
            self._observe(model.name, model.first_answer_seconds or 0.0)

    def _observe(self, name: str, answered_seconds: float) -> None:
        events = self._store.fresh_events(self._upto, name)
        # After a rollback: its own events were answered before, and later ones stay answered.
        if not events:
            return
        self._upto = name
        pairs = [(answered_seconds - event_time_us / 1e6, count) for event_time_us, count in events]
        for value, count in pairs:
            for _ in range(count):
                self._telemetry.freshness.observe(value)
        self._newest = (*self._newest, *pairs)[-NUM_KEPT:]

    def quantile(self, q: float) -> float | None:
        """Return the `q` quantile in seconds by nearest rank; None before the first event."""
        pairs = sorted(self._newest)
        rank = q * sum(count for _, count in pairs)
        for value, count in pairs:
            rank -= count
            if rank <= 0:
                return value
        return None
