"""One task's samples of a batch under every scheme, weighed but for the scale."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from weighting.clip import ClipConfig, bounded
from weighting.context import Context, Places
from weighting.diagnostics import normalization_ratio
from weighting.estimators.task import Estimates, shown_lists
from weighting.position_correction import factor_at_position
from weighting.sample import LATE_COPY, Sample
from weighting.schemes.scheme import Scheme
from weighting.tasks import TASKS, Task
from weighting.weighted import Columns

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """One task's n samples of a batch, weighed but for the scale.

    Attributes:
        places: (n,) their indices in the batch.
        factor: (n,) factors of the scheme as if shown first, unbounded.
        unscaled: (E, n) correction x bounded factor under each scheme, before normalisation.

    The others are as in `Columns`.
    """

    places: Places
    delayed: NDArray[np.bool_]
    label: Array
    estimates: Estimates
    context: Context
    discount: Array
    correction: Array
    factor: Array
    raw: Array
    unscaled: Array

    @classmethod
    def of(
        cls,
        places: Places,
        samples: Sequence[Sample],
        label: Array,
        discount: Array,
        found: Estimates,
        correction: Array,
        *,
        schemes: Sequence[Scheme],
        in_force: int,
        clip: ClipConfig,
    ) -> Group:
        """Weigh one task's n samples, by what was estimated of them, under each of E schemes."""
        relevance, prior, theta = found.relevance, found.prior, found.examination
        lists = _list_numbers(samples, TASKS[samples[0].task])
        shown_first = [
            Context.observed(np.full_like(label, y), relevance, prior, lists, found.choice)
            for y in (1.0, 0.0)
        ]
        pairs = [[scheme.weigh(each) for each in shown_first] for scheme in schemes]
        # Bounded first: the bounds then change the target alone, and alike at every position
        within = [[bounded(factor, clip) for factor in pair] for pair in pairs]
        unscaled = [
            correction * factor_at_position(label, relevance, theta, *pair) for pair in within
        ]
        own = pairs[in_force]
        return cls(
            places=places,
            delayed=np.array([s.copy_kind is LATE_COPY for s in samples]),
            label=label,
            estimates=found,
            context=Context.observed(label, relevance, prior),
            discount=discount,
            correction=correction,
            factor=np.where(label > 0, *own),
            raw=correction * factor_at_position(label, relevance, theta, *own),
            unscaled=np.stack(unscaled),
        )

    def columns(self, weight: Array, denoise: float) -> Columns:
        """Columns of the samples under their final weights (n,)."""
        found = self.estimates
        target = (1 - denoise) * self.label + denoise * found.p_positive
        return Columns(
            weight=weight.astype(np.float32),
            a=(weight * target).astype(np.float32),
            b=(weight * (1 - target)).astype(np.float32),
            label=self.label,
            discount=self.discount,
            correction=self.correction,
            raw=self.raw,
            p_y_given_x=self.context.p_y_given_x,
            p_y=self.context.p_y,
            p_positive=found.p_positive,
            examination=found.examination,
            pair_memory_logit=found.pair_memory_logit,
            pair_memory_base=found.pair_memory_base,
        )

    def normalization_ratio(self) -> tuple[float, float] | None:
        """Agreement of estimator and prior over first copies; None without any."""
        first = ~self.delayed
        p, prior = self.estimates.p_positive[first], self.estimates.prior[first]
        return normalization_ratio(p, prior) if len(p) else None


def _list_numbers(samples: Sequence[Sample], task: Task) -> Places:
    """Number of the shown list (N,) of each sample of a task."""
    numbers = np.empty(len(samples), dtype=np.intp)
    for number, own in enumerate(shown_lists(samples, task.parent is None)):
        numbers[own] = number
    return numbers
