"""A batch with its weights, and the columns it consists of, declared once.

Legend: N samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from weighting.estimators.drift import Drift
from weighting.sample import Sample
from weighting.tasks import TaskName

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Columns:
    """One value per sample, all computed before any of the samples was learned.

    Attributes:
        weight: f32 (N,) final weight: correction x clipped and normalised scheme factor, capped.
        a: f32 (N,) factor of -log f in the loss of a sample.
        b: f32 (N,) factor of -log(1 - f). For hard labels (a, b) = (w y, w (1 - y)).
        label: f64 (N,) observed label, 0 or 1.
        discount: f64 (N,) share of an example that the sample counts for, in [0, 1]; see
            `weighting.caps`.
        correction: f64 (N,) discount x delay correction, in [0, 1]: the weight under which
            estimators and stacker learn.
        raw: f64 (N,) correction x scheme factor, before clipping and normalisation.
        p_y_given_x: f64 (N,) probability of the observed label as if the sample were shown first.
        p_y: f64 (N,) prior of the observed label.
        p_positive: f64 (N,) calibrated p(y=1|x), where the sample was shown.
        examination: f64 (N,) probability that the sample's position is examined, relative to the
            first position; 1 for tasks where the position does not matter.
        pair_memory_logit: f64 (N,) calibrated pair-memory logit as if shown first.
        pair_memory_base: f64 (N,) the same of a pair of which the pair memory knows nothing.
    """

    weight: NDArray[np.float32]
    a: NDArray[np.float32]
    b: NDArray[np.float32]
    label: Array
    discount: Array
    correction: Array
    raw: Array
    p_y_given_x: Array
    p_y: Array
    p_positive: Array
    examination: Array
    pair_memory_logit: Array
    pair_memory_base: Array


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class WeightedBatch(Columns):
    """N samples with their columns, and a summary of the batch.

    Attributes:
        samples: as given.
        num_clipped: number of samples that each of the bounds low, high and cap changed.
        num_discounted: number of samples that each of the caps discounted.
        drifts: per task with any, the changes that its drift detectors found.
        ess_ratio: effective sample size of `weight` / N.
        exponent: power of p(y|x)/p(y) in the weights.
        prior: per task in the batch, p(y=1).
        shown_examination: f64 (N,) examination probability of the place where the item was shown,
            whatever the task; 1 where none is known.
        shown_discount: f64 (N,) factor of the caps on long lists and lists of one item, which a
            purchase sample lacks; 1 for click samples, 0 without a known list.
        candidate_weight: (E, N) final weights under each candidate, if candidates compete; E is 0
            otherwise.
        normalization_ratio: per task with first copies, the mean of p(label|x)/p(label) for labels
            0 and 1; 1 where estimator and prior agree.
    """

    samples: tuple[Sample, ...]
    num_clipped: dict[str, int]
    num_discounted: dict[str, int]
    drifts: dict[TaskName, tuple[Drift, ...]]
    ess_ratio: float
    exponent: float
    prior: dict[TaskName, float]
    shown_examination: Array
    shown_discount: Array
    candidate_weight: Array
    normalization_ratio: dict[TaskName, tuple[float, float]]


COLUMNS = tuple(field.name for field in fields(Columns))
_FLOAT32 = frozenset({"weight", "a", "b"})


def scatter(
    num_samples: int, parts: Sequence[tuple[NDArray[np.intp], Columns]]
) -> dict[str, NDArray[Any]]:
    """Columns of a whole batch, from places and columns of its parts."""
    return {
        name: scatter_one(
            num_samples,
            [(places, getattr(columns, name)) for places, columns in parts],
            np.float32 if name in _FLOAT32 else np.float64,
        )
        for name in COLUMNS
    }


def scatter_one(
    num_samples: int,
    parts: Sequence[tuple[NDArray[np.intp], NDArray[Any]]],
    dtype: type[np.floating[Any]] = np.float64,
) -> NDArray[Any]:
    """One column (num_samples,) from the places and values of its parts."""
    whole = np.zeros(num_samples, dtype=dtype)
    for places, values in parts:
        whole[places] = values
    return whole
