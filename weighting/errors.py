"""Errors of the weighting folder, as a tree; each class says `retriable`.

    WeightingError            never retriable: the same input fails again
    ├── WeightError           an input or a factor of a weight is unusable (also a ValueError)
    └── SnapshotError         a snapshot has another format or settings, or is damaged
                              (also a ValueError)

A bad setting is a plain ValueError that names key, value and expectation.
"""

from __future__ import annotations

from weighting.provenance import Position


class WeightingError(Exception):
    """Base class of this folder's errors."""

    retriable = False
    exit_code = 1


class WeightError(WeightingError, ValueError):
    """A value was refused: NaN, infinite, negative or out of range.

    Weights are never repaired silently.

    Attributes:
        factor: name of the value: label, p(y|x), correction weight, ratio, weight, ...
        value: what it was.
        expected: what it should have been.
        where: position of the sample's newest record, its index where the sample is not known,
            or None for a whole batch.
    """

    def __init__(
        self, factor: str, value: object, expected: str, where: Position | int | None = None
    ) -> None:
        """Name the factor, its value, the expectation and the sample."""
        place = f"sample {where}" if isinstance(where, int) else str(where or "the batch")
        refusal = f"{factor}: got {value!r}, expected {expected}"
        super().__init__(f"{place}: {refusal}. Nothing of this batch was learned.")
        self.factor = factor
        self.value = value
        self.expected = expected
        self.where = where


class SnapshotError(WeightingError, ValueError):
    """A snapshot does not fit the object that should be restored from it."""

    def __init__(self, what: str, found: object, expected: object) -> None:
        """Name the entry, its value in the snapshot and the expected value."""
        problem = f"{what}: got {found!r}, expected {expected!r}"
        remedy = "Restore it with the settings that it was taken with."
        super().__init__(f"snapshot: {problem}. {remedy}")
        self.what = what
