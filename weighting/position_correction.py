"""Importance factors where a sample was shown: target over stream distribution, exact per position.

Under the position-based model a stream has q(1|x) = theta r with r = r(x) the relevance. A factor
of u1 for positives and u0 for negatives means the target t = r u1 / m, m = r u1 + (1 - r) u0, as if
each sample were shown first. A loss of theta sigma(z) recovers sigma(z) = t at every position only
under the ratio of the target theta t to the stream (importance weighting, Shimodaira 2000):

    w(1) = m t / r = u1            w(0) = m (1 - theta t) / (1 - theta r)

At theta = 1 these are u1 and u0; for smaller theta w(0) moves towards m. As m is a mean of u1 and
u0, bounds on both bound w, and t still grows with r: no order inverts.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def factor_at_position(
    label: Array, relevance: Array, examination: Array, positive: Array, negative: Array
) -> Array:
    """Factor (N,) of the observed labels where the samples were shown.

    Args:
        label: (N,) 0 or 1.
        relevance: (N,) r in (0, 1), p(y=1|x) as if shown first.
        examination: (N,) theta in (0, 1].
        positive: (N,) u1 >= 0, factor of a positive shown first.
        negative: (N,) u0 >= 0, factor of a negative shown first.

    >>> one, zero, r = np.ones(2), np.zeros(2), np.full(2, 0.3)
    >>> u1, u0 = np.full(2, 3.0), np.full(2, 7 / 9)
    >>> factor_at_position(one, r, np.array([1.0, 0.1]), u1, u0).tolist()
    [3.0, 3.0]
    >>> factor_at_position(zero, r, np.array([1.0, 0.1]), u1, u0).round(3).tolist()
    [0.778, 1.396]
    """
    theta, r = examination, relevance
    # m (1 - theta t) / (1 - theta r), without the cancellation of 1 - t
    shown = ((1 - r) * negative + (1 - theta) * r * positive) / ((1 - r) + (1 - theta) * r)
    return np.where(label > 0, positive, shown)
