"""Lexical match of query and item, with statistics of the catalogue learned from its items.

Legend: N pairs.

Three values, all in [0, 1], so that they compare across queries of any length. t are terms, idf(t)
is BM25's log(1 + (n - df + .5) / (df + .5)) over the n items seen:

    match    = sum over t in query of idf(t) tf (k + 1) / (tf + k (1 - b + b |text| / mean))
               / ((k + 1) sum over t in query of idf(t))
    whole    = the same of the text with the item's attributes behind it, in statistics of their own
    coverage = sum over t in text and query of idf(t) / sum over t in text of idf(t)

`match` is BM25 (Robertson & Zaragoza 2009) over its largest value, `coverage` its mirror image: how
much of the text was asked for. `whole` finds the brand, the colour or the actor that no text names.
A term of the query that no item has counts in no sum.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import msgspec
import numpy as np

from learner.parts.part import Array, Outcomes, Pairs
from weighting.query_key import folded
from weighting.sample import Attribute
from weighting.snapshot import opened
from weighting.tasks import TaskName

FORMAT = 2
_WORD = re.compile(r"\w+")
_NUM_CHARACTERS = 2_000
_CACHED_CHARACTERS = 8_000_000
_K, _B = 1.2, 0.75


@dataclass(frozen=True, slots=True, kw_only=True)
class LexicalConfig:
    """Bounds of the statistics.

    Attributes:
        max_items: items remembered as counted, by text and with attributes each; beyond it, the
            older half is forgotten and all counts are halved.
        max_terms: terms with a count, of texts and of whole items each; beyond it, all counts are
            halved and the rarest dropped.
    """

    max_items: int = 200_000
    max_terms: int = 200_000


class _Document:
    """The terms of a text.

    Attributes:
        counts: how often it has each.
        length: number of them.
        mass: sum of the idf of each in the texts, as of `as_of`.
        as_of: change of the statistics that it was summed after; 0 for never.
    """

    __slots__ = ("as_of", "counts", "length", "mass")

    def __init__(self, text: str) -> None:
        self.counts = Counter(_WORD.findall(folded(text)))
        self.length = self.counts.total()
        self.mass = 0.0
        self.as_of = 0


class _Statistics:
    """How many of the documents have each term, and how long they are; each is counted once."""

    def __init__(self, config: LexicalConfig) -> None:
        self._config = config
        self._seen: dict[bytes, None] = {}
        self._frequency: dict[str, float] = {}
        self._num_documents = 0.0
        self._num_words = 0.0
        self._num_changes = 1

    def idf(self, term: str) -> float:
        df = self._frequency.get(term, 0.0)
        return math.log1p((max(self._num_documents - df, 0.0) + 0.5) / (df + 0.5))

    def idfs(self, query: Counter[str]) -> dict[str, float]:
        """Return the idf of those terms of a query that some document has."""
        return {t: self.idf(t) for t in query if t in self._frequency}

    def match(self, asked: Mapping[str, float], document: _Document) -> float:
        """Return BM25 over its largest value, of the idfs of a query, NaN if there are none."""
        if not asked:
            return math.nan
        mean = self._num_words / self._num_documents
        norm, counts = _K * (1 - _B + _B * document.length / mean), document.counts
        gains = (
            idf * counts[t] * (_K + 1) / (counts[t] + norm)
            for t, idf in asked.items()
            if t in counts
        )
        return sum(gains) / ((_K + 1) * sum(asked.values()))

    def coverage(self, asked: Mapping[str, float], document: _Document) -> float:
        """Return the share of a document's idf that was asked for, NaN if nothing was."""
        if not asked:
            return math.nan
        counts, mass = document.counts, self._mass(document)
        return sum(idf for t, idf in asked.items() if t in counts) / mass if mass > 0 else 0.0

    def _mass(self, document: _Document) -> float:
        """Return the sum of the idf of a document's terms; it keeps that for these statistics."""
        if document.as_of != self._num_changes:
            document.mass = sum(self.idf(t) for t in document.counts)
            document.as_of = self._num_changes
        return document.mass

    def count(self, name: str, document: _Document) -> None:
        """Count a document, unless one of this name was counted before."""
        key = blake2b(name.encode("utf-8", "surrogatepass"), digest_size=8).digest()
        if key in self._seen:
            return
        self._seen[key] = None
        self._num_changes += 1
        self._num_documents += 1
        self._num_words += document.length
        for term in document.counts:
            self._frequency[term] = self._frequency.get(term, 0.0) + 1
        if len(self._seen) > self._config.max_items:
            for old in list(self._seen)[: len(self._seen) // 2]:
                del self._seen[old]
            self._halve()
        while len(self._frequency) > self._config.max_terms:
            self._halve()

    def _halve(self) -> None:
        """Let each document count half, and forget terms of hardly one."""
        self._num_documents /= 2
        self._num_words /= 2
        self._frequency = {t: n / 2 for t, n in self._frequency.items() if n >= 1.5}

    def snapshot(self) -> list[Any]:
        seen, frequency = b"".join(self._seen), list(self._frequency.items())
        return [seen, frequency, self._num_documents, self._num_words]

    def restore(self, state: list[Any]) -> None:
        seen, frequency, self._num_documents, self._num_words = state
        self._num_changes += 1
        self._seen = {seen[i : i + 8]: None for i in range(0, len(seen), 8)}
        self._frequency = {term: number for term, number in frequency}


class Lexical:
    """BM25-like match, whose document frequencies are counted once for each distinct item.

    It knows nothing of a pair before the first item, nor of a query none of whose terms it has
    met in an item.
    """

    columns: Mapping[str, float] = {"match": 0.25, "whole_match": 0.25, "coverage": 0.25}

    def __init__(self, config: LexicalConfig | None = None) -> None:
        """Start with an empty catalogue."""
        self.config = config or LexicalConfig()
        self._cached: dict[str, _Document] = {}
        self._num_cached = 0  # characters
        self._texts, self._wholes = _Statistics(self.config), _Statistics(self.config)

    def predict(self, pairs: Pairs) -> Array:
        """Return match, whole match and coverage (3, N); NaN where nothing can match. Pure."""
        found = np.full((3, len(pairs.queries)), np.nan)
        asked: dict[str, tuple[dict[str, float], dict[str, float]]] = {}
        for i, (query, text, whole) in enumerate(self._terms_of(pairs)):
            if query not in asked:
                terms = self._terms(query[:_NUM_CHARACTERS]).counts
                asked[query] = self._texts.idfs(terms), self._wholes.idfs(terms)
            in_texts, in_wholes = asked[query]
            found[:, i] = (
                self._texts.match(in_texts, text),
                self._wholes.match(in_wholes, whole),
                self._texts.coverage(in_texts, text),
            )
        return found

    def learn(self, task: TaskName, pairs: Pairs, outcomes: Outcomes) -> None:
        """Count each item, and each item with other attributes, once; labels do not matter."""
        for item, attributes, (_, text, whole) in zip(
            pairs.items, pairs.attributes, self._terms_of(pairs), strict=True
        ):
            self._texts.count(item, text)
            self._wholes.count(f"{item}\n{words_of(attributes)}", whole)

    def _terms_of(self, pairs: Pairs) -> Iterator[tuple[str, _Document, _Document]]:
        """Yield query, terms of the text, and terms of text and attributes, of each pair."""
        for query, text, attributes in zip(
            pairs.queries, pairs.texts, pairs.attributes, strict=True
        ):
            head, words = text[:_NUM_CHARACTERS], words_of(attributes)
            yield query, self._terms(head), self._terms(f"{head} {words}" if words else head)

    def _terms(self, text: str) -> _Document:
        found = self._cached.get(text)
        if found is None:
            self._num_cached += len(text)
            if self._num_cached > _CACHED_CHARACTERS:
                self._cached.clear()
                self._num_cached = len(text)
            found = self._cached[text] = _Document(text)
        return found

    def snapshot(self) -> bytes:
        """Return the statistics as msgpack."""
        state = {
            "format": FORMAT,
            "texts": self._texts.snapshot(),
            "wholes": self._wholes.snapshot(),
        }
        return msgspec.msgpack.encode(state)

    def restore(self, data: bytes) -> None:
        """Restore the state returned by `snapshot`.

        Raises:
            SnapshotError: the bytes are not such a snapshot.
        """
        with opened(data, "lexical match", format=FORMAT) as state:
            self._texts.restore(state["texts"])
            self._wholes.restore(state["wholes"])


def words_of(attributes: Mapping[str, Attribute]) -> str:
    """Return the first texts among an item's attributes, as far as they are read.

    >>> words_of({"brand": "Acme", "price": 59.9, "colours": ["red", "blue"]})
    'Acme red blue'
    """
    words: list[str] = []
    for value in attributes.values():
        if isinstance(value, str):
            words.append(value)
        elif isinstance(value, list | tuple):
            words += value
    return " ".join(words)[:_NUM_CHARACTERS]
