"""A simulated shop: queries, graded products, and probabilities of clicks and purchases.

Every figure that comes from the simulation says so. With g the grade of a product under a query
(4 exact, 2 substitute, 0.4 complement, 0 irrelevant) and k its place in the shown list:

    shown       the ten highest of z(BM25 of query on titles) + 0.8 Gumbel,
                over the products that may be shown
    examined    theta_k = 1 / k
    click       genuine with probability 0.55 theta_k (0.1 + 0.9 (2^g - 1) / 15),
                else by accident with 0.55 theta_k 0.1
    purchase    after a genuine click sigma(-2.2 + 1.6 g / 4 + e), e ~ Normal(0, 0.5) per product;
                after an accidental one 0.02
    delay       log-normal seconds, cut at the attribution window

Queries are asked in proportion to rank^-0.8. The shown lists do not depend on the model, so that a
count of clicks over the same lists is a fair opponent.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

NUM_SHOWN = 10
ATTRACTION = 0.55
ACCIDENT = 0.1
ACCIDENTAL_PURCHASE = 0.02
_WORD = re.compile(r"[a-z0-9]+")


@dataclass(frozen=True, slots=True, kw_only=True)
class Product:
    """A product of the shop."""

    id: str
    text: str
    attributes: dict[str, str]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Query:
    """A query, with the products that may be shown for it.

    Attributes:
        text: as typed.
        products: candidates, n of them.
        grades: (n,) 0, 0.4, 2 or 4.
        shown: (n,) false for products that are never shown under this query.
        in_stream: false for a query that no shopper asks.
    """

    text: str
    products: tuple[Product, ...]
    grades: Array
    shown: NDArray[np.bool_]
    in_stream: bool


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class World:
    """The shop: all queries, with their products.

    Attributes:
        name: printed with every result.
        queries: all of them, those of the stream and those kept for the end.
    """

    name: str
    queries: tuple[Query, ...]

    def products(self) -> list[Product]:
        """Return every product once."""
        found = {product.id: product for query in self.queries for product in query.products}
        return list(found.values())


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Visit:
    """One shopper's visit, over m shown products.

    Attributes:
        query: as asked.
        shown: (m,) places among the query's products, in order.
        clicked: (m,) whether each was clicked.
        bought: (m,) whether each was bought.
    """

    query: Query
    shown: NDArray[np.int64]
    clicked: NDArray[np.bool_]
    bought: NDArray[np.bool_]


class Shoppers:
    """Simulated visits, one after another, from one seed."""

    def __init__(self, world: World, *, seed: int) -> None:
        """Draw the popularity of queries, and the worth of products beyond their fit."""
        self._random = np.random.Generator(np.random.PCG64(seed))
        self._queries = [query for query in world.queries if query.in_stream]
        rank = self._random.permutation(len(self._queries)) + 1.0
        self._popularity = rank**-0.8 / (rank**-0.8).sum()
        lexical = BM25([product.text for product in world.products()])
        place = {product.id: i for i, product in enumerate(world.products())}
        self._lexical = {}
        for query in self._queries:
            score = lexical.scores(query.text, [place[product.id] for product in query.products])
            standardised = (score - score.mean()) / (score.std() + 1e-9)
            self._lexical[query.text] = np.where(query.shown, standardised, -np.inf)
        self._worth = {product.id: self._random.normal(0, 0.5) for product in world.products()}

    def visit(self) -> Visit:
        """Return the next visit."""
        draw = self._random
        query = self._queries[draw.choice(len(self._queries), p=self._popularity)]
        shown = self.shown(query)
        theta = ATTRACTION / np.arange(1, len(shown) + 1)
        genuine = draw.random(len(shown)) < theta * attraction(query.grades[shown])
        accident = ~genuine & (draw.random(len(shown)) < theta * ACCIDENT)
        worth = np.array([self._worth[query.products[i].id] for i in shown])
        wanted = purchase_probability(query.grades[shown], worth)
        purchase = np.where(genuine, wanted, ACCIDENTAL_PURCHASE)
        clicked = genuine | accident
        return Visit(
            query=query,
            shown=shown,
            clicked=clicked,
            bought=clicked & (draw.random(len(shown)) < purchase),
        )

    def shown(self, query: Query) -> NDArray[np.int64]:
        """Return places (m,) of the products that the shop shows next under a query."""
        gumbel = self._random.gumbel(size=len(query.products))
        score = self._lexical[query.text] + 0.8 * gumbel
        return np.argsort(-score, kind="stable")[: min(NUM_SHOWN, int(query.shown.sum()))]

    def true_click(self, query: Query) -> Array:
        """Return the simulation's p(click | query, product, first place), (n,)."""
        genuine = ATTRACTION * attraction(query.grades)
        return genuine + (1 - genuine) * ATTRACTION * ACCIDENT


def attraction(grades: Array) -> Array:
    """Chance (n,) that an examined product is found worth a click."""
    value: Array = 0.1 + 0.9 * (2**grades - 1) / 15
    return value


def purchase_probability(grades: Array, worth: Array) -> Array:
    """Chance (n,) that a genuine click becomes a purchase."""
    value: Array = 1 / (1 + np.exp(2.2 - 1.6 * grades / 4 - worth))
    return value


class BM25:
    """Lexical score of queries on a collection of texts (Robertson et al.).

    k1 = 1.2, b = 0.75, idf ln(1 + (N - df + .5) / (df + .5)).
    """

    def __init__(self, texts: Sequence[str]) -> None:
        """Count the words of N texts."""
        self._words = [Counter(_WORD.findall(text.lower())) for text in texts]
        self._lengths = [sum(words.values()) for words in self._words]
        self._mean_length = sum(self._lengths) / max(len(self._lengths), 1)
        frequency = Counter(word for words in self._words for word in words)
        self._idf = {
            word: math.log1p((len(texts) - df + 0.5) / (df + 0.5)) for word, df in frequency.items()
        }

    def scores(self, query: str, places: Sequence[int]) -> Array:
        """Scores (n,) of a query on n of the texts, by their places."""
        asked = _WORD.findall(query.lower())
        return np.array([sum(self._term(word, place) for word in asked) for place in places])

    def _term(self, word: str, place: int) -> float:
        times = self._words[place][word]
        length = self._lengths[place] / self._mean_length
        saturated = times * 2.2 / (times + 1.2 * (0.25 + 0.75 * length))
        return self._idf.get(word, 0.0) * saturated
