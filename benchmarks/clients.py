"""Personalisation: what the client of a request is worth, by the same model with it and without.

    python -m benchmarks.clients [--source DIR] [--lists N] [--clients N] [--seeds N] [--json]

Two streams. With `--source`, real customers: the folder of the Complete Journey (household
purchases of groceries). Each bought product is a list: the query is its category, nine other
products of that category drawn by how often they are bought stand beside it in random order, and
the bought one is clicked. The last fifth of the lists, by time, is judged by the place of the
bought product.

Without, the demo's invented shop, in which each client trusts brands of its own (`taste`), or all
trust the same (`no_taste`), or half of the lists come from clients that share one id (`guests`).
Judged by NDCG@10 of all candidates by the client's own grades, over all queries, for clients of the
stream and for new ones.

The product's samples, weigher, trainer and served score run with the default model, its encoder
frozen, and no caps on clients. `without` is a request without a client, `with` the same with it,
`blind` one to a model that learned the same stream without clients; `gain` is with less without,
`cost` without less blind, paired, with 95 % intervals over clients. The last line on standard
output is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from benchmarks.ranking import samples_of
from deploy.demo.judge import interval, ndcg
from deploy.demo.shop import invented_shop
from deploy.demo.world import (
    ACCIDENT,
    ATTRACTION,
    Product,
    Query,
    Shoppers,
    Visit,
    World,
    attraction,
)
from deploy.settings.load import load
from deploy.settings.tree import Settings
from learner.request import Document, ScoringInput
from learner.scorer import ModelScorer
from learner.trainer import Trainer
from weighting.sample import Sample, client_hash
from weighting.weigher import Weigher

Array = NDArray[np.float64]
STREAMS = ("taste", "no_taste", "guests")
_LISTS_PER_STEP = 32
_SETTINGS = {
    "learner.tuning": "frozen",
    # A blind stream has no caps, so the others have none either
    "weighting.caps.client": "0",
    "weighting.caps.client_item": "0",
}
_GUEST = "guest"
_NUM_BESIDE = 9
_JUDGED = 0.2
_NUM_TRUSTED = 2


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Asked:
    """A request to judge: its query holds the grades of its client.

    Attributes:
        client: who asks.
        group: which clients it belongs to.
        query: candidates, and their grades.
    """

    client: str
    group: str
    query: Query


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Stream:
    """Visits and their clients, in order, and what is judged after them."""

    visits: Sequence[tuple[Visit, str]]
    asked: Sequence[Asked]


def journey(folder: Path, *, clients: int, lists: int, seed: int) -> Stream:
    """Return the purchases of so many households, one list for each."""
    draw = np.random.Generator(np.random.PCG64(seed))
    rows = pq.read_table(folder / "products.parquet").to_pylist()
    products = {row["product_id"]: _grocery(row) for row in rows}
    table = pq.read_table(folder / "transactions_sample.parquet")
    bought = sorted(
        (row["transaction_timestamp"], row["household_id"], row["product_id"])
        for row in table.to_pylist()
        if row["product_id"] in products
    )
    shelves: dict[str, Counter[str]] = defaultdict(Counter)
    baskets: dict[tuple[Any, str], set[str]] = defaultdict(set)
    for at, household, item in bought:
        shelves[products[item].attributes["category"]][item] += 1
        baskets[at, household].add(item)
    households = sorted({household for _, household, _ in bought})
    chosen = set(draw.permutation(np.array(households))[:clients].tolist())
    found: list[tuple[Visit, str]] = []
    for at, household, item in bought:
        shelf = shelves[products[item].attributes["category"]]
        others = [other for other in shelf if other not in baskets[at, household]]
        if household not in chosen or len(others) < 2 * _NUM_BESIDE:
            continue
        sold = np.array([shelf[other] for other in others], dtype=np.float64)
        beside = draw.choice(len(others), _NUM_BESIDE, replace=False, p=sold / sold.sum())
        shown = [item, *(others[i] for i in beside)]
        order = draw.permutation(len(shown))
        clicked = order == 0
        query = Query(
            text=products[item].attributes["category"].lower(),
            products=tuple(products[shown[i]] for i in order),
            grades=np.where(clicked, 1.0, 0.0),
            shown=np.ones(len(shown), dtype=bool),
            in_stream=True,
        )
        places = np.arange(len(shown))
        visit = Visit(query=query, shown=places, clicked=clicked, bought=clicked)
        found.append((visit, household))
    found = found[:lists]
    cut = round((1 - _JUDGED) * len(found))
    known = {client for _, client in found[:cut]}
    asked = [
        Asked(client=client, group="known" if client in known else "new", query=visit.query)
        for visit, client in found[cut:]
    ]
    return Stream(visits=found[:cut], asked=asked)


def _grocery(row: Mapping[str, Any]) -> Product:
    """Return a product; its maker is an attribute and in no text."""
    kind, size = row["product_type"] or "", row["package_size"] or ""
    attributes = {
        "category": row["product_category"] or "",
        "maker": row["manufacturer_id"],
        "brand": row["brand"] or "",
        "type": kind,
        "size": size,
    }
    return Product(id=row["product_id"], text=f"{kind} {size}".lower(), attributes=attributes)


def shop(name: str, *, clients: int, lists: int, seed: int) -> Stream:
    """Return a stream of the invented shop."""
    draw = np.random.Generator(np.random.PCG64([seed, 1]))
    world = _shuffled(invented_shop(seed=seed), draw)
    shoppers = Shoppers(world, seed=seed)
    brands = np.array(sorted({p.attributes["brand"] for p in world.products()}))
    common = set(draw.permutation(brands)[:_NUM_TRUSTED].tolist())
    trusted = {
        f"{group}-{i}": common
        if name == "no_taste"
        else set(draw.permutation(brands)[:_NUM_TRUSTED].tolist())
        for group in ("known", "new")
        for i in range(clients)
    }
    activity = np.arange(1, clients + 1) ** -0.8
    visits = []
    for _ in range(lists):
        client = f"known-{draw.choice(clients, p=activity / activity.sum())}"
        visit = shoppers.visit()
        graded = _graded(visit.query, trusted[client])
        is_guest = name == "guests" and draw.random() < 0.5
        visits.append((_clicked(graded, visit.shown, draw), _GUEST if is_guest else client))
    counts = Counter(client for _, client in visits)
    judged = [client for client in trusted if client.startswith("new") or counts[client] >= 5]
    asked = [
        Asked(client=client, group=client.split("-")[0], query=_graded(query, trusted[client]))
        for client in judged
        for query in world.queries
    ]
    if name == "guests":
        asked += [
            Asked(client=_GUEST, group=_GUEST, query=_graded(query, trusted[client]))
            for client in judged
            for query in world.queries
        ]
    return Stream(visits=visits, asked=asked)


def _shuffled(world: World, draw: np.random.Generator) -> World:
    """Return a world whose candidates are in random order: by id, brands would be in order."""
    queries = []
    for query in world.queries:
        order = draw.permutation(len(query.products))
        products = tuple(query.products[i] for i in order)
        queries.append(replace(query, products=products, grades=query.grades[order]))
    return World(name=world.name, queries=tuple(queries))


def _graded(query: Query, trusted: set[str]) -> Query:
    """Return a query with the grades of a client that trusts some brands."""

    def grade(product: Product) -> float:
        own = product.attributes
        if own["category"] not in query.text:
            return 0.0
        right, liked = own["colour"] in query.text, own["brand"] in trusted
        return (4.0 if right else 1.0) if liked else (1.0 if right else 0.0)

    grades = np.array([grade(product) for product in query.products])
    return replace(query, grades=grades)


def _clicked(query: Query, shown: NDArray[np.int64], draw: np.random.Generator) -> Visit:
    """Return a visit by the model of clicks of the demo's shop; nothing is bought."""
    theta = ATTRACTION / np.arange(1, len(shown) + 1)
    genuine = draw.random(len(shown)) < theta * attraction(query.grades[shown])
    clicked = genuine | (draw.random(len(shown)) < theta * ACCIDENT)
    return Visit(query=query, shown=shown, clicked=clicked, bought=np.zeros_like(clicked))


def learned(settings: Settings, visits: Sequence[tuple[Visit, str]], *, blind: bool) -> Trainer:
    """Train on visits in their order, with clients or without."""
    trainer = Trainer(settings.learner, Weigher(settings.weighting))
    pending: list[Sample] = []
    for number, (visit, client) in enumerate(visits, 1):
        hashed = 0 if blind else client_hash(client)
        own = msgspec.structs.replace
        pending += (own(s, client=hashed) for s in samples_of(visit, number))
        if number % _LISTS_PER_STEP == 0 or number == len(visits):
            trainer.step(pending)
            pending = []
    return trainer


def judged(trainer: Trainer, asked: Sequence[Asked], *, with_client: bool) -> Array:
    """Return NDCG@10 of each request."""
    scorer = ModelScorer("now", trainer.ranker, trainer.weigher, trainer.served)

    def quality(one: Asked) -> float:
        documents = tuple(
            Document(id=p.id, text=p.text, attributes=dict(p.attributes))
            for p in one.query.products
        )
        client = client_hash(one.client) if with_client else 0
        request = ScoringInput(query=one.query.text, documents=documents, client=client)
        return ndcg(scorer.score([request])[0].score, one.query.grades)

    return np.array([quality(one) for one in asked])


def figures(settings: Settings, streams: Sequence[Stream]) -> dict[str, Any]:
    """Return group -> NDCG@10 of the arms, gain and cost, over the streams of several seeds."""
    found: dict[tuple[str, int, str], list[tuple[float, float, float]]] = defaultdict(list)
    coefficients: dict[str, list[float]] = defaultdict(list)
    for number, stream in enumerate(streams):
        trainer = learned(settings, stream.visits, blind=False)
        other = learned(settings, stream.visits, blind=True)
        for name, value in trainer.served.stackers["click"].coefficients().items():
            coefficients[name].append(value)
        arms = (
            judged(trainer, stream.asked, with_client=True),
            judged(trainer, stream.asked, with_client=False),
            judged(other, stream.asked, with_client=False),
        )
        for one, *row in zip(stream.asked, *arms, strict=True):
            found[one.group, number, one.client].append((row[0], row[1], row[2]))
    report: dict[str, Any] = {
        "coefficients": {name: round(float(np.mean(own)), 3) for name, own in coefficients.items()}
    }
    for group in sorted({group for group, _, _ in found}):
        rows = np.array([np.mean(own, axis=0) for key, own in found.items() if key[0] == group])
        report[group] = {
            "clients": len(rows),
            **dict(zip(("with", "without", "blind"), rows.mean(0).round(4).tolist(), strict=True)),
            "gain": [round(value, 4) for value in interval(rows[:, 0] - rows[:, 1])],
            "cost": [round(value, 4) for value in interval(rows[:, 1] - rows[:, 2])],
        }
    return report


def reports(options: argparse.Namespace) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the name and figures of each stream."""
    sets = {**_SETTINGS, **dict(entry.partition("=")[::2] for entry in options.sets)}
    settings = load(None, {}, sets)
    sizes = {"clients": options.clients, "lists": options.lists}
    seeds = range(options.seeds)
    if options.source:
        yield (
            "complete_journey",
            figures(settings, [journey(options.source, **sizes, seed=seed) for seed in seeds]),
        )
        return
    for name in options.stream or STREAMS:
        yield name, figures(settings, [shop(name, **sizes, seed=seed) for seed in seeds])


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark with the command line's options."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--source", type=Path, help="folder of the Complete Journey")
    parser.add_argument("--stream", choices=STREAMS, action="append", help="all by default")
    parser.add_argument("--lists", type=int, default=2000)
    parser.add_argument("--clients", type=int, default=60)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="sets")
    parser.add_argument("--json", action="store_true", help="print the JSON object only")
    options = parser.parse_args(arguments)
    began, report = time.perf_counter(), {}
    for name, row in reports(options):
        report[name] = row
        if not options.json:
            print(name, json.dumps(row), flush=True)
    print(f"{time.perf_counter() - began:.0f} s", file=sys.stderr)
    print(json.dumps({"lists": options.lists, "clients": options.clients, "streams": report}))


if __name__ == "__main__":
    main()
