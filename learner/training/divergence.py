"""Divergence check: non-finite steps in a row, or a loss far above recent ones.

Legend: N samples of a step.

The loss of a step is a mean over N samples, so one sample's variance v is kept, and a step may
stray by sqrt(v / N): a small batch that was flushed is not taken for a spike. Mean and variance
fade exponentially (Welford 1962; West 1979 for the weights).
"""

from __future__ import annotations

import math

import msgspec

from learner.errors import Diverged

#: Non-finite steps in a row that are too many.
NONFINITE_STEPS = 3
#: Steps before any loss is judged.
WARM_UP_STEPS = 100
#: Standard deviations above the mean that are too many.
DEVIATIONS = 6.0
# Weight of the newest step, once there are a hundred
_RECENT = 0.01
# Least relative deviation: a healthy model meets batches of 2.8 times the usual loss
_LEAST_RATIO = 0.5
# In a smaller step one odd sample outweighs the others
_LEAST_SAMPLES = 32


class LossWatch(msgspec.Struct, kw_only=True):
    """Statistics of recent losses; resumes after the last step judged.

    Attributes:
        num_steps: finite ones.
        num_nonfinite: so many of the last steps were not finite.
        num_samples: faded.
        mean: of the loss.
        variance: of one sample.

    >>> watch = LossWatch()
    >>> for step in range(1, 201):
    ...     watch.judge(step, 0.5 + 0.01 * (-1) ** step, num_samples=320)
    >>> watch.judge(201, 2.2, num_samples=320)
    Traceback (most recent call last):
    learner.errors.Diverged: step 201: loss 2.2 is above 2, 6 standard deviations beyond ...
    """

    num_steps: int = 0
    num_nonfinite: int = 0
    num_samples: float = 0.0
    mean: float = 0.0
    variance: float = 0.0

    def judge(self, step: int, loss: float, *, num_samples: int) -> None:
        """Learn the loss of a step before the step moves anything.

        A loss is NaN where anything of its step is not finite.

        Raises:
            Diverged: the step must not be taken; names the steps that went wrong.
        """
        if not math.isfinite(loss):
            self._count_nonfinite(step)
            return
        if not num_samples:
            return
        self.num_nonfinite = 0
        limit = self._limit(num_samples)
        if self.num_steps >= WARM_UP_STEPS and num_samples >= _LEAST_SAMPLES and loss > limit:
            beyond = f"{DEVIATIONS:g} standard deviations beyond the mean {self.mean:.3g}"
            reason = f"loss {loss:.3g} is above {limit:.3g}, {beyond} of recent steps"
            raise Diverged(step, step, reason)
        self._learn(loss, num_samples)

    def _count_nonfinite(self, step: int) -> None:
        self.num_nonfinite += 1
        if self.num_nonfinite < NONFINITE_STEPS:
            return
        what = "whose scores, loss or gradient are not finite"
        reason = f"{self.num_nonfinite} steps in a row {what}"
        raise Diverged(step - self.num_nonfinite + 1, step, reason)

    def _limit(self, num_samples: int) -> float:
        """Return mean + d sqrt(v / N + (r mean)^2)."""
        of_mean = self.variance / num_samples
        return self.mean + DEVIATIONS * math.sqrt(of_mean + (_LEAST_RATIO * self.mean) ** 2)

    def _learn(self, loss: float, num_samples: int) -> None:
        self.num_steps += 1
        rate = max(_RECENT, 1 / self.num_steps)
        self.num_samples = (1 - _RECENT) * self.num_samples + num_samples
        before = loss - self.mean
        self.mean += before * num_samples / self.num_samples
        self.variance += rate * (num_samples * before * (loss - self.mean) - self.variance)
