"""Ranking quality against shown lists, without a broker.

    python -m benchmarks.ranking [--catalog DIR --split 0] [--lists 12000] [--tuning top:1] ...

Each list is handed to the real trainer as the samples that the join would make of it. The last line
on standard output is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from deploy.demo.catalog import load_catalog
from deploy.demo.judge import ClickCounts, judge, ndcg, summary
from deploy.demo.shop import invented_shop
from deploy.demo.world import Query, Shoppers, Visit, World
from learner.config import LearnerConfig
from learner.ranker import PairLogits
from learner.request import Document, ScoringInput
from learner.residual import ResidualConfig
from learner.scorer import ModelScorer
from learner.trainer import Trainer
from weighting.config import WeigherConfig
from weighting.estimators.conditional import ConditionalConfig
from weighting.features import FieldConfig
from weighting.sample import CopyKind, Sample
from weighting.tasks import CLICK, PURCHASE
from weighting.weigher import Weigher

_SECOND = 1_000_000
_LISTS_PER_STEP = 32
_FIGURES = ("within_list_auc", "ndcg_gain", "position_normalized_entropy")


def samples_of(visit: Visit, number: int) -> Iterator[Sample]:
    """Yield a visit's samples as the join makes them, purchases in time."""
    now = number * _SECOND
    shown = zip(visit.shown, visit.clicked, visit.bought, strict=True)
    for place, (i, clicked, bought) in enumerate(shown, 1):
        product = visit.query.products[i]
        for task in (CLICK, PURCHASE) if clicked else (CLICK,):
            yield Sample(
                sample_id=f"{number}/{place}/{task}",
                task=task,
                copy_kind=CopyKind.FIRST,
                label=int(clicked if task == CLICK else bought),
                list_id=str(number),
                list_size=len(visit.shown),
                client=0,
                query=visit.query.text,
                item_id=product.id,
                text=product.text,
                attributes=dict(product.attributes),
                position=place,
                shown_us=now,
                event_time_us=now,
                elapsed_us=_SECOND,
                delay_us=None,
                window_us=_SECOND,
                attribution_us=_SECOND,
                inferred=False,
                positions=(),
            )


def documents_of(query: Query) -> tuple[Document, ...]:
    """Return a query's candidates as the scorer takes them."""
    return tuple(
        Document(id=p.id, text=p.text, attributes=dict(p.attributes)) for p in query.products
    )


def score(trainer: Trainer, query: Query) -> NDArray[np.float64]:
    """Score a query's candidates (n,) as a version published now would."""
    trainer.ranker.forget()
    scorer = ModelScorer("now", trainer.ranker, trainer.weigher, trainer.served)
    request = ScoringInput(query=query.text, documents=documents_of(query))
    return scorer.score([request])[0].score


def curve(
    world: World, config: LearnerConfig, weighting: WeigherConfig, marks: list[int], seed: int
) -> Iterator[dict[str, Any]]:
    """Train on the stream; at each mark yield the judged table, and per-query figures."""
    trainer = Trainer(config, Weigher(weighting))
    shoppers, counts = Shoppers(world, seed=seed), ClickCounts()
    cosine = {query.text: _cosine(trainer, query) for query in world.queries}
    pending: list[Sample] = []
    began = time.perf_counter()
    for number in range(1, marks[-1] + 1):
        visit = shoppers.visit()
        shown = [visit.query.products[i].id for i in visit.shown]
        counts.learn(visit.query.text, shown, visit.clicked.tolist())
        pending += samples_of(visit, number)
        if number % _LISTS_PER_STEP == 0 or number in marks:
            trainer.step(pending)
            pending = []
        if number in marks:
            seconds = round(time.perf_counter() - began, 1)
            figures = _figures(trainer, world, cosine, counts)
            yield {"lists": number, "seconds": seconds, **figures}


def _figures(
    trainer: Trainer,
    world: World,
    cosine: dict[str, NDArray[np.float64]],
    counts: ClickCounts,
) -> dict[str, Any]:
    """Judge the trainer as it is."""
    now = {query.text: score(trainer, query) for query in world.queries}
    judged = judge(
        world,
        served=lambda q: now[q.text],
        zero_shot=lambda q: cosine[q.text],
        counts=counts,
    )
    clicks = trainer.evaluations[CLICK]
    quarters = clicks.quarters()
    stackers = trainer.served.stackers.items()
    return {
        "ndcg10": summary(judged),
        "judged": judged,
        "alone": {name: _alone(trainer, world, name) for name in ("encoder", "memory")},
        **{figure: [round(q.get(figure, 0.0), 4) for q in quarters] for figure in _FIGURES},
        "pcoc": round(clicks.latest().get("predicted_to_observed", 0.0), 3),
        "stacker": {
            task: {name: round(x, 3) for name, x in own.coefficients().items()}
            for task, own in stackers
        },
        "bias": round(float(trainer.ranker.bias.detach()), 3),
    }


def _alone(trainer: Trainer, world: World, part: str) -> dict[str, float]:
    """Return NDCG@10 of one part of the click score, by part of the world."""
    figures: dict[str, list[float]] = {}
    for query in world.queries:
        if part == "memory":
            documents = documents_of(query)
            scores = trainer.weigher.pair_memory_logits(CLICK, query.text, documents)
        else:
            scores = _pair_logits(trainer, query).by_task[CLICK].double().cpu().numpy()
        hidden = np.flatnonzero(~query.shown)
        parts = {"unseen_queries": np.arange(len(scores))}
        if query.in_stream:
            parts = {"stream": np.arange(len(scores)), "unseen_products": hidden}
        for name, places in parts.items():
            if len(places):
                figures.setdefault(name, []).append(ndcg(scores[places], query.grades[places]))
    return {name: round(float(np.mean(values)), 4) for name, values in figures.items()}


def _pair_logits(trainer: Trainer, query: Query) -> PairLogits:
    with torch.inference_mode():
        products = [p.text for p in query.products]
        logits: PairLogits = trainer.ranker([query.text] * len(products), products)
    return logits


def _cosine(trainer: Trainer, query: Query) -> NDArray[np.float64]:
    ranker = trainer.ranker
    cosine = (_pair_logits(trainer, query).base - ranker.bias.detach()) / ranker.logit_scale
    found: NDArray[np.float64] = cosine.double().cpu().numpy()
    return found


def main() -> None:
    """Run the benchmark with the command line's options."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    catalog = "folder of graded judgments; the invented shop without it"
    parser.add_argument("--catalog", type=Path, help=catalog)
    parser.add_argument("--split", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--lists", type=int, default=12000)
    parser.add_argument("--tuning", default="frozen")
    parser.add_argument("--loss", default="listwise")
    parser.add_argument("--interaction", default="bi_encoder")
    parser.add_argument("--lr", type=float, default=1e-4)
    parser.add_argument("--l2-sp-samples", type=float, default=320_000.0)
    parser.add_argument("--logit-scale", type=float, default=8.0)
    parser.add_argument("--shrinkage", type=float, default=1.0)
    parser.add_argument("--residual-steps", type=int, default=2)
    parser.add_argument("--exponent", type=float, default=1.0)
    parser.add_argument("--denoise", type=float, default=0.0)
    parser.add_argument("--fields", default="{}", help="JSON object of FieldConfig")
    arguments = parser.parse_args()
    world = (
        load_catalog(arguments.catalog, split=arguments.split)
        if arguments.catalog
        else invented_shop(seed=arguments.split)
    )
    config = LearnerConfig(
        tuning=arguments.tuning,
        loss=arguments.loss,
        interaction=arguments.interaction,
        lr=arguments.lr,
        l2_sp_samples=arguments.l2_sp_samples,
        logit_scale=arguments.logit_scale,
        residual=ResidualConfig(shrinkage=arguments.shrinkage, steps=arguments.residual_steps),
    )
    weighting = replace(
        WeigherConfig(),
        exponent=arguments.exponent,
        denoise=arguments.denoise,
        conditional=ConditionalConfig(fields=FieldConfig(**json.loads(arguments.fields))),
    )
    steps = (500, 2000, 6000, 12000, 20000, 40000)
    marks = [*(n for n in steps if n < arguments.lists), arguments.lists]
    last: dict[str, Any] = {}
    for last in curve(world, config, weighting, marks, arguments.seed):
        judged = last.pop("judged")
        for part, row in last["ndcg10"].items():
            figures = {name: np.round(value, 4).tolist() for name, value in row.items()}
            print(last["lists"], part, figures, flush=True)
        print({k: v for k, v in last.items() if k != "ndcg10"}, flush=True)
    last["per_query"] = {
        part: {method: values.tolist() for method, values in methods.items()}
        for part, methods in judged.items()
    }
    print(json.dumps(last))


if __name__ == "__main__":
    main()
