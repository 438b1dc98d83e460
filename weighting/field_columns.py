"""Hashed fields of a whole batch, as columns: for each sample the fields that `Fields` gives it.

Hot path, about 4 us a sample (`benchmarks/weigh.py`). Legend: N samples, M fields of all of them.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from typing import NamedTuple
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from weighting.features import NUM_CACHED, QUERY_CATEGORY, Fields, mixed
from weighting.sample import Attribute, Sample

Array = NDArray[np.float64]
Keys = NDArray[np.uint64]
Places = NDArray[np.intp]
_EXACT = 1 << 53
_Known = tuple[
    str,
    Mapping[str, Attribute],
    list[type] | None,
    bytes,
    int,
    frozenset[str],
    "array[int]",
    list[bytes],
]
"""Text, attributes and their types, and what `Fields.of_item` returns."""


class Columns(NamedTuple):
    """Fields of N samples.

    Attributes:
        keys: (M,) key of each field.
        values: (M,) value of each.
        sample: (M,) number of the sample of each.
        query: (N,) places of the queries' own fields among the M.
        pair: (N,) places of the fields of an item under a query.
    """

    keys: Keys
    values: Array
    sample: Places
    query: Places
    pair: Places


class FieldColumns:
    """Fields of many samples at once; what no query changes of an item is kept from before.

    What is kept decides nothing: an item that is not as it was is hashed again, and its fields
    have the same order whatever that of its attributes.
    """

    def __init__(self, fields: Fields) -> None:
        """Start with nothing kept."""
        self._fields = fields
        self._items: dict[str, _Known] = {}

    def of(self, samples: Sequence[Sample]) -> Columns:
        """Return the fields of N samples."""
        known, of_query = self._items, self._fields.of_query
        queries, every, pairs, attributes, crossed = (array("Q") for _ in range(5))
        num_attributes, num_crossed, overlap = [], [], self._fields.overlap
        before, query_key, salt, asked, num_words = "", *of_query("")
        for s in samples:
            own, text, query = s.attributes, s.text, s.query
            name = s.item_id or text
            item = known.get(name)
            if (
                item is None
                or item[0] != text
                or item[1] != own
                or (item[2] and item[2] != [type(own[k]) for k in item[1]])
            ):
                item = self._keep(name, text, own)
            _, _, _, encoded, item_key, words, keys, categories = item
            if query is not before:  # a list has one
                before = query
                query_key, salt, asked, num_words = of_query(query)
            queries.append(query_key)
            every.append(item_key)
            every.append(overlap + 5 * min(len(asked & words), 4) + num_words)
            pairs.append(crc32(encoded, salt))
            attributes.extend(keys)
            num_attributes.append(len(keys))
            for category in categories:
                crossed.append(crc32(category, salt ^ QUERY_CATEGORY))
            num_crossed.append(len(categories))
        return self._joined(
            (_keys(queries), *_keys(every).reshape(-1, 2).T, mixed(_keys(pairs))),
            (_keys(attributes), num_attributes),
            (mixed(_keys(crossed)), num_crossed),
        )

    def _joined(
        self,
        one_each: tuple[Keys, Keys, Keys, Keys],
        attributes: tuple[Keys, list[int]],
        crossed: tuple[Keys, list[int]],
    ) -> Columns:
        """Put the fields side by side: first one of each kind per sample, then the others."""
        c, number = self._fields.config, len(one_each[0])
        each = np.arange(number)
        parts = (
            (np.full(number, self._fields.bias, dtype=np.uint64), each, c.bias),
            (one_each[0], each, c.query),
            (one_each[1], each, c.item),
            (one_each[2], each, c.overlap),
            (one_each[3], each, c.pair),
            (attributes[0], np.repeat(each, attributes[1]), c.attribute),
            (crossed[0], np.repeat(each, crossed[1]), c.query_category),
        )
        keys, sample, values = zip(*parts, strict=True)
        return Columns(
            keys=np.concatenate(keys),
            values=np.repeat(np.array(values), [len(own) for own in keys]),
            sample=np.concatenate(sample),
            query=each + number,
            pair=each + 4 * number,
        )

    def _keep(self, name: str, text: str, attributes: Mapping[str, Attribute]) -> _Known:
        # 1, 1.0 and True are equal, and so are a large number's int and float
        alike = any(
            not isinstance(v, str) and not 1 < v < _EXACT
            for v in attributes.values()
            if not isinstance(v, list)
        )
        types = [*map(type, attributes.values())] if alike else None
        encoded, key, words, keys, categories = self._fields.of_item(name, text, attributes)
        entry = text, attributes, types, encoded, key, words, array("Q", keys), categories
        if len(self._items) >= NUM_CACHED:
            self._items.clear()
        self._items[name] = entry
        return entry


def _keys(found: array[int]) -> Keys:
    return np.frombuffer(found, np.uint64) if found else np.zeros(0, dtype=np.uint64)
