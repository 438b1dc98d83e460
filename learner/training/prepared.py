"""Samples of a step as the estimators leave them: all that a step needs of the weigher.

They do not depend on the trained model, so they may be made while the step before runs. Whatever a
step reads of the weigher is here, as of these samples: the weigher itself may have gone on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from learner.training.clicked_lists import ClickedLists
from weighting.sample import Sample
from weighting.tasks import TaskName
from weighting.weigher import TaskFigures, Weigher
from weighting.weighted import WeightedBatch


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Prepared:
    """N samples of all processes, weighed.

    Attributes:
        own: places of our own among the N.
        clicked: lists with a click, asked before the estimators learned.
        weighted: the samples with their weights.
        figures: of each task's estimators, after they learned.
    """

    own: range
    clicked: ClickedLists
    weighted: WeightedBatch
    figures: Mapping[TaskName, TaskFigures]

    @classmethod
    def of(cls, samples: Sequence[Sample], own: range, weigher: Weigher) -> Prepared:
        """Ask the pair memory, then weigh, which lets the estimators learn.

        Raises:
            WeightError: a weight was refused; nothing was learned.
        """
        clicked = ClickedLists(samples, weigher)
        weighted = weigher.weigh(samples)
        return cls(own=own, clicked=clicked, weighted=weighted, figures=weigher.figures())
