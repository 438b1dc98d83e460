"""Epochs over lists: the stream's own step first, then the encoder alone, until dev is no better.

1. The first epoch is what the stream does, in order of time: each batch is weighed by estimators
   that predict it before they learn it, evaluated, and learned by the estimators, the stackers, the
   parts of the score, the residuals and the encoder.
2. Further epochs move the encoder alone, along the same batches in an order drawn by the seed,
   under the weights of the first epoch. Whatever counts has counted each row once, so what the
   stream adds to it later is as if the file had been a part of the stream.
3. After each epoch the version that would be published is loaded, as serving does, and ranks the
   lists held back for it. Learning ends when NDCG@10 there (AUC, where no list has anything to
   compare) has not risen for `patience` epochs; the result is the state of the best epoch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from functools import partial

import numpy as np

from deploy.demo.judge import interval
from deploy.errors import DeployError
from deploy.fitting import judging
from deploy.fitting.examples import Examples
from deploy.fitting.judging import Figures
from deploy.fitting.samples import batches_of, samples_of
from deploy.fitting.split import Parts
from deploy.settings.tree import Settings
from learner.tracking.recorder import Recorder
from learner.tracking.start import check_installed, start_recorder
from learner.trainer import Trainer
from weighting.sample import Sample
from weighting.weigher import Weigher
from weighting.weighted import WeightedBatch

_TRACKER_SECONDS = 120.0
"""Longest wait for the tracker at the end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How long to learn.

    Attributes:
        epochs: at most.
        patience: epochs without a rise on dev, after which learning ends.
        seed: of the order of batches.
        file: name for the places of samples.
    """

    epochs: int
    patience: int
    seed: int
    file: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Epoch:
    """One epoch.

    Attributes:
        number: from 1; 0 is before any step.
        loss: mean of its samples; NaN before any step.
        dev: figures; None without a part for it.
        threshold: of accuracy and F1.
    """

    number: int
    loss: float
    dev: Figures | None
    threshold: float


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Fitted:
    """Result of learning from a file.

    Attributes:
        trainer: with the state of the best epoch.
        epochs: those taken; the first entry is before any step.
        best: the one whose state it is.
        test: figures of the best, None without a part for it.
        zero_shot: figures on test before any step, likewise.
        shown: NDCG@10 on test of the order that was shown, None if unknown.
        gain: NDCG@10 on test less that before any step, with its 95 % interval.
        event_times_us: first and last of what was learned.
    """

    trainer: Trainer
    epochs: list[Epoch]
    best: Epoch
    test: Figures | None
    zero_shot: Figures | None
    shown: float | None
    gain: tuple[float, float, float] | None
    event_times_us: tuple[int, int]


def fit(
    settings: Settings,
    parts: Parts,
    plan: Plan,
    *,
    advance: Callable[[int], None] = lambda rows: None,
    each: Callable[[Epoch], None] = lambda epoch: None,
    clock: Callable[[], float] = lambda: 0.0,
) -> Fitted:
    """Learn; see the module.

    Args:
        settings: of the learner that goes on from the result.
        parts: learned from, to stop by, to judge.
        plan: how long.
        advance: called with numbers of rows learned.
        each: called after each epoch, and before the first.
        clock: seconds since the Unix epoch, for the tracker.

    Raises:
        DeployError: steps were not finite.
        LearnerError: of the model, or `Diverged`, or `TrackerMissing`.
    """
    check_installed(settings.tracking)
    trainer = Trainer(settings.learner, Weigher(settings.weighting))
    recorder = start_recorder(
        settings.tracking, trainer, kind="fit", root=settings.store.root, clock=clock
    )
    with ExitStack() as opened:
        opened.callback(recorder.close, _TRACKER_SECONDS)
        run = _Run(settings, trainer, parts, plan, advance, recorder)
        best, best_files = run.judged(0, float("nan"))
        first_files, epochs = best_files, [best]
        each(best)
        for number in range(1, plan.epochs + 1):
            found, files = run.judged(number, run.epoch(number))
            epochs.append(found)
            each(found)
            if number == 1 or found.dev is None or _measure(found.dev) > _measure(best.dev):
                best, best_files = found, files
            if number - best.number >= plan.patience:
                break
    trainer = Trainer(settings.learner, Weigher(settings.weighting))
    trainer.restore(best_files.__getitem__)
    trainer.expect_other_data()
    test = partial(_tested, parts.test, threads=settings.learner.threads)
    own, zero, gain, shown = None, None, None, None
    if parts.test:
        own, ndcg = test(best_files, best.threshold)
        zero, zero_ndcg = test(first_files, epochs[0].threshold)
        gain = interval(ndcg - zero_ndcg) if len(ndcg) > 1 else None
        shown = judging.shown_order(parts.test)
    return Fitted(
        trainer=trainer,
        epochs=epochs,
        best=best,
        test=own,
        zero_shot=zero,
        shown=None if shown is None else _mean(judging.ndcg_of_queries(parts.test, shown)),
        gain=gain,
        event_times_us=(parts.train[0].time_us, parts.train[-1].time_us),
    )


class _Run:
    """The epochs of one fit."""

    def __init__(
        self,
        settings: Settings,
        trainer: Trainer,
        parts: Parts,
        plan: Plan,
        advance: Callable[[int], None],
        recorder: Recorder,
    ) -> None:
        self._trainer = trainer
        self._parts = parts
        self._plan = plan
        self._advance = advance
        self._recorder = recorder
        self._threads = settings.learner.threads
        self._batches = batches_of(parts.train, settings.learner.batch_size)
        self._weighed: list[WeightedBatch] = []  # of each batch, without its samples

    def epoch(self, number: int) -> float:
        """Take one epoch; return the mean loss of its samples."""
        draw = np.random.Generator(np.random.PCG64([self._plan.seed, number]))
        order = (
            np.arange(len(self._batches)) if number == 1 else draw.permutation(len(self._batches))
        )
        total, num_samples, num_refused = 0.0, 0, 0
        for place in order.tolist():
            samples, counts = self._samples(place)
            loss = self._learn(place, samples, counts)
            if loss is None:
                num_refused += 1
            else:
                total += loss * len(samples)
                num_samples += len(samples)
            self._advance(sum(len(own.rows) for own in self._batches[place]))
        if num_refused > len(order) // 2:
            raise DeployError(
                f"epoch {number}: the loss or gradient of {num_refused} of {len(order)} steps was "
                f"not finite. Lower learner.lr (it is {self._trainer.config.lr:g})."
            )
        return total / max(num_samples, 1)

    def _learn(self, place: int, samples: list[Sample], counts: judging.Array) -> float | None:
        if len(self._weighed) < len(self._batches):  # the first epoch
            report = self._trainer.counted_step(samples, counts)
            self._weighed.append(replace(report.weighted, samples=()))
            self._recorder.stepped(report)
            return report.loss if report.result == "ok" else None
        weighted = replace(self._weighed[place], samples=tuple(samples))
        loss = self._trainer.repeat(weighted, counts)
        self._recorder.repeated(loss, len(samples))
        return loss

    def _samples(self, place: int) -> tuple[list[Sample], judging.Array]:
        found = [samples_of(own, self._plan.file) for own in self._batches[place]]
        return [s for own, _ in found for s in own], np.concatenate([c for _, c in found])

    def judged(self, number: int, loss: float) -> tuple[Epoch, dict[str, bytes]]:
        """Return an epoch with its figures on dev, and the files of its version."""
        files = self._trainer.files()
        dev, threshold = None, 0.5
        if self._parts.dev:
            with judging.loaded(files, threads=self._threads) as scorer:
                scored = judging.score(scorer, self._parts.dev)
            positive = judging.grades(self._parts.dev) >= 0.5
            threshold = judging.best_threshold(scored.probability, positive)
            dev = judging.figures(self._parts.dev, scored, threshold)
        figures = {"fit/epoch": float(number), "fit/loss": loss}
        figures |= {f"dev/{name}": float(v) for name, v in asdict(dev).items()} if dev else {}
        self._recorder.figures(figures)
        return Epoch(number=number, loss=loss, dev=dev, threshold=threshold), files


def _tested(
    lists: list[Examples], files: Mapping[str, bytes], threshold: float, *, threads: int
) -> tuple[Figures, judging.Array]:
    with judging.loaded(files, threads=threads) as scorer:
        scored = judging.score(scorer, lists)
    ndcg = judging.ndcg_of_queries(lists, scored.score)
    return judging.figures(lists, scored, threshold), ndcg


def _measure(dev: Figures | None) -> float:
    """Return what decides which epoch is best; larger is better."""
    if dev is None:
        return float("-inf")
    found = dev.auc if np.isnan(dev.ndcg) else dev.ndcg
    return float("-inf") if np.isnan(found) else found


def _mean(values: judging.Array) -> float | None:
    return float(values.mean()) if len(values) else None
