"""What learning a batch at once costs p(y|x): `weighting.update_per` list against batch.

    python -m benchmarks.estimates [--lists N] [--batch-size N] [--kind KIND ...]
    python -m benchmarks.estimates --dataset msrd_movie_search --source DIR [--lists N]

Both kinds of weigher read the same lists in the same batches; each click is predicted before it is
learned. Per stream: log loss of p(y|x) a sample, and its difference, paired by list, with a 95 %
bootstrap interval over lists; clicks expected for one that came; and the mean weight of the ratio
w = p(y|x)/p(y) at exponent 1. The streams without `--dataset` are invented:
`benchmarks.importance_streams`. The last line on standard output is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from benchmarks.importance_streams import KINDS, Stream
from benchmarks.learning_data.ready import ESCI, INVENTED, MOVIES, Request, load_ready
from benchmarks.learning_judging.product import samples_of
from weighting.config import WeigherConfig
from weighting.sample import Sample
from weighting.tasks import CLICK
from weighting.weigher import Weigher

Array = NDArray[np.float64]
UpdatePer = Literal["list", "batch"]
UPDATES: tuple[UpdatePer, UpdatePer] = ("list", "batch")
_NUM_DRAWS = 2_000
_PERCENTILES = (2.5, 97.5)


def batches(lists: Sequence[Sequence[Sample]], size: int) -> Iterator[list[Sample]]:
    """Yield batches of whole lists, each of `size` samples or more, but for the last."""
    pending: list[Sample] = []
    for own in lists:
        pending += own
        if len(pending) >= size:
            yield pending
            pending = []
    if pending:
        yield pending


def predicted(
    lists: Sequence[Sequence[Sample]], size: int, update_per: UpdatePer
) -> dict[str, Array]:
    """Learn lists; return p(y=1|x), label, weight and list (N,) of the click samples."""
    weigher = Weigher(WeigherConfig(exponent=1.0, update_per=update_per))
    columns: dict[str, list[Array]] = {"p": [], "label": [], "weight": [], "list": []}
    number = {own[0].list_id: place for place, own in enumerate(lists)}
    for batch in batches(lists, size):
        found = weigher.weigh(batch)
        own = [i for i, s in enumerate(batch) if s.task == CLICK]
        columns["p"].append(found.p_positive[own])
        columns["label"].append(found.label[own])
        columns["weight"].append(found.weight[own].astype(np.float64))
        columns["list"].append(np.array([number[batch[i].list_id] for i in own], dtype=np.float64))
    return {name: np.concatenate(parts) for name, parts in columns.items()}


def log_loss(p: Array, label: Array) -> Array:
    """Log loss (N,) of probabilities (N,) of a click."""
    loss: Array = -np.log(np.where(label > 0, p, 1 - p))
    return loss


def paired(gained: Array, lists: Array, seed: int = 0) -> list[float]:
    """Mean of differences (N,), and its 95 % bootstrap interval over lists."""
    which = lists.astype(np.intp)
    total, number = np.bincount(which, gained), np.bincount(which)
    total, number = total[number > 0], number[number > 0]
    drawn = np.random.default_rng(seed).integers(len(total), size=(_NUM_DRAWS, len(total)))
    means = total[drawn].sum(axis=1) / number[drawn].sum(axis=1)
    low, high = np.percentile(means, _PERCENTILES)
    return [round(float(value), 5) for value in (gained.mean(), low, high)]


def compared(lists: Sequence[Sequence[Sample]], size: int) -> dict[str, Any]:
    """Compare the two kinds on one stream."""
    found = {name: predicted(lists, size, name) for name in UPDATES}
    loss = {name: log_loss(own["p"], own["label"]) for name, own in found.items()}
    label, each = found["list"]["label"], found["list"]["list"]
    base = np.full(len(label), label.mean())
    report: dict[str, Any] = {
        "samples": len(label),
        "click_rate": round(float(label.mean()), 4),
        "log_loss_of_click_rate": round(float(log_loss(base, label).mean()), 5),
        "batch_less_list": paired(loss["batch"] - loss["list"], each),
    }
    for name, own in found.items():
        report[name] = {
            "log_loss": round(float(loss[name].mean()), 5),
            "expected_per_click": round(float(own["p"].sum() / label.sum()), 4),
            "mean_weight": round(float(own["weight"].mean()), 4),
        }
    weights = [found[name]["weight"] for name in UPDATES]
    report["correlation_of_log_weights"] = round(float(np.corrcoef(np.log(weights))[0, 1]), 4)
    return report


def table(name: str, found: dict[str, Any]) -> str:
    """Return one stream's report as lines of text."""
    mean, low, high = found["batch_less_list"]
    lines = [
        f"{name}: {found['samples']:,} samples, click rate {found['click_rate']}, its log loss"
        f" {found['log_loss_of_click_rate']:.4f}; batch less list"
        f" {mean:+.5f} [{low:+.5f}, {high:+.5f}]"
    ]
    for kind in UPDATES:
        own = found[kind]
        lines.append(
            f"  {kind:<6} log loss {own['log_loss']:.5f}   expected per click"
            f" {own['expected_per_click']:.3f}   mean weight {own['mean_weight']:.3f}"
        )
    lines.append(f"  correlation of log weights {found['correlation_of_log_weights']:.3f}")
    return "\n".join(lines)


def streams(options: argparse.Namespace) -> Iterator[tuple[str, list[list[Sample]]]]:
    """Yield the name and the lists of each stream that the options name."""
    if options.dataset is None:
        for kind in options.kind or list(KINDS):
            stream = Stream(KINDS[kind], num_lists=options.lists or 2_000, seed=options.seed)
            yield kind, [shown.samples for shown in stream.lists()]
        return
    request = Request(
        name=options.dataset,
        source=options.source,
        noise="clean",
        seed=options.seed,
        num_lists=options.lists,
        choosing=True,
    )
    dataset = load_ready(request, lambda queries, texts: np.zeros((len(queries), len(texts))))
    shown = enumerate(dataset.lists)
    yield options.dataset, [samples_of(own, number, dataset.items) for number, own in shown]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--lists", type=int, help="the first N lists only")
    parser.add_argument("--batch-size", type=int, default=320)
    parser.add_argument("--kind", choices=list(KINDS), action="append")
    parser.add_argument("--dataset", choices=(MOVIES, ESCI, INVENTED))
    parser.add_argument("--source", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    report: dict[str, Any] = {}
    for name, lists in streams(options):
        report[name] = compared(lists, options.batch_size)
        print(table(name, report[name]), file=sys.stderr, flush=True)
    print(json.dumps({"benchmark": "estimates", "streams": report}, sort_keys=True))


if __name__ == "__main__":
    main()
