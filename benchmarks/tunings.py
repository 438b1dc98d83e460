"""Ways of fine-tuning compared: parameters that move, speed, quality, bytes and time of a version.

    python -m benchmarks.tunings [--dataset NAME --source DIR] [--lists N] [--queries N]
        [--seed N] [--set KEY=VALUE] [TUNING[,LEARNING_RATE] ...]

Each learns the same lists, and is judged on the same queries that are kept for choosing: NDCG@10 of
the encoder alone and of the served score, with the difference to the first one named and its
bootstrap interval over queries. Then it publishes six versions, a step apart. Of the last four:
what a version adds to the disk, how long the learner halts, and how long it takes after that, in
the background, until the version is durable and announced. Speed is in samples per CPU second,
which other work on the machine changes less. The last line on standard output is one JSON object.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.learning import say
from benchmarks.learning_data.dataset import Dataset, shortened, texts
from benchmarks.learning_data.ready import INVENTED, NAMES, Request, load_ready
from benchmarks.learning_judging.metrics import ndcg
from benchmarks.learning_judging.product import Learner
from benchmarks.learning_judging.zero_shot import untrained
from deploy.demo.judge import interval
from deploy.settings.load import load
from learner.config import LearnerConfig
from learner.store.blobs import Disk
from learner.store.checkpoint import Checkpointer
from tests.learner.saving import cut, start

_METHODS = ("top:1", "lora:8,1e-3", "lora:8@top:1,1e-3", "ia3,1e-2", "frozen", "full")
_NUM_VERSIONS = 6
_JUDGED = ("encoder", "served")


def measure(
    method: str, dataset: Dataset, sets: Mapping[str, str]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Learn, judge and publish under one tuning; return its row, and NDCG@10 of each query."""
    tuning, _, rate = method.partition(",")
    own = {"learner.tuning": tuning, **({"learner.lr": rate} if rate else {})}
    learner = Learner(load(None, {}, {**sets, **own}), dataset.items)
    learner.learn(dataset.lists)
    cost = dataclasses.replace(learner.cost)
    figures = judged(learner, dataset)
    parameters = learner.trainer.ranker.encoder.trainable_parameters()
    row = {
        "tuning": tuning,
        "learning_rate": learner.trainer.config.lr,
        "parameters": sum(parameter.numel() for parameter in parameters),
        "samples": cost.num_samples,
        "samples_per_cpu_second": round(cost.num_samples / cost.cpu_seconds, 1),
        "encoder_cpu_seconds": round(cost.encoder_cpu_seconds, 1),
        **{name: round(float(values.mean()), 4) for name, values in figures.items()},
        **versions(learner, dataset),
    }
    return row, figures


def judged(learner: Learner, dataset: Dataset) -> dict[str, Any]:
    """Return NDCG@10 of each query, by the encoder alone and as served."""
    moved = learner.encoder()
    moved.encode(texts(dataset.items, dataset.judged))
    found: dict[str, list[float]] = {name: [] for name in _JUDGED}
    with learner.scorer() as served:
        for query in dataset.judged:
            candidates = [dataset.items[item].text for item in query.items]
            found["encoder"].append(ndcg(moved.cosines(query.query, candidates), query.grades))
            found["served"].append(ndcg(served.scores(query.query, query.items), query.grades))
    return {name: np.array(values) for name, values in found.items()}


def versions(learner: Learner, dataset: Dataset) -> dict[str, float]:
    """Publish versions, a step apart; return the medians of the last ones."""
    added, halted, published, known = [], [], [], set[int]()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        checkpointer = Checkpointer(root, Disk(), lambda: 1e9)
        start(checkpointer, root, Disk())
        for step in range(1, _NUM_VERSIONS + 1):
            learner.learn(dataset.lists[:2])
            began = time.perf_counter()
            encode = learner.trainer.copied()
            copied = time.perf_counter()
            version = checkpointer.save(encode(), cut(step))
            checkpointer.announce(version)
            published.append(time.perf_counter() - copied)
            halted.append(copied - began)
            files = [path.lstat() for path in version.path.rglob("*") if path.is_file()]
            added.append(sum(file.st_size for file in files if file.st_ino not in known))
            known |= {file.st_ino for file in files}
    return {
        "bytes_added": statistics.median(added[2:]),
        "halt_ms": round(1e3 * statistics.median(halted[2:]), 1),
        "publish_ms": round(1e3 * statistics.median(published[2:]), 1),
    }


def line(row: Mapping[str, Any]) -> str:
    """Return a row as text."""
    words = [f"{row['tuning']:14} lr {row['learning_rate']:g}  {row['parameters']:>10,} parameters"]
    words.append(f"{row['samples_per_cpu_second']} samples per CPU s")
    for name in _JUDGED:
        value, low, high = row[f"{name}_difference"]
        words.append(f"{name} {row[name]:.4f} ({value:+.4f} [{low:+.4f}, {high:+.4f}])")
    words.append(f"a version adds {row['bytes_added']:,.0f} bytes")
    words.append(f"halt {row['halt_ms']} ms, then {row['publish_ms']} ms")
    return "  ".join(words)


def main() -> None:
    """Print a line per tuning, and all of them as JSON."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("methods", nargs="*", default=_METHODS, metavar="TUNING[,LEARNING_RATE]")
    parser.add_argument("--dataset", choices=NAMES, default=INVENTED)
    parser.add_argument("--source", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--lists", type=int)
    parser.add_argument("--queries", type=int, help="judge the first N only")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="sets")
    options = parser.parse_args()
    request = Request(
        name=options.dataset,
        source=options.source,
        noise="clean",
        seed=options.seed,
        num_lists=options.lists,
        choosing=options.dataset != INVENTED,
    )
    dataset = load_ready(request, lambda q, t: untrained(LearnerConfig()).table(q, t))
    dataset = shortened(dataset, options.lists)
    dataset = dataclasses.replace(dataset, judged=dataset.judged[: options.queries])
    say(f"{len(dataset.lists)} lists, {len(dataset.judged)} judged queries")
    sets = dict(entry.partition("=")[::2] for entry in options.sets)
    rows: list[dict[str, Any]] = []
    reference: dict[str, Any] = {}
    for method in options.methods:
        row, figures = measure(method, dataset, sets)
        reference = reference or figures
        for name in _JUDGED:
            row[f"{name}_difference"] = interval(figures[name] - reference[name])
        rows.append(row)
        print(line(row), flush=True)
    result = {"dataset": dataset.name, "lists": len(dataset.lists), "queries": len(dataset.judged)}
    print(json.dumps({**result, "tunings": rows}))


if __name__ == "__main__":
    main()
