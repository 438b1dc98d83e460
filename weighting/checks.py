"""Checks of what is learned: a NaN is refused by name, never absorbed.

Legend: N samples.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from weighting.errors import WeightError

Array = NDArray[np.float64]
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
    check(factor, values, np.isfinite(values), "a finite number")


def check_weights(factor: str, values: Array) -> None:
    """Refuse values (N,) that are NaN, infinite or negative."""
    check(factor, values, np.isfinite(values) & (values >= 0), "a finite number >= 0")


def check_labels(values: Array) -> None:
    """Refuse labels (N,) that are NaN or outside [0, 1]."""
    check("label", values, (values >= 0) & (values <= 1), "a number in [0, 1]")


def drop_weightless(weight: Array, *columns: NDArray[Any]) -> tuple[NDArray[Any], ...]:
    """Return the columns (N,) without the samples of weight 0, which teach nothing.

    Without this they would still advance the clock by which older samples fade.
    """
    used = weight > 0
    return columns if used.all() else tuple(column[used] for column in columns)
