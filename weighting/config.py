"""Settings of the weights: scheme, bounds and estimators."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from weighting.caps import CapsConfig
from weighting.clip import ClipConfig
from weighting.competition import CompetitionConfig
from weighting.constraints import SettingError, Share, check
from weighting.estimators.calibration import CalibrationConfig
from weighting.estimators.conditional import ConditionalConfig
from weighting.estimators.drift import DriftConfig
from weighting.estimators.models import DEFAULT as BAYESIAN
from weighting.estimators.prior import PriorConfig
from weighting.estimators.task import TaskConfig
from weighting.schemes.ratio import LEAST_EXPONENT
from weighting.schemes.registry import DEFAULT, SchemeName, make_scheme, parse_candidates
from weighting.schemes.scheme import Scheme
from weighting.tasks import TASKS, TaskName

AUTO = "auto"
_ON_DISK = {
    "delayed_positives": "late",
    "initial_pseudo_count": "initial_mass",
    "pseudo_count": "mass",
}
"""Field of a config -> its name in a version's files, which outlive a renaming."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WeigherConfig:
    """Scheme, bounds and estimators of the weights.

    Two thirds of a shop's purchases came later than 15 minutes after the click.
    """

    scheme: Annotated[
        SchemeName,
        Meta(
            description="ratio: (p(y|x)/p(y))^exponent. uniform: all count 1. softmax_share: "
            "a click's share of p(y|x)^exponent in its list. attribute_share: its share of the "
            "choice by attributes. Baselines: class_balanced, focal, self_paced."
        ),
    ] = DEFAULT
    exponent: Annotated[
        Annotated[float, Meta(gt=LEAST_EXPONENT)] | Literal["auto"],
        Meta(
            description="b of (p(y|x)/p(y))^b: 0 is off, 1 the ratio itself; at -1 all signal is "
            "destroyed. auto: the candidates of weighting.competition compete."
        ),
    ] = 0.0
    competition: CompetitionConfig = field(default_factory=CompetitionConfig)
    clip: ClipConfig = field(default_factory=ClipConfig)
    caps: CapsConfig = field(default_factory=CapsConfig)
    update_per: Annotated[
        Literal["list", "batch"],
        Meta(
            description="When estimators learn. list: after each shown list, which the next one"
            " knows. batch: all samples of a batch at once, several times as fast; needs"
            " conditional.model bayesian."
        ),
    ] = "list"
    denoise: Annotated[
        Share, Meta(description="d: the label learned is (1 - d) y + d p(y=1|x).")
    ] = 0.0
    conditional: ConditionalConfig = field(default_factory=ConditionalConfig)
    calibration: CalibrationConfig = field(default_factory=CalibrationConfig)
    drift: DriftConfig = field(default_factory=DriftConfig)
    click: TaskConfig = field(default_factory=TaskConfig)
    purchase: TaskConfig = field(
        default_factory=lambda: TaskConfig(
            prior=PriorConfig(initial=0.05),
            delayed_positives=PriorConfig(initial=0.65, initial_pseudo_count=20.0),
        )
    )

    def __post_init__(self) -> None:
        """Check every field, and that the exponent leaves something of the scheme."""
        check(self, "weighting")
        if self.update_per == "batch" and self.conditional.model != BAYESIAN:
            expected = "list with"
            bound = "conditional.model", self.conditional.model
            raise SettingError("weighting", "update_per", self.update_per, expected, bound)
        if self.scheme.endswith("_share") and self.exponent == 0:
            expected = (
                f"not 0 for scheme {self.scheme}, whose weights would all be 1 (1: the share)"
            )
            raise SettingError("weighting", "exponent", self.exponent, expected, None)

    def of(self, task: TaskName) -> TaskConfig:
        """Return the settings of one task: the field of its name."""
        found: TaskConfig = getattr(self, task)
        return found

    def initial(self) -> dict[TaskName, float]:
        """Return p(y=1) of each task before any sample."""
        return {task: self.of(task).prior.initial for task in TASKS}

    def first_scheme(self) -> Scheme:
        """Return the scheme that is in force before any sample."""
        if isinstance(self.exponent, str):
            return next(iter(parse_candidates(self.competition.candidates).values()))
        return make_scheme(self.scheme, self.exponent)

    @property
    def reweighed_by(self) -> tuple[str, float | str] | None:
        """Setting and value by which labels count more or less; None if by corrections alone."""
        if self.exponent == AUTO:  # candidates compete, whatever the scheme is
            return "exponent", self.exponent
        if self.scheme == "uniform" or (self.scheme == DEFAULT and self.exponent == 0):
            return None
        if self.scheme == DEFAULT:
            return "exponent", self.exponent
        return "scheme", self.scheme

    def on_disk(self) -> dict[str, Any]:
        """Return the settings under the names that a version's files use for them."""
        plain: dict[str, Any] = _renamed(msgspec.to_builtins(self), _ON_DISK)
        if self.scheme == DEFAULT:  # versions older than the setting have none
            del plain["scheme"]
        if self.update_per == "list":  # as these have none of this one
            del plain["update_per"]
        if self.exponent != AUTO:
            del plain["competition"]
        return plain

    @classmethod
    def from_disk(cls, plain: Mapping[str, Any]) -> WeigherConfig:
        """Return the settings that `on_disk` wrote."""
        names = {written: name for name, written in _ON_DISK.items()}
        return msgspec.convert(_renamed(plain, names), cls)


def _renamed(plain: Any, names: Mapping[str, str]) -> Any:
    """A tree of mappings with some of its keys renamed."""
    if not isinstance(plain, Mapping):
        return plain
    return {names.get(key, key): _renamed(value, names) for key, value in plain.items()}
