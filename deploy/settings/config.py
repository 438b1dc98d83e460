"""Configs that combine those of several owners: the log and the server."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from msgspec import Meta

from consumers.dead_letter import Policy
from consumers.kafka.options import KafkaConfig
from consumers.pipeline import Topics
from deploy.roles.connections import ConnectionConfig
from serving.cors import CorsConfig
from serving.inference.batcher import BatcherConfig
from serving.inference.scoring import Limits
from serving.rollout.gate import GateConfig
from serving.rollout.watcher import WatcherConfig
from weighting.constraints import NotNegative, Port, SettingError, Text, check


@dataclass(frozen=True, slots=True, kw_only=True)
class LogConfig(KafkaConfig):
    """Access to the brokers, and the topics."""

    group_id: Annotated[
        Text, Meta(description="Group of the advisory commits, for lag dashboards only.")
    ] = "steelyard"
    dead_letters: Annotated[
        Policy,
        Meta(
            description="Unreadable records: none stops at the first, data sets them aside but "
            "stops at a flood, all sets them aside."
        ),
    ] = "data"
    on_gap: Annotated[
        Literal["stop", "record"],
        Meta(
            description="Records that retention deleted unread: stop, or read on and record the "
            "gap in every later manifest."
        ),
    ] = "stop"
    on_new_partitions: Annotated[
        Literal["carry", "stop"],
        Meta(
            description="Partitions added to the topics: carry what is open over and read them, "
            "too, once all topics of events have as many, or stop with code 3."
        ),
    ] = "carry"
    stall_seconds: Annotated[
        float,
        Meta(
            ge=5,
            description="Wait of unread records, steps not counted, before the consumer is "
            "rebuilt; after twice that the process ends with code 75.",
        ),
    ] = 60.0
    topics: Topics = field(default_factory=Topics)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServingConfig:
    """Address, limits and batching of the server."""

    host: Annotated[str, Meta(description="Address to listen on.")] = "127.0.0.1"
    port: Annotated[Port, Meta(description="Port to listen on; 0 takes a free one.")] = 8080
    device: Annotated[
        Text, Meta(description="Torch device of the versions served, such as cpu or cuda.")
    ] = "cpu"
    engine: Annotated[
        Literal["torch", "openvino"],
        Meta(
            description="What runs the encoder: torch, or OpenVINO on a CPU, where its int8 needs "
            "AVX-VNNI alone and takes more families (pip install 'steelyard[openvino]')."
        ),
    ] = "torch"
    precision: Annotated[
        Literal["learned", "float32", "bfloat16", "int8"],
        Meta(
            description="Of the encoder's products: as learner.precision was, another, or 8-bit "
            "integers, which are faster on processors with AVX512-VNNI and cost some order."
        ),
    ] = "learned"
    drain_seconds: Annotated[
        NotNegative, Meta(description="Time for requests in flight after a signal.")
    ] = 10.0
    connections: ConnectionConfig = field(default_factory=ConnectionConfig)
    cors: CorsConfig = field(default_factory=CorsConfig)
    limits: Limits = field(default_factory=Limits)
    batcher: BatcherConfig = field(default_factory=BatcherConfig)
    watcher: WatcherConfig = field(default_factory=WatcherConfig)
    gate: GateConfig = field(default_factory=GateConfig)

    def __post_init__(self) -> None:
        """Check every field."""
        check(self, "serving")
        if self.precision == "int8" and self.device != "cpu":
            bound = ("device", self.device)
            raise SettingError("serving", "precision", self.precision, "learned with", bound)
        if self.engine != "torch" and self.device != "cpu":
            bound = ("device", self.device)
            raise SettingError("serving", "engine", self.engine, "torch with", bound)
