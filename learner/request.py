"""What is scored and what comes back: values only, and the shape of whoever scores.

Importing this module loads neither torch nor a model. Legend: N documents of one request.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from weighting.sample import Attribute


class Document(msgspec.Struct, frozen=True, kw_only=True):
    """One candidate: its text, and its id and attributes where they are known."""

    text: str
    id: str = ""
    attributes: dict[str, Attribute] = {}


class ScoringInput(msgspec.Struct, frozen=True, kw_only=True):
    """A query and the documents to score against it."""

    query: str
    documents: tuple[Document, ...]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Scores:
    """The answer to one request, in the order of its documents."""

    click: NDArray[np.float64]  #: (N,) probability of a click
    purchase: NDArray[np.float64]  #: (N,) probability of a purchase after a click
    score: NDArray[np.float64]  #: (N,) what ranking sorts by, largest first
    prior: dict[str, float]  #: task -> p(y=1) of the stream


class Scorer(Protocol):
    """One loaded version that scores; confined to the thread that uses it."""

    @property
    def version(self) -> str:
        """The name of the version, such as ``v000012``."""

    def score(self, requests: Sequence[ScoringInput]) -> list[Scores]:
        """Score each request; what a request gets does not depend on what it is batched with."""
