"""One step: weigh, test, then train; with all the state that it changes.

Legend: N samples of a step (of all processes), n of them our own, D width.

A step, in this order:
1. ask the pair memory about lists with a click (`ClickedLists`), weigh the samples (`Weigher`:
   list by list, predict and only then let the estimators learn): `prepare`, which may run ahead;
   and draw those that the encoder is given, if not all (`ListSampler`);
2. score them with the model as it is, and take the gradient of L = 1/N sum w_i loss_i there; the
   encoder's with a share of past lists, if any are kept (`Rehearsal`);
3. task by task, evaluate what would have been served, then let the stacker learn it, and then the
   parts of the score: what they say was said before anything learned these labels;
4. move the parameters along the gradient, unless something is not finite, and keep a uniform sample
   of the lists to rehearse;
5. let the residuals of the queries learn their counts;
6. let the candidates of the weights compete, if there are any: the next step has the weights of
   the one that is then in force.

The processes of a group take a step together over the samples of all: each scores its own in 2.;
everything else is learned from all samples by every process, in rank order, so that all hold the
same state.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b

import msgspec
import numpy as np
from msgspec import UNSET
from numpy.typing import NDArray

from learner import arithmetic
from learner import version_layout as layout
from learner.config import LearnerConfig
from learner.encoder.encoder import Encoder
from learner.encoder.fit import check_fit
from learner.encoder.head import load_head
from learner.encoder.load import load_pretrained
from learner.encoder.token_types import mark_pairs
from learner.encoder.tokens import Texts
from learner.errors import PrivacyUnsupported
from learner.evaluation.block import SCENARIO
from learner.evaluation.evaluation import Evaluation
from learner.losses.registry import losses_of
from learner.model_card import model_card
from learner.parts.attributes import figures
from learner.parts.part import Vectors
from learner.parts.registry import make_parts
from learner.process_group import ProcessGroup, SingleProcess
from learner.ranker import CROSS_ENCODER, Ranker
from learner.ranker_files import RankerFiles, copy_of
from learner.residual import QueryResidual
from learner.served import ServedScore, root
from learner.training.budget import Budget
from learner.training.divergence import LossWatch
from learner.training.explained import ExplainedList
from learner.training.gradient import GradientPass
from learner.training.list_sampler import ListSampler
from learner.training.optimizer import Optimizer
from learner.training.prepared import Prepared
from learner.training.prequential import Prequential
from learner.training.privacy import Privacy
from learner.training.query_counts import query_counts
from learner.training.rehearsal import Rehearsal
from learner.training.scored import Scored
from learner.tuning import adapters
from weighting.competition import Change
from weighting.sample import Sample
from weighting.tasks import TASKS, TaskName
from weighting.weigher import TaskFigures, Weigher
from weighting.weighted import WeightedBatch

_PROBE = ("", "red running shoes", "a waterproof jacket for hiking in the rain, dark green")
"""Texts on which a tuning must agree with the encoder itself."""


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


class Trainer:
    """The learning model: ranker, estimators, stackers, optimizer and evaluation.

    Attributes:
        step_number: number of steps taken.
        num_samples: in all steps.
        trained: of samples in steps with result ok, their number and the sum modulo 2^64 of
            BLAKE2b-64 of each `sample_id`.
        num_explained: lists with a click, at most, that the report of a step explains.
    """

    def __init__(
        self,
        config: LearnerConfig,
        weigher: Weigher,
        process_group: ProcessGroup | None = None,
        *,
        scoring: Callable[[int], None] = lambda num_samples: None,
        secret: Callable[[int], bytes] = secrets.token_bytes,
    ) -> None:
        """Load the pretrained encoder.

        Args:
            config: the settings.
            weigher: the estimators.
            process_group: the processes that takes each step together; one process by default.
            scoring: called with the number of samples before each pass through the model; an error
                that it raises is raised there.
            secret: gives that many bytes that nobody can guess, for the noise of
                `learner.privacy`.

        Raises:
            PrivacyUnsupported: `config.privacy` with several processes, or without opacus.
            DeviceMissing: `config.device` cannot be used here.
            ModelMissing: `config.model` cannot be had.
            ModelUnsupported: it does not fit the other settings.
            TuningUnsupported: `config.tuning` does not fit it.
            ThreadsRefused: the environment limits `config.threads`.
        """
        arithmetic.check_environment(config.threads)
        arithmetic.use(config.threads, config.device)
        check_fit(config)
        self.config = config
        self.weigher = weigher
        self.process_group: ProcessGroup = process_group or SingleProcess()
        self.step_number = 0
        self.num_samples = 0
        self.trained = (0, 0)
        self._figures: Mapping[TaskName, TaskFigures] | None = None  # as of the last step
        self.num_explained = 0
        self._losses = LossWatch()
        pretrained = load_pretrained(config.model, pooling=config.pooling, download=config.download)
        head = None
        if config.interaction == CROSS_ENCODER:
            model, tokenizer, _ = pretrained
            head = load_head(config.model, model, tokenizer, download=config.download)
        if head is not None:
            mark_pairs(pretrained.model, head.separator)
        encoder = Encoder(
            pretrained.model.to(config.device),
            tuning=config.tuning,
            pooling=pretrained.pooling,
            precision=config.precision,
            dropout=config.dropout,
            checkpointing=config.gradient_checkpointing,
            seed=config.seed,
        )
        hugging_face = layout.hugging_face_files(pretrained.model, pretrained.tokenizer)
        texts = Texts(pretrained.tokenizer, max_tokens=config.max_tokens)
        encoder.check_tuning([texts.ids(text) for text in _PROBE])
        self.ranker = Ranker(
            encoder,
            texts,
            QueryResidual(encoder.width, config.residual),
            interaction=config.interaction,
            logit_scale=config.logit_scale,
            exponent=weigher.exponent,
            head=head,
        )
        initial = weigher.config.initial()
        parts = make_parts(width=encoder.width, logit_scale=config.logit_scale)
        self.served = ServedScore(weigher.invert, parts, initial)
        self._prequential = Prequential()
        self._files = RankerFiles(self.ranker, hugging_face, model=config.model)
        self._optimizer = Optimizer(config, self.ranker, self.process_group)
        self._privacy = _privacy(config, self.process_group, secret)
        self._gradient = GradientPass(
            config, self.ranker, self._optimizer, self.process_group, scoring, self._privacy
        )
        losses = losses_of(TASKS, configured=config.loss)
        self._sampler = ListSampler(
            config.compute_share,
            seed=config.seed,
            whole_lists={t: loss.whole_lists for t, loss in losses.items()},
        )
        self._rehearsal: Rehearsal | None = None
        if config.rehearsal.size_bytes:
            self._rehearsal = Rehearsal(
                config.rehearsal,
                seed=config.seed,
                losses=losses,
                task_weight=config.task_weights.of,
            )

    @property
    def evaluations(self) -> Mapping[TaskName, Evaluation]:
        """Prequential evaluation of each task."""
        return self._prequential.evaluations

    @property
    def learning_rates(self) -> Mapping[str, float]:
        """Learning rates of encoder and heads in the last step."""
        return self._optimizer.learning_rates

    @property
    def budget(self) -> Budget | None:
        """Privacy budget of each list; None without `learner.privacy`."""
        return None if self._privacy is None else self._privacy.budget()

    @property
    def num_micro_batches(self) -> int:
        """Micro-batches of a step; grows when memory runs out, and stays."""
        return self._gradient.num_micro_batches

    @num_micro_batches.setter
    def num_micro_batches(self, number: int) -> None:
        self._gradient.num_micro_batches = number

    @property
    def rehearsal(self) -> Rehearsal | None:
        """Past lists; None where none are kept."""
        return self._rehearsal

    def step(self, samples: Sequence[Sample]) -> StepReport:
        """Weigh, test and train on N samples.

        Args:
            samples: our own, in event order; the other processes bring theirs.

        Raises:
            WeightError: a weight was refused; nothing was learned.
            Diverged: no parameter moved, but the trainer must not be reused; nor after the errors
                below.
            OutOfMemory: not even the smallest micro-batch fits the device.
            RankLost: another process is gone.
        """
        return self.take(self.prepare(samples))

    def counted_step(
        self, samples: Sequence[Sample], counts: NDArray[np.float64] | None = None
    ) -> StepReport:
        """Take a step in which samples count differently.

        Args:
            samples: as of `step`.
            counts: (N,) what each counts, above 0, in everything but the estimators; 1 by
                default. For one process.

        Raises:
            As `step`.
        """
        return self.take(self.prepare(samples), counts)

    @property
    def weighs_ahead(self) -> bool:
        """Whether samples may be weighed before the step on those before them is over.

        Not where candidates of the weights compete: a step decides which one weighs the next.
        """
        return self.process_group.world == 1 and self.weigher.competition is None

    def tokenise(self, samples: Sequence[Sample]) -> None:
        """Keep the token ids of our own samples for their step; from any thread."""
        self.ranker.tokenise([(s.query, s.text) for s in samples])

    def prepare(self, samples: Sequence[Sample]) -> Prepared:
        """Weigh N samples, which lets the estimators learn them; `take` is their step.

        One thread at a time, in the order of the steps; another thread may be in `take` meanwhile
        if `weighs_ahead`.

        Args:
            samples: as of `step`.

        Raises:
            WeightError: a weight was refused; nothing was learned.
            RankLost: another process is gone.
        """
        samples, own = self._gather(samples)
        return Prepared.of(samples, own, self.weigher)

    def take(self, prepared: Prepared, counts: NDArray[np.float64] | None = None) -> StepReport:
        """Take the step on prepared samples; arguments and errors as of `counted_step`."""
        arithmetic.use(self.config.threads, self.config.device)
        weighted, own, clicked = prepared.weighted, prepared.own, prepared.clicked  # 1.
        self._figures = prepared.figures
        samples = weighted.samples
        step = self.step_number + 1
        factor, rehearsed = self._sampler.draw(weighted), None
        if self._rehearsal is not None:
            rehearsed = self._rehearsal.draw(weighted, factor, step=step)
        if counts is not None:
            factor = factor * counts
        scored = self._gradient.run(
            weighted, own, step=step, factor=factor, rehearsed=rehearsed
        )  # 2.
        finite, loss, norm = _finite(samples, scored, factor > 0), math.nan, math.nan
        changes: tuple[Change, ...] = ()
        lists: tuple[ExplainedList, ...] = ()
        if finite:  # otherwise the estimators, sound without the model, have learned; it does not
            queries, items = self._starting_vectors(samples, own)
            clicked.restrict(factor > 0)
            lists = self._prequential.run(
                self.served,
                weighted,
                scored,
                clicked,
                queries,
                items,
                factor,
                num_explained=self.num_explained,
            )  # 3.
            loss, norm = scored.loss, self._optimizer.clip(len(samples))
        ok = math.isfinite(loss) and math.isfinite(norm)
        if samples:
            judged = loss if ok else math.nan
            self._losses.judge(step, judged, num_samples=len(samples))
        if samples and ok:
            self._optimizer.step(len(samples))  # 4.
            self.trained = _counted(self.trained, samples)
            if self._rehearsal is not None:
                self._rehearsal.learn(weighted, counts)
        if finite:
            self._learn_residuals(prepared, scored, factor)  # 5.
            changes = self.weigher.compete(weighted, (queries * items).astype(np.float64))  # 6.
            self.ranker.exponent = self.weigher.exponent
        self.step_number = step
        self.num_samples += len(samples)
        return StepReport(
            step=self.step_number,
            result="ok" if ok else "nonfinite",
            loss=loss,
            gradient_norm=norm,
            num_micro_batches=self.num_micro_batches,
            num_left_out=int((factor == 0).sum()),
            num_rehearsed=len(rehearsed.samples) if rehearsed else 0,
            weighted=weighted,
            figures=prepared.figures,
            changes=changes,
            explained=lists,
        )

    def repeat(
        self, weighted: WeightedBatch, counts: NDArray[np.float64] | None = None
    ) -> float | None:
        """Move the encoder once more along N samples that a step has weighed; for one process.

        Only steps 2 and 4, under the weights of then: what counts has counted them. The loss is of
        logits without the queries' residuals, which know these labels.

        Args:
            weighted: as the report of that step has it.
            counts: (N,) as that step took them.

        Returns:
            L before the step; None: a score or the gradient was not finite, and nothing moved.

        Raises:
            OutOfMemory: not even the smallest micro-batch fits the device.
        """
        assert self.process_group.world == 1, "other processes have samples of their own"
        arithmetic.use(self.config.threads, self.config.device)
        num = len(weighted.samples)
        factor = np.ones(num) if counts is None else counts
        self.step_number += 1
        scored = self._gradient.run(
            weighted, range(num), step=self.step_number, factor=factor, residuals=False
        )
        if not _finite(weighted.samples, scored, factor > 0):
            return None
        norm = self._optimizer.clip(num)
        if not (math.isfinite(scored.loss) and math.isfinite(norm)):
            return None
        self._optimizer.step(num)
        return scored.loss

    def expect_other_data(self) -> None:
        """Learn the usual loss anew: what comes next is no spike because it is another stream."""
        self._losses = LossWatch()

    def skip(self, samples: Sequence[Sample]) -> None:
        """Count a step in quarantine; nothing is learned from it.

        The usual loss is learned anew: if the stream has changed for good, the next step is not
        taken for a spike as well.
        """
        samples, _ = self._gather(samples)
        self.step_number += 1
        self.num_samples += len(samples)
        self._losses = LossWatch()

    def _gather(self, samples: Sequence[Sample]) -> tuple[Sequence[Sample], range]:
        """Return all processes' samples, in rank order, and the places of our own."""
        if self.process_group.world == 1:
            return samples, range(len(samples))
        shares = [
            msgspec.msgpack.decode(data, type=list[Sample])
            for data in self.process_group.gather(msgspec.msgpack.encode(list(samples)))
        ]
        start = sum(len(share) for share in shares[: self.process_group.rank])
        return [s for share in shares for s in share], range(start, start + len(samples))

    def _starting_vectors(self, samples: Sequence[Sample], own: range) -> tuple[Vectors, Vectors]:
        """Return the starting encoder's vectors (N, D) of queries and items.

        As with the scores, each process encodes its own samples.
        """
        mine, ranker = samples[own.start : own.stop], self.ranker
        queries = ranker.starting_vectors([s.query for s in mine])
        items = ranker.starting_vectors([s.text for s in mine])
        if self.process_group.world == 1:
            return queries, items
        shares = self.process_group.gather(np.stack([queries, items]).tobytes())
        width = ranker.encoder.width
        pieces = [np.frombuffer(d, np.float32).reshape(2, -1, width) for d in shares]
        queries, items = np.concatenate(pieces, axis=1)
        return queries, items

    def _learn_residuals(
        self, prepared: Prepared, scored: Scored, factor: NDArray[np.float64]
    ) -> None:
        """Let each query's residual learn its weighted clicks and exposures of this step."""
        task, weighted = root(), prepared.weighted
        prior = {**prepared.clicked.prior, **weighted.prior}[task]
        base = self.served.invert(scored.base.astype(np.float64), prior)
        for query, counts in query_counts(weighted, task, factor).items():
            rows = counts.places
            self.ranker.residual.learn(
                query,
                list(counts.items),
                scored.items[rows],
                base[rows],
                counts.clicks,
                counts.exposure,
                lists=counts.lists,
                time_us=counts.time_us,
            )

    def evaluation(self) -> dict[str, float]:
        """Return the figures of the newest part of the stream.

        They are named ``task_figure``, those of one scenario ``task_scenario_NAME_figure``. And the
        number of changes that drift detectors found since its start, and how much each attribute
        counts.
        """
        found = figures(self.served.attribute_coefficients())
        for task, own in self.evaluations.items():
            block = own.latest_block()
            found |= {f"{task}_{name}": value for name, value in block.figures().items()}
            for scenario, gains in block.gains(SCENARIO).items():
                found |= {f"{task}_{SCENARIO}_{scenario}_{n}": v for n, v in gains.items()}
            drifts = (self._figures or self.weigher.figures())[task].num_drifts
            found |= {f"{task}_changes_of_{name}": float(n) for name, n in drifts.items()}
        return found

    def files(self) -> dict[str, bytes]:
        """Return all files of a version but ingest's part; see `learner.version_layout`."""
        return self.copied()()

    def copied(self) -> Callable[[], dict[str, bytes]]:
        """Copy all that the next step changes; return a function that encodes the copies.

        The function may run in any thread while training goes on.
        """
        encoder, heads = self._files.copied()
        residual = self.ranker.residual.copy()
        estimators, stackers = self.weigher.snapshot(), self.served.snapshot()
        parts = self.served.snapshot_parts()
        trained, weighting = self._training_state(), self.weigher.description()
        attributes = self.served.attribute_coefficients()

        def encode() -> dict[str, bytes]:
            written = encoder()
            # The settings hold a digest of what never moves, which is slow the first time
            state = layout.ScoringState(
                settings=self._files.settings(written, self.weigher.config.on_disk()),
                heads=heads,
                queries=residual.queries,
                residuals=residual.vectors(),
                estimators=estimators,
                stackers=stackers,
                parts=parts,
            )
            training = trained(residual_counts=residual.encoded())
            progress = training.progress
            return {
                **self._files.fixed,
                **written,
                **layout.scoring_files(state),
                **layout.training_files(training),
                layout.CARD: model_card(
                    training.evaluations,
                    step=progress.step,
                    num_samples=progress.num_samples,
                    weighting=weighting,
                    attributes=attributes,
                    adapter=self._files.adapter(),
                    head=self._files.head_kind(),
                    budget=progress.budget(),
                ),
            }

        return encode

    def _training_state(self) -> Callable[..., layout.TrainingState]:
        """Copy what only training needs; the counts behind the residuals are given later."""
        state, items = self._optimizer.state(), self._gradient.frequency
        past = self._rehearsal
        return partial(
            layout.TrainingState,
            evaluations={task: own.snapshot() for task, own in self.evaluations.items()},
            clicked=self._prequential.clicked.snapshot(),
            frequency=self._prequential.frequency.snapshot(),
            items=items.snapshot() if items is not None else b"",
            rehearsal=past.snapshot() if past is not None else b"",
            optimizer={name: copy_of(tensor) for name, tensor in state.items()},
            privacy=b"" if self._privacy is None else self._privacy.snapshot(),
            progress=layout.Progress(
                step=self.step_number,
                num_samples=self.num_samples,
                trained=self.trained,
                num_micro_batches=self.num_micro_batches,
                losses=msgspec.structs.replace(self._losses),
                sampler_log_level=self._sampler.log_level,
                privacy=UNSET if self._privacy is None else self._privacy.budget(),
            ),
        )

    def restore(self, read: layout.Read) -> None:
        """Restore the state that the files of a version hold.

        Args:
            read: gives a file by its path in the version.

        Raises:
            ModelUnsupported: it was learned under another pooling or head; nothing was restored.
            TuningUnsupported: it was learned under another tuning; nothing was restored.
        """
        ranker = self.ranker
        scoring, training = layout.read_scoring(read), layout.read_training(read)
        self._files.check(scoring.settings)
        adapters.load(ranker.encoder.model, layout.read_model(read))
        ranker.load_heads(scoring.heads)
        ranker.residual.restore(training.residual_counts, scoring.residuals)
        self.weigher.restore(scoring.estimators)
        self._figures = None
        ranker.exponent = self.weigher.exponent
        ranker.starting.load(layout.read_start(read))
        self.served.restore(scoring.stackers, scoring.parts)
        for task, own in self.evaluations.items():
            own.restore(training.evaluations[task])
        self._prequential.clicked.restore(training.clicked)
        self._prequential.frequency.restore(training.frequency)
        if self._gradient.frequency is not None:
            self._gradient.frequency.restore(training.items)
        if self._rehearsal is not None:
            self._rehearsal.restore(training.rehearsal)
        self._optimizer.restore(training.optimizer)
        progress = training.progress
        if self._privacy is not None:
            self._privacy.restore(training.privacy, progress.budget(), step=progress.step)
        self.step_number = progress.step
        self.num_samples = progress.num_samples
        self.trained = progress.trained
        self.num_micro_batches = progress.num_micro_batches
        self._losses = progress.losses
        self._sampler.log_level = progress.sampler_log_level


def _privacy(
    config: LearnerConfig, process_group: ProcessGroup, secret: Callable[[int], bytes]
) -> Privacy | None:
    """Return what `config.privacy` asks for; None if it is off."""
    if not config.privacy.enabled:
        return None
    if process_group.world > 1:
        raise PrivacyUnsupported(
            f"learner.privacy.noise_multiplier: got {config.privacy.noise_multiplier:g} with "
            f"{process_group.world} ranks, which would each have noise of their own. Start one "
            "learner without torchrun, or set it to 0."
        )
    return Privacy(config.privacy, secret)


def _tasks(samples: Sequence[Sample]) -> NDArray[np.object_]:
    return np.array([s.task for s in samples], dtype=object)


def _counted(trained: tuple[int, int], samples: Sequence[Sample]) -> tuple[int, int]:
    """Add samples to a number and digest.

    The result is the same for any batching of the same log.
    """
    number, sum64 = trained
    for s in samples:
        sum64 += int.from_bytes(blake2b(s.sample_id.encode(), digest_size=8).digest(), "little")
    return number + len(samples), sum64 % (1 << 64)


def _finite(samples: Sequence[Sample], scored: Scored, drawn: NDArray[np.bool_]) -> bool:
    """Check that every drawn sample's logit of its own task is a number."""
    tasks = _tasks(samples)
    return all(
        bool(np.isfinite(logits[(tasks == task) & drawn]).all())
        for task, logits in scored.by_task.items()
    )
