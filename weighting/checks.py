"""Checks of what is learned: a NaN is refused by name, never absorbed.

Legend: N samples.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from weighting.errors import WeightError

Array = NDArray[np.float64]
Valid = NDArray[np.bool_]
FINITE = "a finite number"
WEIGHT = "a finite number >= 0"
LABEL = "a number in [0, 1]"


def check(factor: str, values: Array, valid: Valid, expected: str) -> None:
    """Refuse the first of N values that is not valid.

    Raises:
        WeightError: names factor, value, expectation and index.
    """
    if not valid.all():
        index = int((~valid).argmax())
        raise WeightError(factor, float(values[index]), expected, index)


def check_one(factor: str, value: float, valid: bool, expected: str) -> None:
    """Refuse one value that is not valid.

    Raises:
        WeightError: names factor, value and expectation.
    """
    if not valid:
        raise WeightError(factor, value, expected, 0)


def check_example(label: float, weight: float) -> None:
    """Refuse the label or the weight of one sample."""
    if not (0 <= label <= 1 and 0 <= weight < math.inf):
        check_one("label", label, 0 <= label <= 1, LABEL)
        check_one("weight", weight, False, WEIGHT)


def check_finite(factor: str, values: Array) -> None:
    """Refuse values (N,) that are NaN or infinite."""
    check(factor, values, np.isfinite(values), FINITE)


def check_weights(factor: str, values: Array) -> None:
    """Refuse values (N,) that are NaN, infinite or negative."""
    check(factor, values, np.isfinite(values) & (values >= 0), WEIGHT)


def check_labels(values: Array) -> None:
    """Refuse labels (N,) that are NaN or outside [0, 1]."""
    check("label", values, (values >= 0) & (values <= 1), LABEL)


def check_probability(factor: str, values: Array) -> None:
    """Refuse probabilities (N,) that are NaN, or not inside (0, 1)."""
    check(factor, values, (values > 0) & (values < 1), "a probability in (0, 1)")


def check_examination(values: Array) -> None:
    """Refuse examination probabilities (N,) that are NaN or outside [0, 1]."""
    check("examination", values, (values >= 0) & (values <= 1), "a number in [0, 1]")


def drop_weightless(weight: Array, *columns: NDArray[Any]) -> tuple[NDArray[Any], ...]:
    """Return the columns (N,) without the samples of weight 0, which teach nothing.

    Without this they would still advance the clock by which older samples fade.
    """
    used = weight > 0
    return columns if used.all() else tuple(column[used] for column in columns)
