"""Drift of what a task's stream looks like: river's Page-Hinkley test. It informs, and no more."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from msgspec import Meta
from numpy.typing import NDArray
from river import drift

from weighting.checks import (
    FINITE,
    check_example,
    check_finite,
    check_one,
    check_weights,
    drop_weightless,
)
from weighting.constraints import Count, Positive, check

Array = NDArray[np.float64]
Times = NDArray[np.int64]
SERIES = ("label", "log_loss", "weight")
"""What is watched: p(y), the log loss of p(y|x), and the weight w."""
_WARM_UP = 30  # blocks from which the scale is taken
_SLACK = 0.25  # half of the smallest shift that is looked for, in deviations of a block
_LEAST_DEVIATION = 0.01  # of the mean, for a series that hardly varies


@dataclass(frozen=True, slots=True, kw_only=True)
class DriftConfig:
    """Sensitivity of the drift detectors. They inform, and change nothing that is learned."""

    block_samples: Annotated[
        Count, Meta(description="Samples of a mean that is tested; 60 means before the first test.")
    ] = 100
    threshold: Annotated[
        Positive,
        Meta(description="Summed deviations that are a change; higher is later and surer."),
    ] = 30.0

    def __post_init__(self) -> None:
        """Check every field."""
        check(self, "drift")


@dataclass(frozen=True, slots=True, kw_only=True)
class Drift:
    """A change that was found.

    Attributes:
        series: of `SERIES`.
        time_us: event time of the sample that completed the evidence.
        before: mean since the last change.
        after: mean of the newest block.
    """

    series: str
    time_us: int
    before: float
    after: float


class DriftDetector:
    """Page-Hinkley test (Page 1954) of river, two-sided, on the block means of one series.

    A block is a number of samples in a row, so that the samples of a list, which depend on each
    other, fall into one value. The first thirty block means set the scale, after which each is
    tested in deviations. After a change everything starts anew. On a stream without one, of lists
    of ten with p(y) = .1, it erred up to twice in a million samples at a threshold of 25, once at
    40; a change from .1 to .13 takes 3,000 to 7,000 samples, to .2 about 1,000.

    river's ADWIN needs no threshold, but its window is in compiled code that gives no numbers away,
    only bytes for pickle. Page-Hinkley is six numbers.

    >>> DriftDetector(DriftConfig()).num_changes
    0
    """

    def __init__(self, config: DriftConfig) -> None:
        """Start with nothing seen."""
        self.config = config
        self.num_changes = 0
        self._sum, self._weight, self._count = 0.0, 0.0, 0
        self._restart()

    def level(self) -> float:
        """Mean of the blocks since the last change; 0 before any. Pure."""
        tested = self._test._x_mean
        mean: float = tested.get() * self._scale if tested.n else self._mean
        return mean

    def update(self, value: float, weight: float) -> tuple[float, float] | None:
        """Take one value of a weighted mean; return the levels before and after a change."""
        check_one("value", value, -math.inf < value < math.inf, FINITE)
        check_example(0.0, weight)
        if weight == 0.0:
            return None
        self._sum += weight * value
        self._weight += weight
        self._count += 1
        return self._closed()

    def update_many(
        self, time_us: Times, values: Array, weights: Array
    ) -> list[tuple[int, float, float]]:
        """Take N values in order; return time and levels of each change, as `update` does.

        The sums are those of `update` one after another, but for rounding.
        """
        check_finite("value", values)
        check_weights("weight", weights)
        time_us, values, weights = drop_weightless(weights, time_us, values, weights)
        found, start = [], 0
        while start < len(values):
            # At least one, as `update` does: a restored block may be longer than blocks are now
            room = max(self.config.block_samples - self._count, 1)
            own = slice(start, start + room)
            start += len(values[own])
            self._sum += float((weights[own] * values[own]).sum())
            self._weight += float(weights[own].sum())
            self._count += len(values[own])
            levels = self._closed()
            if levels:
                found.append((int(time_us[start - 1]), *levels))
        return found

    def _closed(self) -> tuple[float, float] | None:
        """Test the mean of the block, if it is whole."""
        if self._count < self.config.block_samples:
            return None
        mean = self._sum / self._weight
        self._sum, self._weight, self._count = 0.0, 0.0, 0
        return self._tested(mean)

    def snapshot(self) -> dict[str, Any]:
        """State after the last value, as plain numbers."""
        test, least = self._test, self._test._min_increase
        return {
            "num_changes": self.num_changes,
            "block": [self._sum, self._weight, self._count],
            "warm_up": [self._num, self._mean, self._squares, self._scale],
            "test": [test._x_mean.n, test._x_mean.get(), test._sum_increase, test._sum_decrease],
            "bounds": [None if least == math.inf else least, test._max_decrease],
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restore the state returned by `snapshot`."""
        self.num_changes = state["num_changes"]
        self._sum, self._weight, self._count = state["block"]
        self._restart()
        self._num, self._mean, self._squares, self._scale = state["warm_up"]
        test, (least, most) = self._test, state["bounds"]
        test._x_mean.n, test._x_mean._mean, test._sum_increase, test._sum_decrease = state["test"]
        test._min_increase = math.inf if least is None else least
        test._max_decrease = most

    def _restart(self) -> None:
        self._num, self._mean, self._squares, self._scale = 0, 0.0, 0.0, 0.0
        self._test: Any = drift.PageHinkley(delta=_SLACK, threshold=self.config.threshold)

    def _tested(self, mean: float) -> tuple[float, float] | None:
        if not self._scale:
            self._warm_up(mean)
            return None
        before = self.level()
        self._test.update(mean / self._scale)
        if not self._test.drift_detected:
            return None
        self.num_changes += 1
        self._restart()
        return before, mean

    def _warm_up(self, mean: float) -> None:
        """Add a block to the scale: sums of Welford 1962."""
        self._num += 1
        away = mean - self._mean
        self._mean += away / self._num
        self._squares += away * (mean - self._mean)
        if self._num == _WARM_UP:
            deviation = math.sqrt(self._squares / (_WARM_UP - 1))
            self._scale = max(deviation, _LEAST_DEVIATION * abs(self._mean), 1e-9)


class DriftWatch:
    """The detectors of one task, in stream order, whatever its batches.

    >>> DriftWatch(DriftConfig()).num_changes()
    {'label': 0, 'log_loss': 0, 'weight': 0}
    """

    def __init__(self, config: DriftConfig, *, at_once: bool = False) -> None:
        """Start with nothing seen; `at_once` if sums may be rounded as batches divide them."""
        self._at_once = at_once
        self._detectors = {name: DriftDetector(config) for name in SERIES}

    def num_changes(self) -> dict[str, int]:
        """Number of changes of each series since the start of the stream."""
        return {name: own.num_changes for name, own in self._detectors.items()}

    def level(self) -> dict[str, float]:
        """Mean of each series since its last change."""
        return {name: own.level() for name, own in self._detectors.items()}

    def update(
        self,
        times_us: Sequence[int],
        label: Array,
        p_positive: Array,
        weight: Array,
        correction: Array,
    ) -> list[Drift]:
        """Take N samples; return the changes that they complete.

        Args:
            times_us: N event times.
            label: (N,) labels.
            p_positive: (N,) p(y=1|x) where shown, predicted before the label was learned.
            weight: (N,) weights w, without the scale.
            correction: (N,) delay corrections: what a sample counts in the mean label and loss.
                One that counts for nothing is not seen at all.
        """
        if self._at_once:
            return self._update_at_once(times_us, label, p_positive, weight, correction)
        seen = np.flatnonzero(correction).tolist()
        times_us = [times_us[i] for i in seen]
        label, p_positive, weight = label[seen], p_positive[seen], weight[seen]
        loss = -np.log(np.where(label > 0, p_positive, 1 - p_positive))
        counted, once = correction[seen].tolist(), [1.0] * len(seen)
        columns = {"label": (label, counted), "log_loss": (loss, counted), "weight": (weight, once)}
        found = []
        for name, (values, masses) in columns.items():
            update = self._detectors[name].update
            for now, value, mass in zip(times_us, values.tolist(), masses, strict=True):
                levels = update(value, mass)
                if levels:
                    before, after = levels
                    found.append(Drift(series=name, time_us=now, before=before, after=after))
        return found

    def _update_at_once(
        self,
        times_us: Sequence[int],
        label: Array,
        p_positive: Array,
        weight: Array,
        correction: Array,
    ) -> list[Drift]:
        times = np.array(times_us, dtype=np.int64)
        loss = -np.log(np.where(label > 0, p_positive, 1 - p_positive))
        once = np.sign(correction)
        columns = {"label": (label, correction), "log_loss": (loss, correction)}
        return [
            Drift(series=name, time_us=now, before=before, after=after)
            for name, (values, masses) in {**columns, "weight": (weight, once)}.items()
            for now, before, after in self._detectors[name].update_many(times, values, masses)
        ]

    def snapshot(self) -> dict[str, Any]:
        """State after the last sample, as plain numbers."""
        return {name: own.snapshot() for name, own in self._detectors.items()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restore the state returned by `snapshot`."""
        for name, own in self._detectors.items():
            own.restore(state[name])
