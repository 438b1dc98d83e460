"""Value of a purchase from an item's vector: a linear head in units of the values seen.

Legend: N items, D width.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

Array = NDArray[np.float64]
NAME = "value_head"
"""Of the head in a ranker: its tensors are ``value_head.weight`` and so on."""

_HALF_LIFE = 10_000.0
"""Purchases after which one counts half."""

_FIELDS = ("weight", "mean", "square", "judged", "error", "known_error")
_LARGEST_LOG = 50.0
"""Of an expected value: beyond any price."""


def of_value(name: str) -> bool:
    """Return whether a ranker's tensor of this name belongs to its value head."""
    return name.startswith(f"{NAME}.")


class ValueHead(nn.Module):
    """z = w v + b of items' vectors v, which learns (log(1 + value) - m) / s.

    m and s are mean and deviation of log(1 + value) of the purchases before, so that a head that
    knows nothing has an error of about 1, whatever the currency. Prices span orders of magnitude:
    in logarithms an error is a ratio, and one dear purchase does not outweigh a thousand. Of
    log-normal values with the squared error e of logarithms (Aitchison & Brown 1957, section 2.3)

        E[value] = exp(m + s z + e / 2) - 1.

    Sums fade with the number of purchases. The state after the last `learn` is in the tensors.

    Attributes:
        sums: f64 (6,), on the host whatever the parameters' device: weight of the purchases; their
            mean; sum of squares around it; weight of those judged; and the squared errors of the
            head and of the mean.
    """

    def __init__(self, width: int) -> None:
        """Start at the mean of no purchase; `width` is D."""
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(width))
        self.bias = nn.Parameter(torch.zeros(()))
        self.sums = torch.zeros(len(_FIELDS), dtype=torch.float64)  # no buffer: that would move

    def forward(self, items: Tensor) -> Tensor:
        """Return z (N,) of vectors (N, D); an item's bits are the same for any N."""
        z: Tensor = (items * self.weight).sum(-1) + self.bias
        return z

    @property
    def is_ready(self) -> bool:
        """Whether there was a purchase that z can be told from."""
        return self._sums()["weight"] > 0

    def target(self, value: Array) -> Array:
        """Return what z is to be (N,) of values (N,); 0 before the first purchase."""
        mean, deviation = self._level()
        z: Array = (np.log1p(value) - mean) / deviation
        return z if self.is_ready else np.zeros_like(z)

    def expected(self, z: Array) -> Array:
        """Return expected values (N,) of z (N,)."""
        mean, deviation = self._level()
        log = np.minimum(mean + deviation * z + self.error() / 2, _LARGEST_LOG)
        value: Array = np.maximum(np.expm1(log), 0.0)
        return value

    def error(self) -> float:
        """Mean squared error of log(1 + value), each told before it was learned.

        The variance before any was judged.
        """
        sums = self._sums()
        return sums["error"] / sums["judged"] if sums["judged"] else self._level()[1] ** 2

    def figures(self) -> dict[str, float]:
        """Return the squared error of log(1 + value), and that of the mean of those before."""
        sums = self._sums()
        if not sums["judged"]:
            return {}
        return {
            "squared_error": sums["error"] / sums["judged"],
            "squared_error_of_mean": sums["known_error"] / sums["judged"],
        }

    def learn(self, z: Array, value: Array, weight: Array) -> None:
        """Judge what was told of N purchases, then count them.

        Args:
            z: (N,) of the head as it was.
            value: (N,) what was paid.
            weight: (N,) what each counts; 0 is not counted at all.
        """
        counts = weight > 0
        z, log, w = z[counts], np.log1p(value[counts]), weight[counts]
        total = float(w.sum())
        if not total:
            return
        sums, (mean, deviation), ready = self._sums(), self._level(), self.is_ready
        kept = math.pow(2.0, -total / _HALF_LIFE)
        for name in ("weight", "square", "judged", "error", "known_error"):
            sums[name] *= kept
        if ready:
            sums["judged"] += total
            sums["error"] += float((w * (mean + deviation * z - log) ** 2).sum())
            sums["known_error"] += float((w * (mean - log) ** 2).sum())
        # Mean and squares of two parts together (Chan et al. 1983)
        own = float((w * log).sum()) / total
        whole, apart = sums["weight"] + total, own - sums["mean"]
        sums["square"] += float((w * (log - own) ** 2).sum())
        sums["square"] += apart**2 * sums["weight"] * total / whole if ready else 0.0
        sums["mean"] += apart * total / whole
        sums["weight"] = whole
        self.sums.copy_(torch.tensor([sums[name] for name in _FIELDS], dtype=torch.float64))

    def tensors(self) -> dict[str, Tensor]:
        """Return all that a version keeps of the head, by name in the ranker."""
        own = {**self.state_dict(), "sums": self.sums}
        return {f"{NAME}.{name}": tensor for name, tensor in own.items()}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Copy what `tensors` returned; a version without a head leaves it at its start.

        Raises:
            ValueError: they are not those of a head of this width.
        """
        found = {name: values for name, values in tensors.items() if of_value(name)}
        if not found:
            return
        own = self.tensors()
        shapes = {name: tuple(values.shape) for name, values in found.items()}
        expected = {name: tuple(values.shape) for name, values in own.items()}
        if shapes != expected:
            raise ValueError(f"value head: got {shapes}, expected {expected}")
        sums = dict(zip(_FIELDS, found[f"{NAME}.sums"].tolist(), strict=True))
        if any(sum_ < 0 for name, sum_ in sums.items() if name != "mean"):
            raise ValueError(f"value head: got the sums {sums}, expected none below 0")
        with torch.no_grad():
            for name, values in own.items():
                values.copy_(found[name])

    def _sums(self) -> dict[str, float]:
        return dict(zip(_FIELDS, self.sums.tolist(), strict=True))

    def _level(self) -> tuple[float, float]:
        """Return m, and s with one purchase's worth of deviation 1."""
        sums = self._sums()
        return sums["mean"], math.sqrt((sums["square"] + 1) / (sums["weight"] + 1))
