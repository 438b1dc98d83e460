"""Losses by name.

A new loss is a new module in this folder and an entry in `LOSSES`.
"""

from __future__ import annotations

from collections.abc import Mapping

from learner.losses.in_batch_softmax import InBatchSoftmax
from learner.losses.label_smoothing import LabelSmoothing
from learner.losses.listwise import Listwise
from learner.losses.loss import Loss
from learner.losses.pairwise import Pairwise
from learner.losses.pointwise import Pointwise
from learner.losses.squared_error import SquaredError
from weighting.tasks import Task, TaskName

POINTWISE = Pointwise()
LOSSES: Mapping[str, Loss] = {
    "pointwise": POINTWISE,
    "squared_error": SquaredError(),
    "pairwise": Pairwise(),
    "listwise": Listwise(),
    "in_batch_softmax": InBatchSoftmax(),
}
"""Value of `LearnerConfig.loss` -> loss."""
CONFIGURED = "configured"
"""Loss of a task that leaves the choice to the settings."""


def losses_of(
    tasks: Mapping[TaskName, Task], *, configured: str, label_smoothing: float = 0.0
) -> dict[TaskName, Loss]:
    """Return each task's loss: its own, or the configured one.

    Args:
        tasks: by name.
        configured: loss of those that leave it to the settings.
        label_smoothing: share of every label that is smoothed.
    """
    plain = {
        name: LOSSES[configured if task.loss == CONFIGURED else task.loss]
        for name, task in tasks.items()
    }
    if not label_smoothing:
        return plain
    return {name: LabelSmoothing(loss, label_smoothing) for name, loss in plain.items()}
