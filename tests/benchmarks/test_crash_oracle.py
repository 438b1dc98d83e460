"""The oracle of the crash benchmark and the pipeline agree on a log without any crash."""

from __future__ import annotations

from itertools import islice
from random import Random

import pytest

from benchmarks.crashing.log import NUM_PARTITIONS, SECOND, TOPICS, Write, invent, last_events
from benchmarks.crashing.oracle import WINDOWS_US, expected_samples
from consumers.joining.join import JoinConfig
from consumers.kafka.admin import partition_of
from tests.consumers.bench import Bench
from tests.fakes.log import Log


def logged(writes: list[Write]) -> Log:
    log = Log([(topic, p) for topic in TOPICS for p in range(NUM_PARTITIONS)])
    for write in writes:
        key = write.client.encode()
        partition = partition_of(key, NUM_PARTITIONS)
        at_us = int(write.at_us)
        log.append(write.topic, partition, write.value, key=key, timestamp_us=at_us)
    return log


@pytest.mark.parametrize("num_writes", [150, 300, 450, 600])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_oracle_agrees_with_the_pipeline_wherever_the_log_ends(
    seed: int, num_writes: int
) -> None:
    writes = list(islice(invent(Random(seed)), num_writes))
    end_us = int(writes[-1].at_us) + 86_400 * SECOND
    for number in range(NUM_PARTITIONS):
        writes += last_events(number, NUM_PARTITIONS, end_us)
    log = logged(writes)
    windows = {f"{name}_us": seconds * SECOND for name, seconds in WINDOWS_US.items()}
    bench = Bench(log, join=JoinConfig(**windows))
    samples = [sample for batch in bench.live() for sample in batch.samples]
    left = [sample for batch in bench.pipeline.drain(end_us - SECOND) for sample in batch.samples]
    found = {sample.sample_id for sample in samples + left}
    assert found == expected_samples(log.records).keys()
