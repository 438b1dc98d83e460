"""How often a stream that observes first and emits late positives again shows a label, against how often it is true.

Every example is emitted once when its observation window closes, with the label so far, and once more as a positive if the label came
later. So an example has m(x) = 1 + pS expected copies, a share q(1|x) = p / (1 + pS) of them positive, with p = p(y=1|x) and S the share
of positives that arrive after the first copy. Per example ("click mass") the factor is p(y|x) / (m q(y|x)):

    positive (first or late)   1
    first negative             (1 - p) / (1 - p + p S)

A model trained with it has the fixed point p for every S; its sums are counts of examples, so a prior may be fed from them directly.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def delay_factor(label: Array, p: Array, late_ratio: Array) -> Array:
    """Factor of a copy, in [0, 1]: target law over stream law, mass one per example.

    Args:
        label: (N,) label of the copy, 0 or 1; late copies are positive.
        p: (N,) p(y=1|x) in (0, 1), predicted before the label was learned.
        late_ratio: (N,) S in [0, 1]; 0 when the first copy was final.

    >>> delay_factor(np.array([1.0, 0.0, 0.0]), np.array([0.3, 0.3, 0.3]), np.array([0.8, 0.8, 0.0])).round(4).tolist()
    [1.0, 0.7447, 1.0]
    """
    return np.where(label > 0, 1.0, (1 - p) / (1 - p + p * late_ratio))
