"""The linear baseline: what an expert would build in an afternoon.

A listwise linear stack of cosine, BM25, popularity and shrunk item rates, fitted to the lists by
`listwise_fit`. Where lists have positions, -ln k is one more feature while fitting, which takes up
the position bias, and is left out when scoring.

- BM25: of the query on the items' texts, and on their texts with all textual attributes.
- popularity: ln(1 + x) of the columns popularity, votes, rating_count and sales that the items
  have; where they have none, of the clicks on the item.
- item rates: of clicks, and of purchases where they are known (`ItemRates`), with the eta of a
  stack that is fitted without them. While fitting, counts are those of the lists before, so that no
  click explains itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from benchmarks.learning_data.dataset import Dataset, Item
from benchmarks.learning_judging.item_rates import ItemRates
from benchmarks.learning_judging.listwise_fit import fit
from deploy.demo.world import BM25
from learner.parts.lexical import words_of

Array = NDArray[np.float64]
Cosines = Callable[[str, Sequence[str]], Array]
"""A query and n texts -> (n,) cosines."""

POPULARITY = ("popularity", "votes", "rating_count", "sales")


class Lexical:
    """BM25 of queries on the items of a data set."""

    def __init__(self, dataset: Dataset, text: Callable[[Item], str]) -> None:
        """Count the words of every item, of the text that `text` gives for it."""
        self._texts = BM25([text(item) for item in dataset.items.values()])
        self._place = {item: place for place, item in enumerate(dataset.items)}

    def scores(self, query: str, items: Sequence[str]) -> Array:
        """Return the scores (n,) of a query on n items."""
        found = self._texts.scores(query, [self._place[item] for item in items])
        return found.astype(np.float64)


class LinearStack:
    """The fitted stack; `scores` ranks the candidates of any query.

    Attributes:
        eta: of the examination k^-eta that was fitted; 0 where no position is known.
    """

    def __init__(self, dataset: Dataset, cosines: Cosines) -> None:
        """Fit the stack to the lists of a data set."""
        self._items = dataset.items
        self._cosines = cosines
        self._lexical = [Lexical(dataset, text) for text in (own_text, whole_text)]
        self._popularity = [
            name
            for name in POPULARITY
            if any(_number(item, name) > 0 for item in dataset.items.values())
        ]
        lists = dataset.lists
        starts = np.cumsum([0] + [len(shown.items) for shown in lists])[:-1].astype(np.intp)
        clicked = np.array([click for shown in lists for click in shown.clicked], dtype=np.float64)
        decline = np.array(
            [-np.log(k) if k else 0.0 for shown in lists for k in shown.positions],
            dtype=np.float64,
        )
        text = np.concatenate([self._text_features(shown.query, shown.items) for shown in lists])
        _, self.eta = fit(text, clicked, starts, decline)
        self._clicks, self._purchases = ItemRates(eta=self.eta), ItemRates(eta=self.eta)
        counted = []
        for shown in lists:
            counted.append(self._item_features(shown.items))
            self._clicks.learn(shown, shown.clicked)
            self._purchases.learn(shown, shown.purchased)
        features = np.column_stack([text, np.concatenate(counted)])
        self._coefficients, _ = fit(features, clicked, starts, decline)

    def scores(self, query: str, items: Sequence[str]) -> Array:
        """Return the scores (n,) of a query's items, after all lists."""
        features = [self._text_features(query, items), self._item_features(items)]
        found: Array = np.column_stack(features) @ self._coefficients
        return found

    def _text_features(self, query: str, items: Sequence[str]) -> Array:
        """Return the cosine and the two scores of BM25 (n, 3)."""
        texts = [self._items[item].text for item in items]
        lexical = [own.scores(query, items) for own in self._lexical]
        return np.column_stack([self._cosines(query, texts), *lexical])

    def _item_features(self, items: Sequence[str]) -> Array:
        """Return popularity and rates (n, F), as counted so far."""
        columns = [
            np.log1p([_number(self._items[item], name) for item in items])
            for name in self._popularity
        ] or [np.log1p(self._clicks.positives(items))]
        rates = [self._clicks.log_rates(items), self._purchases.log_rates(items)]
        return np.column_stack([*columns, *rates])


def own_text(item: Item) -> str:
    """Return the text that the encoder reads."""
    return item.text


def whole_text(item: Item) -> str:
    """Return the text with its textual attributes behind it, as the product's own part has it."""
    return f"{item.text} {words_of(item.attributes)}".rstrip()


def _number(item: Item, name: str) -> float:
    """Return a numeric attribute >= 0; 0 where the item has none."""
    value = item.attributes.get(name)
    return max(float(value), 0.0) if isinstance(value, int | float) else 0.0
