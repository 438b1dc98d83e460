"""Losses by name.

A new loss is a new module in this folder and an entry in `LOSSES`.
"""

from __future__ import annotations

from collections.abc import Mapping

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
}
"""Value of `LearnerConfig.loss` -> loss."""
CONFIGURED = "configured"
"""Loss of a task that leaves the choice to the settings."""


def losses_of(tasks: Mapping[TaskName, Task], *, configured: str) -> dict[TaskName, Loss]:
    """Return each task's loss: its own, or the configured one."""
    return {
        name: LOSSES[configured if task.loss == CONFIGURED else task.loss]
        for name, task in tasks.items()
    }
