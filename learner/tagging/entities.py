"""Figures of predicted tags: accuracy by word; precision, recall and F1 by entity.

An entity is a type and the words that it spans; a predicted one is correct if type, first and last
word are. Where tags have prefixes it is what conlleval counts, the script of the CoNLL-2000 and
CoNLL-2003 tasks (Tjong Kim Sang & De Meulder, 2003): B-X begins an entity of type X; I-X goes on
with it, and begins one where none of type X is open. S-X is an entity of its own, and E-X ends one.
Tags without prefixes are types themselves: each longest run of one tag is an entity. O is none.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

OUTSIDE = "O"
"""Tag of a word that belongs to no entity, and of one that no token stands for."""
_PREFIXED = re.compile(r"([BIES])-(.+)", re.DOTALL)


class Entity(NamedTuple):
    """Words `start` to `end` (not included) of a text, and their type."""

    start: int
    end: int
    type: str


@dataclass(slots=True, kw_only=True)
class Counts:
    """Numbers of entities: in the truth, predicted, and predicted correctly."""

    true: int = 0
    predicted: int = 0
    correct: int = 0

    @property
    def precision(self) -> float:
        """Share of the predicted that is correct; 0 of none."""
        return self.correct / self.predicted if self.predicted else 0.0

    @property
    def recall(self) -> float:
        """Share of the true that is predicted; 0 of none."""
        return self.correct / self.true if self.true else 0.0

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall, 2 correct / (true + predicted); 0 of none."""
        both = self.true + self.predicted
        return 2 * self.correct / both if both else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class TagFigures:
    """How well tags were predicted.

    Attributes:
        words: their number.
        accuracy: share of the words whose tag is correct, O included.
        entities: over all types (micro average).
        by_type: of each type of the truth or the prediction, by name.
    """

    words: int
    accuracy: float
    entities: Counts
    by_type: Mapping[str, Counts] = field(default_factory=dict)

    def plain(self) -> dict[str, float | int]:
        """Return the figures over all types as numbers."""
        own = self.entities
        return {
            "words": self.words,
            "entities": own.true,
            "accuracy": self.accuracy,
            "precision": own.precision,
            "recall": own.recall,
            "f1": own.f1,
        }


def is_prefixed(tag: str) -> bool:
    """Return whether a tag has one of the prefixes ``B- I- E- S-`` and a type."""
    return _PREFIXED.fullmatch(tag) is not None


def have_prefixes(tags: Iterable[str]) -> bool:
    """Return whether prefixes of these tags are read: one of them begins with B- or I-."""
    return any(is_prefixed(tag) and tag[0] in "BI" for tag in tags)


def entities(tags: Sequence[str], *, prefixes: bool) -> list[Entity]:
    """Return the entities of a text, in order.

    Args:
        tags: of its words.
        prefixes: whether tags have prefixes; else they are types.

    >>> entities(["B-color", "B-color", "I-color", "O"], prefixes=True)
    [Entity(start=0, end=1, type='color'), Entity(start=1, end=3, type='color')]
    >>> entities(["color", "color", "O", "brand"], prefixes=False)
    [Entity(start=0, end=2, type='color'), Entity(start=3, end=4, type='brand')]
    """
    found: list[Entity] = []
    before, open_type = OUTSIDE, ""
    for place, tag in enumerate(tags):
        if tag == OUTSIDE:
            before, open_type = OUTSIDE, ""
            continue
        match = _PREFIXED.fullmatch(tag) if prefixes else None
        prefix, own_type = match.groups() if match else ("I", tag)
        if prefix in "BS" or before in "OES" or own_type != open_type:
            found.append(Entity(place, place + 1, own_type))
        else:
            found[-1] = found[-1]._replace(end=place + 1)
        before, open_type = prefix, own_type
    return found


def figures(
    truth: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]], *, prefixes: bool
) -> TagFigures:
    """Compare predicted tags with true ones.

    Args:
        truth: tags of each text.
        predicted: as many for each text.
        prefixes: as of `entities`.
    """
    num_words = num_correct = 0
    by_type: defaultdict[str, Counts] = defaultdict(Counts)
    for true, guess in zip(truth, predicted, strict=True):
        num_words += len(true)
        num_correct += sum(t == g for t, g in zip(true, guess, strict=True))
        expected = set(entities(true, prefixes=prefixes))
        found = set(entities(guess, prefixes=prefixes))
        for entity in expected:
            by_type[entity.type].true += 1
            by_type[entity.type].correct += entity in found
        for entity in found:
            by_type[entity.type].predicted += 1
    own = by_type.values()
    return TagFigures(
        words=num_words,
        accuracy=num_correct / num_words if num_words else 0.0,
        entities=Counts(
            true=sum(c.true for c in own),
            predicted=sum(c.predicted for c in own),
            correct=sum(c.correct for c in own),
        ),
        by_type=dict(sorted(by_type.items())),
    )
