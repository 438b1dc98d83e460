"""One step: weigh, test, then train.

Legend: N samples of a step (of all processes), n of them our own, D width.

A step, in this order:
1. ask the pair memory about lists with a click (`ClickedLists`), weigh the samples (`Weigher`:
   list by list, predict and only then let the estimators learn): `prepare`, which may run ahead;
   and draw those that the encoder is given, if not all (`ListSampler`);
2. score them with the model as it is, and take the gradient of L = 1/N sum w_i loss_i there; the
   encoder's with a share of past lists, if any are kept (`Rehearsal`); clip it, and encode the
   texts by the starting encoder;
3. read all of that from the device, and move the parameters along the gradient, unless something
   is not finite;
4. task by task, evaluate what would have been served, then let the stacker learn it, and then the
   parts of the score: what they say was said before anything learned these labels; let the value
   head, if any, count what was paid; and keep a uniform sample of the lists to rehearse;
5. let the residuals of the queries learn their counts;
6. let the candidates of the weights compete, if there are any: the next step has the weights of
   the one that is then in force.

A device is read once, in 3., when it has been given all of 2.; and it moves the parameters while
the host goes on with 4. Whether they move is decided on the host, not by a mask on the device: the
host has loss and norm by then, and the watch over the losses, which may end the step, is there.

The processes of a group take a step together over the samples of all: each scores its own in 2.;
everything else is learned from all samples by every process, in rank order, so that all hold the
same state.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from learner.components import Components
from learner.exchange import StartingVectors
from learner.training.columns import paid_values
from learner.training.explained import ExplainedList
from learner.training.prepared import Prepared
from learner.training.query_counts import query_counts
from learner.training.scored import Scored
from learner.transfer import to_host
from weighting.competition import Change
from weighting.sample import Sample
from weighting.tasks import TaskName, root
from weighting.weigher import TaskFigures
from weighting.weighted import WeightedBatch


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class StepReport:
    """Outcome of a step.

    Attributes:
        step: number of the step, from 1.
        result: ok, or nonfinite: a score or the gradient was refused and no parameter moved.
        loss: L before the step.
        gradient_norm: of all that moves, before clipping.
        num_micro_batches: in which each process scored its samples; grows when memory runs out.
        num_left_out: samples that the encoder was not given (`learner.compute_share`).
        num_rehearsed: past samples that it moved along as well (`learner.rehearsal`).
        weighted: the samples, of all processes, and how much each counted.
        figures: of each task's estimators, after these samples.
        changes: of the weighting scheme in force, from the next step on.
        explained: lists with a click, as they would have been served before the step.
    """

    step: int
    result: str
    loss: float
    gradient_norm: float
    num_micro_batches: int
    num_left_out: int
    num_rehearsed: int
    weighted: WeightedBatch
    figures: Mapping[TaskName, TaskFigures]
    changes: tuple[Change, ...]
    explained: tuple[ExplainedList, ...] = ()


def take(
    own: Components,
    prepared: Prepared,
    counts: NDArray[np.float64] | None,
    *,
    step: int,
    num_explained: int,
) -> StepReport:
    """Take a step on prepared samples; arguments and errors as of `Trainer.counted_step`."""
    weighted, clicked = prepared.weighted, prepared.clicked  # 1.
    samples = weighted.samples
    factor, rehearsed = own.sampler.draw(weighted), None
    if own.rehearsal is not None:
        rehearsed = own.rehearsal.draw(weighted, factor, step=step)
    if counts is not None:
        factor = factor * counts
    collected = own.gradient.run(
        weighted, prepared.own, step=step, factor=factor, rehearsed=rehearsed
    )  # 2.
    starting = StartingVectors(own.ranker, samples[prepared.own.start : prepared.own.stop])
    clipped = own.optimizer.clip(len(samples))
    *read, norm_read, vectors = to_host([*collected.unread, clipped, starting.unread])  # 3.
    scored = own.gradient.joined(collected.scored(read))
    finite, loss, norm = _finite(samples, scored, factor > 0), math.nan, math.nan
    if finite:
        loss, norm = scored.loss, float(norm_read)
    ok = math.isfinite(loss) and math.isfinite(norm)
    if samples:
        judged = loss if ok else math.nan
        own.losses.judge(step, judged, num_samples=len(samples))
    if samples and ok:
        own.optimizer.step(len(samples))
    changes: tuple[Change, ...] = ()
    lists: tuple[ExplainedList, ...] = ()
    if finite:  # otherwise the estimators, sound without the model, have learned; it does not
        queries, items = starting.read(own.process_group, vectors)
        clicked.restrict(factor > 0)
        lists = own.prequential.run(
            own.served,
            weighted,
            scored,
            clicked,
            queries,
            items,
            factor,
            num_explained=num_explained,
        )  # 4.
        if samples and ok:
            learn_values(own, weighted, scored, factor)
            if own.rehearsal is not None:
                own.rehearsal.learn(weighted, counts)
        learn_residuals(own, prepared, scored, factor)  # 5.
        changes = own.weigher.compete(weighted, (queries * items).astype(np.float64))  # 6.
        own.ranker.exponent = own.weigher.exponent
    return StepReport(
        step=step,
        result="ok" if ok else "nonfinite",
        loss=loss,
        gradient_norm=norm,
        num_micro_batches=own.gradient.num_micro_batches,
        num_left_out=int((factor == 0).sum()),
        num_rehearsed=len(rehearsed.samples) if rehearsed else 0,
        weighted=weighted,
        figures=prepared.figures,
        changes=changes,
        explained=lists,
    )


def repeat(
    own: Components, weighted: WeightedBatch, counts: NDArray[np.float64] | None, *, step: int
) -> float | None:
    """Move the encoder once more along weighed samples; as `Trainer.repeat` says."""
    assert own.process_group.world == 1, "other processes have samples of their own"
    num = len(weighted.samples)
    factor = np.ones(num) if counts is None else counts
    collected = own.gradient.run(weighted, range(num), step=step, factor=factor, residuals=False)
    *read, norm = to_host([*collected.unread, own.optimizer.clip(num)])
    scored = collected.scored(read)
    if not _finite(weighted.samples, scored, factor > 0):
        return None
    if not (math.isfinite(scored.loss) and math.isfinite(float(norm))):
        return None
    own.optimizer.step(num)
    return scored.loss


def learn_values(
    own: Components, weighted: WeightedBatch, scored: Scored, factor: NDArray[np.float64]
) -> None:
    """Judge what the value head told of this step's purchases, then count their values."""
    head = own.ranker.value_head
    if head is not None:
        value, weight = paid_values(weighted, factor)
        head.learn(scored.value.astype(np.float64), value, weight)


def learn_residuals(
    own: Components, prepared: Prepared, scored: Scored, factor: NDArray[np.float64]
) -> None:
    """Let each query's residual learn its weighted clicks and exposures of this step."""
    task, weighted = root(), prepared.weighted
    prior = {**prepared.clicked.prior, **weighted.prior}[task]
    base = own.served.invert(scored.base.astype(np.float64), prior)
    for query, counts in query_counts(weighted, task, factor).items():
        rows = counts.places
        own.ranker.residual.learn(
            query,
            list(counts.items),
            scored.items[rows],
            base[rows],
            counts.clicks,
            counts.exposure,
            lists=counts.lists,
            time_us=counts.time_us,
        )


def _tasks(samples: Sequence[Sample]) -> NDArray[np.object_]:
    return np.array([s.task for s in samples], dtype=object)


def _finite(samples: Sequence[Sample], scored: Scored, drawn: NDArray[np.bool_]) -> bool:
    """Check that every drawn sample's logit of its own task is a number."""
    tasks = _tasks(samples)
    return all(
        bool(np.isfinite(logits[(tasks == task) & drawn]).all())
        for task, logits in scored.by_task.items()
    )
