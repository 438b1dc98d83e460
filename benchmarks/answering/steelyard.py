"""Steelyard's scorer of a version, as serving calls it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.answering.questions import Question
from learner.request import Document, ScoringInput
from learner.scorer import ModelScorer, load_scorer

Array = NDArray[np.float64]


class Steelyard:
    """A version in one precision, or served with 8-bit integers."""

    def __init__(self, folder: Path, precision: str, threads: int) -> None:
        """Load it."""
        self._int8 = precision == "int8"
        self._folder = folder / ("float32" if self._int8 else precision)
        self._threads = threads
        self._scorer = self._loaded()

    def cold(self, question: Question) -> Array:
        """Rank titles that it has not met."""
        return self._scorer.score([_request(question)])[0].score

    def warm(self, question: Question) -> Array:
        """Rank titles that it has met, under a new query."""
        return self.cold(question)

    def logits(self, question: Question) -> Array:
        """Return what the encoder says: the cross-encoder's head, or the cosine."""
        ranker = self._scorer._ranker
        queries, titles = [question.query] * len(question.titles), list(question.titles)
        with torch.inference_mode():
            said = ranker(queries, titles)
            cosine = (said.queries * said.items).sum(-1)
            found = cosine / ranker.logit_scale
            if ranker.cross is not None:
                found = said.base - cosine - ranker.bias
        logits: Array = found.double().numpy()
        return logits

    def largest_change(self, asked: Sequence[Question]) -> float:
        """Return by how much a score differs alone and among others, as a share of the spread."""
        together = self._loaded().score([_request(own) for own in asked])
        largest = 0.0
        for own, found in zip(asked, together, strict=True):
            alone = self._loaded().score([_request(own)])[0].score
            largest = max(largest, float(np.abs(alone - found.score).max() / np.std(alone)))
        return largest

    def _loaded(self) -> ModelScorer:
        precision = "int8" if self._int8 else "learned"
        return load_scorer(self._folder, "v000001", threads=self._threads, precision=precision)


def _request(question: Question) -> ScoringInput:
    documents = tuple(Document(text=title, id=title) for title in question.titles)
    return ScoringInput(query=question.query, documents=documents)
