"""The learning model: taken forward step by step, evaluated, saved and restored.

Legend: N samples of a step (of all processes).

What a step does is in `training_step`, what it changes in `components`.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable, Mapping, Sequence
from hashlib import blake2b

import numpy as np
import torch
from numpy.typing import NDArray

from learner import arithmetic, trainer_files, training_step
from learner import version_layout as layout
from learner.components import assemble
from learner.config import LearnerConfig
from learner.evaluation.block import SCENARIO
from learner.evaluation.evaluation import Evaluation
from learner.exchange import gather
from learner.parts.attributes import figures
from learner.process_group import ProcessGroup, SingleProcess
from learner.ranker import Ranker
from learner.served import ServedScore
from learner.training.budget import Budget
from learner.training.divergence import LossWatch
from learner.training.prepared import Prepared
from learner.training.rehearsal import Rehearsal
from learner.training_step import StepReport
from weighting.sample import Sample
from weighting.tasks import TaskName
from weighting.weigher import TaskFigures, Weigher
from weighting.weighted import WeightedBatch

log = logging.getLogger("steelyard.learner")


class Trainer:
    """The learning model: ranker, estimators, stackers, optimizer and evaluation.

    Attributes:
        step_number: number of steps taken.
        num_samples: in all steps.
        trained: of samples in steps with result ok, their number and the sum modulo 2^64 of
            BLAKE2b-64 of each `sample_id`.
        num_explained: lists with a click, at most, that the report of a step explains.
        components: what steps change, and what changes it.
        encodes_ahead: whether `encode_ahead` does anything.
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
            SettingError: `config.task_weights` do not fit the weights of the samples.
        """
        config.task_weights.check_weighting(weigher.config)
        arithmetic.check_environment(config.threads)
        arithmetic.use(config.threads, config.device)
        self.config = config
        self.components = assemble(
            config, weigher, process_group or SingleProcess(), scoring=scoring, secret=secret
        )
        self.step_number = 0
        self.num_samples = 0
        self.trained = (0, 0)
        self.num_explained = 0
        # Two teams of threads would hold each other up; with a share, most of it would be in vain
        alone = config.device != "cpu" or config.threads == 1
        self.encodes_ahead = alone and config.compute_share == 1
        self._figures: Mapping[TaskName, TaskFigures] | None = None  # as of the last step

    @property
    def process_group(self) -> ProcessGroup:
        """The processes that take each step together."""
        return self.components.process_group

    @property
    def weigher(self) -> Weigher:
        """The estimators."""
        return self.components.weigher

    @property
    def ranker(self) -> Ranker:
        """The model."""
        return self.components.ranker

    @property
    def served(self) -> ServedScore:
        """The score that is served."""
        return self.components.served

    @property
    def evaluations(self) -> Mapping[TaskName, Evaluation]:
        """Prequential evaluation of each task."""
        return self.components.prequential.evaluations

    @property
    def learning_rates(self) -> Mapping[str, float]:
        """Learning rates of encoder and heads in the last step."""
        return self.components.optimizer.learning_rates

    @property
    def budget(self) -> Budget | None:
        """Privacy budget of each list; None without `learner.privacy`."""
        privacy = self.components.privacy
        return None if privacy is None else privacy.budget()

    @property
    def num_micro_batches(self) -> int:
        """Micro-batches of a step; grows when memory runs out, and stays."""
        return self.components.gradient.num_micro_batches

    @num_micro_batches.setter
    def num_micro_batches(self, number: int) -> None:
        self.components.gradient.num_micro_batches = number

    @property
    def rehearsal(self) -> Rehearsal | None:
        """Past lists; None where none are kept."""
        return self.components.rehearsal

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

    def encode_ahead(self, samples: Sequence[Sample]) -> None:
        """Keep what no training changes of the texts of our own samples; from any thread.

        So their step, which may be another than the next, meets no text for the first time. Where
        memory runs out it is left to the step.
        """
        if not self.encodes_ahead:
            return
        arithmetic.use(self.config.threads, self.config.device)
        try:
            self.ranker.encode_ahead([(s.query, s.text) for s in samples])
        except torch.OutOfMemoryError as error:
            log.warning("no memory to encode ahead", extra={"error": str(error)})

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
        samples, own = gather(self.process_group, samples)
        return Prepared.of(samples, own, self.weigher)

    def take(self, prepared: Prepared, counts: NDArray[np.float64] | None = None) -> StepReport:
        """Take the step on prepared samples; arguments and errors as of `counted_step`."""
        arithmetic.use(self.config.threads, self.config.device)
        self._figures = prepared.figures
        report = training_step.take(
            self.components,
            prepared,
            counts,
            step=self.step_number + 1,
            num_explained=self.num_explained,
        )
        if report.result == "ok":
            self.trained = _counted(self.trained, report.weighted.samples)
        self.step_number = report.step
        self.num_samples += len(report.weighted.samples)
        return report

    def repeat(
        self, weighted: WeightedBatch, counts: NDArray[np.float64] | None = None
    ) -> float | None:
        """Move the encoder once more along N samples that a step has weighed; for one process.

        Only steps 2 and 3 of `training_step`, under the weights of then: what counts has counted
        them. The loss is of logits without the queries' residuals, which know these labels.

        Args:
            weighted: as the report of that step has it.
            counts: (N,) as that step took them.

        Returns:
            L before the step; None: a score or the gradient was not finite, and nothing moved.

        Raises:
            OutOfMemory: not even the smallest micro-batch fits the device.
        """
        arithmetic.use(self.config.threads, self.config.device)
        self.step_number += 1
        return training_step.repeat(self.components, weighted, counts, step=self.step_number)

    def expect_other_data(self) -> None:
        """Learn the usual loss anew: what comes next is no spike because it is another stream."""
        self.components.losses = LossWatch()

    def skip(self, samples: Sequence[Sample]) -> None:
        """Count a step in quarantine; nothing is learned from it.

        The usual loss is learned anew: if the stream has changed for good, the next step is not
        taken for a spike as well.
        """
        samples, _ = gather(self.process_group, samples)
        self.step_number += 1
        self.num_samples += len(samples)
        self.expect_other_data()

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
        if self.ranker.value_head is not None:
            value = self.ranker.value_head.figures()
            found |= {f"value_{name}": number for name, number in value.items()}
        return found

    def files(self) -> dict[str, bytes]:
        """Return all files of a version but ingest's part; see `learner.version_layout`."""
        return self.copied()()

    def copied(self) -> Callable[[], dict[str, bytes]]:
        """Copy all that the next step changes; return a function that encodes the copies.

        The function may run in any thread while training goes on.
        """
        return trainer_files.copied(
            self.components,
            step=self.step_number,
            num_samples=self.num_samples,
            trained=self.trained,
        )

    def restore(self, read: layout.Read) -> None:
        """Restore the state that the files of a version hold.

        Args:
            read: gives a file by its path in the version.

        Raises:
            ModelUnsupported: it was learned under another interaction, pooling or head, or by an
                encoder of another size; nothing was restored.
            TuningUnsupported: it was learned under another tuning; nothing was restored.
            Corrupt: a file is not what a learner writes there; names it.
        """
        progress = trainer_files.restore(self.components, read)
        self._figures = None
        self.step_number = progress.step
        self.num_samples = progress.num_samples
        self.trained = progress.trained


def _counted(trained: tuple[int, int], samples: Sequence[Sample]) -> tuple[int, int]:
    """Add samples to a number and digest.

    The result is the same for any batching of the same log.
    """
    number, sum64 = trained
    for s in samples:
        sum64 += int.from_bytes(blake2b(s.sample_id.encode(), digest_size=8).digest(), "little")
    return number + len(samples), sum64 % (1 << 64)
