"""Comparison of two versions' prequential evaluations, with the error that their sizes leave.

Each figure is refused only if it is worse than the serving version's by more than a margin and
three standard errors of the difference. Errors of the AUC within lists and of the entropy relative
to the position come from the intervals in the manifest. A task without lists has the pooled AUC;
its error is an upper bound, that under no information (Hanley and McNeil, Radiology 1982). That of
the logarithm of the calibration is by Poisson counts.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from serving.errors import Refused

_NUM_ERRORS = 3.0
_CHANCE = 0.5
_NORMAL = 1.96
"""Standard errors of a 95 % interval to either side."""
_WITHIN_LISTS = "within_list_auc"
_ENTROPY = "position_normalized_entropy"


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
        _WITHIN_LISTS: margins.auc,
        "auc": margins.auc,
        _ENTROPY: margins.entropy,
        "predicted_to_observed": margins.calibration,
    }
    ends = "_num_samples"
    own = (name for name in new if ":" not in name)  # behind a colon stands a shop's own name
    tasks = [name.removesuffix(ends) for name in own if name.endswith(ends)]
    for task in tasks:
        before = {figure.name: figure for figure in _figures(task, served)}
        for figure in _figures(task, new):
            old = before.get(figure.name)
            if old is None:
                continue
            error = _NUM_ERRORS * math.hypot(figure.error, old.error)
            worse = figure.badness - old.badness
            by_chance = (
                figure.name in (_WITHIN_LISTS, "auc") and _below_chance(figure, old) and worse > 0
            )
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
    found = [*_with_interval(task, evaluation)]
    positives, negatives = n * rate, n * (1 - rate)
    if (auc := evaluation.get(f"{task}_auc")) is not None and not any(
        figure.name == _WITHIN_LISTS for figure in found
    ):
        error = math.sqrt((n + 1) / (12 * positives * negatives))
        found.append(_Figure(name="auc", value=auc, badness=-auc, error=error))
    if (ratio := evaluation.get(f"{task}_predicted_to_observed")) is not None and ratio > 0:
        badness, error = abs(math.log(ratio)), 1 / math.sqrt(positives)
        name = "predicted_to_observed"
        found.append(_Figure(name=name, value=ratio, badness=badness, error=error))
    return found


def _with_interval(task: str, evaluation: Mapping[str, float]) -> Iterator[_Figure]:
    """Yield the figures whose interval is in the manifest."""
    for name, sign in ((_WITHIN_LISTS, -1.0), (_ENTROPY, 1.0)):
        value, low, high = (evaluation.get(f"{task}_{name}{end}") for end in ("", "_low", "_high"))
        if value is not None and low is not None and high is not None:
            error = max(high - low, 0.0) / (2 * _NORMAL)
            yield _Figure(name=name, value=value, badness=sign * value, error=error)
