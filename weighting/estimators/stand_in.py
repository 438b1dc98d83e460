"""Small stand-ins of the trained model: one linear model per candidate, on frozen vectors.

Legend: E candidates, n samples, D width.

z = c . x with x = (D u_1 v_1, ..., D u_D v_D, 100 u.v, 50), u and v the unit vectors of query and
item by the starting encoder: the cosine, its directions, and a level. As the encoder does, each
learns under its own weights w the likelihood of the position-based model, theta sigma(z), by steps
of AdaGrad (Duchi et al. 2011) whose sums fade.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from weighting.checks import check_examination, check_finite, check_labels, check_weights
from weighting.errors import SnapshotError

Array = NDArray[np.float64]
_COSINE, _LEVEL = 100.0, 50.0
_RATE = 0.002
_EPSILON = 1e-8


class StandIns:
    """E linear models that learn the same samples, each under its own weights.

    Sums are written out, so that no threaded reduction can change a bit.
    """

    def __init__(self, num_candidates: int, *, level: float, half_life_samples: float) -> None:
        """Start at a constant.

        Args:
            num_candidates: E.
            level: logit of every pair before any sample.
            half_life_samples: after which a squared gradient counts half.
        """
        self._level = level
        self._half_life_samples = half_life_samples
        self._coefficients: Array = np.zeros((num_candidates, 0))
        self._squares: Array = np.zeros((num_candidates, 0))

    def predict(self, products: Array) -> Array:
        """Logits (E, n), as if shown first, from u v, element by element (n, D). Pure."""
        if not self._coefficients.size:
            return np.full((len(self._coefficients), len(products)), self._level)
        return _logits(self._coefficients, _inputs(products))

    def learn(self, products: Array, label: Array, weight: Array, examination: Array) -> None:
        """Learn n samples in one step.

        Args:
            products: (n, D) u v, element by element.
            label: (n,) 0 or 1.
            weight: (E, n) each candidate's weights; a sample of weight 0 for all is not counted.
            examination: (n,) theta.

        Raises:
            WeightError: an input is NaN or out of range; nothing was learned.
        """
        check_finite("product", products.sum(axis=1))
        check_labels(label)
        check_weights("weight", weight.ravel())
        check_examination(examination)
        used = np.flatnonzero(weight.any(axis=0))
        if not len(used):
            return
        x, theta = _inputs(products[used]), examination[used]
        if not self._coefficients.size:
            self._start(x.shape[1])
        sigma = expit(_logits(self._coefficients, x))
        # 1 - theta sigma, without the cancellation at theta = 1
        unclicked = (1 - sigma) + (1 - theta) * sigma
        slope = np.where(
            label[used] > 0, sigma - 1, theta * sigma * (1 - sigma) / np.maximum(unclicked, 1e-300)
        )
        gradient = ((weight[:, used] * slope)[:, :, None] * x).sum(axis=1)
        keep = 2.0 ** (-len(used) / self._half_life_samples)
        self._squares = keep * self._squares + gradient**2
        step = gradient / np.sqrt(self._squares + _EPSILON)
        self._coefficients = self._coefficients - _RATE * step

    def snapshot(self) -> dict[str, Any]:
        """State after the last `learn`: float64, little-endian."""
        return {
            "level": self._level,
            "coefficients": self._coefficients.astype("<f8").tobytes(),
            "squares": self._squares.astype("<f8").tobytes(),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restore the state returned by `snapshot`.

        Raises:
            SnapshotError: it is not of as many candidates.
        """
        num_candidates = len(self._coefficients)
        columns = [
            np.frombuffer(state[name], dtype="<f8").astype(np.float64)
            for name in ("coefficients", "squares")
        ]
        sizes = [len(column) for column in columns]
        if sizes[0] != sizes[1] or sizes[0] % num_candidates:
            raise SnapshotError("stand-ins", sizes, f"two multiples of {num_candidates}")
        width = sizes[0] // num_candidates
        shape = num_candidates, width
        self._coefficients, self._squares = (column.reshape(shape) for column in columns)
        self._level = state["level"]

    def _start(self, width: int) -> None:
        self._coefficients = np.zeros((len(self._coefficients), width))
        self._coefficients[:, -1] = self._level / _LEVEL
        self._squares = np.zeros_like(self._coefficients)


def _inputs(products: Array) -> Array:
    """Inputs x (n, D + 2)."""
    n, width = products.shape
    cosine = products.sum(axis=1)
    return np.column_stack([width * products, _COSINE * cosine, np.full(n, _LEVEL)])


def _logits(coefficients: Array, x: Array) -> Array:
    z: Array = (coefficients[:, None, :] * x).sum(axis=-1)
    return z
