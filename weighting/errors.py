"""What can go wrong when samples are weighed, drawn as a tree; each class says `retriable`.

    WeightingError            never worth a second try: the same input fails again
    ├── WeightError           a factor of a weight is not a number that a loss can be multiplied by (also a ValueError)
    └── SnapshotError         a snapshot is of another format or configuration, or damaged (also a ValueError)

A bad configuration is a plain ValueError that names key, value and expectation.
"""

from __future__ import annotations

from weighting.provenance import Position


class WeightingError(Exception):
    """Anything that this folder refuses to do."""

    retriable = False
    exit_code = 1


class WeightError(WeightingError, ValueError):
    """A factor was refused: NaN, infinite, negative, out of its bounds, or all zero. Weights are never repaired silently.

    Attributes:
        factor: which one: label, p, stream law, ratio, weight, ...
        value: what it was.
        where: the position of the sample's newest record, its index when the sample is not known here, or None for a whole batch.
    """

    def __init__(
        self, factor: str, value: object, expected: str, where: Position | int | None = None
    ) -> None:
        """Name the factor, the value, what was expected and where it stood."""
        place = (
            f"sample {where}"
            if isinstance(where, int)
            else "the batch"
            if where is None
            else str(where)
        )
        super().__init__(
            f"{place}: {factor}: got {value!r}, expected {expected}. Nothing of this batch was learned."
        )
        self.factor = factor
        self.value = value
        self.expected = expected
        self.where = where


class SnapshotError(WeightingError, ValueError):
    """A snapshot does not fit the object that should resume from it."""

    def __init__(self, what: str, found: object, expected: object) -> None:
        """Name the entry, what the snapshot has and what was expected."""
        super().__init__(
            f"snapshot: {what}: got {found!r}, expected {expected!r}. Restore it with the settings that it was taken with."
        )
        self.what = what
