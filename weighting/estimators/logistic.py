"""Logistic regression as a fading Gaussian belief per coefficient: the classifier at the end of the river pipeline.

Hot path, at most 10 us to learn a sample of ten fields (`benchmarks/weigh.py`).
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Mapping
from typing import Any

import numpy as np
from river import base

from weighting.errors import SnapshotError

_STEPS = 60  # a bound: bisection alone would take about 40, Newton takes three


class DiagonalLogistic(base.Classifier):
    """A river classifier over buckets [0, num_buckets): each coefficient is Normal(m_i, v_i), starting at Normal(0, 1).

    Model: P(y=1 | x, t) = t r, r = sigma(offset + m'x), where t in (0, 1] is the chance that the sample was looked at at all (`seen`).
    One sample of weight w moves the logit M to the mode of its belief, M = m'x + s w g(M) with s = sum v_i x_i^2, and then

        g(M) = 1 - r  if y = 1,  else  -t r (1 - r) / (1 - t r)         (slope of the log likelihood at M)
        h    = w t r (1 - r)^2 / (1 - t r)                              (Fisher information at M; w r (1 - r) for t = 1)
        m_i <- m_i + v_i x_i w g
        v_i <- v_i (1 - v_i x_i^2 h / (1 + h s))

    (assumed density filtering with a diagonal covariance: Spiegelhalter & Lauritzen 1990; for clicks Graepel et al. 2010, Chapelle & Li
    2011). Steps shrink like 1/n, as counting does, where AdaGrad's shrink like 1/sqrt(n); as the step is implicit, no weight overshoots;
    fields share the credit by what is still unknown about them. With each touch v_i grows by 1/memory, up to its start: a coefficient
    remembers about its last `memory` samples.

    >>> model = DiagonalLogistic(num_buckets=16)
    >>> model.learn_one({3: 1.0}, True)
    >>> model.predict_proba_one({3: 1.0})[True] > 0.5
    True
    """

    def __init__(self, num_buckets: int, offset: float = 0.0, memory: float = 20_000.0) -> None:
        """Start with nothing known but `offset`, the logit of a sample before any was seen."""
        self.num_buckets = num_buckets
        self.offset = offset
        self.memory = memory
        self._mean = array("d", bytes(8 * num_buckets))
        self._variance = array("d", [1.0]) * num_buckets

    def belief_one(self, x: Mapping[int, float]) -> tuple[float, float]:
        """Mean and variance of the logit of r; changes nothing."""
        mean, variance = self._mean, self._variance
        m, s = self.offset, 0.0
        for i, value in x.items():
            m += mean[i] * value
            s += variance[i] * value * value
        return m, s

    def known(self, bucket: int) -> float:
        """1 - v of a coefficient: 0 before any sample, towards 1 with many; changes nothing."""
        return 1.0 - self._variance[bucket]

    def predict_proba_one(
        self, x: dict[Any, Any], seen: float = 1.0, **kwargs: Any
    ) -> dict[base.typing.ClfTarget, float]:
        """Probability of each label; changes nothing."""
        p = seen * _sigmoid(self.belief_one(x)[0])
        return {False: 1.0 - p, True: p}

    def learn_one(
        self, x: dict[Any, Any], y: base.typing.ClfTarget, w: float = 1.0, seen: float = 1.0
    ) -> None:
        """Learn one sample of weight w >= 0 that was looked at with chance `seen` in (0, 1]."""
        m, s = self.belief_one(x)
        sw, t = s * w, seen
        low, high = (m, m + sw) if y else (m - sw, m)
        mode = m
        for _ in range(_STEPS):
            r = _sigmoid(mode)
            unread = 1.0 - t * r
            if y:
                g, bend = 1.0 - r, r * (1.0 - r)
            else:
                g = -t * r * (1.0 - r) / unread
                bend = -g * (1.0 - 2.0 * r + t * r * r) / unread
            wrong = mode - m - sw * g
            if -1e-9 < wrong < 1e-9 or high - low < 1e-9:
                break
            if wrong > 0:
                high = mode
            else:
                low = mode
            mode -= wrong / (1.0 + sw * bend) if bend > 0 else wrong
            if not low < mode < high:
                mode = 0.5 * (low + high)
        h = w * t * r * (1.0 - r) ** 2 / unread if unread else 0.0
        k = h / (1.0 + h * s)
        grow = 1.0 + 1.0 / self.memory
        mean, variance = self._mean, self._variance
        for i, value in x.items():
            v = variance[i]
            vx = v * value
            mean[i] += vx * w * g
            v = (v - vx * vx * k) * grow
            variance[i] = v if v < 1.0 else 1.0

    def snapshot(self) -> dict[str, Any]:
        """Touched buckets after the last sample, in order: index as u32, mean and variance as f64, little-endian."""
        mean, variance = np.frombuffer(self._mean), np.frombuffer(self._variance)
        touched = np.flatnonzero((mean != 0) | (variance != 1))
        return {
            "num_buckets": self.num_buckets,
            "offset": self.offset,
            "index": touched.astype("<u4").tobytes(),
            "mean": mean[touched].astype("<f8").tobytes(),
            "variance": variance[touched].astype("<f8").tobytes(),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Resume after the sample that the snapshot was taken behind.

        Raises:
            SnapshotError: it is of another table size or start, or its columns do not match.
        """
        for key in ("num_buckets", "offset"):
            if state[key] != getattr(self, key):
                raise SnapshotError(key, state[key], getattr(self, key))
        index = np.frombuffer(state["index"], dtype="<u4")
        columns = [np.frombuffer(state[key], dtype="<f8") for key in ("mean", "variance")]
        if any(len(column) != len(index) for column in columns) or (
            len(index) and int(index.max()) >= self.num_buckets
        ):
            raise SnapshotError(
                "buckets",
                [len(index), *map(len, columns)],
                "columns of one length, inside the table",
            )
        mean = array("d", bytes(8 * self.num_buckets))
        variance = array("d", [1.0]) * self.num_buckets
        np.frombuffer(mean)[index] = columns[0]
        np.frombuffer(variance)[index] = columns[1]
        self._mean, self._variance = mean, variance


def _sigmoid(m: float) -> float:
    if m >= 0:
        return 1.0 / (1.0 + math.exp(-m)) if m < 36 else 1.0 - 2e-16
    return math.exp(m) / (1.0 + math.exp(m)) if m > -700 else 1e-304
