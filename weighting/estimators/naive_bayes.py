"""river's multinomial naive Bayes with weighted samples."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from river import naive_bayes

from weighting.estimators.river_model import RiverModel

_LABELS = {True: "positives", False: "negatives"}


class NaiveBayes(RiverModel):
    """`river.naive_bayes.MultinomialNB`, its state in the rows of a table.

    A field's value is the exponent of its evidence: log p(y|x) is log p(y) + sum x_i log p(i|y).

    Labels are balanced while counting: a positive counts (1 - p) / p times, p the probability
    before any sample, and the logit is put back by log(p / (1 - p)) (case-control correction:
    King & Zeng 2001). Otherwise the smoothing, the same number for both labels, would read a field
    that was never seen as evidence for the rarer one.

    A showing counts as far as it was examined, t: a click adds 1 to the positives and t - 1 to the
    negatives, no click t to the negatives, in expectation t r and t (1 - r) (clicks over expected
    clicks: Zhang & Jones 2007). A number of negatives below 0 is read as 0.

    >>> model = NaiveBayes(hash_bits=4, num_own=0, offset=0.0)
    >>> model.learn_one({3: 1.0}, True)
    >>> model.predict_proba_one({3: 1.0})[True] > 0.5
    True
    """

    def __init__(self, hash_bits: int, num_own: int, *, offset: float) -> None:
        """Start with nothing known.

        Args:
            hash_bits: log2 of the number of rows for keys below 2^32.
            num_own: number of keys from 2^32 on.
            offset: the logit of a sample before any learning.
        """
        super().__init__(hash_bits, num_own, offset=offset, columns=tuple(_LABELS.values()))
        self._balance = math.exp(-offset)
        model: Any = _Multinomial  # untyped in river
        self._model = model()
        # One sample of each label, so that neither is impossible
        self._samples, self._fields = dict.fromkeys(_LABELS, 1.0), dict.fromkeys(_LABELS, 0.0)

    def _logit(self, x: Mapping[int, float], rows: Sequence[int]) -> float:
        columns, model = self._table.extra, self._model
        positives, negatives = (columns[name] for name in _LABELS.values())
        model.feature_counts = {
            key: {True: positives[row], False: max(0.0, negatives[row])}
            for key, row in zip(x, rows, strict=True)
        }
        model.class_counts = {label: max(1.0, number) for label, number in self._samples.items()}
        model.class_totals = {label: max(0.0, number) for label, number in self._fields.items()}
        model.num_terms = max(1, self._table.num_taken + self.num_own)
        found = model.joint_log_likelihood(x)
        return float(found[True] - found[False]) + self.offset

    def _step(
        self, x: dict[int, float], rows: Sequence[int], y: bool, w: float, t: float, r: float
    ) -> None:
        if y:
            self._count(x, rows, True, w * self._balance)
        if not y or t < 1.0:
            self._count(x, rows, False, w * (t - 1.0 if y else t))

    def _count(self, x: dict[int, float], rows: Sequence[int], y: bool, w: float) -> None:
        column = self._table.extra[_LABELS[y]]
        for row, value in zip(rows, x.values(), strict=True):
            column[row] += value * w
            self._fields[y] += value * w
        self._samples[y] += w

    def _numbers(self) -> dict[str, float]:
        return {
            **{f"samples_{name}": self._samples[label] for label, name in _LABELS.items()},
            **{f"fields_{name}": self._fields[label] for label, name in _LABELS.items()},
        }

    def _set_numbers(self, state: Mapping[str, float]) -> None:
        for label, name in _LABELS.items():
            self._samples[label] = state[f"samples_{name}"]
            self._fields[label] = state[f"fields_{name}"]


class _Multinomial(naive_bayes.MultinomialNB):
    """Multinomial naive Bayes that is told the number of terms, as it holds a few of them."""

    num_terms = 1

    @property
    def n_terms(self) -> int:
        """Number of different terms in all samples."""
        return self.num_terms
