"""Comparison of two versions' prequential evaluations, with the error that their sizes leave.

Each figure is refused only if it is worse than the serving version's by more than a margin and
three standard errors of the difference. The errors are upper bounds, from numbers of samples and
positives alone: of the AUC under no information (Hanley and McNeil, Radiology 1982), of the
normalised entropy by the delta method at a constant prediction, of the logarithm of the calibration
by Poisson counts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from serving.errors import Refused

_NUM_ERRORS = 3.0
_CHANCE = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Margins:
    """Worsening that is allowed beyond the standard errors."""

    auc: float
    entropy: float
    calibration: float


@dataclass(frozen=True, slots=True, kw_only=True)
class _Figure:
    """One figure: larger `badness` is worse; `error` is its standard error."""

    name: str
    value: float
    badness: float
    error: float


def check_evaluation(
    new: Mapping[str, float], served: Mapping[str, float], margins: Margins
) -> None:
    """Refuse a version whose evaluation is significantly worse.

    Args:
        new: figures of the new version's manifest, as ``task_figure``.
        served: of the version in use.
        margins: what may be worse.

    Raises:
        Refused: names task, figure, both values and the bound.
    """
    broken = sorted(name for name, value in new.items() if not math.isfinite(value))
    if broken:
        raise Refused("evaluation", f"{broken[0]} of the manifest is not finite")
    allowed = {
        "auc": margins.auc,
        "normalized_entropy": margins.entropy,
        "predicted_to_observed": margins.calibration,
    }
    tasks = [name.removesuffix("_num_samples") for name in new if name.endswith("_num_samples")]
    for task in tasks:
        before = {figure.name: figure for figure in _figures(task, served)}
        for figure in _figures(task, new):
            old = before.get(figure.name)
            if old is None:
                continue
            error = _NUM_ERRORS * math.hypot(figure.error, old.error)
            worse = figure.badness - old.badness
            by_chance = figure.name == "auc" and _below_chance(figure, old) and worse > 0
            if worse > allowed[figure.name] + error or by_chance:
                raise Refused(
                    "evaluation",
                    f"{task} {figure.name} is {figure.value:.3f} in the manifest, the version in "
                    f"use has {old.value:.3f} (three standard errors: {error:.3f})",
                )


def _below_chance(new: _Figure, served: _Figure) -> bool:
    """Return whether the new AUC is certainly below chance and the serving one is not below."""
    return new.value + _NUM_ERRORS * new.error < _CHANCE <= served.value


def _figures(task: str, evaluation: Mapping[str, float]) -> list[_Figure]:
    n = evaluation.get(f"{task}_num_samples", 0.0)
    rate = evaluation.get(f"{task}_positive_ratio", 0.0)
    if not (n > 0 and 0 < rate < 1):
        return []
    positives, negatives = n * rate, n * (1 - rate)
    entropy = -(rate * math.log(rate) + (1 - rate) * math.log1p(-rate))
    spread = math.sqrt(rate * (1 - rate)) * (1 + abs(math.log(rate / (1 - rate))))
    found = []
    if (auc := evaluation.get(f"{task}_auc")) is not None:
        error = math.sqrt((n + 1) / (12 * positives * negatives))
        found.append(_Figure(name="auc", value=auc, badness=-auc, error=error))
    if (entropies := evaluation.get(f"{task}_normalized_entropy")) is not None:
        error = spread / entropy / math.sqrt(n)
        name = "normalized_entropy"
        found.append(_Figure(name=name, value=entropies, badness=entropies, error=error))
    if (ratio := evaluation.get(f"{task}_predicted_to_observed")) is not None and ratio > 0:
        badness, error = abs(math.log(ratio)), 1 / math.sqrt(positives)
        name = "predicted_to_observed"
        found.append(_Figure(name=name, value=ratio, badness=badness, error=error))
    return found
