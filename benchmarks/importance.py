"""Where the importance of a sample pays: weighting schemes on streams with one trouble each.

    python -m benchmarks.importance [--lists N] [--seeds N] [--kind KIND]

The product's own weigher gives each scheme's weights, and a linear model per scheme, the stand-in
of `weighting.exponent: auto`, learns every list under them; so the schemes differ in nothing but
their weights. Then the models rank the items of queries never seen (NDCG@10, gain = worth) and say
how probable a click is (log loss against the true worth, after the scheme's inversion). Printed are
differences to uniform weights, paired by seed, with 95 % intervals (t over seeds), and how many
seeds ended with each scheme in force under `auto`. The streams are invented:
`benchmarks.importance_streams`. The last line on standard output is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from scipy.special import expit

from benchmarks.importance_streams import KINDS, Stream
from weighting.competition import CompetitionConfig
from weighting.config import WeigherConfig
from weighting.estimators.stand_in import StandIns
from weighting.schemes.registry import parse_candidates
from weighting.tasks import CLICK
from weighting.weigher import Weigher

Array = NDArray[np.float64]
SCHEMES = (
    "uniform",
    "ratio:0.5",
    "ratio:1",
    "ratio:-0.5",
    "softmax_share:1",
    "class_balanced",
    "focal",
    "self_paced",
)
FIGURES = ("ndcg", "log_loss")
_CUTOFF = 10
_LISTS_OF_A_BATCH = 8


def one_run(kind: str, *, num_lists: int, seed: int) -> tuple[Array, str]:
    """Learn one stream; return the figures (F, E) of each scheme, and the one left in force."""
    stream = Stream(KINDS[kind], num_lists=num_lists, seed=seed)
    competition = CompetitionConfig(candidates=", ".join(SCHEMES), min_samples=num_lists)
    config = WeigherConfig(exponent="auto", competition=competition)
    weigher = Weigher(config)
    prior = config.click.prior.initial
    models = StandIns(
        len(SCHEMES),
        level=float(np.log(prior / (1 - prior))),
        half_life_samples=competition.half_life_samples,
    )
    pending = list(stream.lists())
    for start in range(0, len(pending), _LISTS_OF_A_BATCH):
        part = pending[start : start + _LISTS_OF_A_BATCH]
        batch = weigher.weigh([s for shown in part for s in shown.samples])
        weigher.compete(batch, np.concatenate([shown.products for shown in part]))
        end = 0
        for shown in part:
            own = slice(end, end + len(shown.samples))
            end = own.stop
            columns = batch.label[own], batch.candidate_weight[:, own], batch.examination[own]
            models.learn(shown.products, *columns)
    assert weigher.competition
    in_force = SCHEMES[weigher.competition.in_force]
    return _judged(stream, models, weigher.prior(CLICK)), in_force


def _judged(stream: Stream, models: StandIns, prior: float) -> Array:
    """Figures (F, E) over the judged queries."""
    worth, figures = stream.worth(stream.products), np.zeros((len(FIGURES), len(SCHEMES)))
    discount = 1 / np.log2(2 + np.arange(_CUTOFF))
    schemes = list(parse_candidates(", ".join(SCHEMES)).values())
    for products, truth in zip(stream.products, worth, strict=True):
        best = np.sort(truth)[::-1][:_CUTOFF] @ discount
        for e, (scheme, z) in enumerate(zip(schemes, models.predict(products), strict=True)):
            order = np.argsort(-z, kind="stable")[:_CUTOFF]
            p = expit(np.clip(scheme.invert(z, prior), -30, 30))
            figures[0, e] += truth[order] @ discount / best
            figures[1, e] -= float((truth * np.log(p) + (1 - truth) * np.log1p(-p)).mean())
    mean: Array = figures / len(worth)
    return mean


def difference(figures: Array) -> list[list[float]]:
    """Mean and 95 % interval of each scheme less uniform, from (R, E) over R seeds."""
    gained = figures - figures[:, :1]
    mean, number = gained.mean(axis=0), len(gained)
    error = gained.std(axis=0, ddof=1) / np.sqrt(number)
    half = float(stats.t.ppf(0.975, number - 1)) * error
    rows: list[list[float]] = np.stack([mean, mean - half, mean + half], axis=1).round(4).tolist()
    return rows


def run(kinds: Sequence[str], *, num_lists: int, seeds: int) -> dict[str, Any]:
    """Run every kind of stream with every seed; return the report."""
    report: dict[str, Any] = {}
    for kind in kinds:
        runs = [one_run(kind, num_lists=num_lists, seed=seed) for seed in range(seeds)]
        figures = np.stack([found for found, _ in runs])  # (R, F, E)
        report[kind] = {
            "in_force": dict(Counter(in_force for _, in_force in runs)),
            **{
                name: {
                    "uniform": round(float(figures[:, place, 0].mean()), 4),
                    "difference": dict(
                        zip(SCHEMES[1:], difference(figures[:, place])[1:], strict=True)
                    ),
                }
                for place, name in enumerate(FIGURES)
            },
        }
        print(table(kind, report[kind]), file=sys.stderr, flush=True)
    return report


def table(kind: str, found: dict[str, Any]) -> str:
    """Return one kind's part of the report as lines of text."""
    lines = [f"{kind}: in force at the end {found['in_force']}"]
    for name in FIGURES:
        lines.append(f"  {name}: uniform {found[name]['uniform']:.4f}")
        for scheme, (mean, low, high) in found[name]["difference"].items():
            lines.append(f"    {scheme:<16} {mean:+.4f} [{low:+.4f}, {high:+.4f}]")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--lists", type=int, default=800, help="lists of a stream")
    parser.add_argument("--seeds", type=int, default=10, help="seeds of each kind, at least 2")
    parser.add_argument("--kind", action="append", choices=tuple(KINDS), help="only these streams")
    given = parser.parse_args(arguments)
    report = run(given.kind or tuple(KINDS), num_lists=given.lists, seeds=max(2, given.seeds))
    print(json.dumps({"lists": given.lists, "seeds": given.seeds, "streams": report}))


if __name__ == "__main__":
    main()
