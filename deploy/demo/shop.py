"""A small invented shop, in which clicks say more than the words do.

A product fits a query exactly if kind and colour are right and its brand is one that shoppers
trust. No text says which: that is for the learner to find out.
"""

from __future__ import annotations

from itertools import product
from typing import NamedTuple

import numpy as np

from deploy.demo.world import Product, Query, World

_KINDS = {
    "running shoes": ("trainers", "running shoes", "jogging sneakers"),
    "rain jacket": ("rain jacket", "waterproof shell", "anorak"),
    "backpack": ("backpack", "daypack", "rucksack"),
    "water bottle": ("water bottle", "drinking flask", "canteen"),
    "desk lamp": ("desk lamp", "reading light", "table lamp"),
    "headphones": ("headphones", "over-ear headset", "earphones"),
    "yoga mat": ("yoga mat", "exercise mat", "pilates mat"),
    "coffee grinder": ("coffee grinder", "burr mill", "bean grinder"),
}
_COLOURS = ("red", "blue", "black", "green")
_TRUSTED = ("Orlanda", "Kestwick", "Tamvero")
_OTHER = ("Bravell", "Nuvora", "Quillon", "Sarto", "Zephina")
_QUALITIES = ("classic", "light", "compact", "premium", "everyday", "slim")
#: (right colour, trusted brand) -> grade
_GRADES = {(True, True): 4.0, (True, False): 2.0, (False, True): 0.4, (False, False): 0.0}
_NUM_QUERIES = 20
_NUM_OTHERS = 12


class _Article(NamedTuple):
    product: Product
    colour: str
    is_trusted: bool


def invented_shop(*, seed: int) -> World:
    """Return 20 queries over about 250 products.

    Candidates of a query are the products of its kind, and some of other kinds.
    """
    draw = np.random.Generator(np.random.PCG64(seed))
    shelves: dict[str, list[_Article]] = {}
    for kind in _KINDS:
        shelves[kind] = _shelf(kind, sum(map(len, shelves.values())), draw)
    wishes = list(product(_KINDS, _COLOURS))
    chosen = [wishes[i] for i in sorted(draw.permutation(len(wishes))[:_NUM_QUERIES])]
    queries = tuple(_query(kind, colour, shelves, draw) for kind, colour in chosen)
    return World(name="invented shop", queries=queries)


def _shelf(kind: str, first_number: int, draw: np.random.Generator) -> list[_Article]:
    """Return one article of a kind per colour and brand."""
    articles = []
    variants = product(_COLOURS, (*_TRUSTED, *_OTHER))
    for number, (colour, brand) in enumerate(variants, first_number):
        quality, name = str(draw.choice(_QUALITIES)), str(draw.choice(_KINDS[kind]))
        made = Product(
            id=f"SKU-{number:04d}",
            text=f"{brand} {quality} {colour} {name}",
            attributes={"brand": brand, "category": kind, "colour": colour},
        )
        articles.append(_Article(made, colour, brand in _TRUSTED))
    return articles


def _query(
    kind: str, colour: str, shelves: dict[str, list[_Article]], draw: np.random.Generator
) -> Query:
    """Return a query with its candidates, by their ids."""
    graded = [
        (article.product, _GRADES[article.colour == colour, article.is_trusted])
        for article in shelves[kind]
    ]
    elsewhere = [
        article.product for other, shelf in shelves.items() if other != kind for article in shelf
    ]
    places = draw.permutation(len(elsewhere))[:_NUM_OTHERS]
    candidates = graded + [(elsewhere[i], 0.0) for i in places]
    products, grades = zip(*sorted(candidates, key=lambda pair: pair[0].id), strict=True)
    return Query(
        text=f"{colour} {kind}",
        products=products,
        grades=np.array(grades),
        shown=np.ones(len(products), dtype=bool),
        in_stream=True,
    )
