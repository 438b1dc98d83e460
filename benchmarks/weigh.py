"""Speed of `Weigher.weigh`, and of `pair_memory_logits` for 40 documents, on one core.

    python -m benchmarks.weigh [--num-samples N] [--batch-size N] [--repeats N] [--model NAME]

Seconds are CPU seconds of this one thread, so that a busy machine does not count. Both kinds of
`weighting.update_per` weigh the same batches in turn, from untrained; the ratio is that of all
seconds of a round. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

import numpy as np

from weighting.config import WeigherConfig
from weighting.estimators.conditional import ConditionalConfig
from weighting.estimators.models import DEFAULT
from weighting.provenance import Position
from weighting.sample import Attribute, CopyKind, Sample
from weighting.tasks import CLICK, PURCHASE, TaskName
from weighting.weigher import Weigher

UpdatePer = Literal["list", "batch"]
_WORDS = (
    "red blue shoe shoes lamp desk oak steel small large running garden phone case cotton men"
).split()
_SECOND_US = 1_000_000
_WINDOW_US = 900 * _SECOND_US
_WEEK_US = 7 * 86_400 * _SECOND_US


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """A document to score."""

    id: str
    text: str
    attributes: dict[str, Attribute] = field(default_factory=dict)


def samples(n: int, seed: int = 0) -> list[Sample]:
    """N samples of lists of ten; a clicked one goes on to the purchase task."""
    rng = np.random.default_rng(seed)
    items = [_item(i, rng) for i in range(5000)]
    queries = [" ".join(rng.choice(_WORDS, 3)) for _ in range(500)]
    stream: list[Sample] = []
    while len(stream) < n:
        at = len(stream) * _SECOND_US
        query = queries[int(rng.integers(len(queries)))]
        for position, i in enumerate(rng.integers(len(items), size=10), 1):
            click = bool(rng.random() < 0.3 / position)
            for task in (CLICK, PURCHASE) if click else (CLICK,):
                label = int(click if task == CLICK else rng.random() < 0.1)
                number = str(len(stream))
                stream.append(_sample(number, task, label, query, items[i], position, at))
    return stream[:n]


def _item(i: int, rng: np.random.Generator) -> Item:
    text = " ".join(rng.choice(_WORDS, 9))
    price = float(rng.uniform(1, 500))
    attributes: dict[str, Attribute] = {"category": f"c{i % 23}", "brand": f"b{i % 60}"}
    return Item(id=f"SKU-{i}", text=text, attributes={**attributes, "price": price})


def _sample(
    sample_id: str, task: TaskName, label: int, query: str, item: Item, position: int, at_us: int
) -> Sample:
    return Sample(
        sample_id=sample_id,
        task=task,
        copy_kind=CopyKind.FIRST,
        label=label,
        list_id=f"q{at_us}",
        list_size=10,
        client=0,
        query=query,
        item_id=item.id,
        text=item.text,
        attributes=dict(item.attributes),  # as decoded, each with its own
        position=position,
        shown_us=at_us,
        event_time_us=at_us,
        elapsed_us=_WINDOW_US,
        delay_us=None,
        window_us=_WINDOW_US,
        attribution_us=_WEEK_US,
        inferred=False,
        positions=(Position("exposures", 0, at_us),),
    )


def _seconds(run: Callable[[], object]) -> float:
    """CPU seconds of one call."""
    started = time.process_time()
    run()
    return time.process_time() - started


def _rounds(
    stream: list[Sample], batch_size: int, model: str, repeats: int
) -> tuple[dict[UpdatePer, list[float]], Weigher]:
    """CPU seconds of each round by kind, the kinds in turn batch by batch, and one by list."""
    kinds: tuple[UpdatePer, ...] = ("list", "batch") if model == DEFAULT else ("list",)
    conditional = ConditionalConfig(model=model)
    times: dict[UpdatePer, list[float]] = {kind: [] for kind in kinds}
    for _ in range(repeats):
        weighers = {
            kind: Weigher(WeigherConfig(conditional=conditional, update_per=kind)) for kind in kinds
        }
        for own in times.values():
            own.append(0.0)
        for i in range(0, len(stream), batch_size):
            batch = stream[i : i + batch_size]
            for kind, weigher in weighers.items():
                times[kind][-1] += _seconds(partial(weigher.weigh, batch))
    return times, weighers["list"]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--num-samples", type=int, default=40_000)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--model", default=DEFAULT, help="weighting.conditional.model")
    arguments = parser.parse_args()
    stream, batch_size = samples(arguments.num_samples), arguments.batch_size
    model = arguments.model

    times, weigher = _rounds(stream, batch_size, model, arguments.repeats)
    each_us = {kind: [round(1e6 * t / len(stream), 2) for t in own] for kind, own in times.items()}
    ratios = [a / b for a, b in zip(times["list"], times.get("batch", []), strict=False)]
    rates = [len(stream) / seconds for seconds in times["list"]]
    query = stream[0].query
    documents = [Item(id=s.item_id, text=s.text, attributes=s.attributes) for s in stream[:40]]
    asking = [
        _seconds(lambda: weigher.pair_memory_logits(CLICK, query, documents)) for _ in range(200)
    ]
    saving = _seconds(weigher.snapshot)
    result = {
        "benchmark": "weigh",
        "model": model,
        "batch_size": batch_size,
        "num_samples": len(stream),
        "samples_per_second": round(float(np.median(rates))),
        "samples_per_second_all": [round(rate) for rate in rates],
        "us_per_sample": each_us,
        "list_over_batch": [round(ratio, 3) for ratio in ratios],
        "pair_memory_logits_40_documents_ms": round(1e3 * float(np.median(asking)), 3),
        "snapshot_bytes": len(weigher.snapshot()),
        "snapshot_ms": round(1e3 * saving, 1),
        "python": platform.python_version(),
        "machine": platform.machine(),
        "cores": os.cpu_count(),
    }
    medians = ", ".join(f"per {k} {np.median(own):.1f}" for k, own in each_us.items())
    ratio = f"; list over batch {np.median(ratios):.2f}" if ratios else ""
    print(f"weigh: us a sample at batches of {batch_size}: {medians}{ratio}; one core")
    print(json.dumps(result, sort_keys=True))


if __name__ == "__main__":
    main()
