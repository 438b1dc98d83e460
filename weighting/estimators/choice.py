"""Choice of one expert, with hysteresis: it changes after a stated lead and number of samples."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from weighting.checks import check_one

Array = NDArray[np.float64]


class Choice:
    """The expert in force, and since how many samples.

    It changes to the most probable one if that leads by `margin` in log probability, and
    `min_samples` samples have come since the last change. So with rate eta, no share, and S changes
    so far, what the experts in force have lost is at most

        (S + 1) (margin + overshoot) / eta

    more than what any single expert has lost, where overshoot is the most that a lead can grow by
    in `min_samples` samples, or one round if that is more: whoever comes into force is the leader,
    and stays no longer than it must.

    >>> choice = Choice(margin=1.0, min_samples=10)
    >>> choice.update(np.log([0.2, 0.8]), 9), choice.update(np.log([0.2, 0.8]), 1)
    (False, True)
    >>> choice.expert
    1
    """

    def __init__(self, *, margin: float, min_samples: float) -> None:
        """Start with expert 0."""
        self.margin = margin
        self.min_samples = min_samples
        self.expert = 0
        self._samples = 0.0

    def update(self, log_probability: Array, num_samples: float) -> bool:
        """Look at log probabilities (N,) after more samples; return whether the expert changed.

        Raises:
            WeightError: a log probability of a candidate is NaN; nothing changed.
        """
        lead = log_probability - log_probability[self.expert]
        leader = int(np.argmax(lead))
        most = float(lead[leader])
        check_one("log probability", most, most >= 0, "a number")
        self._samples += num_samples
        if most < self.margin or self._samples < self.min_samples:
            return False
        self.expert, self._samples = leader, 0.0
        return True

    def snapshot(self) -> dict[str, Any]:
        """State after the last `update`, as plain numbers."""
        return {"expert": self.expert, "samples": self._samples}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restore the state returned by `snapshot`."""
        self.expert, self._samples = state["expert"], state["samples"]
