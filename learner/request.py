"""Scoring interface: requests and scores as values, and the protocol of a scorer.

Importing this module loads neither torch nor a model. Legend: N documents of one request.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import msgspec
import numpy as np
from numpy.typing import NDArray

from weighting.sample import Attribute
from weighting.tasks import TaskName

ENCODER = "encoder"
"""Name of the encoder's part of a score."""


class Document(msgspec.Struct, frozen=True, kw_only=True):
    """One candidate: its text, and its id and attributes where they are known."""

    text: str
    id: str = ""
    attributes: dict[str, Attribute] = {}


class ScoringInput(msgspec.Struct, frozen=True, kw_only=True):
    """A query and the documents to score against it.

    Attributes:
        query: its text.
        documents: the candidates.
        client: `client_hash` of the id of the client that asks; 0 when none is known.
    """

    query: str
    documents: tuple[Document, ...]
    client: int = 0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Scores:
    """The answer to one request, in the order of its documents.

    Attributes:
        probability: task -> (N,) p(y=1), given a positive label of the task's parent.
        score: (N,) ranking sorts by it, largest first.
        prior: task -> p(y=1) of the stream.
        contributions: name of a part -> (N,) what it adds to the logit of the task without a
            parent, 0 where it says nothing; empty if the scorer cannot tell.
        value: (N,) what is expected to be paid for a document if it is bought; None if the version
            cannot tell.
    """

    probability: Mapping[TaskName, NDArray[np.float64]]
    score: NDArray[np.float64]
    prior: Mapping[TaskName, float]
    contributions: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)
    value: NDArray[np.float64] | None = None


class Scorer(Protocol):
    """One loaded version that scores; confined to the thread that uses it."""

    @property
    def version(self) -> str:
        """The name of the version, such as ``v000012``."""

    def score(self, requests: Sequence[ScoringInput]) -> list[Scores]:
        """Score each request, independently of the others in its batch."""


@runtime_checkable
class Inspectable(Protocol):
    """Scorer that can say what it was loaded from, for comparison with the next version."""

    @property
    def fixed(self) -> str:
        """Digest of all that training never moves, as it was loaded."""

    def known_queries(self, number: int) -> Sequence[str]:
        """Return at most `number` queries that it has learned most about."""


@runtime_checkable
class Warmable(Protocol):
    """Scorer that keeps what it made of a text, and can be told which texts will come."""

    @property
    def fixed(self) -> str:
        """Digest of all that training never moves; scorers with equal ones share their texts."""

    def kept(self) -> Sequence[Any]:
        """Return the texts that are kept, newest first."""

    def keep(self, texts: Sequence[Any]) -> None:
        """Take texts that another scorer keeps."""
