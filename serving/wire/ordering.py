"""Ranking by score: best first, ties in the order of the request."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from learner.artifact import Scores
from serving.errors import Invalid
from serving.wire.protocol import Objective
from weighting.tasks import CLICK, PURCHASE


def relevance(scores: Scores, objective: Objective | None) -> npt.NDArray[np.float64]:
    """Return the relevance of each document.

    Args:
        scores: of one request, (N,) each.
        objective: ``ctr`` = p(click), ``cvr`` = p(purchase | click), ``ctcvr`` = their product,
            ``value`` = that times the expected value; None = the published score.

    Returns:
        (N,), larger is better.

    Raises:
        Invalid: the version cannot tell values.
    """
    probability = scores.probability
    match objective:
        case None:
            return scores.score
        case "ctr":
            return probability[CLICK]
        case "cvr":
            return probability[PURCHASE]
        case "ctcvr":
            return probability[CLICK] * probability[PURCHASE]
        case "value":
            if scores.value is None:
                raise Invalid(
                    "objective: got 'value', and this version has not learned what is paid. Set "
                    "`learner.task_weights.value`, and write prices on purchases - at `$.objective`"
                )
            return probability[CLICK] * probability[PURCHASE] * scores.value


def order(values: npt.NDArray[np.float64], top_n: int | None = None) -> Sequence[int]:
    """Return the indices of the `top_n` largest `values` (N,), largest first.

    Equal values keep their order.

    >>> order(np.array([0.1, 0.7, 0.1, 0.9]), top_n=3)
    [3, 1, 0]
    """
    ordered: list[int] = np.argsort(-values, kind="stable")[:top_n].tolist()
    return ordered
