"""Counts of what happened in the join, kept until they are reported."""

from __future__ import annotations

from collections import Counter


class Tally:
    """Counts since the last `clear`.

    Attributes:
        results: (event, result) -> count; the results are `telemetry.RESULTS`.
        delays_us: event and delay of each joined label.
        num_cut_hits: hits beyond the cap, of which nothing is kept.
        num_missing_texts: items shown or clicked of which no text was known.
    """

    def __init__(self) -> None:
        """Begin with nothing."""
        self.results: Counter[tuple[str, str]] = Counter()
        self.delays_us: list[tuple[str, int]] = []
        self.num_cut_hits = 0
        self.num_missing_texts = 0

    def clear(self) -> None:
        """Begin again with nothing."""
        self.results.clear()
        self.delays_us.clear()
        self.num_cut_hits = 0
        self.num_missing_texts = 0
