"""A small invented shop, in which clicks say more than the words do.

A product fits a query exactly if kind and colour are right and its brand is one that shoppers
trust, which no text says: that is for the learner to find out.
"""

from __future__ import annotations

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


def invented_shop(*, seed: int) -> World:
    """Return 20 queries over about 250 products.

    Candidates of a query are the products of its kind, and some of other kinds.
    """
    draw = np.random.Generator(np.random.PCG64(seed))
    shelves: dict[str, list[tuple[Product, str, bool]]] = {kind: [] for kind in _KINDS}
    for kind, names in _KINDS.items():
        for colour in _COLOURS:
            for brand in (*_TRUSTED, *_OTHER):
                number = sum(map(len, shelves.values()))
                words = (brand, str(draw.choice(_QUALITIES)), colour, str(draw.choice(names)))
                product = Product(
                    id=f"SKU-{number:04d}",
                    text=" ".join(words),
                    attributes={"brand": brand, "category": kind, "colour": colour},
                )
                shelves[kind].append((product, colour, brand in _TRUSTED))
    asked = [(kind, colour) for kind in _KINDS for colour in _COLOURS]
    queries = []
    for i in sorted(draw.permutation(len(asked))[:_NUM_QUERIES].tolist()):
        kind, colour = asked[i]
        other_shelves = [shelf for other, shelf in shelves.items() if other != kind]
        elsewhere = [product for shelf in other_shelves for product, _, _ in shelf]
        others = [elsewhere[j] for j in draw.permutation(len(elsewhere))[:_NUM_OTHERS]]
        graded = [
            (product, _GRADES[own == colour, trusted]) for product, own, trusted in shelves[kind]
        ]
        candidates = sorted(graded + [(p, 0.0) for p in others], key=lambda pair: pair[0].id)
        query = Query(
            text=f"{colour} {kind}",
            products=tuple(product for product, _ in candidates),
            grades=np.array([grade for _, grade in candidates]),
            shown=np.ones(len(candidates), dtype=bool),
            in_stream=True,
        )
        queries.append(query)
    return World(name="invented shop", queries=tuple(queries))
