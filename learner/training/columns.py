"""A step's samples as columns on the device of the loss.

Legend: n own samples of a step.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from learner.losses.loss import Targets
from weighting.tasks import TASKS, TaskName
from weighting.weighted import WeightedBatch

Places = NDArray[np.intp]


class StepColumns:
    """Targets of n samples on the device, and each sample's task on the host."""

    def __init__(self, weighted: WeightedBatch, own: range, device: torch.device) -> None:
        """Copy the columns of the places `own` of a weighted batch."""
        self.samples = weighted.samples[own.start : own.stop]
        rows = slice(own.start, own.stop)
        numbers = {task: number for number, task in enumerate(TASKS)}
        self._task = np.array([numbers[s.task] for s in self.samples], dtype=np.int64)
        self._numbers = numbers
        lists = {name: i for i, name in enumerate(dict.fromkeys(s.list_id for s in self.samples))}
        list_id = [lists[s.list_id] for s in self.samples]
        self._device = device
        self._targets = Targets(
            a=torch.from_numpy(weighted.a[rows]).float().to(device),
            b=torch.from_numpy(weighted.b[rows]).float().to(device),
            examination=torch.from_numpy(weighted.examination[rows]).float().to(device),
            list_id=torch.tensor(list_id, dtype=torch.long, device=device),
            num_lists=len(lists),
        )

    def select(self, part: Sequence[int], task: TaskName) -> tuple[torch.Tensor, Targets]:
        """Return a task's rows of a micro-batch, and their targets.

        Args:
            part: places of the micro-batch among the n samples.
            task: name of the task.
        """
        places = np.asarray(part, dtype=np.int64)
        rows = np.flatnonzero(self._task[places] == self._numbers[task])
        at = torch.from_numpy(places[rows]).to(self._device)
        return torch.from_numpy(rows).to(self._device), self._targets.at(at)
