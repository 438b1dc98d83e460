"""Delayed-feedback correction: observed vs. true label distribution.

Every example is emitted once when its observation window closes, with the label so far, and once
more as a positive if the label came later. So an example has m(x) = 1 + pS expected copies, a share
q(1|x) = p / (1 + pS) of them positive, with p = p(y=1|x) and S the delayed-positive rate: the share
of positives that arrive after the first copy. Per example ("click mass") the correction weight is
p(y|x) / (m q(y|x)):

    positive (first or delayed)   1
    first negative                (1 - p) / (1 - p + p S)

A model trained with it has the fixed point p for every S; its sums are counts of examples, so a
prior may be fed from them directly.
"""

from __future__ import annotations

from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Number = TypeVar("Number", float, Array)


def delay_correction(label: float, p: float, delayed_positive_rate: float) -> float:
    """Correction weight of a copy, in [0, 1]; one unit of weight per example.

    Args:
        label: label of the copy, 0 or 1; delayed copies are positive.
        p: p(y=1|x) in (0, 1), predicted before the label was learned.
        delayed_positive_rate: S in [0, 1]; 0 where the first copy was final.

    >>> round(delay_correction(0, 0.3, 0.8), 4)
    0.7447
    >>> delay_correction(1, 0.3, 0.8), delay_correction(0, 0.3, 0.0)
    (1.0, 1.0)
    """
    return 1.0 if label > 0 else _first_negative(p, delayed_positive_rate)


def delay_corrections(label: Array, p: Array, delayed_positive_rate: Array) -> Array:
    """Correction weights (N,) of copies, from columns (N,); see `delay_correction`."""
    return np.where(label > 0, 1.0, _first_negative(p, delayed_positive_rate))


def _first_negative(p: Number, rate: Number) -> Number:
    return (1 - p) / (1 - p + p * rate)
