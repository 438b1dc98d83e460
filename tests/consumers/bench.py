"""A pipeline over a log in memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry

from consumers.dead_letter import DeadLetters
from consumers.exclusion import Exclusions
from consumers.joining.join import JoinConfig
from consumers.pipeline import BatchConfig, Pipeline, Topics
from consumers.reading.growth import CARRY
from consumers.reading.reader import STOP
from consumers.telemetry import Telemetry
from tests.consumers.oracle import Outcome, oracle
from tests.consumers.shop import WINDOWS
from tests.fakes.clock import ManualClock
from tests.fakes.log import Log, Shelf
from weighting.sample import Batch, Sample


@dataclass
class Bench:
    """A pipeline with everything that it was given."""

    log: Log
    topics: Topics = field(default_factory=lambda: Topics(items=None))
    join: JoinConfig = WINDOWS
    batch: BatchConfig = field(default_factory=lambda: BatchConfig(size=7, flush_seconds=1e9))
    clock: ManualClock = field(default_factory=ManualClock)
    shelf: Shelf = field(default_factory=Shelf)
    excluded: Exclusions | None = None
    on_gap: str = STOP
    retention_seconds: Mapping[str, float] = field(default_factory=dict)
    counts: Mapping[str, int] | None = None
    world: int = 1
    on_new_partitions: str = CARRY

    def __post_init__(self) -> None:
        self.registry = CollectorRegistry()
        telemetry = Telemetry(self.registry)
        self.dead_letters = DeadLetters(self.shelf, "steelyard.deadletter", telemetry)
        self.pipeline = Pipeline(
            self.log,
            topics=self.topics,
            join=self.join,
            batch=self.batch,
            clock=self.clock,
            dead_letters=self.dead_letters,
            telemetry=telemetry,
            excluded=self.excluded,
            on_gap=self.on_gap,
            retention_seconds=self.retention_seconds,
            counts=self.counts,
            world=self.world,
            on_new_partitions=self.on_new_partitions,
        )

    def live(self) -> Iterator[Batch]:
        """Batches until the log is read to its end."""
        for batch in self.pipeline.batches():
            if isinstance(batch, Batch):
                yield batch
            elif self.log.exhausted:
                return
            else:
                # A partition that is read to its end must not hold paused ones for ever.
                self.clock.advance(1)

    def run(self, until_us: int | None = 2**60) -> list[Sample]:
        """All samples, with every window closed."""
        samples = [sample for batch in self.live() for sample in batch.samples]
        return samples + [
            sample for batch in self.pipeline.drain(until_us) for sample in batch.samples
        ]

    def count(self, name: str, **labels: str) -> float:
        """A series, summed over the labels that are not given."""
        return sum(
            sample.value
            for family in self.registry.collect()
            for sample in family.samples
            if sample.name == f"steelyard_{name}" and labels.items() <= sample.labels.items()
        )


def expected(log: Log) -> Outcome:
    """Samples and unreadable records of a whole log, under the same windows."""
    return oracle(
        log.records,
        click_window_us=WINDOWS.click_window_us,
        observation_window_us=WINDOWS.observation_window_us,
        attribution_window_us=WINDOWS.attribution_window_us,
        grace_us=WINDOWS.grace_us,
    )
