"""Forgetting: what is lost of a first stream while a second one is learned, and what prevents it.

    python -m benchmarks.forgetting [--tasks NAME] [--source DIR] [--lists N] [--queries N]
        [--size BYTES] [--share S ...] [--tuning TUNING[,LEARNING_RATE] ...] [--seed N]
        [--set KEY=VALUE]

The product learns the lists of one task, then those of another, each once: `banking77`, half of the
intents and then the others, of which the two halves know nothing; `shops`, movie search and then
ESCI; `invented`, two small invented shops. NDCG@10 on queries that are in neither stream (of the
invented shops, which have none: on all) is taken of the encoder alone and of the served score, on
the first task after each stream, on the second task at the end. Forgetting (Chaudhry et al., ECCV
2018) is the first task's figure after its own stream less that at the end: backward transfer with
the other sign. Each tuning is measured with and without L2-SP, and each of these without rehearsal
and with each share of it, with the paired difference to the run without, and 95 % bootstrap
intervals over queries. The last line on standard output is one JSON object.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.learning import say
from benchmarks.learning_data.answers import load_answers
from benchmarks.learning_data.dataset import UNSEEN_QUERIES, DataError, Dataset, shortened
from benchmarks.learning_data.ready import ESCI, INVENTED, MOVIES, Request, load_ready
from benchmarks.learning_judging.product import Learner
from benchmarks.learning_judging.zero_shot import untrained
from benchmarks.tunings import judged
from deploy.demo.judge import interval
from deploy.errors import SettingsError
from deploy.settings.load import load
from learner.config import LearnerConfig
from learner.errors import LearnerError

BANKING, SHOPS, SMALL = "banking77", "shops", "invented"
_TUNINGS = ("top:1", "lora:8,1e-3")
_JUDGED = ("encoder", "served")
Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    """One way of learning both streams."""

    tuning: str
    l2_sp: bool
    share: float

    def settings(self, size_bytes: int) -> dict[str, str]:
        """Return what it sets."""
        tuning, _, rate = self.tuning.partition(",")
        found = {"learner.tuning": tuning, **({"learner.lr": rate} if rate else {})}
        if not self.l2_sp:
            found["learner.l2_sp_samples"] = "0"
        if self.share:
            found["learner.rehearsal.size"] = f"{size_bytes}B"
            found["learner.rehearsal.share"] = str(self.share)
        return found


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Figures:
    """NDCG@10 per query of one score: of the first task after each stream, of the second."""

    learned: Array
    kept: Array
    second: Array

    @property
    def forgetting(self) -> Array:
        """By how much the first task fell, per query."""
        return self.learned - self.kept


def tasks(options: argparse.Namespace) -> tuple[Dataset, Dataset]:
    """Load the two tasks, with the queries that neither stream has.

    Raises:
        DataError: a folder, a file or a column is missing.
    """
    if options.tasks != SMALL and options.source is None:
        raise DataError(f"--tasks {options.tasks} needs --source: the folder of the data sets")
    encoder = untrained(LearnerConfig())  # what shoppers saw does not depend on the settings
    if options.tasks == BANKING:
        found = [
            load_answers(
                options.source / BANKING,
                name=BANKING,
                noise="clean",
                seed=options.seed,
                num_lists=options.lists,
                choosing=options.choosing,
                similarity=encoder.table,
                half=half,
            )
            for half in (0, 1)
        ]
    else:
        names = {SHOPS: (MOVIES, ESCI), SMALL: (INVENTED, INVENTED)}[options.tasks]
        found = [
            load_ready(
                Request(
                    name=name,
                    source=options.source,
                    noise="clean",
                    seed=options.seed + (number if options.tasks == SMALL else 0),
                    num_lists=options.lists,
                    choosing=options.choosing,
                ),
                encoder.table,
            )
            for number, name in enumerate(names)
        ]
    first, second = (
        _named(shortened(own, options.lists), prefix, options.queries)
        for own, prefix in zip(found, ("first", "second"), strict=True)
    )
    return first, second


def _named(dataset: Dataset, prefix: str, num_queries: int | None) -> Dataset:
    """Return a task whose ids are those of no other, with the queries to judge."""

    def name(own: str) -> str:
        return f"{prefix}/{own}"

    unseen = [each for each in dataset.judged if each.part == UNSEEN_QUERIES]
    judged = (unseen or dataset.judged)[:num_queries]
    return dataclasses.replace(
        dataset,
        items={
            name(own): dataclasses.replace(item, id=name(own))
            for own, item in dataset.items.items()
        },
        lists=[
            dataclasses.replace(each, id=name(each.id), items=tuple(map(name, each.items)))
            for each in dataset.lists
        ],
        judged=[dataclasses.replace(each, items=tuple(map(name, each.items))) for each in judged],
    )


def measure(
    first: Dataset, second: Dataset, sets: Mapping[str, str]
) -> tuple[dict[str, Figures], dict[str, Any]]:
    """Learn both streams; return the figures per query of each score, and what it took."""
    settings = load(None, {}, sets)
    learner = Learner(settings, {**first.items, **second.items})
    learner.learn(first.lists)
    learned = judged(learner, first)
    learner.learn(second.lists, earlier=len(first.lists))
    kept, own = judged(learner, first), judged(learner, second)
    figures = {
        name: Figures(learned=learned[name], kept=kept[name], second=own[name]) for name in _JUDGED
    }
    rehearsal = learner.trainer.rehearsal
    cost = {
        "samples_per_cpu_second": round(learner.cost.num_samples / learner.cost.cpu_seconds, 1),
        "lists_kept": rehearsal.num_lists if rehearsal else 0,
        "bytes_kept": rehearsal.num_bytes if rehearsal else 0,
    }
    return figures, cost


def conditions(options: argparse.Namespace) -> Iterator[Condition]:
    """Yield every condition; those to compare with come before those compared."""
    for tuning in options.tuning or _TUNINGS:
        for l2_sp in (True, False):
            for share in (0.0, *(options.share or (0.25,))):
                yield Condition(tuning=tuning, l2_sp=l2_sp, share=share)


def row(found: Figures, without: Figures) -> dict[str, Any]:
    """Return the means of one score, with the intervals of differences."""

    def rounded(values: Array) -> list[float]:
        return [round(figure, 4) for figure in interval(values)]

    return {
        "first_learned": round(float(found.learned.mean()), 4),
        "first_kept": round(float(found.kept.mean()), 4),
        "second": round(float(found.second.mean()), 4),
        "forgetting": rounded(found.forgetting),
        "forgetting_less_without": rounded(found.forgetting - without.forgetting),
        "first_kept_over_without": rounded(found.kept - without.kept),
        "second_over_without": rounded(found.second - without.second),
    }


def line(condition: Condition, rows: Mapping[str, Mapping[str, Any]]) -> str:
    """Return a condition and its rows as text."""

    def signed(figures: Sequence[float]) -> str:
        value, low, high = figures
        return f"{value:+.4f} [{low:+.4f}, {high:+.4f}]"

    l2_sp = "on" if condition.l2_sp else "off"
    lines = [f"{condition.tuning:12} l2_sp {l2_sp:3} rehearsal {condition.share:g}"]
    for name, own in rows.items():
        said = f"  {name:8} first {own['first_learned']:.4f} then {own['first_kept']:.4f}, "
        said += f"forgotten {signed(own['forgetting'])}; second {own['second']:.4f}"
        if condition.share:
            said += f"; against none: first {signed(own['first_kept_over_without'])}, "
            said += f"forgotten {signed(own['forgetting_less_without'])}, "
            said += f"second {signed(own['second_over_without'])}"
        lines.append(said)
    return "\n".join(lines)


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    raw = argparse.RawDescriptionHelpFormatter
    made = argparse.ArgumentParser(
        prog="python -m benchmarks.forgetting", description=__doc__, formatter_class=raw
    )
    made.add_argument("--tasks", choices=(BANKING, SHOPS, SMALL), default=SMALL)
    made.add_argument("--source", type=Path, help="folder with one folder per data set")
    made.add_argument("--lists", type=int, default=1000, help="of each stream")
    made.add_argument("--queries", type=int, help="judge the first N of each task only")
    made.add_argument("--size", type=int, default=4_000_000, help="of the memory, in bytes")
    made.add_argument("--share", type=float, action="append", help="of rehearsal; default .25")
    made.add_argument("--tuning", action="append", metavar="TUNING[,LEARNING_RATE]")
    made.add_argument("--seed", type=int, default=0, help="of all that is drawn")
    made.add_argument(
        "--choosing", action="store_true", help="judge on what settings are chosen by"
    )
    made.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="sets")
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """Print a few lines per condition, and all of them as JSON; return the exit code."""
    options = parser().parse_args(arguments)
    sets = dict(entry.partition("=")[::2] for entry in options.sets)
    found: list[dict[str, Any]] = []
    try:
        first, second = tasks(options)
        for dataset in (first, second):
            say(f"{dataset.name}: {len(dataset.lists)} lists, {len(dataset.judged)} queries")
        without: dict[str, Figures] = {}
        for condition in conditions(options):
            own, cost = measure(first, second, {**sets, **condition.settings(options.size)})
            without = without if condition.share else own
            rows = {name: row(own[name], without[name]) for name in _JUDGED}
            print(line(condition, rows), flush=True)
            found.append({**dataclasses.asdict(condition), **cost, **rows})
    except (DataError, SettingsError, LearnerError) as error:
        say(f"benchmarks.forgetting: {error}")
        return 2
    names = {"first": first.name, "second": second.name}
    sizes = {"lists": len(first.lists), "queries": [len(first.judged), len(second.judged)]}
    print(json.dumps({"tasks": options.tasks, **names, **sizes, "conditions": found}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
