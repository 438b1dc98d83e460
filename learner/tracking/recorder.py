"""Records of a learner's steps: which numbers, and of which steps."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from learner.tracking.background import Background
from learner.tracking.config import TrackingConfig
from learner.tracking.record import Record
from learner.trainer import Trainer
from learner.training_step import StepReport
from weighting.tasks import TASKS
from weighting.weighted import WeightedBatch

_MOST_VALUES = 10_000
"""Of a parameter in a histogram, evenly spaced: what leaves the device is small."""


class Recorder:
    """Makes records of the steps that are due, from what a trainer has anyway.

    It reads the trainer and changes nothing that is learned.
    """

    def __init__(
        self,
        config: TrackingConfig,
        trainer: Trainer,
        out: Background | None,
        *,
        clock: Callable[[], float],
    ) -> None:
        """Begin behind the trainer's last step.

        Args:
            config: the settings.
            trainer: restored, if it is.
            out: takes the records; None: nothing is tracked.
            clock: seconds since the Unix epoch.
        """
        self._config = config
        self._trainer = trainer
        self._out = out
        self._clock = clock
        self._loss, self._num_samples, self._num_refused = 0.0, 0, 0
        self._ask_for_explanations()

    def stepped(self, report: StepReport) -> None:
        """Take a step's report."""
        if self._out is None or not report.weighted.samples:
            return
        self._took(report.loss if report.result == "ok" else None, len(report.weighted.samples))
        if self._is_due(report.step):
            scalars = self._scalars() | _of_weights(report)
            for name, value in self._trainer.evaluation().items():
                scalars[f"evaluation/{name}"] = value
            for task, figures in report.figures.items():
                scalars[f"prior/{task}"] = figures.prior
            histograms, lists = {}, report.explained
            if self._are_details_due(report.step):
                histograms = _of_samples(report.weighted) | self._of_parameters()
            else:
                lists = ()
            self._put(report.step, scalars, histograms, lists)
        self._ask_for_explanations()

    def repeated(self, loss: float | None, num_samples: int) -> None:
        """Take the outcome of `Trainer.repeat`."""
        step = self._trainer.step_number
        if self._out is None:
            return
        self._took(loss, num_samples)
        if self._is_due(step):
            histograms = self._of_parameters() if self._are_details_due(step) else {}
            self._put(step, self._scalars(), histograms)

    def figures(self, scalars: Mapping[str, float]) -> None:
        """Take figures of the model as it stands after its last step."""
        if self._out is not None:
            self._put(self._trainer.step_number, scalars)

    def close(self, timeout_seconds: float = 10.0) -> None:
        """End the tracker, or leave it behind after a time."""
        if self._out is not None:
            self._out.close(timeout_seconds)

    def _put(
        self,
        step: int,
        scalars: Mapping[str, float],
        histograms: Mapping[str, NDArray[Any]] | None = None,
        lists: Any = (),
    ) -> None:
        assert self._out is not None
        record = Record(
            step=step,
            time_seconds=self._clock(),
            scalars={name: value for name, value in scalars.items() if math.isfinite(value)},
            histograms=histograms or {},
            lists=lists,
        )
        self._out.put(record)

    def _took(self, loss: float | None, num_samples: int) -> None:
        if loss is None:
            self._num_refused += 1
        else:
            self._loss += loss * num_samples
            self._num_samples += num_samples

    def _scalars(self) -> dict[str, float]:
        """Return the mean loss since the last time, and the learning rates."""
        loss = self._loss / self._num_samples if self._num_samples else math.nan
        found = {"loss": loss, "steps_not_finite": float(self._num_refused)}
        self._loss, self._num_samples, self._num_refused = 0.0, 0, 0
        found["samples"] = float(self._trainer.num_samples)
        rates = self._trainer.learning_rates
        return found | {f"learning_rate/{name}": rate for name, rate in rates.items()}

    def _is_due(self, step: int) -> bool:
        return step % self._config.every_steps == 0 or self._are_details_due(step)

    def _are_details_due(self, step: int) -> bool:
        return step % self._config.details_every_steps == 0

    def _ask_for_explanations(self) -> None:
        """Let the next step explain lists if its record is to have them."""
        due = self._out is not None and self._are_details_due(self._trainer.step_number + 1)
        self._trainer.num_explained = self._config.lists if due else 0

    def _of_parameters(self) -> dict[str, NDArray[Any]]:
        """Return values of each parameter that moves, copied from the device in one transfer."""
        names, pieces = [], []
        for name, parameter in self._trainer.ranker.named_parameters():
            if parameter.requires_grad:
                values = parameter.detach().flatten()
                names.append(f"parameters/{name}")
                pieces.append(values[:: -(-len(values) // _MOST_VALUES) or 1])
        if not names:
            return {}
        flat = torch.cat(pieces).cpu().numpy()
        ends = np.cumsum([len(piece) for piece in pieces])[:-1]
        own = dict(zip(names, np.split(flat, ends), strict=True))
        return {name: values for name, values in own.items() if np.isfinite(values).all()}


def _of_weights(report: StepReport) -> dict[str, float]:
    return {
        "gradient_norm": report.gradient_norm,
        "samples_left_out": float(report.num_left_out),
        "importance/effective_sample": report.weighted.ess_ratio,
        "importance/exponent": report.weighted.exponent,
    }


def _of_samples(weighted: WeightedBatch) -> dict[str, NDArray[Any]]:
    """Return the importance weights of a step's samples, by task."""
    tasks = np.array([s.task for s in weighted.samples], dtype=object)
    own = {f"importance/{task}": weighted.weight[tasks == task] for task in TASKS}
    return {name: values for name, values in own.items() if len(values)}
