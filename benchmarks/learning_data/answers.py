"""Customer service: real questions, the names of their intents as answers, simulated clicks.

Every training question is asked once, in an order drawn from the seed. All figures that come from
the simulation say so. Per question, over all answers of the data set:

    shown      the ten highest of (z(BM25) + z(cosine)) / 2 + 0.8 Gumbel, z over the answers,
               cosine of the packaged encoder before any training
    examined   place k with 1 / k
    click      the right answer with A / k, a wrong one with W / k; else by accident with C / k
    resolved   (the purchase) 0.7 after such a click on the right answer, else 0.05

    clean      A = .9,  W = .045, C = .027   (wrong and accident: 5 % and 3 % of A)
    noisy      A = .55, W = .055, C = .055   (each 10 % of A: about 46 % of clicks are right)

Judged are test questions over all answers, of which one is right: of Banking77 every other row of
the test split (the rows between are for choosing settings), of Bitext the test split (dev).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.learning_data.dataset import (
    UNSEEN_QUERIES,
    Dataset,
    Item,
    ShownList,
    judged_query,
    made,
)
from benchmarks.learning_data.table import read_table
from deploy.demo.world import BM25

Array = NDArray[np.float64]
Similarity = Callable[[Sequence[str], Sequence[str]], Array]
"""Queries (Q,) and texts (N,) -> cosines (Q, N)."""

NUM_SHOWN = 10
_RESOLVED, _RESOLVED_BY_CHANCE = 0.7, 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Noise:
    """Click probabilities at the first place."""

    right: float
    wrong: float
    accident: float


NOISE = {
    "clean": Noise(right=0.9, wrong=0.045, accident=0.027),
    "noisy": Noise(right=0.55, wrong=0.055, accident=0.055),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Files and columns of one data set of questions.

    Attributes:
        columns: of the question and of its intent.
        reported: file of the test questions.
        choosing: file of the questions for choosing settings; None: every other row of `reported`.
    """

    columns: tuple[str, str]
    reported: str
    choosing: str | None


SOURCES = {
    "banking77": Source(columns=("text", "category"), reported="test.parquet", choosing=None),
    "bitext_customer_support": Source(
        columns=("utterance", "intent"), reported="test.parquet", choosing="dev.parquet"
    ),
}


def load_answers(
    folder: Path,
    *,
    name: str,
    noise: str,
    seed: int,
    num_lists: int | None,
    choosing: bool,
    similarity: Similarity,
    half: int | None = None,
) -> Dataset:
    """Read questions, and simulate one list for each training question.

    Args:
        folder: of the Parquet files.
        name: a key of `SOURCES`.
        noise: a key of `NOISE`.
        seed: of the order of the questions, of what is shown and of the clicks.
        num_lists: simulate the first of them only.
        choosing: judge on the questions for choosing settings.
        similarity: of the encoder before any training.
        half: 0 or 1 for the first or second half of the intents, by name, as if the others did not
            exist; None for all of them.

    Raises:
        DataError: a file or a column is missing.
    """
    source = SOURCES[name]
    questions = _questions(folder / "train.parquet", source)
    judged = judged_questions(folder, source, choosing=choosing)
    intents = sorted({intent for _, intent in questions} | {intent for _, intent in judged})
    if half is not None:
        middle = len(intents) // 2
        intents = intents[middle:] if half else intents[:middle]
        questions = [row for row in questions if row[1] in intents]
        judged = [row for row in judged if row[1] in intents]
    items = {intent: Item(id=intent, text=title(intent), attributes={}) for intent in intents}
    draw = np.random.Generator(np.random.PCG64(seed))
    order = draw.permutation(len(questions))[:num_lists]
    stream = [questions[i] for i in order]
    lists = simulated(stream, intents, NOISE[noise], draw, similarity)
    candidates = [
        judged_query(UNSEEN_QUERIES, text, {intent: float(intent == right) for intent in intents})
        for text, right in dict(judged).items()
    ]
    return made(name, items, lists, candidates, (f"clicks are simulated, {noise} noise",))


def title(intent: str) -> str:
    """Return the name of an intent as the title of an answer.

    >>> title("card_arrival")
    'Card arrival'
    """
    return intent.replace("_", " ").strip().capitalize()


def judged_questions(folder: Path, source: Source, *, choosing: bool) -> list[tuple[str, str]]:
    """Return the questions to judge, with their intents."""
    if source.choosing is not None:
        return _questions(folder / (source.choosing if choosing else source.reported), source)
    return _questions(folder / source.reported, source)[int(choosing) :: 2]


def _questions(path: Path, source: Source) -> list[tuple[str, str]]:
    table = read_table(path, source.columns)
    texts, intents = (table[column] for column in source.columns)
    return list(zip(texts, intents, strict=True))


def simulated(
    questions: Sequence[tuple[str, str]],
    intents: Sequence[str],
    noise: Noise,
    draw: np.random.Generator,
    similarity: Similarity,
) -> list[ShownList]:
    """Simulate one list per question."""
    titles = [title(intent) for intent in intents]
    lexical, places = BM25(titles), range(len(titles))
    cosines = similarity([text for text, _ in questions], titles)
    lists = []
    for number, ((text, right), cosine) in enumerate(zip(questions, cosines, strict=True)):
        score = (_standardised(lexical.scores(text, places)) + _standardised(cosine)) / 2
        score = score + 0.8 * draw.gumbel(size=len(titles))
        shown = np.argsort(-score, kind="stable")[:NUM_SHOWN]
        examined = 1 / np.arange(1, len(shown) + 1)
        is_right = np.array([intents[i] == right for i in shown])
        chance = examined * np.where(is_right, noise.right, noise.wrong)
        meant = draw.random(len(shown)) < chance
        accident = ~meant & (draw.random(len(shown)) < examined * noise.accident)
        clicked = meant | accident
        resolved_chance = np.where(meant & is_right, _RESOLVED, _RESOLVED_BY_CHANCE)
        resolved = clicked & (draw.random(len(shown)) < resolved_chance)
        lists.append(
            ShownList(
                id=str(number),
                query=text,
                items=tuple(intents[i] for i in shown),
                positions=tuple(range(1, len(shown) + 1)),
                clicked=tuple(clicked.tolist()),
                purchased=tuple(
                    bool(bought) if click else None
                    for click, bought in zip(clicked, resolved, strict=True)
                ),
            )
        )
    return lists


def _standardised(score: Array) -> Array:
    value: Array = (score - score.mean()) / (score.std() + 1e-9)
    return value
