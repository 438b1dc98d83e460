"""Events per second from a broker to samples on one core, and what bounds it.

    python -m benchmarks.ingest [--events N] [--bootstrap-servers H:P] [--repeats N]

Without an address it starts a broker from packages. The mix is that of a search page: exposures of
ten hits, 0.8 clicks per exposure and 0.15 purchases per click, keyed by client, in four partitions;
all windows close, so that every sample is emitted. Broker and client share the machine, so both
wall-clock and CPU seconds of this process are reported. The last line is JSON.
"""

from __future__ import annotations

import argparse
import contextlib
import cProfile
import json
import os
import platform
import pstats
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

from prometheus_client import CollectorRegistry

from consumers.dead_letter import DeadLetters
from consumers.events import encode_click, encode_exposure, encode_purchase
from consumers.joining.join import JoinConfig
from consumers.kafka.admin import KafkaAdmin
from consumers.kafka.options import KafkaConfig
from consumers.kafka.sink import KafkaSink
from consumers.kafka.source import KafkaSource
from consumers.pipeline import BatchConfig, Pipeline, Topics
from consumers.telemetry import Telemetry
from deploy.broker.node import Broker
from weighting.sample import Batch

NUM_PARTITIONS = 4
NUM_HITS = 10
START_US = 1_700_000_000_000_000
#: Grace is short against the span of the log, so that events wait about as they do live.
JOIN = JoinConfig(grace_us=5_000_000)

#: Where time goes, by the file that spends it; the rest is `other`.
STAGES = {
    "client": ("/kafka/", "kafka/source.py"),
    "decode": ("codec.py",),
    "clock and dedup": ("/clock.py", "dedup.py"),
    "join": ("consumers/joining/",),
    "pipeline": ("pipeline.py", "assembler.py", "consumers/reading/"),
    "telemetry": ("telemetry.py", "reporting.py", "/prometheus_client/"),
}
_WAITING = ("acquire", "select", "poll", "sleep")


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One pass over the log."""

    num_samples: int
    wall_seconds: float
    cpu_seconds: float


def shop(num_events: int, topics: Topics) -> Iterator[tuple[str, bytes, bytes]]:
    """Yield topic, key and value in the order of event time."""
    random = Random(7)
    written: list[tuple[int, str, bytes, bytes]] = []
    time_us = START_US
    catalogue = [f"SKU-{n:05d}" for n in range(5000)]
    assert topics.exposures is not None
    while len(written) < num_events:
        time_us += 10_000
        client, query_id = f"c-{random.randrange(5000)}", f"{random.getrandbits(128):032x}"
        key, hits = client.encode(), random.sample(catalogue, NUM_HITS)
        shown = encode_exposure(
            query_id=query_id,
            client_id=client,
            time_us=time_us,
            user_query="red running shoes",
            hits=hits,
        )
        written.append((time_us, topics.exposures, key, shown))
        for ordinal, item in enumerate(hits, 1):
            if random.random() < 0.08:
                at_us, event_id = (
                    time_us + random.randrange(30_000_000),
                    f"{random.getrandbits(100):026x}",
                )
                click = encode_click(
                    query_id=query_id,
                    client_id=client,
                    object_id=item,
                    time_us=at_us,
                    event_id=event_id,
                    ordinal=ordinal,
                )
                written.append((at_us, topics.clicks, key, click))
                if random.random() < 0.15:
                    at_us, event_id = (
                        at_us + random.randrange(600_000_000),
                        f"{random.getrandbits(100):026x}",
                    )
                    bought = encode_purchase(
                        query_id=query_id,
                        client_id=client,
                        object_id=item,
                        time_us=at_us,
                        event_id=event_id,
                    )
                    written.append((at_us, topics.purchases, key, bought))
    written.sort()
    for _, topic, key, value in written[:num_events]:
        yield topic, key, value


def fill(config: KafkaConfig, topics: Topics, num_events: int) -> None:
    """Write the log."""
    with KafkaAdmin(config) as admin:
        for topic in topics.kinds():
            admin.create_topic(topic, NUM_PARTITIONS)
    sink = KafkaSink(config, list(topics.kinds()), flush_timeout_seconds=600).start()
    for topic, key, value in shop(num_events, topics):
        sink.send(topic, key, value)
    sink.flush()
    sink.close()


class _Nowhere:
    def send(self, *_: object) -> None:
        raise AssertionError("this log has no dead letters")

    def flush(self) -> None:
        pass


def ingest(config: KafkaConfig, topics: Topics, num_events: int) -> Run:
    """Read the log from its beginning until every sample is out."""
    telemetry = Telemetry(CollectorRegistry())
    source = KafkaSource(config, list(topics.kinds())).start()
    pipeline = Pipeline(
        source,
        topics=topics,
        join=JOIN,
        batch=BatchConfig(size=256),
        clock=time.time,
        dead_letters=DeadLetters(_Nowhere(), topics.dead_letter, telemetry),
        telemetry=telemetry,
    )
    num_samples = 0
    wall, cpu = time.perf_counter(), time.process_time()
    for batch in pipeline.batches():
        if isinstance(batch, Batch):
            num_samples += len(batch.samples)
        elif sum(pipeline.next_offsets().values()) == num_events:
            break
    for batch in pipeline.drain(2**60):
        num_samples += len(batch.samples)
    run = Run(
        num_samples=num_samples,
        wall_seconds=time.perf_counter() - wall,
        cpu_seconds=time.process_time() - cpu,
    )
    source.close()
    return run


def split(profile: cProfile.Profile) -> dict[str, float]:
    """Return the share of each stage in the profiled time of the joining thread.

    A builtin counts for its caller; waiting counts for no stage.
    """
    seconds = dict.fromkeys((*STAGES, "other"), 0.0)

    def add(file: str, own_seconds: float) -> None:
        seconds[
            next(
                (stage for stage, marks in STAGES.items() if any(mark in file for mark in marks)),
                "other",
            )
        ] += own_seconds

    for (file, _, function), (_, _, own_seconds, _, callers) in pstats.Stats(profile).stats.items():  # type: ignore[attr-defined]
        if file != "~":
            add(file, own_seconds)
        elif not any(word in function for word in _WAITING):
            for (caller, _, _), (_, _, for_caller_seconds, _) in callers.items():
                add(caller, for_caller_seconds)
    total = sum(seconds.values())
    return {stage: round(own / total, 3) for stage, own in seconds.items()}


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--events", type=int, default=100_000)
    parser.add_argument("--bootstrap-servers", default=None)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    tag = uuid.uuid4().hex[:8]
    topics = Topics(
        exposures=f"exposures-{tag}",
        clicks=f"clicks-{tag}",
        purchases=f"purchases-{tag}",
        items=None,
    )
    with contextlib.ExitStack() as stack:
        address = arguments.bootstrap_servers or stack.enter_context(Broker()).bootstrap_servers
        config = KafkaConfig(bootstrap_servers=address)
        fill(config, topics, arguments.events)
        runs = [ingest(config, topics, arguments.events) for _ in range(arguments.repeats)]
        profile = cProfile.Profile()
        profile.enable()
        ingest(config, topics, arguments.events)
        profile.disable()
    best = min(runs, key=lambda run: run.wall_seconds)
    shares = split(profile)
    report = {
        "benchmark": "ingest",
        "num_events": arguments.events,
        "num_samples": best.num_samples,
        "events_per_second": round(arguments.events / best.wall_seconds),
        "events_per_cpu_second": round(arguments.events / min(run.cpu_seconds for run in runs)),
        "all_events_per_second": [round(arguments.events / run.wall_seconds) for run in runs],
        "samples_per_event": round(best.num_samples / arguments.events, 2),
        "shares": shares,
        "bound": max(shares, key=lambda stage: shares[stage]),
        "num_cpus": os.cpu_count(),
        "load": os.getloadavg()[0],
        "machine": platform.machine(),
        "python": platform.python_version(),
    }
    rate, samples = report["events_per_second"], report["samples_per_event"]
    print(f"{rate:,} events/s from broker to samples, {samples} samples per event")
    rate = report["events_per_cpu_second"]
    print(f"{rate:,} events per CPU second of this process, client thread included")
    for stage, share in shares.items():
        print(f"  {share:6.1%}  {stage}")
    print(json.dumps(report))


if __name__ == "__main__":
    main()
