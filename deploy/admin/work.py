"""Work ahead of a learner: steps, samples and seconds, by journal, manifests and measured rate."""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from deploy.admin import lineage
from learner.artifact import Store, Version
from learner.store.blobs import Disk
from learner.store.journal.records import Step
from learner.store.journal.tail import read_tail
from weighting.provenance import TopicPartition


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """Steps and samples to be learned.

    Attributes:
        num_steps: number of steps.
        num_samples: number of samples.
        samples_per_second: measured; None where it is not known.
    """

    num_steps: int
    num_samples: int
    samples_per_second: float | None

    @property
    def seconds(self) -> float | None:
        """Time that it takes; None where the rate is not known."""
        rate = self.samples_per_second
        return self.num_samples / rate if rate else None

    def to_json(self) -> dict[str, float | int | None]:
        """Return it as plain values."""
        return {
            "steps": self.num_steps,
            "samples": self.num_samples,
            "seconds": self.seconds,
            "samples_per_second": self.samples_per_second,
        }

    def text(self) -> str:
        """Return it as the end of a sentence."""
        counted = f"{self.num_steps:,} steps, {self.num_samples:,} samples"
        if self.seconds is None:
            return counted
        rate = self.samples_per_second or 0.0
        return f"{counted}, about {self.seconds:,.0f} s at the measured {rate:,.0f} samples/s"


def work(
    chain: Sequence[Version],
    topics: Collection[str],
    *,
    num_records: int = 0,
    num_steps: int = 0,
    num_samples: int = 0,
) -> Work:
    """Return known steps and samples, and those that records should bring.

    Args:
        chain: the newest version and those before it.
        topics: of events.
        num_records: of which the samples are not known.
        num_steps: known steps.
        num_samples: their samples.
    """
    expected = num_records * samples_per_record(chain, topics)
    return Work(
        num_steps=num_steps + math.ceil(expected / samples_per_step(chain)),
        num_samples=num_samples + round(expected),
        samples_per_second=samples_per_second(chain),
    )


def journaled(
    store: Store, version: Version, head: Version
) -> tuple[int, int, dict[TopicPartition, int]] | None:
    """Return the steps and samples that the journal has after a version, and where they end.

    None where it does not continue the version.
    """
    start = version.journal
    if start is None or not any(span.holds(start.place) for span in head.timeline):
        return None
    tail = read_tail(store.root, Disk(), head.timeline, start.place)
    steps = [record for _, record in tail.records if isinstance(record, Step)]
    slices = [
        part
        for step in steps
        for of_rank in step.parts
        for poll in of_rank.polls
        for part in poll.slices
    ]
    ends = {(part.topic, part.partition): part.end for part in slices}
    return len(steps), sum(step.num_samples for step in steps), ends


def samples_per_record(chain: Sequence[Version], topics: Collection[str]) -> float:
    """Return how many samples one event has brought, on average; 0 where nothing is known."""
    for version in chain:
        audits = lineage.audits(version)
        num_records = sum(one.num_records for (topic, _), one in audits.items() if topic in topics)
        if num_records:
            return version.num_samples / num_records
    return 0.0


def samples_per_step(chain: Sequence[Version]) -> float:
    """Return how many samples one step has had, on average; 1 where nothing is known."""
    found = next((version for version in chain if version.step and version.num_samples), None)
    return found.num_samples / found.step if found else 1.0


def samples_per_second(chain: Sequence[Version]) -> float | None:
    """Return the rate of learning that the newest version measured.

    Where none did, the highest rate between a version and its parent, which may have idled.
    """
    for version in chain:
        measured = float(version.manifest.get("samples_per_second", 0.0))
        if measured > 0:
            return measured
    rates = [
        (later.num_samples - earlier.num_samples) / seconds
        for later, earlier in itertools.pairwise(chain)
        if (seconds := (later.created_us - earlier.created_us) / 1e6) > 0
    ]
    return max((rate for rate in rates if rate > 0), default=None)


def num_beyond(until: Mapping[TopicPartition, int], reached: Mapping[TopicPartition, int]) -> int:
    """Return the number of records between offsets."""
    return sum(max(0, end - reached.get(tp, end)) for tp, end in until.items())
