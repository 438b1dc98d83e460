"""The path of a batch: predict and learn list by list, then weigh. The folder's front door.

Hot path, 60 us (idle) to 110 us (busy) a sample with learning (`benchmarks/weigh.py`).

Invariant: every probability inside a weight is read before its sample updates anything. All samples
of a shown list are predicted from the state before the list, so that no label leaks into the
prediction of its neighbours; then they are learned, and the next list is predicted. So weights and
state are the same, to the bit, however the stream is divided into batches of whole lists. Under
`update_per: batch` all lists of a batch are predicted from the state before it, and learned at
once: the invariant stays, what a list could know of those just before it is lost.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from weighting.caps import Caps, num_discounted
from weighting.clip import BOUNDS, num_clipped
from weighting.competition import Change, Competition
from weighting.config import AUTO, WeigherConfig
from weighting.diagnostics import effective_sample_ratio
from weighting.errors import WeightError
from weighting.estimators.drift import Drift, DriftWatch
from weighting.estimators.joint_task import JointTaskEstimators
from weighting.estimators.normaliser import Normaliser
from weighting.estimators.task import TaskEstimators
from weighting.features import Document
from weighting.group import Group
from weighting.joint_caps import JointCaps
from weighting.sample import LATE_COPY, Sample
from weighting.schemes.registry import by_attributes
from weighting.schemes.scheme import Scheme
from weighting.snapshot import opened
from weighting.tasks import TASKS, TaskName, root
from weighting.weighted import WeightedBatch, scatter

Array = NDArray[np.float64]
FORMAT = 10
_ROOT = root()


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskFigures:
    """What is reported of one task's estimators, as of a moment.

    Attributes:
        prior: p(y=1).
        interval: its 95 % interval.
        num_drifts: changes that the drift detectors found, by series.
    """

    prior: float
    interval: tuple[float, float]
    num_drifts: Mapping[str, int]


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
        self.competition = self._new_competition()
        self._schemes: tuple[Scheme, ...] = (self.config.first_scheme(),)
        if self.competition:
            self._schemes = tuple(self.competition.candidates.values())
        self._estimators, self._normalisers, self._caps = self._untrained()
        self._drift = self._unwatched()

    @property
    def scheme(self) -> Scheme:
        """The scheme in force."""
        return self._schemes[self._in_force]

    @property
    def exponent(self) -> float:
        """Effective exponent: a trained logit is 1 + exponent times as steep as its inverse."""
        return self.competition.exponent() if self.competition else self.scheme.exponent

    def invert(self, logit: Array, prior: float) -> Array:
        """Logits (N,) of p(y=1|x) from logits (N,) of the model trained under the weights. Pure."""
        invert = self.competition.invert if self.competition else self.scheme.invert
        return invert(logit, prior)

    def compete(self, batch: WeightedBatch, products: Array) -> tuple[Change, ...]:
        """Let the candidates be judged on a batch that was weighed, and then learn it.

        Args:
            batch: N samples, as `weigh` returned them last.
            products: (N, D) see `Competition.learn`.

        Returns:
            Changes of the scheme in force; it is the next batch's.
        """
        return self.competition.learn(batch, products) if self.competition else ()

    def weigh(self, samples: Sequence[Sample]) -> WeightedBatch:
        """Predict, learn and weigh N samples in event order.

        A list that is divided between calls counts as two lists.

        Raises:
            WeightError: a task or a label was refused; names the sample's position and the value.
                Nothing was learned.
        """
        by_task, groups, factors = _places_by_task(samples), {}, []
        labels = _labels(samples)  # all that can be refused, before anything learns
        behind = _behind(samples)
        # Of the state as it is, if the batch has no shown list that changes it on the way
        examined = [self._estimators[_ROOT].examination(k) for _, k in behind.values()]
        for task, places in by_task.items():
            own = [samples[i] for i in places]
            factors.append(self._caps[task].learn(own))
            discount = factors[-1].prod(axis=1)
            asked = list(behind.values()) if task == _ROOT else []
            found, correction, answers = self._estimators[task].learn(
                own, labels[places], discount, asked
            )
            examined = answers or examined
            groups[task] = Group.of(
                np.array(places),
                own,
                labels[places],
                discount,
                found,
                correction,
                schemes=self._schemes,
                in_force=self._in_force,
                clip=self.config.clip,
            )
        scales = {
            task: np.stack(
                [
                    normaliser.update(group.correction, unscaled)
                    for normaliser, unscaled in zip(
                        self._normalisers[task], group.unscaled, strict=True
                    )
                ]
            )
            for task, group in groups.items()
        }
        drifts = {task: self._watch(task, samples, group) for task, group in groups.items()}
        shown = self._shown(samples, dict(zip(behind, examined, strict=True)), groups.get(_ROOT))
        return self._assemble(
            tuple(samples), groups, scales, num_discounted(factors), drifts, shown
        )

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

    def num_drifts(self, task: TaskName) -> dict[str, int]:
        """Number of changes that the drift detectors found, by series."""
        return self._drift[task].num_changes()

    def figures(self) -> dict[TaskName, TaskFigures]:
        """What is reported of each task; stays as it is while more is learned."""
        return {
            task: TaskFigures(
                prior=self.prior(task),
                interval=self.interval(task),
                num_drifts=self.num_drifts(task),
            )
            for task in TASKS
        }

    def description(self) -> dict[str, str | float]:
        """Scheme and parameters of the weights, for a version's manifest."""
        found = {**self.scheme.description(), "denoise": self.config.denoise}
        if self.competition:
            found["effective_exponent"] = self.exponent
            found["num_changes"] = self.competition.num_changes
            for name, probability in self.competition.probabilities().items():
                found[f"probability of {name}"] = probability
        return found

    def snapshot(self) -> bytes:
        """State after the last batch learned, as msgpack; equal state gives equal bytes."""
        state = {
            "format": FORMAT,
            "tasks": {task: own.snapshot() for task, own in self._estimators.items()},
            "normalisers": {
                task: [one.snapshot() for one in own] for task, own in self._normalisers.items()
            },
            "caps": {task: own.snapshot() for task, own in self._caps.items()},
            "drift": {task: own.snapshot() for task, own in self._drift.items()},
            "competition": self.competition.snapshot() if self.competition else None,
        }
        return msgspec.msgpack.encode(state, order="sorted")

    def restore(self, data: bytes) -> None:
        """Restore the state returned by `snapshot`; an error leaves the state as it was.

        Raises:
            SnapshotError: it has another format or other settings, or is damaged.
        """
        estimators, normalisers, caps = self._untrained()
        competition, drift = self._new_competition(), self._unwatched()
        with opened(data, "weigher", format=FORMAT) as state:
            for task, own in estimators.items():
                own.restore(state["tasks"][task])
                caps[task].restore(state["caps"][task])
                drift[task].restore(state["drift"][task])
                kept = state["normalisers"][task]
                if len(kept) == len(normalisers[task]):  # else other schemes, which begin afresh
                    for normaliser, each in zip(normalisers[task], kept, strict=True):
                        normaliser.restore(each)
            if competition and state["competition"]:
                competition.restore(state["competition"])
        self._estimators, self._normalisers, self._caps = estimators, normalisers, caps
        self.competition, self._drift = competition, drift

    @property
    def _at_once(self) -> bool:
        return self.config.update_per == "batch"

    @property
    def _in_force(self) -> int:
        return self.competition.in_force if self.competition else 0

    def _new_competition(self) -> Competition | None:
        if self.config.exponent != AUTO:
            return None
        levels = {task: math.log(p / (1 - p)) for task, p in self.config.initial().items()}
        return Competition(self.config.competition, levels)

    def _untrained(
        self,
    ) -> tuple[
        dict[TaskName, TaskEstimators],
        dict[TaskName, tuple[Normaliser, ...]],
        dict[TaskName, Caps],
    ]:
        """Return estimators, normalisers of each scheme, and caps, all by task."""
        c = self.config
        kind = JointTaskEstimators if self._at_once else TaskEstimators
        of_caps = JointCaps if self._at_once else Caps
        estimators = {
            name: kind(
                task,
                c.of(name),
                c.conditional,
                c.calibration,
                with_choice=by_attributes(self._schemes),
            )
            for name, task in TASKS.items()
        }
        clip = c.clip
        normalisers = {
            task: tuple(Normaliser(clip.normalise, clip.half_life_samples) for _ in self._schemes)
            for task in TASKS
        }
        return (
            estimators,
            normalisers,
            {name: of_caps(task, c.caps) for name, task in TASKS.items()},
        )

    def _unwatched(self) -> dict[TaskName, DriftWatch]:
        return {task: DriftWatch(self.config.drift, at_once=self._at_once) for task in TASKS}

    def _watch(self, task: TaskName, samples: Sequence[Sample], group: Group) -> list[Drift]:
        """Show one task's samples to its drift detectors; nothing that is learned reads them."""
        return self._drift[task].update(
            [samples[i].emitted_us for i in group.places.tolist()],
            group.label,
            group.estimates.p_positive,
            group.raw,
            group.correction,
        )

    def _shown(
        self, samples: Sequence[Sample], behind: Mapping[int, float], group: Group | None
    ) -> tuple[Array, Array]:
        """Return `shown_examination` and `shown_discount` of a batch; see `WeightedBatch`.

        Args:
            samples: N of them.
            behind: place of a sample behind a shown item -> examination probability.
            group: the shown items.
        """
        examination, discount = np.ones(len(samples)), np.zeros(len(samples))
        for place, theta in behind.items():
            examination[place] = theta
            discount[place] = math.prod(self._caps[_ROOT].of_list(samples[place].list_size))
        if group is not None:
            examination[group.places], discount[group.places] = group.estimates.examination, 1.0
        return examination, discount

    def _assemble(
        self,
        samples: tuple[Sample, ...],
        groups: Mapping[TaskName, Group],
        scales: Mapping[TaskName, Array],
        discounted: dict[str, int],
        drifts: dict[TaskName, list[Drift]],
        shown: tuple[Array, Array],
    ) -> WeightedBatch:
        """Scale and cap the weights, and put the tasks' columns back into the samples' order."""
        bounds, clipped, parts = self.config.clip, Counter[str](), []
        own, weights = self._in_force, np.zeros((len(self._schemes), len(samples)))
        for task, group in groups.items():
            scaled = scales[task] * group.unscaled
            clipped.update(num_clipped(group.factor, scaled[own], bounds))
            weights[:, group.places] = np.minimum(scaled, bounds.cap)
            columns = group.columns(weights[own, group.places], self.config.denoise)
            parts.append((group.places, columns))
        agreement = {task: group.normalization_ratio() for task, group in groups.items()}
        return WeightedBatch(
            samples=samples,
            shown_examination=shown[0],
            shown_discount=shown[1],
            num_clipped={bound: clipped[bound] for bound in BOUNDS},
            num_discounted=discounted,
            drifts={task: tuple(found) for task, found in drifts.items() if found},
            ess_ratio=effective_sample_ratio(weights[own]),
            exponent=self.scheme.exponent,
            prior={task: float(g.estimates.prior[0]) for task, g in groups.items()},
            normalization_ratio={t: found for t, found in agreement.items() if found is not None},
            candidate_weight=weights if self.competition else weights[:0],
            **scatter(len(samples), parts),
        )


def _places_by_task(samples: Sequence[Sample]) -> dict[TaskName, list[int]]:
    """Indices of each task's samples, in the order in which the tasks are declared."""
    places: dict[TaskName, list[int]] = {task: [] for task in TASKS}
    for index, s in enumerate(samples):
        if s.task not in places:
            raise _refusal("task", s.task, f"one of {', '.join(TASKS)}", s, index)
        places[s.task].append(index)
    return {task: own for task, own in places.items() if own}


def _behind(samples: Sequence[Sample]) -> dict[int, tuple[int, int | None]]:
    """Purchase samples of known lists: place -> (click samples before it, position)."""
    found, num_shown = {}, 0
    for place, s in enumerate(samples):
        if s.task == _ROOT:
            num_shown += 1
        elif s.list_size:
            found[place] = num_shown, s.position
    return found


def _labels(samples: Sequence[Sample]) -> Array:
    """Labels (N,); a delayed copy that is not positive is refused."""
    for index, s in enumerate(samples):
        delayed = s.copy_kind is LATE_COPY
        if s.label != 1 and (s.label != 0 or delayed):
            raise _refusal("label", s.label, "1" if delayed else "0 or 1", s, index)
    return np.array([s.label for s in samples], dtype=np.float64)


def _refusal(factor: str, value: Any, expected: str, s: Sample, index: int) -> WeightError:
    """Refuse a sample by the position of its newest record."""
    return WeightError(factor, value, expected, s.positions[-1] if s.positions else index)
