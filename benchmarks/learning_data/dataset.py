"""Shown lists and graded judgments as values, whatever they were read from."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from weighting.sample import Attribute

UNSEEN_QUERIES = "unseen_queries"
"""The part whose queries are never in the stream."""
_SPACE = re.compile(r"\s+")


class DataError(Exception):
    """Data that cannot be used: the message names file, column and remedy."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """An item of the catalogue: its text as the encoder reads it, and its named properties."""

    id: str
    text: str
    attributes: Mapping[str, Attribute]


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownList:
    """One list of the stream, over m shown items, in the order shown.

    Attributes:
        id: of the list.
        query: as typed.
        items: m ids.
        positions: m 1-based positions; None where the order says nothing.
        clicked: m labels.
        purchased: m labels; None where it is not known.
    """

    id: str
    query: str
    items: tuple[str, ...]
    positions: tuple[int | None, ...]
    clicked: tuple[bool, ...]
    purchased: tuple[bool | None, ...]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class JudgedQuery:
    """A query with n graded candidates, in an order that says nothing of the grades."""

    part: str
    query: str
    items: tuple[str, ...]
    grades: NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Dataset:
    """A stream to learn from, and what it is judged on.

    Attributes:
        name: as reported.
        items: id -> item.
        lists: in stream order.
        judged: of every part; the grades of a query are not all equal.
        notes: sentences on what was left out or assumed.
    """

    name: str
    items: Mapping[str, Item]
    lists: Sequence[ShownList]
    judged: Sequence[JudgedQuery]
    notes: tuple[str, ...] = ()

    def parts(self) -> list[str]:
        """Return the names of the parts, sorted."""
        return sorted({judged.part for judged in self.judged})


def made(
    name: str,
    items: Mapping[str, Item],
    lists: Sequence[ShownList],
    judged: Sequence[JudgedQuery],
    notes: Sequence[str] = (),
) -> Dataset:
    """Return a data set that can be judged.

    Left out, and counted in the notes, are judged queries whose grades are all equal (every order
    of them has the same NDCG), and lists whose query is judged in the part `unseen_queries`.

    Raises:
        DataError: no list, or no query to judge, is left.
    """
    usable = [each for each in judged if len(set(each.grades.tolist())) > 1]
    hidden = {_words(each.query) for each in usable if each.part == UNSEEN_QUERIES}
    kept = [each for each in lists if _words(each.query) not in hidden]
    said = [*notes]
    if len(usable) < len(judged):
        said.append(f"{len(judged) - len(usable)} judged queries have one grade only: left out")
    if len(kept) < len(lists):
        said.append(
            f"{len(lists) - len(kept)} lists of queries judged as {UNSEEN_QUERIES}: left out"
        )
    if not kept:
        raise DataError(f"{name}: no list to learn from is left. {'; '.join(said)}")
    if not usable:
        raise DataError(
            f"{name}: no query to judge: every query needs candidates of two different grades"
        )
    return Dataset(name=name, items=items, lists=kept, judged=usable, notes=tuple(said))


def shortened(dataset: Dataset, num_lists: int | None) -> Dataset:
    """Return the data set with the first lists of the stream only; all of them for None."""
    if num_lists is None:
        return dataset
    return dataclasses.replace(dataset, lists=dataset.lists[:num_lists])


def judged_query(part: str, query: str, grades: Mapping[str, float]) -> JudgedQuery:
    """Return a judged query with its candidates in an order drawn by hash."""

    def drawn(item: str) -> bytes:
        return blake2b(f"{query}\0{item}".encode("utf-8", "surrogatepass"), digest_size=8).digest()

    order = sorted(grades, key=drawn)
    return JudgedQuery(
        part=part,
        query=query,
        items=tuple(order),
        grades=np.array([grades[item] for item in order], dtype=np.float64),
    )


def texts(items: Mapping[str, Item], asked: Iterable[ShownList | JudgedQuery]) -> Iterator[str]:
    """Yield every query of lists or judgments and the texts of its items, with repetitions."""
    for each in asked:
        yield each.query
        yield from (items[item].text for item in each.items)


def _words(query: str) -> str:
    return _SPACE.sub(" ", query.strip()).casefold()
