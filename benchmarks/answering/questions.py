"""Invented questions: a query, a hundred titles of very different lengths, and their grades.

Every word is one token of the default encoder, so lengths in words are lengths in tokens.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

MEAN_TOKENS, MOST_TOKENS, LEAST_TOKENS = 40, 128, 3
_SIGMA = 0.6
_KINDS = (
    "lamp table chair shirt jacket knife bottle guitar camera clock mirror blanket basket wallet "
    "helmet carpet bicycle piano cabinet ladder"
).split()
_COLOURS = "red blue green black white yellow purple orange pink silver brown gray".split()
_MATERIALS = "wooden leather cotton steel glass plastic stone paper rubber copper".split()
_FILLERS = (
    "the with for and new small large modern classic light strong simple home garden kitchen "
    "office travel summer winter children design quality made easy clean use pack set size inch "
    "weight high low long short wide deep warm cool soft hard round square full half one two "
    "three four box gift best free original style series edition model special natural every day "
    "family outdoor indoor water power energy safe fast quick quiet water air wind rain sun "
    "perfect great good fine basic extra super mini double single pair hand top base side front "
    "back inner outer open closed long lasting year design room wall floor door window city "
    "country world sport music art school work play party night morning"
).split()
_SHARE_OF_KIND = 0.3


class Question(NamedTuple):
    """A query with titles.

    Attributes:
        query: its text.
        titles: of the documents.
        grades: of the titles, in [0, 1]: kind right, and colour and material besides.
    """

    query: str
    titles: tuple[str, ...]
    grades: tuple[float, ...]


def questions(number: int, *, titles: int, seed: int) -> list[Question]:
    """Draw questions; lengths of titles are log-normal, of mean 40 tokens and at most 128."""
    draw = np.random.default_rng(seed)
    return [_question(draw, titles) for _ in range(number)]


def asked_again(question: Question, *, seed: int) -> Question:
    """Return the same titles under another query; its grades are none."""
    draw = np.random.default_rng(seed)
    query = " ".join((_word(draw, _COLOURS), _word(draw, _MATERIALS), _word(draw, _KINDS)))
    fillers = draw.choice(_FILLERS, 3)
    return Question(f"{query} {' '.join(fillers)}", question.titles, ())


def _question(draw: np.random.Generator, number: int) -> Question:
    kind, colour, material = (_word(draw, own) for own in (_KINDS, _COLOURS, _MATERIALS))
    lengths = draw.lognormal(np.log(MEAN_TOKENS) - _SIGMA**2 / 2, _SIGMA, number).round()
    titles, grades = [], []
    for length in lengths.clip(LEAST_TOKENS, MOST_TOKENS).astype(int).tolist():
        own_kind = kind if draw.random() < _SHARE_OF_KIND else _word(draw, _KINDS)
        own_colour = colour if draw.random() < 1 / 2 else _word(draw, _COLOURS)
        own_material = material if draw.random() < 1 / 2 else _word(draw, _MATERIALS)
        words = [own_kind, own_colour, own_material]
        words += draw.choice(_FILLERS, length - len(words)).tolist()
        titles.append(" ".join(draw.permutation(words).tolist()))
        same = (own_colour == colour) + (own_material == material)
        grades.append((1 + 2 * same) / 5 if own_kind == kind else 0.0)
    return Question(f"{colour} {material} {kind}", tuple(titles), tuple(grades))


def _word(draw: np.random.Generator, words: list[str]) -> str:
    return str(draw.choice(words))
