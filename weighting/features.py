"""Hashed fields of a sample, the input of the online estimators.

Hot path, at most 10 us a sample (`benchmarks/weigh.py`). Hashes are CRC-32 with a multiplicative
mix: the same in every process.

A field's value is the standard deviation of its effect on the logit before any sample, so that
every coefficient starts as Normal(0, 1).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Protocol, overload
from zlib import crc32

import numpy as np
from msgspec import Meta
from numpy.typing import NDArray
from river import base

from weighting.constraints import NotNegative, check
from weighting.query_key import folded, query_key
from weighting.sample import Attribute

_WORD = re.compile(r"\w+")
# The golden ratio of Fibonacci hashing breaks CRC's linearity, under which crosses would collide
# in families.
_MIX = 0x9E3779B1
_UINT32 = 0xFFFFFFFF
_NUM_TEXT_CHARACTERS = 512
_NUM_ATTRIBUTES = 16
_NUM_ELEMENTS = 16  # of an attribute that is a list
NUM_CACHED = 16_384
_WITHOUT_SIZE = (str, bool)  # `str | bool` would be built at each call
_NUM_OVERLAPS = 25  # words of the query, words of it in the text: 0 to 4 each

# Salts keep the hashes of one field apart from those of another.
_ITEM, _ATTRIBUTE, QUERY_CATEGORY, _PAIR, _QUERY_WORD = 1, 2, 3, 4, 5

QueryFields = tuple[int, int, frozenset[str], int]
"""Key of a query, salt of its crosses, its words, and their number up to 4."""
ItemFields = tuple[bytes, int, frozenset[str], list[int], list[bytes]]
"""An item's identity, its key, words of its text, keys of its attribute values, its categories."""


class Document(Protocol):
    """Anything that can be scored: an id (or ""), a text and attributes."""

    @property
    def id(self) -> str:
        """Identity of the item; if "", its text stands for it."""

    @property
    def text(self) -> str:
        """The text that is shown of it."""

    @property
    def attributes(self) -> Mapping[str, Attribute]:
        """Its named properties."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FieldConfig:
    """Number of rows, and the standard deviation of each field's effect, in logits.

    A deviation of 0 switches the field off.
    """

    hash_bits: Annotated[
        int, Meta(ge=4, le=24, description="log2 of the number of rows; 32 bits tell them apart.")
    ] = 20
    category: Annotated[str, Meta(description="Attribute crossed with the query.")] = "category"
    bias: Annotated[NotNegative, Meta(description="Constant.")] = 0.5
    query: Annotated[NotNegative, Meta(description="Query as a whole.")] = 0.3
    item: Annotated[NotNegative, Meta(description="Item, whatever the query.")] = 0.5
    pair: Annotated[NotNegative, Meta(description="Item under this query.")] = 1.25
    query_category: Annotated[NotNegative, Meta(description="Category under this query.")] = 0.3
    attribute: Annotated[
        NotNegative, Meta(description="Value of each attribute, or of each text of a list.")
    ] = 0.15
    overlap: Annotated[
        NotNegative, Meta(description="Number of the query's words that the text has.")
    ] = 0.3

    def __post_init__(self) -> None:
        """Check every field."""
        check(self, "fields")


class Fields(base.Transformer):
    """A river transformer from (query, id, text, attributes) to {key: value}; learns nothing.

    >>> sample = {"query": "red shoes", "id": "SKU-7", "text": "Red shoe", "attributes": {}}
    >>> len(Fields(FieldConfig()).transform_one(sample))  # bias, query, item, pair, overlap
    5
    """

    def __init__(self, config: FieldConfig) -> None:
        """Start with empty caches."""
        self.config = config
        # Most samples share these fields: they have keys of their own, behind the hashes
        self.bias = _UINT32 + 1
        self.overlap = self.bias + 1
        self.num_own = 1 + _NUM_OVERLAPS
        self._queries: dict[str, QueryFields] = {}
        self._texts: dict[str, frozenset[str]] = {}

    def transform_one(self, x: dict[Any, Any]) -> dict[Any, Any]:
        """Return the fields of a dict with the keys query, id, text, attributes."""
        return self.fields(x["query"], x["id"], x["text"], x["attributes"])

    def fields(
        self, query: str, item_id: str, text: str, attributes: Mapping[str, Attribute]
    ) -> dict[int, float]:
        """Keys and their values."""
        return self.fields_and_pair(query, item_id, text, attributes)[0]

    def pair(self, query: str, item_id: str, text: str) -> tuple[int, int]:
        """Keys of the query, and of the item under this query."""
        query_hash, query_salt, _, _ = self._queries.get(query) or self._cache_query(query)
        item = (item_id or text).encode("utf-8", "surrogatepass")
        return query_hash, crc32(item, query_salt) * _MIX & _UINT32

    def fields_and_pair(
        self, query: str, item_id: str, text: str, attributes: Mapping[str, Attribute]
    ) -> tuple[dict[int, float], tuple[int, int]]:
        """Keys and their values; keys of the query, and of the item under this query."""
        c = self.config
        known = self._queries.get(query) or self._cache_query(query)
        query_hash, query_salt, words, num_words = known
        head = text[:_NUM_TEXT_CHARACTERS]
        found = self._texts.get(head)
        if found is None:
            found = self._cache_text(head)
        item = (item_id or text).encode("utf-8", "surrogatepass")
        pair = crc32(item, query_salt) * _MIX & _UINT32
        overlap = 5 * min(len(words & found), 4) + num_words
        x: dict[int, float] = {  # hashes are inlined: a call costs as much as the hash itself
            self.bias: c.bias,
            query_hash: c.query,
            crc32(item, _ITEM) * _MIX & _UINT32: c.item,
            pair: c.pair,
            self.overlap + overlap: c.overlap,
        }
        for name, value in _values(attributes):
            x[crc32(value, _ATTRIBUTE) * _MIX & _UINT32] = c.attribute
            if name == c.category:
                crossed = crc32(value, query_salt ^ QUERY_CATEGORY)
                x[crossed * _MIX & _UINT32] = c.query_category
        return x, (query_hash, pair)

    def constant(self) -> dict[int, float]:
        """The field that every sample has."""
        return {self.bias: self.config.bias}

    def of_query(self, query: str) -> QueryFields:
        """What no item changes of a query."""
        return self._queries.get(query) or self._cache_query(query)

    def of_item(self, name: str, text: str, attributes: Mapping[str, Attribute]) -> ItemFields:
        """What no query changes of an item; the order of its attributes does not count."""
        encoded, head = name.encode("utf-8", "surrogatepass"), text[:_NUM_TEXT_CHARACTERS]
        words, category = self._texts.get(head), self.config.category
        values = set(_values(attributes))
        return (
            encoded,
            mixed(crc32(encoded, _ITEM)),
            self._cache_text(head) if words is None else words,
            sorted({mixed(crc32(value, _ATTRIBUTE)) for _, value in values}),
            sorted(value for of, value in values if of == category),
        )

    def _cache_query(self, query: str) -> QueryFields:
        known = query_key(query)
        encoded = known.encode("utf-8", "surrogatepass")
        hashed = crc32(encoded) * _MIX & _UINT32
        words = frozenset(_WORD.findall(known))
        entry = hashed, crc32(encoded, _PAIR), words, min(len(words), 4)
        if len(self._queries) >= NUM_CACHED:
            self._queries.clear()
        self._queries[query] = entry
        return entry

    def _cache_text(self, text: str) -> frozenset[str]:
        words = frozenset(_WORD.findall(folded(text)))
        if len(self._texts) >= NUM_CACHED:
            self._texts.clear()
        self._texts[text] = words
        return words


@overload
def mixed(crc: int) -> int: ...


@overload
def mixed(crc: NDArray[np.uint64]) -> NDArray[np.uint64]: ...


def mixed(crc: Any) -> Any:
    """Return the 32-bit hash that a key is made of, from a CRC-32."""
    return crc * _MIX & _UINT32


def attribute_values(attributes: Mapping[str, Attribute]) -> Iterator[tuple[str, int]]:
    """Yield name and a 32-bit hash of each attribute value, each text of a list being one."""
    for name, value in _values(attributes):
        yield name, crc32(value, _ATTRIBUTE) * _MIX & _UINT32


def query_words(query: str, most: int) -> list[int]:
    """Return 32-bit hashes of the first different words of a query, at most `most`, never 0."""
    words = dict.fromkeys(_WORD.findall(query_key(query)))
    return [
        crc32(word.encode("utf-8", "surrogatepass"), _QUERY_WORD) * _MIX & _UINT32 or 1
        for word in list(words)[:most]
    ]


def _values(attributes: Mapping[str, Attribute]) -> Iterator[tuple[str, bytes]]:
    """Yield name and ``name=level`` of each attribute value, within the bounds on their number."""
    names: Iterable[str] = attributes
    if len(attributes) > _NUM_ATTRIBUTES:
        names = sorted(attributes)[:_NUM_ATTRIBUTES]
    for name in names:
        given = attributes[name]
        levels: Iterable[object] = (
            dict.fromkeys(given[:_NUM_ELEMENTS])  # a text that is there twice counts once
            if isinstance(given, list)
            else (_level(given),)
        )
        for level in levels:
            yield name, f"{name}={level}".encode("utf-8", "surrogatepass")


def _level(value: str | int | float | bool) -> str | int | bool:
    """Round a number to a signed logarithmic scale with steps of sqrt(2)."""
    if isinstance(value, _WITHOUT_SIZE):
        return value
    size = abs(value)
    if not size < math.inf:
        return "unbounded"
    level = round(2 * math.log2(1 + size))
    return -level if value < 0 else level
