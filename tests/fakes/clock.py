"""A clock that is moved by hand."""

from __future__ import annotations


class ManualClock:
    """Seconds since the Unix epoch, by hand."""

    def __init__(self, seconds: float = 1_700_000_000.0) -> None:
        self.seconds = seconds

    def __call__(self) -> float:
        return self.seconds

    def advance(self, seconds: float) -> None:
        self.seconds += seconds
