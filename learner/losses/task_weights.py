"""Balance between the tasks: what each task's loss counts in the sum."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from msgspec import Meta

from weighting.constraints import NotNegative, check
from weighting.tasks import TaskName


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskWeights:
    """L = sum over tasks of weight x loss; a sum of samples, so a task of more of them counts more.

    With 0 a task teaches the encoder nothing, and its own head nothing.
    """

    click: Annotated[NotNegative, Meta(description="Factor of the loss of clicks.")] = 1.0
    purchase: Annotated[
        NotNegative, Meta(description="Factor of the loss of purchases, told by their click.")
    ] = 1.0

    def __post_init__(self) -> None:
        """Check every field."""
        check(self, "learner.task_weights")

    def of(self, task: TaskName) -> float:
        """Return the factor of a task."""
        weight: float = getattr(self, task)
        return weight
