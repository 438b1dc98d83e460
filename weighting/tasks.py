"""The tasks that are learned, declared as data: a new task is a new entry here.

Code asks a task what it needs: whose positives are its examples, how long its label is awaited,
which loss it takes, whether the position in a list matters. The weights of a new task have their
settings in a field of `weigher.WeigherConfig` of the same name.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

TaskName: TypeAlias = str
CLICK: TaskName = "click"
PURCHASE: TaskName = "purchase"


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One question about an (item, context) pair, answered by a label of 0 or 1.

    Attributes:
        name: as written in samples, series and files.
        parent: task whose positives are the examples of this one; None for shown items.
        window: setting of the observation window, after which the first copy is emitted.
        loss: ``configured`` (`learner.loss`), or always ``pointwise``.
        position_matters: whether the position in the list changes the chance of a positive label.
    """

    name: TaskName
    parent: TaskName | None
    window: str
    loss: Literal["configured", "pointwise"]
    position_matters: bool


TASKS: Mapping[TaskName, Task] = {
    task.name: task
    for task in (
        Task(
            name=CLICK,
            parent=None,
            window="join.click_window",
            loss="configured",
            position_matters=True,
        ),
        Task(
            name=PURCHASE,
            parent=CLICK,
            window="join.observation_window",
            loss="pointwise",
            position_matters=False,
        ),
    )
}
"""name -> task; a parent comes before its children."""


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
