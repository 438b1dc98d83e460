"""The path of a batch: predict and learn list by list, then weigh. The folder's front door.

Hot path, 60 us (idle) to 110 us (busy) a sample with learning (`benchmarks/weigh.py`).

Invariant: every probability inside a weight is read before its sample updates anything. All samples
of a shown list are predicted from the state before the list, so that no label leaks into the
prediction of its neighbours; then they are learned, and the next list is predicted. So weights and
state are the same, to the bit, however the stream is divided into batches of whole lists.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

import msgspec
import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from weighting.caps import Caps, CapsConfig, num_discounted
from weighting.clip import BOUNDS, ClipConfig, bounded, num_clipped
from weighting.constraints import Share, check
from weighting.context import Context, Places
from weighting.diagnostics import effective_sample_ratio, normalization_ratio
from weighting.errors import SnapshotError, WeightError
from weighting.estimators.calibration import CalibrationConfig
from weighting.estimators.conditional import ConditionalConfig
from weighting.estimators.normaliser import Normaliser
from weighting.estimators.prior import PriorConfig
from weighting.estimators.task import Estimates, TaskConfig, TaskEstimators, shown_lists
from weighting.features import Document
from weighting.position_correction import factor_at_position
from weighting.sample import CopyKind, Sample
from weighting.schemes.ratio import LEAST_EXPONENT
from weighting.schemes.registry import DEFAULT, SchemeName, make_scheme
from weighting.tasks import TASKS, Task, TaskName
from weighting.weighted import Columns, WeightedBatch, scatter, scatter_one

Array = NDArray[np.float64]
FORMAT = 7
_ON_DISK = {
    "delayed_positives": "late",
    "initial_pseudo_count": "initial_mass",
    "pseudo_count": "mass",
}
"""Field of a config -> its name in a version's files, which outlive a renaming."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WeigherConfig:
    """Scheme, bounds and estimators of the weights.

    Two thirds of a shop's purchases came later than 15 minutes after the click.
    """

    scheme: Annotated[
        SchemeName,
        Meta(
            description="ratio: (p(y|x)/p(y))^exponent. uniform: all count 1. softmax_share: "
            "a click's share of p(y|x)^exponent in its list. Baselines: class_balanced, focal, "
            "self_paced."
        ),
    ] = DEFAULT
    exponent: Annotated[
        float,
        Meta(
            gt=LEAST_EXPONENT,
            description="b of (p(y|x)/p(y))^b: 0 is off; at -1 all signal is destroyed.",
        ),
    ] = 1.0
    clip: ClipConfig = field(default_factory=ClipConfig)
    caps: CapsConfig = field(default_factory=CapsConfig)
    denoise: Annotated[
        Share, Meta(description="d: the label learned is (1 - d) y + d p(y=1|x).")
    ] = 0.0
    conditional: ConditionalConfig = field(default_factory=ConditionalConfig)
    calibration: CalibrationConfig = field(default_factory=CalibrationConfig)
    click: TaskConfig = field(default_factory=TaskConfig)
    purchase: TaskConfig = field(
        default_factory=lambda: TaskConfig(
            prior=PriorConfig(initial=0.05),
            delayed_positives=PriorConfig(initial=0.65, initial_pseudo_count=20.0),
        )
    )

    def __post_init__(self) -> None:
        """Check every field."""
        check(self, "weighting")

    def of(self, task: TaskName) -> TaskConfig:
        """Return the settings of one task: the field of its name."""
        found: TaskConfig = getattr(self, task)
        return found

    def initial(self) -> dict[TaskName, float]:
        """Return p(y=1) of each task before any sample."""
        return {task: self.of(task).prior.initial for task in TASKS}

    def on_disk(self) -> dict[str, Any]:
        """Return the settings under the names that a version's files use for them."""
        plain: dict[str, Any] = _renamed(msgspec.to_builtins(self), _ON_DISK)
        if self.scheme == DEFAULT:  # versions older than the setting have none
            del plain["scheme"]
        return plain

    @classmethod
    def from_disk(cls, plain: Mapping[str, Any]) -> WeigherConfig:
        """Return the settings that `on_disk` wrote."""
        names = {written: name for name, written in _ON_DISK.items()}
        return msgspec.convert(_renamed(plain, names), cls)


class Weigher:
    """Weighs batches of samples, and trains the online estimators of each task.

    >>> weigher = Weigher(WeigherConfig(exponent=0.0))
    >>> weigher.prior("click")
    0.1
    >>> weigher.weigh([]).ess_ratio
    1.0
    """

    def __init__(self, config: WeigherConfig | None = None) -> None:
        """Start untrained."""
        self.config = config or WeigherConfig()
        self.scheme = make_scheme(self.config)
        self._estimators, self._normalisers, self._caps = self._untrained()

    def weigh(self, samples: Sequence[Sample]) -> WeightedBatch:
        """Predict, learn and weigh N samples in event order.

        A list that is divided between calls counts as two lists.

        Raises:
            WeightError: a task or a label was refused; names the sample's position and the value.
                Nothing was learned.
        """
        by_task, groups, factors = _places_by_task(samples), {}, []
        labels = _labels(samples)  # all that can be refused, before anything learns
        for task, places in by_task.items():
            own = [samples[i] for i in places]
            factors.append(self._caps[task].learn(own))
            discount = factors[-1].prod(axis=1)
            learned = self._estimators[task].learn(own, labels[places], discount)
            groups[task] = self._group(np.array(places), own, labels[places], discount, *learned)
        scales = {
            task: self._normalisers[task].update(group.correction, group.unscaled)
            for task, group in groups.items()
        }
        return self._assemble(tuple(samples), groups, scales, num_discounted(factors))

    def pair_memory_logits(
        self, task: TaskName, query: str, documents: Sequence[Document]
    ) -> Array:
        """Calibrated pair-memory logits (N,) of documents under a query.

        Each is as if shown first, and speaks as far as the (query, document) pair has samples
        (`Conditional.predict_first`): the base rate for what was never shown. Pure; possible
        before any learning.
        """
        return self._estimators[task].pair_memory_logits(query, documents)

    def pair_memory_base(self, task: TaskName) -> float:
        """Calibrated pair-memory logit of a pair of which nothing is known."""
        return self._estimators[task].pair_memory_base()

    def prior(self, task: TaskName) -> float:
        """p(y=1), now."""
        return self._estimators[task].prior.get()

    def interval(self, task: TaskName) -> tuple[float, float]:
        """95 % interval of p(y=1)."""
        return self._estimators[task].prior.interval()

    def maximum_likelihood(self, task: TaskName) -> float:
        """Undecayed share of positives over the whole stream."""
        return self._estimators[task].prior.maximum_likelihood()

    def delayed_positive_rate(self, task: TaskName) -> float:
        """S: the share of positives that arrive after their first copy."""
        return self._estimators[task].delayed_positive_rate.get()

    def calibration(self, task: TaskName) -> tuple[float, float]:
        """A and B of logit p = A logit p_estimated + B."""
        return self._estimators[task].calibration.get()

    def description(self) -> dict[str, str | float]:
        """Scheme and parameters of the weights, for a version's manifest."""
        return {**self.scheme.description(), "denoise": self.config.denoise}

    def snapshot(self) -> bytes:
        """State after the last batch learned, as msgpack; equal state gives equal bytes."""
        state = {
            "format": FORMAT,
            "tasks": {task: own.snapshot() for task, own in self._estimators.items()},
            "normalisers": {task: own.snapshot() for task, own in self._normalisers.items()},
            "caps": {task: own.snapshot() for task, own in self._caps.items()},
        }
        return msgspec.msgpack.encode(state, order="sorted")

    def restore(self, data: bytes) -> None:
        """Restore the state returned by `snapshot`; an error leaves the state as it was.

        Raises:
            SnapshotError: it has another format or other settings, or is damaged.
        """
        estimators, normalisers, caps = self._untrained()
        try:
            state = msgspec.msgpack.decode(data)
            if state["format"] != FORMAT:
                raise SnapshotError("format", state["format"], FORMAT)
            for task, own in estimators.items():
                own.restore(state["tasks"][task])
                normalisers[task].restore(state["normalisers"][task])
                caps[task].restore(state["caps"][task])
        except (msgspec.DecodeError, KeyError, TypeError) as error:
            raise SnapshotError("weigher", repr(error), "a weigher's snapshot") from error
        self._estimators, self._normalisers, self._caps = estimators, normalisers, caps

    def _untrained(
        self,
    ) -> tuple[dict[TaskName, TaskEstimators], dict[TaskName, Normaliser], dict[TaskName, Caps]]:
        c = self.config
        estimators = {
            name: TaskEstimators(task, c.of(name), c.conditional, c.calibration)
            for name, task in TASKS.items()
        }
        clip = c.clip
        normalisers = {n: Normaliser(clip.normalise, clip.half_life_samples) for n in TASKS}
        return estimators, normalisers, {name: Caps(task, c.caps) for name, task in TASKS.items()}

    def _group(
        self,
        places: Places,
        samples: Sequence[Sample],
        label: Array,
        discount: Array,
        found: Estimates,
        correction: Array,
    ) -> _Group:
        """Weigh one task's n samples by what was estimated of them."""
        relevance, prior, theta = found.relevance, found.prior, found.examination
        lists = _list_numbers(samples, TASKS[samples[0].task])
        pair = [  # of each label, as if shown first
            self.scheme.weigh(Context.observed(np.full_like(label, y), relevance, prior, lists))
            for y in (1.0, 0.0)
        ]
        # Bounded first: the bounds then change the target alone, and alike at every position
        within = [bounded(factor, self.config.clip) for factor in pair]
        return _Group(
            places=places,
            delayed=np.array([s.copy_kind is CopyKind.LATE_POSITIVE for s in samples]),
            label=label,
            estimates=found,
            context=Context.observed(label, relevance, prior),
            discount=discount,
            correction=correction,
            factor=np.where(label > 0, *pair),
            raw=correction * factor_at_position(label, relevance, theta, *pair),
            unscaled=correction * factor_at_position(label, relevance, theta, *within),
        )

    def _assemble(
        self,
        samples: tuple[Sample, ...],
        groups: Mapping[TaskName, _Group],
        scales: Mapping[TaskName, Array],
        discounted: dict[str, int],
    ) -> WeightedBatch:
        """Scale and cap the weights, and put the tasks' columns back into the samples' order."""
        bounds, clipped, parts = self.config.clip, Counter[str](), []
        for task, group in groups.items():
            scaled = scales[task] * group.unscaled
            clipped.update(num_clipped(group.factor, scaled, bounds))
            weight = np.minimum(scaled, bounds.cap)
            parts.append((group.places, weight, group.columns(weight, self.config.denoise)))
        weight = scatter_one(len(samples), [(places, weight) for places, weight, _ in parts])
        agreement = {task: group.normalization_ratio() for task, group in groups.items()}
        return WeightedBatch(
            samples=samples,
            num_clipped={bound: clipped[bound] for bound in BOUNDS},
            num_discounted=discounted,
            ess_ratio=effective_sample_ratio(weight),
            exponent=self.scheme.exponent,
            prior={task: float(g.estimates.prior[0]) for task, g in groups.items()},
            normalization_ratio={t: found for t, found in agreement.items() if found is not None},
            **scatter(len(samples), [(places, columns) for places, _, columns in parts]),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Group:
    """One task's n samples of a batch, weighed but for the scale.

    Attributes:
        places: (n,) their indices in the batch.
        factor: (n,) factors of the scheme as if shown first, unbounded.
        unscaled: (n,) correction x bounded factor, before normalisation.

    The others are as in `Columns`.
    """

    places: Places
    delayed: NDArray[np.bool_]
    label: Array
    estimates: Estimates
    context: Context
    discount: Array
    correction: Array
    factor: Array
    raw: Array
    unscaled: Array

    def columns(self, weight: Array, denoise: float) -> Columns:
        """Columns of the samples under their final weights (n,)."""
        found = self.estimates
        target = (1 - denoise) * self.label + denoise * found.p_positive
        return Columns(
            weight=weight.astype(np.float32),
            a=(weight * target).astype(np.float32),
            b=(weight * (1 - target)).astype(np.float32),
            label=self.label,
            discount=self.discount,
            correction=self.correction,
            raw=self.raw,
            p_y_given_x=self.context.p_y_given_x,
            p_y=self.context.p_y,
            p_positive=found.p_positive,
            examination=found.examination,
            pair_memory_logit=found.pair_memory_logit,
            pair_memory_base=found.pair_memory_base,
        )

    def normalization_ratio(self) -> tuple[float, float] | None:
        """Agreement of estimator and prior over first copies; None without any."""
        first = ~self.delayed
        p, prior = self.estimates.p_positive[first], self.estimates.prior[first]
        return normalization_ratio(p, prior) if len(p) else None


def _places_by_task(samples: Sequence[Sample]) -> dict[TaskName, list[int]]:
    """Indices of each task's samples, in the order in which the tasks are declared."""
    places: dict[TaskName, list[int]] = {task: [] for task in TASKS}
    for index, s in enumerate(samples):
        if s.task not in places:
            raise _refusal("task", s.task, f"one of {', '.join(TASKS)}", s, index)
        places[s.task].append(index)
    return {task: own for task, own in places.items() if own}


def _labels(samples: Sequence[Sample]) -> Array:
    """Labels (N,); a delayed copy that is not positive is refused."""
    for index, s in enumerate(samples):
        delayed = s.copy_kind is CopyKind.LATE_POSITIVE
        if s.label != 1 and (s.label != 0 or delayed):
            raise _refusal("label", s.label, "1" if delayed else "0 or 1", s, index)
    return np.array([s.label for s in samples], dtype=np.float64)


def _list_numbers(samples: Sequence[Sample], task: Task) -> Places:
    """Number of the shown list (N,) of each sample of a task."""
    numbers = np.empty(len(samples), dtype=np.intp)
    for number, own in enumerate(shown_lists(samples, task.parent is None)):
        numbers[own] = number
    return numbers


def _refusal(factor: str, value: Any, expected: str, s: Sample, index: int) -> WeightError:
    """Refuse a sample by the position of its newest record."""
    return WeightError(factor, value, expected, s.positions[-1] if s.positions else index)


def _renamed(plain: Any, names: Mapping[str, str]) -> Any:
    """A tree of mappings with some of its keys renamed."""
    if not isinstance(plain, Mapping):
        return plain
    return {names.get(key, key): _renamed(value, names) for key, value in plain.items()}
