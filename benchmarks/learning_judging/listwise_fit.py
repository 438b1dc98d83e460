"""A linear score fitted to the clicks of lists.

Legend: N shown items of all lists, L lists, F features.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

Array = NDArray[np.float64]
_RIDGE = 1e-3


def fit(
    features: Array, clicked: Array, starts: NDArray[np.intp], decline: Array
) -> tuple[Array, float]:
    """Return the coefficients (F,) of the features, and eta.

    The share of a list's clicks that an item gets is softmax(x . coefficients - eta ln k) over the
    list; minimised is the cross-entropy of the clicks (Cao et al., ICML 2007, eq. 4) per list, plus
    1e-3 times the squared norm of the coefficients of standardised features.

    Args:
        features: (N, F), list after list.
        clicked: (N,) 0 or 1.
        starts: (L,) the row where each list begins.
        decline: (N,) -ln k at position k, 0 where it is not known; all 0: eta is 0.
    """
    scale = features.std(0)
    scale[scale < 1e-9] = np.inf  # says nothing: coefficient 0
    x = np.column_stack([(features - features.mean(0)) / scale, decline])
    sizes = np.diff(np.append(starts, len(x)))
    clicks = np.add.reduceat(clicked, starts)
    num_lists = max(int((clicks > 0).sum()), 1)

    def loss(coefficients: Array) -> tuple[float, Array]:
        score = x @ coefficients
        score = score - np.repeat(np.maximum.reduceat(score, starts), sizes)
        exp = np.exp(score)
        total = np.add.reduceat(exp, starts)
        log_share = score - np.repeat(np.log(total), sizes)
        share = exp * np.repeat(clicks / total, sizes)
        value = -(clicked * log_share).sum() / num_lists + _RIDGE * (coefficients**2).sum()
        return float(value), x.T @ (share - clicked) / num_lists + 2 * _RIDGE * coefficients

    start = np.zeros(x.shape[1])
    bounds = [(None, None)] * features.shape[1] + [(0.0, None)]
    found: Array = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds).x
    return found[:-1] / scale, float(found[-1])
