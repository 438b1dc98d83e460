"""Lexical match of query and text, with statistics of the catalogue learned from its items.

Legend: N pairs.

Two values, both in [0, 1], so that they compare across queries of any length. t are terms, idf(t)
is BM25's log(1 + (n - df + .5) / (df + .5)) over the n items seen:

    match    = sum over t in query of idf(t) tf (k + 1) / (tf + k (1 - b + b |text| / mean))
               / ((k + 1) sum over t in query of idf(t))
    coverage = sum over t in text and query of idf(t) / sum over t in text of idf(t)

`match` is BM25 (Robertson & Zaragoza 2009) over its largest value, `coverage` its mirror image: how
much of the text was asked for. A term of the query that no item has counts in neither sum.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import msgspec
import numpy as np

from learner.parts.part import Array, Outcomes, Pairs
from weighting.errors import SnapshotError
from weighting.query_key import folded
from weighting.tasks import TaskName

FORMAT = 1
_WORD = re.compile(r"\w+")
_NUM_CHARACTERS = 2_000
_NUM_CACHED = 16_384
_K, _B = 1.2, 0.75


@dataclass(frozen=True, slots=True, kw_only=True)
class LexicalConfig:
    """Bounds of the statistics.

    Attributes:
        max_items: items remembered as counted; beyond it, the older half is forgotten and all
            counts are halved.
        max_terms: terms with a count; beyond it, all counts are halved and the rarest dropped.
    """

    max_items: int = 200_000
    max_terms: int = 200_000


class Lexical:
    """BM25-like match, whose document frequencies are counted once for each distinct item.

    It knows nothing of a pair before the first item, nor of a query none of whose terms it has
    met in a text.
    """

    columns: Mapping[str, float] = {"match": 0.25, "coverage": 0.25}

    def __init__(self, config: LexicalConfig | None = None) -> None:
        """Start with an empty catalogue."""
        self.config = config or LexicalConfig()
        self._cached: dict[str, Counter[str]] = {}
        self._clear()

    def _clear(self) -> None:
        self._seen: dict[bytes, None] = {}
        self._frequency: dict[str, float] = {}
        self._num_items = 0.0
        self._num_words = 0.0

    def predict(self, task: TaskName, pairs: Pairs) -> Array:
        """Return match and coverage (2, N); NaN where nothing can match. Pure."""
        found = np.full((2, len(pairs.queries)), np.nan)
        if self._num_items <= 0:
            return found
        known: dict[str, dict[str, float]] = {}
        mean = self._num_words / self._num_items
        for i, (query, text) in enumerate(zip(pairs.queries, pairs.texts, strict=True)):
            asked = known.get(query)
            if asked is None:
                asked = known[query] = self._asked(query)
            if asked:
                found[:, i] = self._match(asked, self._terms(text), mean)
        return found

    def _asked(self, query: str) -> dict[str, float]:
        """Return the idf of those terms of a query that some text has."""
        return {t: self._idf(t) for t in self._terms(query) if t in self._frequency}

    def _match(
        self, asked: Mapping[str, float], text: Counter[str], mean: float
    ) -> tuple[float, float]:
        length = text.total()
        norm = _K * (1 - _B + _B * length / mean)
        matched = {t: idf for t, idf in asked.items() if t in text}
        gain = sum(idf * text[t] * (_K + 1) / (text[t] + norm) for t, idf in matched.items())
        mass = sum(self._idf(t) for t in text)
        covered = sum(matched.values())
        return gain / ((_K + 1) * sum(asked.values())), covered / mass if mass > 0 else 0.0

    def _idf(self, term: str) -> float:
        df = self._frequency.get(term, 0.0)
        return math.log1p((max(self._num_items - df, 0.0) + 0.5) / (df + 0.5))

    def learn(self, task: TaskName, pairs: Pairs, outcomes: Outcomes) -> None:
        """Count each item that was not counted before; labels do not matter."""
        for item, text in zip(pairs.items, pairs.texts, strict=True):
            key = blake2b(item.encode("utf-8", "surrogatepass"), digest_size=8).digest()
            if key in self._seen:
                continue
            self._seen[key] = None
            terms = self._terms(text)
            self._num_items += 1
            self._num_words += terms.total()
            for term in terms:
                self._frequency[term] = self._frequency.get(term, 0.0) + 1
            if len(self._seen) > self.config.max_items:
                for old in list(self._seen)[: len(self._seen) // 2]:
                    del self._seen[old]
                self._halve()
            while len(self._frequency) > self.config.max_terms:
                self._halve()

    def _halve(self) -> None:
        self._num_items /= 2
        self._num_words /= 2
        self._frequency = {t: n / 2 for t, n in self._frequency.items() if n >= 1.5}

    def _terms(self, text: str) -> Counter[str]:
        head = text[:_NUM_CHARACTERS]
        found = self._cached.get(head)
        if found is None:
            if len(self._cached) >= _NUM_CACHED:
                self._cached.clear()
            found = self._cached[head] = Counter(_WORD.findall(folded(head)))
        return found

    def snapshot(self) -> bytes:
        """Return the statistics as msgpack."""
        state = {
            "format": FORMAT,
            "seen": b"".join(self._seen),
            "frequency": list(self._frequency.items()),
            "num_items": self._num_items,
            "num_words": self._num_words,
        }
        return msgspec.msgpack.encode(state)

    def restore(self, data: bytes) -> None:
        """Restore the state returned by `snapshot`.

        Raises:
            SnapshotError: the bytes are not such a snapshot.
        """
        try:
            state: Mapping[str, Any] = msgspec.msgpack.decode(data)
            if state["format"] != FORMAT:
                raise SnapshotError("format", state["format"], FORMAT)
            seen: bytes = state["seen"]
            self._seen = {seen[i : i + 8]: None for i in range(0, len(seen), 8)}
            self._frequency = {term: number for term, number in state["frequency"]}
            self._num_items, self._num_words = state["num_items"], state["num_words"]
        except (msgspec.DecodeError, KeyError, TypeError, ValueError) as error:
            raise SnapshotError("lexical", repr(error), "a lexical snapshot") from error
