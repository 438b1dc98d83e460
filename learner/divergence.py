"""Whether training still goes well: not too many steps in a row that are not finite, none whose loss is far beyond the recent ones.

Legend: N samples of a step.

The loss of a step is a mean over N samples, so one sample's variance v is kept, and a step may stray by sqrt(v / N): a small batch that was
flushed is not taken for a spike. Mean and variance fade exponentially (Welford 1962; West 1979 for the weights).
"""

from __future__ import annotations

import math

import msgspec

from learner.errors import Diverged

NONFINITE_STEPS = 3  #: in a row are too many
WARM_UP_STEPS = 100  #: before any loss is judged
DEVIATIONS = 6.0
_RECENT = 0.01  #: weight of the newest step, once there are a hundred
_LEAST_RATIO = 0.5  #: of the mean: a deviation is taken to be at least that, for a healthy model meets batches of 2.8 times the usual loss
_LEAST_SAMPLES = 32  #: one odd sample outweighs a smaller step, so its loss tells nothing


class LossWatch(msgspec.Struct, kw_only=True):
    """What the recent losses were like; resumes after the last step judged.

    >>> watch = LossWatch()
    >>> for step in range(1, 201):
    ...     watch.judge(step, 0.5 + 0.01 * (-1) ** step, num_samples=320)
    >>> watch.judge(201, 2.2, num_samples=320)
    Traceback (most recent call last):
    learner.errors.Diverged: step 201: loss 2.2 is above 2, 6 standard deviations beyond the mean 0.5 of recent steps. ...
    """

    num_steps: int = 0
    num_nonfinite: int = 0  #: the last so many steps were not finite
    num_samples: float = 0.0  #: faded
    mean: float = 0.0
    variance: float = 0.0  #: of one sample

    def judge(self, step: int, loss: float, *, num_samples: int) -> None:
        """Learn the loss of a step (NaN where anything of it is not finite); to be called before the step moves anything.

        Raises:
            Diverged: the step must not be taken; names the steps that went wrong.
        """
        if not math.isfinite(loss):
            self.num_nonfinite += 1
            if self.num_nonfinite >= NONFINITE_STEPS:
                first = step - self.num_nonfinite + 1
                raise Diverged(
                    first,
                    step,
                    f"{self.num_nonfinite} steps in a row whose scores, loss or gradient are not finite",
                )
            return
        if not num_samples:
            return
        self.num_nonfinite = 0
        limit = self.mean + DEVIATIONS * math.sqrt(
            self.variance / num_samples + (_LEAST_RATIO * self.mean) ** 2
        )
        if self.num_steps >= WARM_UP_STEPS and num_samples >= _LEAST_SAMPLES and loss > limit:
            beyond = f"{DEVIATIONS:g} standard deviations beyond the mean {self.mean:.3g} of recent steps"
            raise Diverged(step, step, f"loss {loss:.3g} is above {limit:.3g}, {beyond}")
        self._learn(loss, num_samples)

    def _learn(self, loss: float, num_samples: int) -> None:
        self.num_steps += 1
        rate = max(_RECENT, 1 / self.num_steps)
        self.num_samples = (1 - _RECENT) * self.num_samples + num_samples
        before = loss - self.mean
        self.mean += before * num_samples / self.num_samples
        self.variance += rate * (num_samples * before * (loss - self.mean) - self.variance)
