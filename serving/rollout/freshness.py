"""Event time to the first answer from a version that contains the event: observed once per version, and its exact quantiles."""

from __future__ import annotations

from typing import Protocol

from serving.inference.slot import Serving, Slot
from serving.telemetry import Telemetry

NUM_KEPT = 4096  #: newest (freshness, events) pairs behind the quantiles


class FreshEvents(Protocol):
    """What freshness asks of the store."""

    def fresh_events(self, after: str | None, upto: str) -> list[tuple[int, int]]:
        """Return (event time in microseconds, number of events) for all events that `upto` contains and `after` does not."""
        ...


class Freshness:
    """Settled by the watcher's thread; read by any.

    A version that gave no answer before the next one came leaves its events to that one.
    """

    def __init__(self, store: FreshEvents, slot: Slot, telemetry: Telemetry) -> None:
        """Take the collaborators; `begin` says which version was served before this process."""
        self._store, self._slot, self._telemetry = store, slot, telemetry
        self._upto: str | None = None
        self._settled: list[Serving] = []
        self._newest: tuple[tuple[float, int], ...] = ()

    def begin(self, version: str | None) -> None:
        """Count nothing that `version` contains: its first answer was given before this process started."""
        self._upto = version

    def settle(self) -> None:
        """Observe the events of every held version that has given its first answer since the last call."""
        held = [
            serving
            for serving in reversed(self._slot.held)
            if serving is not None and serving.first_answer_seconds is not None
        ]
        new = [serving for serving in held if serving not in self._settled]
        self._settled = held
        for serving in new:
            self._observe(serving.name, serving.first_answer_seconds or 0.0)

    def _observe(self, name: str, answered_seconds: float) -> None:
        events = self._store.fresh_events(self._upto, name)
        if not events:  # after a rollback: what it contains was answered before, and what came after it stays answered
            return
        self._upto = name
        pairs = [(answered_seconds - event_time_us / 1e6, count) for event_time_us, count in events]
        for value, count in pairs:
            for _ in range(count):
                self._telemetry.freshness.observe(value)
        self._newest = (*self._newest, *pairs)[-NUM_KEPT:]

    def quantile(self, q: float) -> float | None:
        """Return the `q` quantile in seconds over the newest events by nearest rank; None before the first."""
        pairs = sorted(self._newest)
        rank = q * sum(count for _, count in pairs)
        for value, count in pairs:
            rank -= count
            if rank <= 0:
                return value
        return None
