"""Importance ratio: w = (p(y|x) / p(y))^b, and its inversion.

Exact for a stream whose labels are drawn from p(y) whatever x is, such as in-batch negatives; on
logged samples it biases the minimiser, which the inversion undoes. The same ratio, added to the
score instead of multiplied into the loss, is the logit adjustment of Menon et al. (ICLR 2021).

Legend: N samples. p(y|x) comes from this folder's online estimator, never from the model that is
trained on the weight: fed its own ratio, a model's probabilities collapse to 0 or 1 from b = 1 on.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from weighting.checks import check_probability
from weighting.context import Context

Array = NDArray[np.float64]

#: At exponent -1 every score becomes the prior, and the inversion divides by zero.
LEAST_EXPONENT = -0.9


def check_exponent(exponent: float) -> float:
    """Return the exponent b if scores trained under it can be inverted.

    Raises:
        ValueError: b is not finite, or b <= -0.9.
    """
    if not math.isfinite(exponent) or exponent <= LEAST_EXPONENT:
        expected = f"a finite number > {LEAST_EXPONENT} (at -1 the weight destroys all signal)"
        raise ValueError(f"exponent: got {exponent!r}, expected {expected}")
    return exponent


def ratio(p_y_given_x: Array, p_y: Array, *, exponent: float = 1.0) -> Array:
    """Raw weights w = (p(y|x) / p(y))^b, before clipping and normalisation.

    Args:
        p_y_given_x: (N,) probability of the observed label, predicted before it was learned.
        p_y: (N,) prior of the same label, in (0, 1).
        exponent: b; 0 switches the weight off, 1 is the plain ratio.

    Returns:
        (N,) weights; w <= 1/p(y) for b = 1, and E[w] = 1 + chi-squared dependence of x and y.

    Raises:
        WeightError: a probability is not finite or outside (0, 1); names the first such index.
        ValueError: the exponent cannot be inverted.

    >>> ratio(np.array([0.3, 0.05]), np.array([0.1, 0.1])).round(2).tolist()
    [3.0, 0.5]
    """
    check_exponent(exponent)
    check_probability("p(y|x)", p_y_given_x)
    check_probability("p(y)", p_y)
    w: Array = (p_y_given_x / p_y) ** exponent
    return w


def invert(logit: Array, exponent: float, prior: float) -> Array:
    """Logit of p(y=1|x) from the logit of a model trained under w = (p(y|x)/p(y))^b.

    The minimiser f* of the weighted risk is logit f* = (1 + b) logit p - b logit pi, hence
    logit p = (logit f* + b logit pi) / (1 + b). It holds on top of an exact delay correction too,
    and is exact as long as no ratio was clipped.

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


@dataclass(frozen=True, slots=True)
class ImportanceRatio:
    """The importance ratio as a weighting scheme.

    Attributes:
        exponent: b.
    """

    exponent: float

    def __post_init__(self) -> None:
        """Check the exponent."""
        check_exponent(self.exponent)

    def weigh(self, context: Context) -> Array:
        """Ratios (N,) of the observed labels."""
        return ratio(context.p_y_given_x, context.p_y, exponent=self.exponent)

    def invert(self, logit: Array, prior: float) -> Array:
        """Logits (N,) with the ratio undone."""
        return invert(logit, self.exponent, prior)

    def description(self) -> Mapping[str, str | float]:
        """Name and exponent, for a version's manifest."""
        return {"scheme": "ratio", "exponent": self.exponent}
