"""The path of a batch: predict, weigh, clip, and only then learn. The folder's front door.

Hot path, at most 50 us a sample with the estimator's update (`benchmarks/weigh.py`).

Invariant: every probability inside a weight is read before its sample updates anything. All samples of a batch are predicted from the state
before the batch, so that no label of a list leaks into the prediction of its neighbours; then they are learned one after another, in the
order given.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

import msgspec
import numpy as np
from msgspec import Meta
from numpy.typing import NDArray
from scipy.special import expit

from weighting.clip import ClipConfig, clip
from weighting.constraints import Share, check
from weighting.delay_correction import delay_factor
from weighting.diagnostics import effective_sample_ratio, normalization_ratio
from weighting.errors import SnapshotError, WeightError
from weighting.estimators.calibration import Calibration, CalibrationConfig
from weighting.estimators.conditional import Conditional, ConditionalConfig, Prediction
from weighting.estimators.delayed_positives import ArrivalRatio
from weighting.estimators.prior import Prior, PriorConfig
from weighting.features import Document
from weighting.ratio import LEAST_EXPONENT, ratio
from weighting.sample import CopyKind, Sample
from weighting.tasks import CLICK, TASKS, TaskName

Array = NDArray[np.float64]
FORMAT = 1
_LEAST = 1e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskConfig:
    """Estimators of one task: p(y), and the share of positives after the first copy."""

    prior: PriorConfig = field(default_factory=PriorConfig)
    late: PriorConfig = field(default_factory=lambda: PriorConfig(initial=0.05, initial_mass=20.0))


@dataclass(frozen=True, slots=True, kw_only=True)
class WeigherConfig:
    """Scheme, bounds and estimators of the weights.

    Two thirds of a shop's purchases came later than 15 minutes after the click.
    """

    exponent: Annotated[
        float,
        Meta(
            gt=LEAST_EXPONENT,
            description="b of (p(y|x)/p(y))^b: 0 is off; at -1 all signal is destroyed.",
        ),
    ] = 1.0
    clip: ClipConfig = field(default_factory=ClipConfig)
    denoise: Annotated[
        Share, Meta(description="d: the label learned is (1 - d) y + d p(y=1|x).")
    ] = 0.0
    conditional: ConditionalConfig = field(default_factory=ConditionalConfig)
    calibration: CalibrationConfig = field(default_factory=CalibrationConfig)
    click: TaskConfig = field(default_factory=TaskConfig)
    purchase: TaskConfig = field(
        default_factory=lambda: TaskConfig(
            prior=PriorConfig(initial=0.05), late=PriorConfig(initial=0.65, initial_mass=20.0)
        )
    )

    def __post_init__(self) -> None:
        """Check every field."""
        check(self, "weighting")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class WeightedBatch:
    """N samples, in the order given, and how much each counts. All but `samples` was computed before any of them was learned.

    Attributes:
        samples: as given.
        weight: f32 (N,) final: stream law x clipped and normalised ratio, capped.
        a: f32 (N,) factor of -log f in the loss of a sample.
        b: f32 (N,) factor of -log(1 - f). For hard labels (a, b) = (w y, w (1 - y)).
        law: f64 (N,) stream-law factor alone, in [0, 1]: what estimators and stacker learn with.
        raw: f64 (N,) stream law x ratio, before clipping and normalisation.
        p_y_given_x: f64 (N,) of the label that was observed.
        p_y: f64 (N,) prior of the same label.
        p_positive: f64 (N,) calibrated p(y=1|x), where the sample was shown.
        seen: f64 (N,) chance that the place where it was shown is looked at, as the first place is; 1 for the purchase task.
        memory_logit: f64 (N,) what `memory_logits` would have said: calibrated logit as far as the pair was seen, as if shown first.
        memory_logit_at_position: f64 (N,) the same where it was shown; what the stacker learns from.
        num_clipped: samples on which the bounds low, high and cap acted.
        ess_ratio: effective sample size of `weight` / N.
        exponent: b.
        prior: per task in the batch, p(y=1).
        normalization_ratio: per task with first copies, the mean of p(label|x)/p(label) for labels 0 and 1; 1 when all is well.
    """

    samples: tuple[Sample, ...]
    weight: NDArray[np.float32]
    a: NDArray[np.float32]
    b: NDArray[np.float32]
    law: Array
    raw: Array
    p_y_given_x: Array
    p_y: Array
    p_positive: Array
    seen: Array
    memory_logit: Array
    memory_logit_at_position: Array
    num_clipped: dict[str, int]
    ess_ratio: float
    exponent: float
    prior: dict[TaskName, float]
    normalization_ratio: dict[TaskName, tuple[float, float]]


class _Estimators:
    """All that one task's weights are made from."""

    def __init__(self, task: TaskName, config: WeigherConfig) -> None:
        own = config.click if task == CLICK else config.purchase
        self.prior = Prior(own.prior)
        self.late = ArrivalRatio(own.late)
        self.calibration = Calibration(config.calibration)
        self.conditional = Conditional(
            config.conditional, initial=own.prior.initial, with_position=task == CLICK
        )

    def learn(self, group: _Group) -> None:
        """Learn a group, weighted by the stream law alone: the ratio belongs to the trained model, not to what it is made from."""
        self.prior.update(group.time_us, group.law * group.label, group.law * (1 - group.label))
        self.late.update(group.time_us, group.label, group.late)
        self.calibration.learn(group.time_us, group.prediction.logit, group.label, group.law)
        self.conditional.learn(group.prediction, group.label, group.law)

    def snapshot(self) -> dict[str, Any]:
        return {
            name: getattr(self, name).snapshot()
            for name in ("prior", "late", "calibration", "conditional")
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        for name in ("prior", "late", "calibration", "conditional"):
            getattr(self, name).restore(state[name])


@dataclass(frozen=True, slots=True, kw_only=True)
class _Group:
    """One task's samples of a batch, weighed: places in the batch, and columns (n,)."""

    places: NDArray[np.intp]
    prediction: Prediction
    time_us: NDArray[np.int64]
    label: Array
    late: NDArray[np.bool_]
    law: Array
    raw: Array
    weight: Array
    p_y_given_x: Array
    p_y: Array
    p_positive: Array
    seen: Array
    memory_logit: Array
    memory_logit_at_position: Array
    num_clipped: dict[str, int]
    prior: float
    normalization_ratio: tuple[float, float] | None


class Weigher:
    """Weighs batches of samples with a set of online estimators per task, and keeps them learning.

    >>> weigher = Weigher(WeigherConfig(exponent=0.0))
    >>> weigher.prior(CLICK)
    0.1
    >>> weigher.weigh([]).ess_ratio
    1.0
    """

    def __init__(self, config: WeigherConfig | None = None) -> None:
        """Start untrained."""
        self.config = config or WeigherConfig()
        self._estimators = {task: _Estimators(task, self.config) for task in TASKS}

    def weigh(self, samples: Sequence[Sample]) -> WeightedBatch:
        """Predict, weigh, clip, and only then learn, N samples in event order.

        Raises:
            WeightError: a label or a factor was refused; names the sample's position, the factor and its value. Nothing was learned.
        """
        groups = {}
        for task in TASKS:  # 1. predict and weigh every task ...
            places = [i for i, s in enumerate(samples) if s.task == task]
            if places:
                try:
                    groups[task] = self._group(task, np.array(places), [samples[i] for i in places])
                except WeightError as error:
                    if not isinstance(error.where, int):
                        raise
                    where = samples[places[error.where]].positions
                    raise WeightError(
                        error.factor,
                        error.value,
                        error.expected,
                        where[-1] if where else places[error.where],
                    ) from error
        batch = self._batch(tuple(samples), groups)
        for task, group in groups.items():  # 2. ... and only then learn.
            self._estimators[task].learn(group)
        return batch

    def memory_logits(self, task: TaskName, query: str, documents: Sequence[Document]) -> Array:
        """What is remembered of N documents under a query: calibrated logits (N,) of p(y=1|x), each as if shown first.

        The estimator speaks as far as it has seen the pair (`Conditional.predict_first`): 0 beyond the base rate for what was never shown.
        Pure; possible before any learning.
        """
        estimators = self._estimators[task]
        return estimators.calibration.predict(
            estimators.conditional.predict_first(query, documents)
        )

    def prior(self, task: TaskName) -> float:
        """p(y=1), now."""
        return self._estimators[task].prior.get()

    def interval(self, task: TaskName) -> tuple[float, float]:
        """95 % interval of p(y=1)."""
        return self._estimators[task].prior.interval()

    def maximum_likelihood(self, task: TaskName) -> float:
        """Undecayed share of positives over everything seen."""
        return self._estimators[task].prior.maximum_likelihood()

    def late_ratio(self, task: TaskName) -> float:
        """S: the share of positives that arrive after their first copy."""
        return self._estimators[task].late.get()

    def calibration(self, task: TaskName) -> tuple[float, float]:
        """A and B of logit p = A logit p_estimated + B."""
        return self._estimators[task].calibration.get()

    def snapshot(self) -> bytes:
        """State after the last batch learned, as msgpack; equal state gives equal bytes."""
        state = {
            "format": FORMAT,
            "tasks": {task: own.snapshot() for task, own in self._estimators.items()},
        }
        return msgspec.msgpack.encode(state, order="sorted")

    def restore(self, data: bytes) -> None:
        """Resume after the batch that the snapshot was taken behind. On an error the state is as it was.

        Raises:
            SnapshotError: it is of another format or configuration, or damaged.
        """
        estimators = {task: _Estimators(task, self.config) for task in TASKS}
        try:
            state = msgspec.msgpack.decode(data)
            if state["format"] != FORMAT:
                raise SnapshotError("format", state["format"], FORMAT)
            for task, own in estimators.items():
                own.restore(state["tasks"][task])
        except (msgspec.DecodeError, KeyError, TypeError) as error:
            raise SnapshotError("weigher", repr(error), "a weigher's snapshot") from error
        self._estimators = estimators

    def _group(self, task: TaskName, places: NDArray[np.intp], samples: Sequence[Sample]) -> _Group:
        """Weigh one task's samples from the state as it is; learns nothing."""
        estimators = self._estimators[task]
        late = np.array([s.copy_kind is CopyKind.LATE_POSITIVE for s in samples])
        label = np.array([s.label for s in samples], dtype=np.float64)
        for index, s in enumerate(samples):
            if s.label != 1 and (s.label != 0 or late[index]):
                raise WeightError("label", s.label, "1" if late[index] else "0 or 1", index)

        prediction = estimators.conditional.predict(samples)
        p = np.clip(expit(estimators.calibration.predict(prediction.logit)), _LEAST, 1 - _LEAST)
        pi = estimators.prior.get()
        p_y_given_x, p_y = np.where(label > 0, p, 1 - p), np.where(label > 0, pi, 1 - pi)
        final = np.array([s.window_us >= s.attribution_us for s in samples])

        law = delay_factor(label, p, np.where(final, 0.0, estimators.late.get()))
        tilt = ratio(p_y_given_x, p_y, exponent=self.config.exponent)
        clipped = clip(law, tilt, self.config.clip)
        return _Group(
            places=places,
            prediction=prediction,
            time_us=np.array([s.shown_us + s.elapsed_us for s in samples], dtype=np.int64),
            label=label,
            late=late,
            law=law,
            raw=law * tilt,
            weight=clipped.weight,
            p_y_given_x=p_y_given_x,
            p_y=p_y,
            p_positive=p,
            seen=prediction.seen,
            memory_logit=estimators.calibration.predict(prediction.memory_first_logit),
            memory_logit_at_position=estimators.calibration.predict(prediction.memory_logit),
            num_clipped={
                "low": clipped.num_low,
                "high": clipped.num_high,
                "cap": clipped.num_capped,
            },
            prior=pi,
            normalization_ratio=normalization_ratio(p[~late], pi) if not late.all() else None,
        )

    def _batch(
        self, samples: tuple[Sample, ...], groups: Mapping[TaskName, _Group]
    ) -> WeightedBatch:
        """Put the tasks' columns back into the order of the samples, and make the loss pair."""
        column = {name: _scatter(len(samples), groups, name) for name in _COLUMNS}
        weight, label = column["weight"], column.pop("label")
        target = (1 - self.config.denoise) * label + self.config.denoise * column["p_positive"]
        return WeightedBatch(
            samples=samples,
            a=(weight * target).astype(np.float32),
            b=(weight * (1 - target)).astype(np.float32),
            weight=column.pop("weight").astype(np.float32),
            num_clipped={
                bound: sum(g.num_clipped[bound] for g in groups.values())
                for bound in ("low", "high", "cap")
            },
            ess_ratio=effective_sample_ratio(weight),
            exponent=self.config.exponent,
            prior={task: group.prior for task, group in groups.items()},
            normalization_ratio={
                t: g.normalization_ratio
                for t, g in groups.items()
                if g.normalization_ratio is not None
            },
            **column,
        )


_COLUMNS = (
    "label",
    "law",
    "raw",
    "weight",
    "p_y_given_x",
    "p_y",
    "p_positive",
    "seen",
    "memory_logit",
    "memory_logit_at_position",
)


def _scatter(n: int, groups: Mapping[TaskName, _Group], name: str) -> Array:
    column = np.zeros(n)
    for group in groups.values():
        column[group.places] = getattr(group, name)
    return column
