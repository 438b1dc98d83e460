"""A classifier of river over hashed fields: bounded state, positions, snapshots.

river's models keep a dict entry per feature for ever. Here all numbers of a key are a row of a
`CoefficientTable`; the river model sees the rows of one sample at a time, which is all that a
sparse step reads or writes.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

from river import base

from weighting.errors import SnapshotError
from weighting.estimators.coefficient_table import CoefficientTable
from weighting.estimators.logistic import refusal, sigmoid

_LARGEST_LOGIT = 30.0


class RiverModel(base.Classifier, ABC):
    """A river classifier that learns weighted samples, each examined with some probability.

    Its model is P(y=1 | x, t) = t r(x); a subclass says how a sample that was not clicked, and may
    not have been examined, is learned.

    The pair memory asks how much is known of a key: 1 - v, v = 1 / (1 + I), where I is the Fisher
    information w t r (1 - r)^2 / (1 - t r) x^2 summed over its samples, as in `DiagonalLogistic`.
    Nothing is forgotten by time: `half_life_seconds` has no part in it.
    """

    def __init__(
        self, hash_bits: int, num_own: int, *, offset: float, columns: Sequence[str]
    ) -> None:
        """Start with nothing known.

        Args:
            hash_bits: log2 of the number of rows for keys below 2^32.
            num_own: number of keys from 2^32 on.
            offset: the logit of a sample before any learning.
            columns: names of the numbers that the model keeps per key besides its coefficient.
        """
        self.hash_bits = hash_bits
        self.num_own = num_own
        self.offset = offset
        self._table = CoefficientTable(hash_bits, num_own, columns)
        self._newest_us = 0

    @abstractmethod
    def _logit(self, x: Mapping[int, float], rows: Sequence[int]) -> float:
        """Logit of r(x) from the rows of its keys. Pure."""

    @abstractmethod
    def _step(
        self, x: dict[int, float], rows: Sequence[int], y: bool, w: float, t: float, r: float
    ) -> None:
        """Learn one sample of weight w > 0, examined with probability t, into its keys' rows.

        r is its probability as if examined, before it is learned.
        """

    @abstractmethod
    def _numbers(self) -> dict[str, float]:
        """State besides the table."""

    @abstractmethod
    def _set_numbers(self, state: Mapping[str, float]) -> None:
        """Restore what `_numbers` returned."""

    def logit_one(self, x: Mapping[int, float]) -> float:
        """Logit of r. Pure."""
        return self._logit(x, self._table.rows(x))

    def known(self, *keys: int) -> float:
        """1 - v of the last key; 0 when any of the others has no row. Pure."""
        rows = self._table.rows(keys)
        if self._table.unknown in rows:
            return 0.0
        return 1.0 - self._table.variance[rows[-1]]

    def predict_proba_one(
        self, x: dict[Any, Any], examination: float = 1.0, **kwargs: Any
    ) -> dict[base.typing.ClfTarget, float]:
        """Probability of each label. Pure."""
        p = examination * sigmoid(self.logit_one(x))
        return {False: 1.0 - p, True: p}

    def learn_one(
        self,
        x: dict[Any, Any],
        y: base.typing.ClfTarget,
        w: float = 1.0,
        examination: float = 1.0,
        time_us: int | None = None,
    ) -> None:
        """Learn one sample; one of weight 0 changes nothing.

        Args:
            x: key -> value.
            y: label.
            w: weight >= 0.
            examination: probability in (0, 1] that the sample was examined.
            time_us: event time, by which rows age; by default the latest of all.

        Raises:
            WeightError: an input is NaN or out of range.
        """
        size, t = sum(value * value for value in x.values()), examination
        if not (0.0 <= w < math.inf and 0.0 < t <= 1.0 and size < math.inf and y == y):
            raise refusal(size, y, w, t)
        if w == 0.0:
            return
        table = self._table
        now = self._newest_us = max(self._newest_us, time_us or 0)
        rows = table.rows(x)
        for place, key in enumerate(x):
            if rows[place] == table.unknown:
                rows[place] = table.take(key, now, rows)
        r = sigmoid(min(max(self._logit(x, rows), -_LARGEST_LOGIT), _LARGEST_LOGIT))
        self._step(x, rows, bool(y), w, t, r)
        h = w * t * r * (1.0 - r) ** 2 / (1.0 - t * r)
        for row, value in zip(rows, x.values(), strict=True):
            v = table.variance[row]
            table.variance[row] = v / (1.0 + v * value * value * h)
            table.time_us[row] = now

    def snapshot(self) -> dict[str, Any]:
        """State after the last sample, as plain numbers and bytes; see `CoefficientTable`."""
        return {
            "offset": self.offset,
            "newest_us": self._newest_us,
            "numbers": self._numbers(),
            "table": self._table.snapshot(),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restore the state returned by `snapshot`.

        Raises:
            SnapshotError: it has another table size, other columns or another start.
        """
        if state["offset"] != self.offset:
            raise SnapshotError("offset", state["offset"], self.offset)
        self._table.restore(state["table"])
        self._set_numbers(state["numbers"])
        self._newest_us = state["newest_us"]
