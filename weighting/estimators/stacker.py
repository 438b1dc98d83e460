"""Stacking of the parts of a score into one served logit.

One coefficient per part and an intercept, learned from predictions made before any part learned.
Legend: N samples, K parts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

import msgspec
import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from weighting.checks import (
    check_examination,
    check_finite,
    check_labels,
    check_weights,
    drop_weightless,
)
from weighting.constraints import Positive, check
from weighting.errors import SnapshotError
from weighting.estimators.recursive import RecursiveLogistic
from weighting.snapshot import numbers, opened

Array = NDArray[np.float64]
Places = NDArray[np.intp]
FORMAT = 2
_LEAST_SLOPE = 0.05
_SLOPE_DEVIATION = 0.1
_LARGEST_INTERCEPT = 12.0
"""A probability of 6e-6, or of as little less than 1: beyond, no sample tells anything any more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StackerConfig:
    """Freedom of the coefficients, and how long the stacker remembers.

    A coefficient is never negative: a part can be lost, not turned round. There is no least
    coefficient: the likelihood knows the positions and every part is judged as if shown first, so
    none is favoured for having been told the position.
    """

    deviation: Annotated[
        Positive, Meta(description="Standard deviation of a coefficient around its start.")
    ] = 0.25
    intercept_deviation: Annotated[
        Positive, Meta(description="Standard deviation of the intercept, in logits.")
    ] = 1.0
    largest: Annotated[Positive, Meta(description="Largest coefficient.")] = 50.0
    half_life_samples: Annotated[
        Positive, Meta(description="Samples after which what was learned counts half.")
    ] = 20_000.0

    def __post_init__(self) -> None:
        """Check every field."""
        check(self, "stacker")


class Stacker:
    """Served logit z = s sum_j a_j f_j + b, with s, a_j >= 0, under p(click) = theta sigma(z).

    f_j is what part j says, 0 where it says nothing. The likelihood takes the position in through
    the examination probability theta alone, so a part that knows nothing earns nothing from
    positions, and z is as if shown first.

    a is learned from the differences within a list, f_j less its mean over the list: how easy a
    query is differs from list to list, and would otherwise pass for the worth of whatever part it
    moves. s and b make a probability of the sum, whose order they do not change. Coefficients turn
    about the running mean m of what the parts say: z = s sum_j a_j (f_j - m_j) + b', so that the
    mean of the served logit does not jump when they move. What is known of b' is kept as counts
    (`RecursiveLogistic`): hours without a click, as when clicks come late, press it down no
    further than they would press a share, and the clicks that follow lift it no further.

    >>> stacker = Stacker({"encoder": 0.5, "memory": 1.0}, intercept=-2.0)
    >>> stacker.get(np.array([[2.0], [np.nan]])).tolist()
    [-1.0]
    """

    def __init__(
        self,
        starts: Mapping[str, float],
        *,
        intercept: float = 0.0,
        config: StackerConfig | None = None,
    ) -> None:
        """Start at the given mixture.

        Args:
            starts: name of each of the K parts -> a_j before any sample.
            intercept: b before any sample.
            config: the settings.
        """
        self.names = tuple(starts)
        self.config = c = config or StackerConfig()
        many = len(starts)
        self._within = RecursiveLogistic(
            mean=(*starts.values(), intercept),
            precision=(*[c.deviation**-2] * many, c.intercept_deviation**-2),
            low=(*[0.0] * many, -_LARGEST_INTERCEPT),
            high=(*[c.largest] * many, _LARGEST_INTERCEPT),
        )
        self._pivot = np.zeros(many)
        self._num_samples = 0.0  # behind the pivot, fading
        self._level = RecursiveLogistic(
            mean=(1.0, intercept),
            precision=(_SLOPE_DEVIATION**-2, c.intercept_deviation**-2),
            low=(_LEAST_SLOPE, -_LARGEST_INTERCEPT),
            high=(c.largest, _LARGEST_INTERCEPT),
            level_samples=c.half_life_samples / math.log(2),  # as many as fading leaves
        )

    def coefficients(self) -> dict[str, float]:
        """Return s a_j by name, and b as `intercept`."""
        slope, intercept = self._level.mean.tolist()
        within = slope * self._within.mean[:-1]
        intercept -= float((within * self._pivot).sum())
        return {**dict(zip(self.names, within.tolist(), strict=True)), "intercept": intercept}

    @property
    def information(self) -> float:
        """What is known of the level of the logits: its precision."""
        return self._level.information

    def get(self, parts: Array) -> Array:
        """Stacked logits (N,) of K parts (K, N), NaN where a part says nothing. Pure."""
        return self._level.predict((self._sum(_spoken(parts)), np.ones(parts.shape[1])))

    def contributions(self, parts: Array) -> dict[str, Array]:
        """Return s a_j f_j (N,) by name, 0 for silence, and the intercept. Pure.

        They add up to the logit, up to rounding.
        """
        columns = [*_spoken(parts), np.ones(parts.shape[1])]
        return {
            name: coefficient * column
            for (name, coefficient), column in zip(
                self.coefficients().items(), columns, strict=True
            )
        }

    def learn(
        self, parts: Array, label: Array, weight: Array, examination: Array, lists: Places
    ) -> None:
        """Learn N samples at once; order within the call does not count.

        Args:
            parts: (K, N) logits of the parts, NaN where a part says nothing.
            label: (N,) labels, 0 to 1.
            weight: (N,) weights >= 0.
            examination: (N,) theta, in [0, 1].
            lists: (N,) number of the list that a sample was shown in, negative for none. A list's
                only sample says nothing of differences; one of no list is taken as it is.
        """
        spoken = _spoken(parts)
        for name, column in zip(self.names, spoken, strict=True):
            check_finite(name, column)
        check_labels(label)
        check_weights("weight", weight)
        check_examination(examination)
        label, weight, examination, lists, *columns = drop_weightless(
            weight, label, weight, examination, lists, *spoken
        )
        if not len(label):
            return
        keep = 2.0 ** (-len(label) / self.config.half_life_samples)
        total, ones = self._sum(columns), np.ones(len(label))
        self._level.learn((total, ones), label, weight, examination=examination, keep=keep)
        self._move_pivot(columns, keep=keep)
        used, within = _within_lists(columns, lists)
        if len(used):
            self._within.learn(
                [*within, ones[used]],
                label[used],
                weight[used],
                examination=examination[used],
                keep=keep,
            )

    def _move_pivot(self, columns: Sequence[Array], *, keep: float) -> None:
        """Move m towards the mean of the K columns (N,); b' keeps logits, within its bounds."""
        number = len(columns[0])
        self._num_samples = keep * self._num_samples + number
        mean = np.array([float(column.sum()) / number for column in columns])
        step = (mean - self._pivot) * (number / self._num_samples)
        self._pivot = self._pivot + step
        shift = self._level.mean[0] * float((self._within.mean[:-1] * step).sum())
        level = np.clip(self._level.mean[1] + shift, -_LARGEST_INTERCEPT, _LARGEST_INTERCEPT)
        self._level.mean = np.array([self._level.mean[0], level])

    def _sum(self, spoken: Sequence[Array]) -> Array:
        total: Array = np.zeros(spoken[0].shape)
        for a, m, column in zip(self._within.mean[:-1], self._pivot, spoken, strict=True):
            total = total + a * (column - m)
        return total

    def snapshot(self) -> bytes:
        """State after the last `learn`, as msgpack; equal state gives equal bytes."""
        state = {"format": FORMAT, "names": self.names, "within": self._within.snapshot()}
        state["level"] = self._level.snapshot()
        state["pivot"] = [self._pivot.tolist(), self._num_samples]
        return msgspec.msgpack.encode(state, order="sorted")

    def restore(self, data: bytes) -> None:
        """Restore the state returned by `snapshot`.

        Raises:
            SnapshotError: the bytes are not such a snapshot, or of other parts.
        """
        with opened(data, "stacker", format=FORMAT) as state:
            if tuple(state["names"]) != self.names:
                raise SnapshotError("parts", state["names"], list(self.names))
            self._within.restore(state["within"])
            self._level.restore(state["level"])
            pivot, self._num_samples = state["pivot"]
            self._pivot = numbers(pivot, self._pivot.shape, "pivot")


def _spoken(parts: Array) -> list[Array]:
    """Return K columns (N,): silence is 0."""
    return list(np.where(np.isnan(parts), 0.0, parts))


def _within_lists(columns: Sequence[Array], lists: Places) -> tuple[Places, list[Array]]:
    """Return the n samples that can be compared, and their columns (n,) less the list's mean."""
    _, own, number = np.unique(lists, return_inverse=True, return_counts=True)
    used = np.flatnonzero((lists < 0) | (number[own] > 1))
    alone, centred = lists < 0, []
    for column in columns:
        mean = np.bincount(own, column, len(number)) / number
        centred.append((column - np.where(alone, 0.0, mean[own]))[used])
    return used, centred
