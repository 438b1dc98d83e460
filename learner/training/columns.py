"""A step's samples as columns, of which each micro-batch is sent to the device of the loss.

Legend: n own samples of a step.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from learner.losses.loss import Sampled, Targets
from learner.losses.paid_value import Values
from learner.losses.purchase_over_all import Outcomes
from learner.training.item_frequency import ItemFrequency
from learner.training.micro_batches import Pair
from learner.transfer import to_device
from learner.value_head import ValueHead
from weighting.query_key import query_key
from weighting.tasks import CLICK, PURCHASE, TASKS, TaskName
from weighting.weighted import WeightedBatch

Column = NDArray[np.floating[Any]]


class Weighed(Protocol):
    """Samples with what their losses read, as columns of a `WeightedBatch`."""

    @property
    def samples(self) -> Sequence[Pair]:
        """N of them."""

    @property
    def a(self) -> Column:
        """Factor of -log f, (N,)."""

    @property
    def b(self) -> Column:
        """Factor of -log(1 - f), (N,)."""

    @property
    def label(self) -> Column:
        """Observed label, (N,)."""

    @property
    def p_y(self) -> Column:
        """Prior of the observed label, (N,)."""

    @property
    def examination(self) -> Column:
        """Probability that the place is examined, (N,)."""

    @property
    def discount(self) -> Column:
        """Share of an example that the sample counts for, (N,)."""


class Selection(NamedTuple):
    """One task's samples of a micro-batch.

    Attributes:
        rows: int64, their places in the micro-batch.
        targets: in the same order.
    """

    rows: torch.Tensor
    targets: Targets


class Selected(NamedTuple):
    """A micro-batch on the device.

    Attributes:
        by_task: each task's samples.
        outcomes: of the samples as shown items; None where no loss asks for them.
        values: what was paid for the samples; None where no loss asks for it.
    """

    by_task: Mapping[TaskName, Selection]
    outcomes: Outcomes | None
    values: Values | None


class StepColumns:
    """Targets and tasks of n samples, on the host.

    Attributes:
        samples: n of them.
        drawn: places of those to be scored.
        residuals: whether their losses are of logits with the queries' residuals.
    """

    def __init__(
        self,
        weighted: Weighed,
        own: range,
        device: torch.device,
        factor: NDArray[np.float64],
        frequency: ItemFrequency | None = None,
        *,
        residuals: bool = True,
        outcomes: Outcomes | None = None,
        values: Values | None = None,
    ) -> None:
        """Take the columns of the places `own` of a weighted batch.

        Args:
            weighted: N samples.
            own: places of ours.
            device: of the loss.
            factor: (N,) by which each loss counts; a sample of 0 is not to be scored.
            frequency: of the items, where a loss compares lists with each other.
            residuals: see the attribute.
            outcomes: of the same n samples as shown items, where a loss asks for them; on the host.
            values: of the same n samples, where a loss asks for them; on the host.
        """
        self.residuals = residuals
        self._outcomes = outcomes
        self._values = values
        self.samples = weighted.samples[own.start : own.stop]
        rows = slice(own.start, own.stop)
        counts = factor[rows]
        self.drawn = np.flatnonzero(counts > 0).tolist()
        numbers = {task: number for number, task in enumerate(TASKS)}
        self._task = np.array([numbers[s.task] for s in self.samples], dtype=np.int64)
        lists = {name: i for i, name in enumerate(dict.fromkeys(s.list_id for s in self.samples))}
        list_id = [lists[s.list_id] for s in self.samples]
        sizes = Counter((s.task, s.list_id) for s in self.samples)
        label, p_y = weighted.label[rows], weighted.p_y[rows]
        self._device = device
        self._targets = Targets(
            a=torch.from_numpy(weighted.a[rows] * counts).float(),
            b=torch.from_numpy(weighted.b[rows] * counts).float(),
            examination=torch.from_numpy(weighted.examination[rows]).float(),
            discount=torch.from_numpy(weighted.discount[rows]).float(),
            prior=torch.from_numpy(np.where(label > 0, p_y, 1 - p_y)).float(),
            list_id=torch.tensor(list_id, dtype=torch.long),
            num_lists=len(lists),
            longest_list=max(sizes.values(), default=0),
            sampled=None if frequency is None else _sampled(self.samples, frequency),
        )

    def select(self, part: Sequence[int]) -> Selected:
        """Send a micro-batch to the device, in one copy.

        Args:
            part: places of the micro-batch among the n samples.
        """
        places = torch.tensor(part, dtype=torch.long)
        own: list[list[torch.Tensor]] = []
        for number in range(len(TASKS)):
            rows = torch.from_numpy(np.flatnonzero(self._task[places.numpy()] == number))
            own.append([rows, *self._targets.at(places[rows]).columns()])
        own += [[c[places] for c in columns or ()] for columns in (self._outcomes, self._values)]
        sent = iter(to_device([column for columns in own for column in columns], self._device))
        *by_task, outcomes, values = [[next(sent) for _ in columns] for columns in own]
        selections = [Selection(c[0], self._targets.with_columns(c[1:])) for c in by_task]
        return Selected(
            by_task=dict(zip(TASKS, selections, strict=True)),
            outcomes=Outcomes(*outcomes) if outcomes else None,
            values=Values(*values) if values else None,
        )


def outcomes_of(weighted: WeightedBatch, own: range, factor: NDArray[np.float64]) -> Outcomes:
    """Return the samples `own` of a batch as outcomes of shown items.

    A sample counts for its weight and `factor` (N,). An item that was clicked is left to the
    purchase task: its samples of the click task count nothing. Nor does a click without a list.
    """
    rows = slice(own.start, own.stop)
    task = np.array([s.task for s in weighted.samples[rows]], dtype=object)
    label = weighted.label[rows] > 0
    counts = (weighted.weight * weighted.shown_discount * factor)[rows]
    bought = np.where((task == PURCHASE) & label, counts, 0.0)
    not_bought = np.where(((task == PURCHASE) | (task == CLICK)) & ~label, counts, 0.0)
    columns = bought, not_bought, weighted.shown_examination[rows]
    return Outcomes(*(torch.from_numpy(column).float() for column in columns))


def paid_values(
    weighted: WeightedBatch, factor: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return what was paid for N samples, and what each counts, by `factor` (N,) too.

    Only what was bought for a known value counts; the others have a value of 0.
    """
    samples = weighted.samples
    bought = np.array([s.task == PURCHASE and s.label > 0 and s.value is not None for s in samples])
    value = np.array([s.value or 0.0 for s in samples], dtype=np.float64)
    return value, np.where(bought, weighted.weight * factor, 0.0)


def values_of(
    weighted: WeightedBatch, own: range, factor: NDArray[np.float64], head: ValueHead
) -> Values:
    """Return what was paid for the samples `own` of a batch, for a head to tell."""
    rows = slice(own.start, own.stop)
    value, weight = paid_values(weighted, factor)
    columns = head.target(value)[rows], weight[rows] * head.is_ready
    return Values(*(torch.from_numpy(column).float() for column in columns))


def item_name(sample: Pair) -> str:
    """Return what an item is told from others by: its id, or its text without one."""
    return sample.item_id or sample.text


def _sampled(samples: Sequence[Pair], frequency: ItemFrequency) -> Sampled:
    items, queries = [item_name(s) for s in samples], [query_key(s.query) for s in samples]
    logs = torch.from_numpy(frequency.log_frequency(items)).float()
    return Sampled(_numbers(queries), _numbers(items), logs)


def _numbers(names: Sequence[str]) -> torch.Tensor:
    """Return equal numbers for equal names."""
    places = {name: number for number, name in enumerate(dict.fromkeys(names))}
    return torch.tensor([places[name] for name in names], dtype=torch.long)
