"""Ranking quality against shown lists, without a broker: the demo's world and the real trainer, one curve per split.

    python -m benchmarks.ranking [--catalog DIR --split 0] [--lists 12000] [--tuning top:1] [--exponent 0] ...

Each list is handed to the trainer as the samples that the join would make of it. The last line on standard output is one JSON object.
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
from learner.request import Document, ScoringInput
from learner.residual import ResidualConfig
from learner.scorer import ModelScorer
from learner.trainer import Trainer
from weighting.estimators.conditional import ConditionalConfig
from weighting.features import FieldConfig
from weighting.sample import CopyKind, Sample
from weighting.tasks import CLICK, PURCHASE
from weighting.weigher import Weigher, WeigherConfig

_SECOND = 1_000_000
_LISTS_PER_STEP = 32


def samples_of(visit: Visit, number: int) -> Iterator[Sample]:
    """The samples that the join makes of a visit whose purchases came inside the observation window."""
    now = number * _SECOND
    for place, (i, clicked, bought) in enumerate(
        zip(visit.shown, visit.clicked, visit.bought, strict=True), 1
    ):
        product = visit.query.products[i]
        for task in (CLICK, PURCHASE) if clicked else (CLICK,):
            yield Sample(
                sample_id=f"{number}/{place}/{task}",
                task=task,
                copy_kind=CopyKind.FIRST,
                label=int(clicked if task == CLICK else bought),
                list_id=str(number),
                list_size=len(visit.shown),
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


def score(trainer: Trainer, query: Query) -> NDArray[np.float64]:
    """A query's candidates (n,) as a version that is cut now would serve them."""
    documents = tuple(
        Document(id=p.id, text=p.text, attributes=dict(p.attributes)) for p in query.products
    )
    trainer.ranker.forget()
    scorer = ModelScorer("now", trainer.ranker, trainer.weigher, trainer.stackers)
    return scorer.score([ScoringInput(query=query.text, documents=documents)])[0].score


def curve(
    world: World, config: LearnerConfig, weighting: WeigherConfig, marks: list[int], seed: int
) -> Iterator[dict[str, Any]]:
    """Train on the stream; at each mark yield the judged table, and per-query figures for pooling."""
    trainer = Trainer(config, Weigher(weighting))
    shoppers, counts = Shoppers(world, seed=seed), ClickCounts()
    cosine = {query.text: _cosine(trainer, query) for query in world.queries}
    pending: list[Sample] = []
    began = time.perf_counter()
    for number in range(1, marks[-1] + 1):
        visit = shoppers.visit()
        counts.learn(
            visit.query.text,
            [visit.query.products[i].id for i in visit.shown],
            visit.clicked.tolist(),
        )
        pending += samples_of(visit, number)
        if number % _LISTS_PER_STEP == 0 or number in marks:
            trainer.step(pending)
            pending = []
        if number in marks:
            seconds = time.perf_counter() - began
            now = {query.text: score(trainer, query) for query in world.queries}
            judged = judge(
                world,
                served=lambda q, now=now: now[q.text],  # type: ignore[misc]
                zero_shot=lambda q: cosine[q.text],
                counts=counts,
            )
            alone = {name: _alone(trainer, world, name) for name in ("encoder", "memory")}
            quarters = trainer.evaluations[CLICK].quarters()
            yield {
                "lists": number,
                "seconds": round(seconds, 1),
                "ndcg10": summary(judged),
                "judged": judged,
                "alone": alone,
                "auc": [round(q.get("auc", 0.0), 4) for q in quarters],
                "normalized_entropy": [
                    round(q.get("normalized_entropy", 0.0), 4) for q in quarters
                ],
                "pcoc": round(
                    trainer.evaluations[CLICK].latest().get("predicted_to_observed", 0.0), 3
                ),
                "stacker": {
                    t: [round(x, 3) for x in s.coefficients()] for t, s in trainer.stackers.items()
                },
                "bias": round(float(trainer.ranker.bias.detach()), 3),
            }


def _alone(trainer: Trainer, world: World, part: str) -> dict[str, float]:
    """NDCG@10 of one part of the served click score by itself, on each part of the world."""
    figures: dict[str, list[float]] = {}
    for query in world.queries:
        documents = tuple(
            Document(id=p.id, text=p.text, attributes=dict(p.attributes)) for p in query.products
        )
        if part == "memory":
            scores = trainer.weigher.pair_memory_logits(CLICK, query.text, documents)
        else:
            with torch.inference_mode():
                scores = (
                    trainer.ranker([query.text] * len(documents), [d.text for d in documents])
                    .click.double()
                    .numpy()
                )
        hidden = np.flatnonzero(~query.shown)
        everything = np.arange(len(documents))
        for name, places in (
            (("stream", everything), ("unseen_products", hidden))
            if query.in_stream
            else (("unseen_queries", everything),)
        ):
            if len(places):
                figures.setdefault(name, []).append(ndcg(scores[places], query.grades[places]))
    return {name: round(float(np.mean(values)), 4) for name, values in figures.items()}


def _cosine(trainer: Trainer, query: Query) -> NDArray[np.float64]:
    with torch.inference_mode():
        logits = trainer.ranker(
            [query.text] * len(query.products), [p.text for p in query.products]
        )
        cosine: NDArray[np.float64] = (
            ((logits.base - trainer.ranker.bias) / trainer.ranker.scale).double().numpy()
        )
    return cosine


def main() -> None:
    """Run what the command line says."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--catalog", type=Path, help="folder of graded judgments; the invented shop without it"
    )
    parser.add_argument("--split", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--lists", type=int, default=12000)
    parser.add_argument("--tuning", default="frozen")
    parser.add_argument("--loss", default="pointwise")
    parser.add_argument("--interaction", default="bi_encoder")
    parser.add_argument("--lr", type=float, default=1e-5)
    parser.add_argument("--l2-sp", type=float, default=100.0)
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
        l2_sp=arguments.l2_sp,
        logit_scale=arguments.logit_scale,
        residual=ResidualConfig(shrinkage=arguments.shrinkage, steps=arguments.residual_steps),
    )
    weighting = replace(
        WeigherConfig(),
        exponent=arguments.exponent,
        denoise=arguments.denoise,
        conditional=ConditionalConfig(fields=FieldConfig(**json.loads(arguments.fields))),
    )
    marks = [n for n in (500, 2000, 6000, 12000, 20000, 40000) if n < arguments.lists] + [
        arguments.lists
    ]
    last: dict[str, Any] = {}
    for last in curve(world, config, weighting, marks, arguments.seed):
        judged = last.pop("judged")
        for part, row in last["ndcg10"].items():
            print(
                last["lists"],
                part,
                {k: np.round(v, 4).tolist() for k, v in row.items()},
                flush=True,
            )
        print({k: v for k, v in last.items() if k != "ndcg10"}, flush=True)
    last["per_query"] = {
        part: {m: v.tolist() for m, v in methods.items()} for part, methods in judged.items()
    }
    print(json.dumps(last))


if __name__ == "__main__":
    main()
