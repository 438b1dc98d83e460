"""Protocol of a part of the served score, and the pairs that it is asked about.

Legend: N pairs, D width of the starting encoder's vectors, F columns of a part.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from weighting.sample import Attribute
from weighting.tasks import TaskName

Array = NDArray[np.float64]
Vectors = NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Pairs:
    """N pairs of a query and an item.

    Attributes:
        queries: texts of the queries.
        clients: 64-bit hash of the client of each query; 0 when none is known.
        items: identity of each item: its id, or its text if it has none.
        texts: texts of the items.
        attributes: named properties of the items.
        query_vectors: (N, D) unit vectors of the queries by the starting encoder.
        item_vectors: (N, D) unit vectors of the items by the starting encoder.
        given: column -> (N,) what owners of other state say of the pairs; NaN where nothing.
    """

    queries: Sequence[str]
    clients: Sequence[int]
    items: Sequence[str]
    texts: Sequence[str]
    attributes: Sequence[Mapping[str, Attribute]]
    query_vectors: Vectors
    item_vectors: Vectors
    given: Mapping[str, Array]

    def __getitem__(self, own: slice) -> Pairs:
        """Select consecutive pairs."""
        columns = {f.name: getattr(self, f.name)[own] for f in fields(self) if f.name != "given"}
        return Pairs(**columns, given={name: column[own] for name, column in self.given.items()})


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Outcomes:
    """Labels of N pairs.

    Attributes:
        label: (N,) 0 or 1.
        weight: (N,) correction weights >= 0: discount x delay correction.
        discount: (N,) share of an example that each counts for, in [0, 1].
        factor: (N,) by which a sample counts to what needs the encoder's score: 1, or 1 / pi if it
            was drawn with probability pi, 0 if it has none.
        examination: (N,) probability that the position was examined, in (0, 1].
        shown: (N,) True for first copies: each showing counts once as exposure.
        lists: (N,) number of the list that each was shown in, negative for none.
        time_us: (N,) event times.
        logit: (N,) what the served score said before it learned them; to a part, without what the
            part itself contributed, and, but for what is about the client, without what the query
            residual and the pair memory did.
    """

    label: Array
    weight: Array
    discount: Array
    factor: Array
    examination: Array
    shown: NDArray[np.bool_]
    lists: NDArray[np.intp]
    time_us: NDArray[np.int64]
    logit: Array

    def __getitem__(self, own: slice) -> Outcomes:
        """Select consecutive pairs."""
        return Outcomes(**{f.name: getattr(self, f.name)[own] for f in fields(self)})


class Part(Protocol):
    """One source of evidence about a pair, in logits.

    What it says of a pair depends on the pair and on its state, never on the other pairs of the
    call.

    Attributes:
        columns: name of each value that it gives -> coefficient of the value before any sample.
    """

    columns: Mapping[str, float]

    def predict(self, pairs: Pairs) -> Array:
        """Return values (F, N) in the order of `columns`, NaN where nothing is known. Pure."""


@runtime_checkable
class LearningPart(Part, Protocol):
    """Part with a state of its own, asked about a pair before it learns from it."""

    def learn(self, task: TaskName, pairs: Pairs, outcomes: Outcomes) -> None:
        """Learn N pairs, of which it was asked before, and what became of them in a task."""

    def snapshot(self) -> bytes:
        """Return the state as msgpack; equal state gives equal bytes."""

    def restore(self, data: bytes) -> None:
        """Restore the state returned by `snapshot`.

        Raises:
            SnapshotError: the bytes are not such a snapshot.
        """


def cosines(pairs: Pairs) -> Array:
    """Return the cosine (N,) of query and item by the starting encoder."""
    # No matrix product: its order of adding depends on the cores of the machine
    found: Array = (pairs.query_vectors * pairs.item_vectors).sum(axis=1).astype(np.float64)
    return found
