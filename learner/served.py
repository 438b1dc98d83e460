"""The served score: encoder and memorisation model stacked per task, multiplied along the tasks.

Legend: N documents or samples.

For each task, logit p = Stacker(invert(encoder logit), memorisation logit). `invert` undoes the
importance weights that the encoder was trained under. Ranking sorts by the probability of the last
task: the product of the conditional probabilities from the task without a parent down to it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from weighting.estimators.stacker import Stacker
from weighting.tasks import TASKS, Task, TaskName

Array = NDArray[np.float64]
Invert: TypeAlias = Callable[[Array, float], Array]
"""Logits (N,) of a model trained under weights, and the prior -> logits (N,) of p(y=1|x)."""


def root(tasks: Mapping[TaskName, Task] = TASKS) -> TaskName:
    """Return the task without a parent, whose samples are the shown items."""
    (found,) = [name for name, task in tasks.items() if task.parent is None]
    return found


def chain(tasks: Mapping[TaskName, Task] = TASKS) -> list[TaskName]:
    """Return the tasks from the one without a parent to the one declared last.

    >>> chain()
    ['click', 'purchase']
    """
    return list(_ancestry(tasks))[::-1]


def _ancestry(tasks: Mapping[TaskName, Task]) -> Iterator[TaskName]:
    name: TaskName | None = list(tasks)[-1]
    while name is not None:
        yield name
        name = tasks[name].parent


def ranking_score(probability: Mapping[TaskName, Array]) -> Array:
    """Multiply probabilities (N,) along the chain of tasks: what ranking sorts by."""
    first, *others = chain()
    score = probability[first]
    for name in others:
        score = score * probability[name]
    return score


class ServedScore:
    """Stacker of each task, with the inversion that comes before it.

    >>> from weighting.schemes.uniform import Uniform
    >>> served = ServedScore(Uniform().invert)
    >>> served.logit("click", np.array([2.0]), np.array([-1.0]), prior=0.1).tolist()
    [0.5]
    """

    def __init__(self, invert: Invert) -> None:
        """Start with untrained stackers.

        Args:
            invert: undoes the importance weights that the encoder is trained under.
        """
        self.invert = invert
        self.stackers = {task: Stacker() for task in TASKS}

    def logit(self, task: TaskName, encoder: Array, memory: Array, *, prior: float) -> Array:
        """Return served logits (N,). Pure.

        Args:
            task: name of the task.
            encoder: (N,) logits of the encoder as it was trained.
            memory: (N,) logits of the memorisation model.
            prior: p(y=1) of the task, as used in the importance weights.
        """
        return self.stackers[task].get(self.invert(encoder, prior), memory)

    def learn(
        self,
        task: TaskName,
        encoder: Array,
        memory: Array,
        label: Array,
        weight: Array,
        *,
        prior: float,
    ) -> None:
        """Let a stacker learn N samples: logits as in `logit`, labels and weights (N,)."""
        self.stackers[task].learn(self.invert(encoder, prior), memory, label, weight)

    def snapshot(self) -> dict[TaskName, bytes]:
        """Return the state of each stacker."""
        return {task: stacker.snapshot() for task, stacker in self.stackers.items()}

    def restore(self, state: Mapping[TaskName, bytes]) -> None:
        """Restore the state returned by `snapshot`."""
        for task, stacker in self.stackers.items():
            stacker.restore(state[task])
