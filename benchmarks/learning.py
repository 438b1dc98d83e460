"""What the product learns from shown lists, on judged queries, beside baselines.

    python -m benchmarks.learning --data DIR [--lists N] [--json]
    python -m benchmarks.learning --dataset NAME --source DIR [--noise clean|noisy] [--seed N]

The product's own samples, weigher, trainer and served score run over the lists in stream order,
once. Then every judged query's candidates are ranked, and NDCG@10 (gain 2^grade - 1) is reported by
part with the gain over the best baseline. docs/benchmark.md describes the folder, the ready-made
data sets and the figures. Without --data and --dataset: a small invented shop. The last line on
standard output is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.learning_data.dataset import DataError, Dataset, JudgedQuery, shortened, texts
from benchmarks.learning_data.folder import read_folder
from benchmarks.learning_data.ready import INVENTED, NAMES, NOISES, Request, load_ready
from benchmarks.learning_judging.linear import Lexical, LinearStack, own_text
from benchmarks.learning_judging.metrics import METHODS, expected_ndcg, ndcg, part_row
from benchmarks.learning_judging.product import Learner
from benchmarks.learning_judging.zero_shot import Embedder, untrained
from deploy.demo.judge import interval
from deploy.errors import SettingsError
from deploy.settings.load import load
from deploy.settings.tree import Settings
from learner.config import LearnerConfig
from learner.errors import LearnerError

Figures = dict[str, dict[str, list[float]]]
"""part -> method -> NDCG@10 of each query, the queries in one order."""


def say(text: str) -> None:
    """Print a line of progress, which is no result."""
    print(text, file=sys.stderr, flush=True)


def run(
    dataset: Dataset, settings: Settings, zero_shot: Embedder
) -> tuple[dict[str, Any], Figures]:
    """Learn the lists, rank the judged queries; return the report, and the figures per query."""
    for note in dataset.notes:
        say(note)
    say(f"{len(dataset.lists)} lists, {len(dataset.judged)} judged queries; linear baseline ...")
    zero_shot.encode(texts(dataset.items, (*dataset.lists, *dataset.judged)))
    lexical = Lexical(dataset, own_text)
    linear = LinearStack(dataset, zero_shot.cosines)
    say("the product learns ...")
    learner = Learner(settings, dataset.items)
    learner.learn(dataset.lists)
    say("judging ...")
    moved = learner.encoder()
    moved.encode(texts(dataset.items, dataset.judged))
    figures: Figures = {}
    with learner.scorer() as served:
        for judged in dataset.judged:
            candidates = [dataset.items[item].text for item in judged.items]
            scores = {
                "bm25": lexical.scores(judged.query, judged.items),
                "zero_shot": zero_shot.cosines(judged.query, candidates),
                "linear_baseline": linear.scores(judged.query, judged.items),
                "encoder": moved.cosines(judged.query, candidates),
                "served": served.scores(judged.query, judged.items),
            }
            _add(figures, judged, scores)
    cost = learner.cost
    say(
        f"{cost.num_samples} samples in {cost.seconds:.1f} s, {cost.cpu_seconds:.1f} CPU seconds, "
        f"{cost.encoder_cpu_seconds:.1f} of them in the encoder's passes"
    )
    report = {
        "dataset": dataset.name,
        "lists": len(dataset.lists),
        "samples_per_second": round(cost.num_samples / cost.seconds, 1),
        "encoder_share_of_compute": round(cost.encoder_cpu_seconds / cost.cpu_seconds, 3),
        "parts": {part: part_row(figures[part]) for part in dataset.parts()},
    }
    return report, figures


def _add(figures: Figures, judged: JudgedQuery, scores: Mapping[str, NDArray[np.float64]]) -> None:
    """Add NDCG@10 of one query to the figures of its part."""
    part = figures.setdefault(judged.part, {method: [] for method in METHODS})
    part["random"].append(expected_ndcg(judged.grades))
    for method, own in scores.items():
        part[method].append(ndcg(own, judged.grades))


def table(report: Mapping[str, Any]) -> str:
    """Return the parts of a report as lines of text."""
    lines = []
    for part, row in report["parts"].items():
        means = "  ".join(f"{method} {row[method]:.4f}" for method in METHODS)
        value, low, high = row["gain_over_best_baseline"]
        lines.append(f"{part}: {means}  gain {value:+.4f} [{low:+.4f}, {high:+.4f}]")
    return "\n".join(lines)


def compared(figures: Figures, other: Figures) -> str:
    """Return the paired differences of two runs over the same judged queries."""
    lines = []
    for part in sorted(figures.keys() & other.keys()):
        for method in ("encoder", "served"):
            ours, theirs = np.array(figures[part][method]), np.array(other[part][method])
            if len(ours) != len(theirs):
                raise DataError(f"--against: {part} has {len(theirs)} queries, not {len(ours)}")
            value, low, high = interval(ours - theirs)
            lines.append(f"{part}: {method} {value:+.4f} [{low:+.4f}, {high:+.4f}] over --against")
    return "\n".join(lines)


def dataset_of(options: argparse.Namespace) -> Dataset:
    """Read or simulate the data set that the options name."""
    if options.data is not None:
        return shortened(read_folder(options.data), options.lists)
    request = Request(
        name=options.dataset,
        source=options.source,
        noise=options.noise,
        seed=options.seed,
        num_lists=options.lists,
        choosing=options.choosing,
    )
    # What shoppers saw does not depend on the settings of this run
    return load_ready(
        request, lambda queries, texts: untrained(LearnerConfig()).table(queries, texts)
    )


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    raw = argparse.RawDescriptionHelpFormatter
    made = argparse.ArgumentParser(
        prog="python -m benchmarks.learning", description=__doc__, formatter_class=raw
    )
    where = made.add_mutually_exclusive_group()
    where.add_argument("--data", type=Path, help="folder of items, lists and judgments")
    where.add_argument("--dataset", choices=NAMES, default=INVENTED, help="ready-made data set")
    made.add_argument("--source", type=Path, help="folder with one folder per ready-made data set")
    made.add_argument("--noise", choices=NOISES, default="clean", help="of simulated answers")
    made.add_argument("--seed", type=_count, default=0, help="of all that is drawn")
    made.add_argument("--lists", type=_positive, help="learn the first N lists only")
    made.add_argument(
        "--choosing",
        action="store_true",
        help="judge on what is kept for choosing settings, not on what is reported",
    )
    made.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="sets")
    made.add_argument("--save", type=Path, help="write NDCG@10 of each query to this JSON file")
    made.add_argument("--against", type=Path, help="compare with a run that was saved")
    made.add_argument("--json", action="store_true", help="print the JSON object only")
    return made


def _count(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError("expected a whole number >= 0")
    return value


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("expected a whole number >= 1")
    return value


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark with the command line's options; return the exit code."""
    options = parser().parse_args(arguments)
    sets = dict(entry.partition("=")[::2] for entry in options.sets)
    try:
        settings = load(None, {}, sets)
        dataset = dataset_of(options)
        report, figures = run(dataset, settings, untrained(settings.learner))
        lines = [table(report)]
        if options.against is not None:
            lines.append(compared(figures, json.loads(options.against.read_text())))
    except (DataError, SettingsError, LearnerError) as error:
        say(f"benchmarks.learning: {error}")
        return 2
    if options.save is not None:
        options.save.write_text(json.dumps(figures))
    if not options.json:
        print("\n".join(lines))
    print(json.dumps(report))
    return 0


if __name__ == "__main__":
    sys.exit(main())
