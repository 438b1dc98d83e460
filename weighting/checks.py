"""Checks of what is learned: a NaN is refused by name, never absorbed.

Legend: N samples.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
from numpy.typing import NDArray

from weighting.errors import WeightError

Array = NDArray[np.float64]
_FEW = 64
_LARGEST = sys.float_info.max
Valid = NDArray[np.bool_]


def check(factor: str, values: Array, valid: Valid, expected: str) -> None:
    """Refuse the first of N values that is not valid.

    Raises:
        WeightError: names factor, value, expectation and index.
    """
    if not valid.all():
        index = int((~valid).argmax())
        raise WeightError(factor, float(values[index]), expected, index)


def check_finite(factor: str, values: Array) -> None:
    """Refuse values (N,) that are NaN or infinite."""
    if not _all_within(values, -_LARGEST, _LARGEST):
        check(factor, values, np.isfinite(values), "a finite number")


def check_weights(factor: str, values: Array) -> None:
    """Refuse values (N,) that are NaN, infinite or negative."""
    if not _all_within(values, 0.0, _LARGEST):
        check(factor, values, np.isfinite(values) & (values >= 0), "a finite number >= 0")


def check_labels(values: Array) -> None:
    """Refuse labels (N,) that are NaN or outside [0, 1]."""
    if not _all_within(values, 0.0, 1.0):
        check("label", values, (values >= 0) & (values <= 1), "a number in [0, 1]")


def _all_within(values: Array, low: float, high: float) -> bool:
    """Find few values valid without numpy, whose calls cost more than a list has to check."""
    return len(values) <= _FEW and all(low <= v <= high for v in values.tolist())


def check_examination(values: Array) -> None:
    """Refuse examination probabilities (N,) that are NaN or outside [0, 1]."""
    check("examination", values, (values >= 0) & (values <= 1), "a number in [0, 1]")


def drop_weightless(weight: Array, *columns: NDArray[Any]) -> tuple[NDArray[Any], ...]:
    """Return the columns (N,) without the samples of weight 0, which teach nothing.

    Without this they would still advance the clock by which older samples fade.
    """
    used = weight > 0
    return columns if used.all() else tuple(column[used] for column in columns)
