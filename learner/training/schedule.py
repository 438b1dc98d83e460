"""Schedules of the learning rate, in samples and without an end.

Legend: n samples before a step, N of it, W of the warm-up.
"""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """Factor of the learning rate: min(n / W, 1), or min(n / W, sqrt(W / n)).

    The second is the inverse square root of Vaswani et al. (NeurIPS 2017, eq. 3), 1 at its peak. A
    step has the mean of the factor over its samples, so a stream is learned at the same rates
    whatever the steps that it is cut into.

    Attributes:
        inverse_sqrt: whether the rate falls after the warm-up; otherwise it stays.
        warm_up_samples: W.

    >>> warm_up = Schedule(inverse_sqrt=False, warm_up_samples=100)
    >>> [warm_up.mean(n, 50) for n in (0, 50, 100)]
    [0.25, 0.75, 1.0]
    >>> falling = Schedule(inverse_sqrt=True, warm_up_samples=100)
    >>> [round(falling.mean(n, 1), 3) for n in (100, 400, 10_000)]
    [0.998, 0.499, 0.1]
    """

    inverse_sqrt: bool
    warm_up_samples: int

    @property
    def constant(self) -> bool:
        """True where the factor is always 1."""
        return not self.inverse_sqrt and not self.warm_up_samples

    def mean(self, before: int, num_samples: int) -> float:
        """Return the mean of the factor over samples n to n + N.

        Args:
            before: n, samples of all steps before.
            num_samples: N of this step.
        """
        if self.constant or not num_samples:
            return 1.0
        return (self._sum(before + num_samples) - self._sum(before)) / num_samples

    def _sum(self, n: int) -> float:
        """Return the integral of the factor from 0 to n."""
        warm_up = self.warm_up_samples
        if n <= warm_up:
            return n * n / (2 * warm_up)
        if self.inverse_sqrt:
            return warm_up / 2 + 2 * (math.sqrt(warm_up * n) - warm_up)
        return warm_up / 2 + (n - warm_up)
