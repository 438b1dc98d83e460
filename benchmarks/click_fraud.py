"""Click fraud: how far a few clients move one item, with the caps and without them.

    python -m benchmarks.click_fraud [--lists N] [--share F] [--seeds N] [--set KEY=VALUE] [--json]

The demo's invented shop is visited by honest shoppers, each a client with an activity drawn in
proportion to rank^-0.8. Attackers want one irrelevant item to rise: in a share F of all lists they
search for one of the queries that it is a candidate of, and click it and nothing else.

    lists           the shop's own list, with the item at a random place; 3 clients in turn
    one_item_lists  forged lists of that item alone; 3 clients in turn
    identities      as `lists`, every list by a client of its own

The product's samples, weigher, trainer and served score run with the default model, its encoder
frozen. Judged on honest queries: the mean rank of the item over its queries (all candidates), its
p(click) there, and NDCG@10 of all queries. `off` takes all caps away; `ndcg10_gain` is on less off,
paired by query and seed, with a 95 % interval. The last line on standard output is one JSON object,
means over the seeds.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from benchmarks.ranking import documents_of, samples_of
from deploy.demo.judge import interval, ndcg
from deploy.demo.shop import invented_shop
from deploy.demo.world import Product, Query, Shoppers, Visit, World
from deploy.settings.load import load
from deploy.settings.tree import Settings
from learner.request import ScoringInput
from learner.scorer import ModelScorer
from learner.trainer import Trainer
from weighting.caps import CapsConfig
from weighting.sample import Sample, client_hash
from weighting.tasks import CLICK
from weighting.weigher import Weigher

ATTACKS = ("none", "lists", "one_item_lists", "identities")
OFF = CapsConfig(client_item=0.0, client=0.0, item=1.0, long_list=0.0, one_item_list=1.0)
_LISTS_PER_STEP = 32
_NUM_CLIENTS, _NUM_ATTACKERS = 300, 3
_SETTINGS = {"learner.tuning": "frozen"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """The item that the attackers want to rise, and the queries that it is a candidate of."""

    product: Product
    queries: tuple[Query, ...]

    @classmethod
    def of(cls, world: World) -> Target:
        """Choose the item that is irrelevant to the most queries; the first of several."""
        found: dict[str, list[Query]] = {}
        for query in world.queries:
            for product, grade in zip(query.products, query.grades, strict=True):
                if grade == 0:
                    found.setdefault(product.id, []).append(query)
        best = max(sorted(found), key=lambda item: len(found[item]))
        products = {product.id: product for product in world.products()}
        return cls(product=products[best], queries=tuple(found[best]))

    def place(self, query: Query) -> int:
        """Return its place among a query's candidates."""
        return [product.id for product in query.products].index(self.product.id)


def traffic(
    world: World, target: Target, attack: str, *, lists: int, share: float, seed: int
) -> Iterator[tuple[Visit, str]]:
    """Yield visits and their clients: `lists` honest ones, and the attackers' among them."""
    honest, attacked = Shoppers(world, seed=seed), Shoppers(world, seed=seed + 1)
    draw, forge = (np.random.Generator(np.random.PCG64([seed, i])) for i in (2, 3))
    activity = np.arange(1, _NUM_CLIENTS + 1) ** -0.8
    number = 0
    for _ in range(lists):
        client = draw.choice(_NUM_CLIENTS, p=activity / activity.sum())
        yield honest.visit(), f"c-{client}"
        while attack != "none" and forge.random() < share:
            number += 1
            name = number if attack == "identities" else number % _NUM_ATTACKERS
            yield _forged(attacked, target, attack, forge), f"bot-{name}"


def _forged(shoppers: Shoppers, target: Target, attack: str, draw: np.random.Generator) -> Visit:
    """Return a list of one of the target's queries, in which it alone is clicked."""
    query = target.queries[int(draw.integers(len(target.queries)))]
    wanted = target.place(query)
    shown = np.array([wanted])
    if attack != "one_item_lists":
        others = shoppers.shown(query)
        others = others[others != wanted][:9]
        shown = np.insert(others, int(draw.integers(len(others) + 1)), wanted)
    clicked = shown == wanted
    return Visit(query=query, shown=shown, clicked=clicked, bought=np.zeros_like(clicked))


def learned(settings: Settings, visits: Iterator[tuple[Visit, str]]) -> tuple[Trainer, int]:
    """Train on visits in their order; return the trainer, and the samples discounted."""
    trainer = Trainer(settings.learner, Weigher(settings.weighting))
    pending: list[Sample] = []
    num_discounted, number = 0, 0
    for number, (visit, client) in enumerate(visits, 1):
        own = msgspec.structs.replace
        pending += (own(s, client=client_hash(client)) for s in samples_of(visit, number))
        if number % _LISTS_PER_STEP == 0:
            num_discounted += _step(trainer, pending)
            pending = []
    return trainer, num_discounted + _step(trainer, pending)


def _step(trainer: Trainer, samples: Sequence[Sample]) -> int:
    return int((trainer.step(samples).weighted.discount < 1).sum()) if samples else 0


def judged(trainer: Trainer, world: World, target: Target) -> tuple[dict[str, float], list[float]]:
    """Return rank and p(click) of the target, and NDCG@10 of each query."""
    trainer.ranker.forget()
    scorer = ModelScorer("now", trainer.ranker, trainer.weigher, trainer.served)
    ranks, clicks, quality = [], [], []
    asked = {query.text for query in target.queries}
    for query in world.queries:
        request = ScoringInput(query=query.text, documents=documents_of(query))
        scores = scorer.score([request])[0]
        quality.append(ndcg(scores.score, query.grades))
        if query.text in asked:
            place = target.place(query)
            ranks.append(1 + int((scores.score > scores.score[place]).sum()))
            clicks.append(float(scores.probability[CLICK][place]))
    return {"rank": float(np.mean(ranks)), "p_click": float(np.mean(clicks))}, quality


def run(
    settings: Settings, *, lists: int, share: float, seeds: int, attacks: Sequence[str] = ATTACKS
) -> dict[str, dict[str, Any]]:
    """Return attack -> off, on -> figures, means over seeds 0, 1, ...; and the gain in NDCG@10."""
    off = replace(settings, weighting=replace(settings.weighting, caps=OFF))
    report: dict[str, dict[str, Any]] = {}
    for attack in attacks:
        row = report[attack] = {}
        quality: list[NDArray[np.float64]] = []
        for name, chosen in (("off", off), ("on", settings)):
            found = [_figures(chosen, attack, lists, share, seed) for seed in range(seeds)]
            quality.append(np.concatenate([own for _, own in found]))
            figures = [{**own, "ndcg10": float(np.mean(each))} for own, each in found]
            row[name] = {
                key: round(float(np.mean([own[key] for own in figures])), 4) for key in figures[0]
            }
        row["ndcg10_gain"] = [round(value, 4) for value in interval(quality[1] - quality[0])]
    return report


def _figures(
    settings: Settings, attack: str, lists: int, share: float, seed: int
) -> tuple[dict[str, float], list[float]]:
    world = invented_shop(seed=seed)
    target = Target.of(world)
    visits = traffic(world, target, attack, lists=lists, share=share, seed=seed)
    trainer, num_discounted = learned(settings, visits)
    figures, quality = judged(trainer, world, target)
    return {**figures, "discounted": float(num_discounted)}, quality


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark with the command line's options."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--lists", type=int, default=1000, help="honest lists")
    parser.add_argument("--share", type=float, default=0.04, help="of all lists, by attackers")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--attack", choices=ATTACKS, action="append", help="all by default")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="sets")
    parser.add_argument("--json", action="store_true", help="print the JSON object only")
    options = parser.parse_args(arguments)
    sets: Mapping[str, Any] = {
        **_SETTINGS,
        **dict(entry.partition("=")[::2] for entry in options.sets),
    }
    began = time.perf_counter()
    report = run(
        load(None, {}, sets),
        lists=options.lists,
        share=options.share,
        seeds=options.seeds,
        attacks=options.attack or ATTACKS,
    )
    if not options.json:
        for attack, arms in report.items():
            for name in ("off", "on"):
                figures = "  ".join(f"{key} {value:.4g}" for key, value in arms[name].items())
                print(f"{attack:15} {name:3}  {figures}")
            value, low, high = arms["ndcg10_gain"]
            print(f"{attack:15} gain in NDCG@10 {value:+.4f} [{low:+.4f}, {high:+.4f}]")
        print(f"{time.perf_counter() - began:.0f} s", file=sys.stderr)
    print(json.dumps({"lists": options.lists, "share": options.share, "attacks": report}))


if __name__ == "__main__":
    main()
