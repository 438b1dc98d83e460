"""weight = target law / stream law; w = p(y|x) / p(y) is its first case. The formula, its inversion and nothing else.

Legend: N samples. The probability p(y|x) comes from the online estimator of this folder, never from the model that is trained on the
weight: feeding a model its own ratio collapses its probabilities to 0 or 1 from exponent 1 on.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from weighting.errors import WeightError

Array = NDArray[np.float64]

#: At exponent -1 every score becomes the prior and the inversion divides by zero; anything close to it is refused.
LEAST_EXPONENT = -0.9


def check_exponent(exponent: float) -> float:
    """Return the exponent b if scores trained under it can be inverted.

    Raises:
        ValueError: b is not finite, or b <= -0.9.
    """
    if not math.isfinite(exponent) or exponent <= LEAST_EXPONENT:
        raise ValueError(
            f"exponent: got {exponent!r}, expected a finite number > {LEAST_EXPONENT} (at -1 the weight destroys all signal)"
        )
    return exponent


def ratio(p_y_given_x: Array, p_y: Array, *, exponent: float = 1.0) -> Array:
    """Raw weights w = (p(y|x) / p(y))^b, before clipping and normalisation.

    Args:
        p_y_given_x: (N,) probability of the label that was observed, predicted before it was learned.
        p_y: (N,) prior of the same label, in (0, 1).
        exponent: b; 0 switches the weight off, 1 is the plain ratio.

    Returns:
        (N,) weights; w <= 1/p(y) for b = 1, and E[w] = 1 + chi-squared dependence of x and y.

    Raises:
        WeightError: a probability is not finite or outside (0, 1); names the first offending index.
        ValueError: the exponent cannot be inverted.

    >>> ratio(np.array([0.3, 0.05]), np.array([0.1, 0.1])).round(2).tolist()
    [3.0, 0.5]
    """
    check_exponent(exponent)
    for factor, p in (("p(y|x)", p_y_given_x), ("p(y)", p_y)):
        bad = ~((p > 0) & (p < 1))  # true for NaN as well
        if bad.any():
            index = int(bad.argmax())
            raise WeightError(factor, float(p[index]), "a probability in (0, 1)", index)
    w: Array = (p_y_given_x / p_y) ** exponent
    return w


def invert(logit: Array, exponent: float, prior: float) -> Array:
    """Logit of p(y=1|x) from the logit of a model that was trained under w = (p(y|x)/p(y))^b.

    The minimiser f* of the weighted risk is logit f* = (1 + b) logit p - b logit pi, hence logit p = (logit f* + b logit pi) / (1 + b).
    It holds on top of an exact delay ratio too, and is exact as long as no ratio was clipped.

    Args:
        logit: (N,) logits of the trained model.
        exponent: b that was in force while it trained.
        prior: pi = p(y=1), in (0, 1), that was used in the ratio.

    Raises:
        ValueError: b <= -0.9, or the prior is outside (0, 1).

    >>> float(invert(np.array([0.0]), 0.0, 0.1)[0])
    0.0
    """
    check_exponent(exponent)
    if not 0 < prior < 1:
        raise ValueError(f"prior: got {prior!r}, expected a probability in (0, 1)")
    return (logit + exponent * math.log(prior / (1 - prior))) / (1 + exponent)
