"""The served score: parts stacked per task, multiplied along the tasks.

Legend: N documents or samples, K columns of all parts.

For each task, logit p = Stacker(columns), as if the item were shown first. Of a click the columns
are what the parts say. Of what follows a click, whose samples are few and alike, they are the logit
of the click itself, by the parts that know neither this pair nor its client; the encoder's own
logit of the task; and the pair memory. `invert` undoes the importance weights that the encoder was
trained under. Ranking sorts by the probability of the last task: the product of the conditional
probabilities from the task without a parent down to it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from learner.parts.attributes import Attributes
from learner.parts.part import LearningPart, Outcomes, Pairs, Part
from learner.parts.stateless import CLIENT_COLUMNS, OWN_ENCODER, PAIR_MEMORY, RESIDUAL
from learner.request import ENCODER
from weighting.checks import check_examination, check_finite, check_labels, check_weights
from weighting.errors import SnapshotError
from weighting.estimators.attribute_choice import Coefficients
from weighting.estimators.stacker import Stacker, StackerConfig
from weighting.tasks import TASKS, Task, TaskName, chain, root

Array = NDArray[np.float64]
_LARGEST_RESIDUAL = 2.0
"""Bound in logits: where clicks separate items wholly, a residual's length may double in a step."""

_OF_A_PAIR = dict.fromkeys((RESIDUAL, PAIR_MEMORY))
"""Columns that know a pair by itself: what they explain may be the item's doing."""

_OF_THE_CLICK = (*_OF_A_PAIR, *CLIENT_COLUMNS)
"""Columns that the click itself has moved by the time that a purchase is told by it."""

_LARGEST_LOGIT = 30.0
_LEAST_BORNE = 1.0
"""Surprise that is always learned at once, in samples: a click where none was expected."""

_MOST_SHARES = 64
"""Of a step. Where more is clicked than was examined no share teaches the level to bear more."""

_CONDITIONAL_DEVIATION = 0.1
"""Of a coefficient around its start, for a task with a parent."""

Invert: TypeAlias = Callable[[Array, float], Array]
"""Logits (N,) of a model trained under weights, and the prior -> logits (N,) of p(y=1|x)."""


def ranking_score(probability: Mapping[TaskName, Array]) -> Array:
    """Multiply probabilities (N,) along the chain of tasks: what ranking sorts by."""
    first, *others = chain()
    score = probability[first]
    for name in others:
        score = score * probability[name]
    return score


class ServedScore:
    """The parts, and the stacker of each task over them."""

    def __init__(
        self, invert: Invert, parts: Mapping[str, Part], initial: Mapping[TaskName, float]
    ) -> None:
        """Start with untrained stackers.

        Args:
            invert: undoes the importance weights that the encoder is trained under.
            parts: by name; see `learner.parts.registry`.
            initial: task -> p(y=1) before any sample.
        """
        self.invert = invert
        self.parts = parts
        self._learning = {n: part for n, part in parts.items() if isinstance(part, LearningPart)}
        self._level = {task: float(np.log(p / (1 - p))) for task, p in initial.items()}
        self.stackers = {task: self._stacker(task, own) for task, own in TASKS.items()}

    def _stacker(self, name: TaskName, task: Task) -> Stacker:
        """Return the untrained stacker of a task."""
        starts = {name: a for part in self.parts.values() for name, a in part.columns.items()}
        config = StackerConfig()
        if task.parent is not None:
            starts = {root(): 0.0, OWN_ENCODER: 0.0, PAIR_MEMORY: 1.0}
            config = StackerConfig(deviation=_CONDITIONAL_DEVIATION)
        return Stacker(starts, intercept=self._level[name], config=config)

    def given(
        self,
        task: TaskName,
        *,
        encoder: Array,
        base: Array,
        memory: Array,
        memory_base: Array | float,
        prior: Mapping[TaskName, float],
    ) -> dict[str, Array]:
        """Return what owners of other state say of N pairs, less what they say of any pair. Pure.

        Args:
            task: name of the task.
            encoder: (N,) logits of the encoder as it was trained, with the query's residual.
            base: (N,) those of the root without the residual.
            memory: (N,) logits of the memorisation model as if shown first.
            memory_base: its logit of a pair of which it knows nothing.
            prior: p(y=1) of the task and of the root, as used in the importance weights.
        """
        general = self.invert(base, prior[root()])
        own = self.invert(encoder, prior[task])
        given = {
            ENCODER: general - self._level[root()],
            PAIR_MEMORY: _or_silent(memory - memory_base),
        }
        if task != root():
            return {
                **given,
                RESIDUAL: np.full(len(own), np.nan),
                OWN_ENCODER: own - self._level[task],
            }
        residual = np.clip(own - general, -_LARGEST_RESIDUAL, _LARGEST_RESIDUAL)
        return {**given, RESIDUAL: _or_silent(residual)}

    def ask(self, task: TaskName, pairs: Pairs, of_root: Array | None = None) -> Array:
        """Return the columns of N pairs (K, N), NaN for silence. Pure.

        Args:
            task: name of the task.
            pairs: with what `given` returned.
            of_root: the columns of the root, if it was asked of the same pairs since any learning.
        """
        if of_root is None:
            said = np.concatenate([part.predict(pairs) for part in self.parts.values()])
        else:
            said = of_root.copy()
        if task == root():
            return said
        columns = self.stackers[root()].names
        said[[columns.index(name) for name in _OF_THE_CLICK]] = np.nan
        click = self.logit(root(), said) - self._level[root()]
        return np.stack([click, pairs.given[OWN_ENCODER], pairs.given[PAIR_MEMORY]])

    def logit(self, task: TaskName, said: Array) -> Array:
        """Return served logits (N,), as if shown first, of the columns (K, N). Pure.

        They are confined to +-30, where a probability in double precision is not yet 0 or 1.
        """
        logit: Array = np.clip(self.stackers[task].get(said), -_LARGEST_LOGIT, _LARGEST_LOGIT)
        return logit

    def contributions(self, task: TaskName, said: Array) -> dict[str, Array]:
        """Return what each column adds to the logit (N,), and the intercept. Pure."""
        return self.stackers[task].contributions(said)

    def attribute_coefficients(self) -> dict[str, Coefficients]:
        """Return how much each attribute counts in what is clicked."""
        (part,) = [part for part in self.parts.values() if isinstance(part, Attributes)]
        return part.coefficients()

    def learn(self, task: TaskName, pairs: Pairs, said: Array, outcomes: Outcomes) -> None:
        """Let a stacker and then the parts learn N samples, a share after another.

        All parts learn the same labels, each for itself: at once they would take them in several
        times over, before a stacker knows what each is worth. So lists are learned together only as
        far as their labels surprise no more than what is known of the level can bear; the parts
        are asked anew about those that follow. Of a stream that has run for a while a step is one
        share; what is left after 63 of them is the last.

        Args:
            task: name of the task.
            pairs: the samples' pairs.
            said: (K, N) what `ask` returned before anything learned them.
            outcomes: their labels.

        Raises:
            WeightError: an input is NaN or out of range; nothing was learned.
        """
        for name in ("query", "item"):
            vectors = getattr(pairs, f"{name}_vectors").sum(axis=-1)
            check_finite(f"{name} vector", vectors.astype(np.float64))
        for name, column in zip(
            self.stackers[task].names, np.where(np.isnan(said), 0.0, said), strict=True
        ):
            check_finite(name, column)
        check_labels(outcomes.label)
        check_weights("weight", outcomes.weight * outcomes.factor)
        check_examination(outcomes.examination)
        for others in reversed(range(_MOST_SHARES)):
            end = self._bearable(task, outcomes) if others else len(outcomes.label)
            self._learn(task, pairs[:end], said[:, :end], outcomes[:end])
            pairs, outcomes = pairs[end:], outcomes[end:]
            if not len(outcomes.label):
                return
            said = self.ask(task, pairs)
            outcomes = replace(outcomes, logit=self.logit(task, said))

    def _bearable(self, task: TaskName, outcomes: Outcomes) -> int:
        """Return the number of samples, of whole lists, that are learned at once.

        sum w |y - theta sigma(z)| is the most by which they can push the level; of a precision P,
        it moves by at most 1 where that is P.
        """
        o = outcomes
        surprise = o.weight * o.factor * np.abs(o.label - o.examination * expit(o.logit))
        ends = np.flatnonzero((o.lists[1:] != o.lists[:-1]) | (o.lists[1:] < 0)) + 1
        most = max(self.stackers[task].information, _LEAST_BORNE)
        over = np.flatnonzero(np.cumsum(surprise)[ends - 1] > most)
        if not len(ends) or (not len(over) and surprise.sum() <= most):
            return len(o.label)
        return int(ends[max(over[0] - 1, 0)] if len(over) else ends[-1])

    def _learn(self, task: TaskName, pairs: Pairs, said: Array, outcomes: Outcomes) -> None:
        """Let a stacker and then the parts learn samples at once; arguments as of `learn`."""
        contributed = self.contributions(task, said)
        columns = outcomes.label, outcomes.weight * outcomes.factor, outcomes.examination
        self.stackers[task].learn(said, *columns, outcomes.lists)
        for part in self._learning.values():
            if task == root():
                # What a pair's own columns explain may be the item's doing, never the client's
                of_a_pair = {} if CLIENT_COLUMNS[0] in part.columns else _OF_A_PAIR
                own = np.sum([contributed[n] for n in {**part.columns, **of_a_pair}], axis=0)
                part.learn(task, pairs, replace(outcomes, logit=outcomes.logit - own))
            else:
                part.learn(task, pairs, outcomes)

    def snapshot(self) -> dict[TaskName, bytes]:
        """Return the state of each stacker."""
        return {task: stacker.snapshot() for task, stacker in self.stackers.items()}

    def snapshot_parts(self) -> dict[str, bytes]:
        """Return the state of each part that has one of its own."""
        return {name: part.snapshot() for name, part in self._learning.items()}

    def restore(self, stackers: Mapping[TaskName, bytes], parts: Mapping[str, bytes]) -> None:
        """Restore the states returned by `snapshot` and `snapshot_parts`.

        Raises:
            SnapshotError: a part is missing, or its state is another's.
        """
        if parts.keys() != self._learning.keys():
            raise SnapshotError("parts", sorted(parts), sorted(self._learning))
        if stackers.keys() != self.stackers.keys():
            raise SnapshotError("stackers", sorted(stackers), sorted(self.stackers))
        for task, stacker in self.stackers.items():
            stacker.restore(stackers[task])
        for name, part in self._learning.items():
            part.restore(parts[name])


def _or_silent(values: Array) -> Array:
    """Return the values, NaN for 0: nothing is known of the pair."""
    return np.where(values == 0, np.nan, values)
