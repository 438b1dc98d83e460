"""Ratios of two sums over lists, with their standard errors.

Legend: F figures, L lists.

R = sum of x over sum of d, x and d of one list; its error by the delta method, lists independent:
sqrt(sum of (x - R d)^2) / sum of d (Cochran, Sampling Techniques, 3rd ed., section 6.4).
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
NUM_SUMS = 5
NORMAL = 1.96
"""Standard errors of a 95 % interval to either side."""
_LEAST_LISTS = 8.0
"""Lists, by Kish's effective number, below which an error says nothing."""


def ratio_sums(terms: Array) -> Array:
    """Return sums of x, d, x^2, x d, d^2, (F, 5), which add up over lists.

    Args:
        terms: (F, 2, L) x and d of each list.
    """
    x, d = terms[:, 0], terms[:, 1]
    found: Array = np.stack([x, d, x * x, x * d, d * d], axis=1).sum(axis=2)
    return found


def ratio(sums: Array) -> tuple[float, float] | None:
    """Return a ratio and its standard error from its sums (5,); None from too few lists.

    >>> x, d = np.tile([1.0, 0.0], 50), np.ones(100)
    >>> [round(each, 3) for each in ratio(ratio_sums(np.stack([[x, d]]))[0])]
    [0.5, 0.05]
    """
    x, d, xx, xd, dd = sums.tolist()
    number = d * d / dd if d > 0 else 0.0
    if number < _LEAST_LISTS:
        return None
    value = x / d
    squares = max(xx - 2 * value * xd + value * value * dd, 0.0)
    return value, math.sqrt(squares * number / (number - 1)) / d
