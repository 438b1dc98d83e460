"""Samples per second of `Weigher.weigh`, and milliseconds of `memory_logits` for 40 documents, on one core.

    python -m benchmarks.weigh [--num-samples N] [--batch-size N] [--repeats N]

Seconds are CPU seconds of this one thread, so that a busy machine does not count. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from dataclasses import dataclass, field

import numpy as np

from weighting.provenance import Position
from weighting.sample import Attribute, CopyKind, Sample
from weighting.tasks import CLICK, PURCHASE
from weighting.weigher import Weigher, WeigherConfig

_WORDS = (
    "red",
    "blue",
    "shoe",
    "shoes",
    "lamp",
    "desk",
    "oak",
    "steel",
    "small",
    "large",
    "running",
    "garden",
    "phone",
    "case",
    "cotton",
    "men",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """A document to score."""

    id: str
    text: str
    attributes: dict[str, Attribute] = field(default_factory=dict)


def samples(n: int, seed: int = 0) -> list[Sample]:
    """A stream of shown lists of ten, one in ten of its samples a click that goes on to the purchase task."""
    rng = np.random.default_rng(seed)
    items = [
        Item(
            id=f"SKU-{i}",
            text=" ".join(rng.choice(_WORDS, 9)),
            attributes={
                "category": f"c{i % 23}",
                "brand": f"b{i % 60}",
                "price": float(rng.uniform(1, 500)),
            },
        )
        for i in range(5000)
    ]
    queries = [" ".join(rng.choice(_WORDS, 3)) for _ in range(500)]
    stream: list[Sample] = []
    while len(stream) < n:
        at = len(stream) * 1_000_000
        query = queries[int(rng.integers(len(queries)))]
        for position, i in enumerate(rng.integers(len(items), size=10), 1):
            click = bool(rng.random() < 0.3 / position)
            for task in (CLICK, PURCHASE) if click else (CLICK,):
                stream.append(
                    Sample(
                        sample_id=f"{len(stream)}",
                        task=task,
                        copy_kind=CopyKind.FIRST,
                        label=int(click if task == CLICK else rng.random() < 0.1),
                        list_id=f"q{at}",
                        list_size=10,
                        query=query,
                        item_id=items[i].id,
                        text=items[i].text,
                        attributes=items[i].attributes,
                        position=position,
                        shown_us=at,
                        event_time_us=at,
                        elapsed_us=900_000_000,
                        delay_us=None,
                        window_us=900_000_000,
                        attribution_us=604_800_000_000,
                        inferred=False,
                        positions=(Position("exposures", 0, at),),
                    )
                )
    return stream[:n]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--num-samples", type=int, default=40_000)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    stream = samples(arguments.num_samples)

    rates = []
    for _ in range(arguments.repeats):
        weigher = Weigher(WeigherConfig())
        started = time.process_time()
        for i in range(0, len(stream), arguments.batch_size):
            weigher.weigh(stream[i : i + arguments.batch_size])
        rates.append(len(stream) / (time.process_time() - started))

    documents = [Item(id=s.item_id, text=s.text, attributes=s.attributes) for s in stream[:40]]
    times = []
    for _ in range(200):
        started = time.process_time()
        weigher.memory_logits(CLICK, stream[0].query, documents)
        times.append(1e3 * (time.process_time() - started))

    started = time.process_time()
    snapshot = weigher.snapshot()
    result = {
        "benchmark": "weigh",
        "batch_size": arguments.batch_size,
        "num_samples": len(stream),
        "samples_per_second": round(float(np.median(rates))),
        "samples_per_second_all": [round(rate) for rate in rates],
        "memory_logits_40_documents_ms": round(float(np.median(times)), 3),
        "snapshot_bytes": len(snapshot),
        "snapshot_ms": round(1e3 * (time.process_time() - started), 1),
        "python": platform.python_version(),
        "machine": platform.machine(),
        "cores": os.cpu_count(),
    }
    print(
        f"weigh: {result['samples_per_second']:,} samples/s at batch {arguments.batch_size}; one core"
    )
    print(json.dumps(result, sort_keys=True))


if __name__ == "__main__":
    main()
