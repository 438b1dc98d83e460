"""Record of what is tracked of a step, and the protocol of a tracker."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from learner.training.explained import ExplainedList

NUM_BINS = 64
"""Of a histogram."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Record:
    """What is tracked of one step.

    Attributes:
        step: its number.
        time_seconds: when it was taken, since the Unix epoch.
        scalars: name -> a finite number; a name has parts: `evaluation/click_ndcg`.
        histograms: name -> the finite numbers that one is to be made of.
        lists: explained predictions.
    """

    step: int
    time_seconds: float
    scalars: Mapping[str, float] = field(default_factory=dict)
    histograms: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    lists: Sequence[ExplainedList] = ()

    def __post_init__(self) -> None:
        """Check that trackers can draw all of it."""
        assert all(np.isfinite(value) for value in self.scalars.values())
        assert all(np.isfinite(values).all() for values in self.histograms.values())


class Tracker(Protocol):
    """One writer of records, whose steps rise; confined to one thread.

    Any error means that it writes no more: it is closed, and another one opened.
    """

    def write(self, record: Record) -> None:
        """Write a record, so that a reader finds it on return or soon after."""

    def close(self) -> None:
        """End the files."""
