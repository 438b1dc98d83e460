"""river's logistic regression with one of river's optimizers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from river import linear_model, optim, utils

from weighting.estimators.river_model import RiverModel

OPTIMIZERS: Mapping[str, Callable[[], Any]] = {
    "sgd": optim.SGD,
    "adagrad": optim.AdaGrad,
    "adadelta": optim.AdaDelta,
    "adamax": optim.AdaMax,
    "adam": optim.Adam,
    "amsgrad": optim.AMSGrad,
    "adabound": optim.AdaBound,
    "nadam": optim.Nadam,
    "rmsprop": optim.RMSProp,
    "momentum": optim.Momentum,
    "nesterov": optim.NesterovMomentum,
    "ftrl": optim.FTRLProximal,
}
"""Name -> an optimizer of river at river's default learning rate; its state is sparse."""


class RiverLogistic(RiverModel):
    """`river.linear_model.LogisticRegression`, its state in the rows of a table.

    A step writes the rows of its own sample. That is river's step, but for the order in which it
    adds up a logit, for the optimizers whose steps are sparse. In river, Adam and RMSProp also
    shrink the moments of all other keys, and Nesterov moves their weights: 23 ms a sample at
    22,000 keys. Here they leave them alone.

    A sample that was not clicked was examined with the posterior probability

        e = t (1 - r) / (1 - t r)

    so it is learned as a negative of weight w e: then the slope of its loss, w e r, is exactly that
    of -w log(1 - t r). A click is learned with weight w.

    >>> model = RiverLogistic("adagrad", hash_bits=4, num_own=0, offset=0.0)
    >>> model.learn_one({3: 1.0}, True)
    >>> model.predict_proba_one({3: 1.0})[True] > 0.5
    True
    """

    def __init__(self, optimizer: str, hash_bits: int, num_own: int, *, offset: float) -> None:
        """Start with nothing known.

        Args:
            optimizer: a name of `OPTIMIZERS`.
            hash_bits: log2 of the number of rows for keys below 2^32.
            num_own: number of keys from 2^32 on.
            offset: the intercept before any learning.
        """
        self.optimizer = optimizer
        self._optimizer = OPTIMIZERS[optimizer]()
        self._model = linear_model.LogisticRegression(self._optimizer, intercept_init=offset)
        kept = vars(self._optimizer).items()
        # river starts per-key state as a dict, or as None where it takes vectors
        self._kinds: dict[str, type] = {
            name: utils.VectorDict if value is None else dict
            for name, value in kept
            if value is None or isinstance(value, dict)
        }
        super().__init__(hash_bits, num_own, offset=offset, columns=tuple(self._kinds))

    def _logit(self, x: Mapping[int, float], rows: Sequence[int]) -> float:
        mean, m = self._table.mean, 0.0
        for row, value in zip(rows, x.values(), strict=True):
            m += mean[row] * value
        return m + float(self._model.intercept)

    def _step(
        self, x: dict[int, float], rows: Sequence[int], y: bool, w: float, t: float, r: float
    ) -> None:
        table, model = self._table, self._model
        weights: Any = utils.VectorDict(self._of_sample(x, rows, table.mean))
        model._weights = weights
        for name, kind in self._kinds.items():
            values = self._of_sample(x, rows, table.extra[name])
            setattr(self._optimizer, name, kind(values))
        model.learn_one(x, y, w=w if y else w * t * (1.0 - r) / (1.0 - t * r))
        for key, row in zip(x, rows, strict=True):
            table.mean[row] = weights[key]
        for name in self._kinds:
            column, values = table.extra[name], getattr(self._optimizer, name)
            for key, row in zip(x, rows, strict=True):
                column[row] = values[key]

    def _of_sample(
        self, x: Mapping[int, float], rows: Sequence[int], column: Sequence[float]
    ) -> dict[int, float]:
        return {key: column[row] for key, row in zip(x, rows, strict=True)}

    def _numbers(self) -> dict[str, float]:
        return {
            "intercept": float(self._model.intercept),
            "n_iterations": self._optimizer.n_iterations,
        }

    def _set_numbers(self, state: Mapping[str, float]) -> None:
        self._model.intercept = state["intercept"]
        self._optimizer.n_iterations = state["n_iterations"]
