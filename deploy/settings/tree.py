"""All settings of all roles, as a tree of configs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from consumers.joining.join import JoinConfig
from deploy.process.observability import ObservabilityConfig
from deploy.settings.config import LogConfig, ServingConfig
from learner.config import LearnerConfig, StoreConfig
from learner.tracking.config import TrackingConfig
from weighting.config import WeigherConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Configs of all roles.

    Attributes:
        origins: key -> the file, variable or command line that set it.
    """

    kafka: LogConfig = field(default_factory=LogConfig)
    join: JoinConfig = field(default_factory=JoinConfig)
    weighting: WeigherConfig = field(default_factory=WeigherConfig)
    learner: LearnerConfig = field(default_factory=LearnerConfig)
    serving: ServingConfig = field(default_factory=ServingConfig)
    store: StoreConfig = field(default_factory=StoreConfig)
    observability: ObservabilityConfig = field(default_factory=ObservabilityConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    origins: Mapping[str, str] = field(default_factory=dict, repr=False, compare=False)
