"""Configs that put together those of several owners: the log with its topics, and the server with its parts."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from consumers.dead_letter import Policy
from consumers.kafka.options import KafkaConfig
from consumers.pipeline import Topics
from serving.inference.batcher import BatcherConfig
from serving.inference.scoring import Limits
from serving.rollout.watcher import WatcherConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class LogConfig(KafkaConfig):
    """How the brokers are reached, and which topic carries what.

    Attributes:
        group_id: of the advisory commits that lag dashboards read; we never do.
        dead_letters: none - stop at the first record that cannot be read; data - set aside, but stop at a flood; all - set aside.
        on_gap: stop - when retention deleted records before they were read; record - go on behind them, named in every later manifest.
        stall_seconds: how long records may wait with none read before the consumer is built anew; twice that, and the process ends (75).
    """

    group_id: str = "steelyard"
    dead_letters: Policy = "data"
    on_gap: Literal["stop", "record"] = "stop"
    stall_seconds: float = 60.0
    topics: Topics = field(default_factory=Topics)

    def __post_init__(self) -> None:
        """Refuse a watchdog that would bark at every poll.

        Raises:
            ValueError: names key, value and expectation.
            OptionRefused: an option that the guarantee depends on was overridden.
        """
        KafkaConfig.__post_init__(self)
        if self.stall_seconds < 5:
            raise ValueError(
                f"kafka.stall_seconds: got {self.stall_seconds!r}, expected a number >= 5"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class ServingConfig:
    """Where to listen, and how to answer.

    Attributes:
        host: address to listen on.
        port: the same; 0 takes a free one.
        drain_seconds: how long requests in flight may take after a signal.
    """

    host: str = "127.0.0.1"
    port: int = 8080
    drain_seconds: float = 10.0
    limits: Limits = field(default_factory=Limits)
    batcher: BatcherConfig = field(default_factory=BatcherConfig)
    watcher: WatcherConfig = field(default_factory=WatcherConfig)

    def __post_init__(self) -> None:
        """Refuse what is no port.

        Raises:
            ValueError: names key, value and expectation.
        """
        if not 0 <= self.port <= 65535:
            raise ValueError(f"serving.port: got {self.port!r}, expected a port from 0 to 65535")
