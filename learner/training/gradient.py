"""Forward and backward pass of a step: scores and gradient of L.

Legend: N samples of a step (of all processes), n of them our own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray

from learner.config import LearnerConfig
from learner.errors import OutOfMemory
from learner.losses.paid_value import PaidValue
from learner.losses.purchase_over_all import PurchaseOverAll
from learner.losses.registry import POINTWISE, losses_of
from learner.process_group import ProcessGroup
from learner.ranker import PairLogits, Ranker
from learner.training import scored as scores
from learner.training.adversarial import Adversarial
from learner.training.columns import Selected, StepColumns, item_name, outcomes_of, values_of
from learner.training.item_frequency import ItemFrequency
from learner.training.micro_batches import Pair, micro_batches, within_tokens
from learner.training.optimizer import Optimizer
from learner.training.privacy import Privacy, units_of
from learner.training.rehearsal import Rehearsed
from learner.training.scored import Collected, Scored, Share
from weighting.sample import Sample
from weighting.tasks import CLICK, PURCHASE, TASKS, root
from weighting.weighted import WeightedBatch

PAID_VALUE = PaidValue()
PURCHASE_OVER_ALL = PurchaseOverAll()
_RANK_SEED = 0x9E3779B9
"""2^32 / golden ratio: the seeds of two processes do not meet."""


class _Past(NamedTuple):
    """Our own part of what a step rehearses; see `Rehearsed`."""

    columns: StepColumns
    own_share: float
    divisor: float


class _Unit(NamedTuple):
    """Samples whose gradient is taken together.

    Attributes:
        places: among our own samples.
        learned: whether it counts; the samples are scored in any case.
    """

    places: Sequence[int]
    learned: bool


class GradientPass:
    """Forward and backward passes over micro-batches.

    Attributes:
        num_micro_batches: grows when memory runs out, and stays.
        frequency: of clicked items, where a loss compares lists with each other.
    """

    def __init__(
        self,
        config: LearnerConfig,
        ranker: Ranker,
        optimizer: Optimizer,
        process_group: ProcessGroup,
        scoring: Callable[[int], None],
        privacy: Privacy | None = None,
    ) -> None:
        """Take the model.

        Args:
            config: the settings.
            ranker: the model.
            optimizer: owner of the parameters that move.
            process_group: the processes.
            scoring: called with the number of samples before each pass through the model; an error
                that it raises is raised there.
            privacy: bounds what each list adds to the gradient, and hides it in noise.
        """
        self._privacy = privacy
        self.num_micro_batches = 1
        self._config = config
        self._ranker = ranker
        self._optimizer = optimizer
        self._process_group = process_group
        self._scoring = scoring
        self._losses = losses_of(
            TASKS, configured=config.loss, label_smoothing=config.label_smoothing
        )
        entrance = ranker.encoder.tuning.entrance
        self._adversarial = None
        if config.adversarial_steps and entrance is not None:
            self._adversarial = Adversarial(
                entrance, steps=config.adversarial_steps, radius=config.adversarial_radius
            )
        across = any(loss.across_lists for loss in self._losses.values())
        self.frequency = ItemFrequency() if across else None
        self._whole_lists = {task for task, loss in self._losses.items() if loss.whole_lists}

    def run(
        self,
        weighted: WeightedBatch,
        own: range,
        *,
        step: int,
        factor: NDArray[np.float64],
        residuals: bool = True,
        rehearsed: Rehearsed | None = None,
    ) -> Collected:
        """Score our own samples with their gradient; return the scores, still on the device.

        Nothing is read from there. When memory runs out on one process, all score again in as many
        micro-batches as it needs: a step is a function of that number, for replay.

        Args:
            weighted: N samples with their weights.
            own: places of ours.
            step: number of the step.
            factor: (N,) by which each loss counts; samples of 0 are not scored.
            residuals: whether the loss is of logits with the queries' residuals.
            rehearsed: past samples to move along as well, the same on every process, each of which
                takes every so manieth list of them.

        Raises:
            OutOfMemory: not even the smallest micro-batch fits the device.
            RankLost: another process is gone.
        """
        device = self._ranker.encoder.device
        outcomes = None
        if self._config.task_weights.purchase_over_all:
            outcomes = outcomes_of(weighted, own, factor)
        values, head = None, self._ranker.value_head
        if head is not None:
            values = values_of(weighted, own, factor, head)
        columns = StepColumns(
            weighted,
            own,
            device,
            factor,
            self.frequency,
            residuals=residuals,
            outcomes=outcomes,
            values=values,
        )
        past = None if rehearsed is None else self._past(rehearsed)
        units = self._units(columns, weighted.samples[own.start : own.stop])
        while True:
            collected = self._score(
                columns, units, past, num_total=len(weighted.samples), step=step
            )
            shares = self._shares()
            self.num_micro_batches = max(share.num_micro_batches for share in shares)
            if all(share.num_micro_batches == self.num_micro_batches for share in shares):
                break
        if self.frequency is not None:  # as it was before the step, for each of its micro-batches
            clicks = zip(weighted.samples, weighted.a.tolist(), strict=True)
            self.frequency.learn([item_name(s) for s, a in clicks if a > 0 and s.task == root()])
        per_rank = zip(*(share.has_gradient for share in shares), strict=True)
        for parameter, ranks in zip(self._optimizer.parameters(), per_rank, strict=True):
            if any(ranks) and parameter.grad is None:  # by the samples of other processes alone
                parameter.grad = torch.zeros_like(parameter)
        return collected

    def _shares(self) -> list[Share]:
        """Return how each process has scored its samples."""
        own = Share(
            num_micro_batches=self.num_micro_batches,
            has_gradient=[p.grad is not None for p in self._optimizer.parameters()],
        )
        gathered = self._process_group.gather(msgspec.msgpack.encode(own))
        return [msgspec.msgpack.decode(data, type=Share) for data in gathered]

    def joined(self, own: Scored) -> Scored:
        """Return the scores of all processes.

        Args:
            own: those of `run`, on the host.

        Raises:
            RankLost: another process is gone.
        """
        if self._process_group.world == 1:
            return own
        shares = [scores.decode(d) for d in self._process_group.gather(scores.encode(own))]
        return scores.concatenated(shares, width=self._ranker.encoder.width)

    def _units(self, columns: StepColumns, own: Sequence[Sample]) -> list[_Unit]:
        """Divide the drawn samples by list where each list's gradient is clipped."""
        if self._privacy is None:
            return [_Unit(columns.drawn, learned=True)]
        units = units_of(own, columns.drawn)
        samples = [[own[i] for i in places] for places in units]
        admitted = self._privacy.contributions.admit(samples)
        return [_Unit(places, learned) for places, learned in zip(units, admitted, strict=True)]

    def _score(
        self,
        columns: StepColumns,
        units: Sequence[_Unit],
        past: _Past | None,
        *,
        num_total: int,
        step: int,
    ) -> Collected:
        """Score our own samples; again in twice as many micro-batches while memory runs out."""
        while True:
            parts = [self._micro_batches(columns, unit.places) for unit in units]
            passes = list(zip(units, parts, strict=True))
            try:
                return self._accumulate(columns, passes, past, num_total=num_total, step=step)
            except torch.OutOfMemoryError as error:
                num_past = len(past.columns.drawn) if past else 0
                if self.num_micro_batches >= max(len(columns.drawn), num_past):
                    most = max(len(part) for own in parts for part in own)
                    device = self._config.device
                    raise OutOfMemory(step=step, device=device, num_samples=most) from error
            self.num_micro_batches *= 2

    def _micro_batches(self, columns: StepColumns, drawn: Sequence[int]) -> list[list[int]]:
        """Divide drawn samples by the memory that ran out before, and by the bound on tokens.

        Memory of the host is never seen to run out: the system ends the process.
        """
        lists = self._whole_lists
        samples = [columns.samples[i] for i in drawn]
        parts = micro_batches(samples, self.num_micro_batches, whole_lists=lists)
        budget, num_tokens = self._config.max_step_tokens, self._num_tokens
        return [
            [drawn[i] for i in places]
            for part in parts
            for places in within_tokens(samples, part, budget, num_tokens, whole_lists=lists)
        ]

    def _num_tokens(self, sample: Pair) -> dict[str, int]:
        return self._ranker.num_tokens(sample.query, sample.text)

    def _accumulate(
        self,
        columns: StepColumns,
        passes: Sequence[tuple[_Unit, Sequence[Sequence[int]]]],
        past: _Past | None,
        *,
        num_total: int,
        step: int,
    ) -> Collected:
        """Score micro-batch after micro-batch; leave the gradient with the parameters."""
        # Dropout is a function of seed, step and rank alone
        torch.manual_seed(self._config.seed + step - 1 + self._process_group.rank * _RANK_SEED)
        self._ranker.train(self._config.dropout > 0)
        self._optimizer.zero_grad()
        collected = Collected(
            self._ranker.encoder.width,
            len(columns.samples),
            has_value=self._ranker.value_head is not None,
        )
        parameters, total = self._optimizer.parameters(), None
        if self._privacy is not None:
            total = self._privacy.new_sum(parameters, num_total)
        for unit, parts in passes:
            for part in parts:
                loss, logits = self._pass(columns, part, num_total, learned=unit.learned)
                collected.add(loss, logits, part)
                del loss, logits  # and their graph: the next pass may be a capture
            if total is not None:
                total.add()
        if total is not None:
            total.finish(step)
        if past is not None:
            self._rehearse(past)
        return collected

    def _pass(
        self, columns: StepColumns, part: Sequence[int], num_total: int, *, learned: bool
    ) -> tuple[torch.Tensor, PairLogits]:
        """Return a micro-batch's part of L and its logits; add its gradient if it is learned."""
        score = partial(self._score_samples, columns, part, num_total)
        if learned and self._adversarial is not None:
            return self._adversarial.backward(score)
        loss, logits = score()
        if learned:
            loss.backward()  # type: ignore[no-untyped-call]
        return loss, logits

    def _past(self, rehearsed: Rehearsed) -> _Past:
        """Return our own part of what is rehearsed."""
        group = self._process_group
        own = [place for rows in rehearsed.lists[group.rank :: group.world] for place in rows]
        factor = np.zeros(len(rehearsed.samples))
        factor[own] = 1
        whole, device = range(len(factor)), self._ranker.encoder.device
        columns = StepColumns(rehearsed, whole, device, factor, self.frequency, residuals=False)
        return _Past(columns, rehearsed.own_share, rehearsed.divisor)

    def _rehearse(self, past: _Past) -> None:
        """Add the gradient of past lists to that of the step, where there is relevance to forget.

        The levels of the tasks are those of the stream: their gradient stays as it is. Tokens are
        not moved to do harm here.
        """
        moving = self._ranker.relevance()
        gradients = [p.grad for p in moving if p.grad is not None]
        if gradients:
            torch._foreach_mul_(gradients, past.own_share)
        for part in self._micro_batches(past.columns, past.columns.drawn):
            loss, _ = self._score_samples(past.columns, part, past.divisor)
            loss.backward(inputs=moving)  # type: ignore[no-untyped-call]

    def _score_samples(
        self, columns: StepColumns, part: Sequence[int], num_total: float
    ) -> tuple[torch.Tensor, PairLogits]:
        """Return a micro-batch's part of L, and its logits."""
        self._scoring(len(part))
        samples = [columns.samples[i] for i in part]
        logits = self._ranker([s.query for s in samples], [s.text for s in samples])
        if not columns.residuals:
            logits = replace(logits, by_task={**logits.by_task, root(): logits.base})
        selected = columns.select(part)
        loss = self._loss(selected, logits)
        if selected.outcomes is not None:
            by_task = logits.by_task
            over_all = PURCHASE_OVER_ALL(by_task[CLICK], by_task[PURCHASE], selected.outcomes)
            loss = loss + self._config.task_weights.purchase_over_all * over_all
        if selected.values is not None and logits.value is not None:
            paid = PAID_VALUE(logits.value, selected.values)
            loss = loss + self._config.task_weights.value * paid
        return loss / num_total, logits

    def _loss(self, selected: Selected, logits: PairLogits) -> torch.Tensor:
        """Add up the losses of all tasks over a micro-batch, each by its weight.

        Where the loss of a task compares items only, its bias alone learns the pointwise loss too,
        of the logit without the query's residual: that is fitted to what this level leaves over.
        """
        total = torch.zeros((), device=self._ranker.encoder.device)
        for task, (rows, targets) in selected.by_task.items():
            loss, logit = self._losses[task], logits.by_task[task][rows]
            factor = self._config.task_weights.of(task)
            given = logits.across(rows) if loss.across_lists else logit
            total = total + factor * loss(given, targets)
            if not loss.learns_bias:
                bias = self._ranker.bias_of(task)
                level = logits.base[rows] if task == root() else logit
                apart = POINTWISE(level.detach() + (bias - bias.detach()), targets)
                total = total + factor * apart
        return total
