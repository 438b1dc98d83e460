"""p(y|x) of whole batches: predicted from the state before the batch, then learned at once.

Legend: N samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from weighting.estimators.conditional import LARGEST_LOGIT, Conditional, shown_logit
from weighting.estimators.joint_logistic import JointLogistic
from weighting.estimators.propensity import places
from weighting.field_columns import Columns, FieldColumns
from weighting.sample import Sample

Array = NDArray[np.float64]
Places = NDArray[np.intp]
Times = NDArray[np.int64]


class Predictions(NamedTuple):
    """Predictions of N samples, as in `conditional.Prediction`.

    Attributes:
        fields: their hashed fields.
        rows: of these, as they were found.
        time_us: (N,) event times.
        place: (N,) where their positions are counted.
        examination: (N,) theta.
        first_logit: (N,) logits as if shown first.
        logit: (N,) logits where they were shown.
        pair_memory_first_logit: (N,) of the pair memory, as if shown first.
    """

    fields: Columns
    rows: Places
    time_us: Times
    place: Places
    examination: Array
    first_logit: Array
    logit: Array
    pair_memory_first_logit: Array


class JointConditional(Conditional):
    """The estimator of `Conditional`, its state too; it learns a batch in one step."""

    _model: JointLogistic

    def predict_many(self, samples: Sequence[Sample]) -> Predictions:
        """Predict N samples. Pure; all see the same state."""
        known = [s.position for s in samples] if self._with_position else [None] * len(samples)
        place, x = places(known), self._columns.of(samples)
        examination = self._propensity.get_many(place)
        rows = self._model.rows_many(x)
        logit = np.clip(self._model.logit_many(x, rows), -LARGEST_LOGIT, LARGEST_LOGIT)
        base = self.base()
        return Predictions(
            fields=x,
            rows=rows,
            time_us=np.array([s.shown_us + s.elapsed_us for s in samples], dtype=np.int64),
            place=place,
            examination=examination,
            first_logit=logit,
            logit=shown_logit(logit, examination),
            pair_memory_first_logit=base + self._model.known_many(x, rows) * (logit - base),
        )

    def learn_many(self, predicted: Predictions, label: Array, weight: Array) -> None:
        """Learn the N predicted samples at once: order does not count.

        Args:
            predicted: by `predict_many`, before any of them was learned.
            label: (N,) labels.
            weight: (N,) weights; a sample of weight 0 changes nothing.
        """
        p = predicted
        self._model.learn_many(p.fields, p.rows, label, weight, p.examination, p.time_us)
        self._propensity.update_many(p.time_us, p.place, label, weight, expit(p.first_logit))

    def _untrained(self, offset: float) -> JointLogistic:
        c = self.config
        self._columns = FieldColumns(self._fields)
        return JointLogistic(
            c.fields.hash_bits,
            self._fields.num_own,
            offset=offset,
            half_life_seconds=c.half_life_seconds,
        )
