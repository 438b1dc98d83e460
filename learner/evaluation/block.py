"""Sums over a run of samples, and the figures that follow from them.

Legend: N samples, B bins of the score's logit, W bins of weights, F figures that are ratios.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from learner.evaluation.rankings import GAINS, RATIOS
from learner.evaluation.ratio_sums import NORMAL, NUM_SUMS, ratio

Array = NDArray[np.float64]
NUM_BINS = 400
EDGE = 10.0
SCENARIO, FREQUENCY = "scenario", "query_lists"
"""Dimensions that gains are told apart by: see `Details.scenario` and `num_earlier`."""
FREQUENCIES = ("0", "1-9", "10-99", "100 or more")
"""Groups of queries, by the lists that they had before."""
WEIGHT_EDGES = tuple(2.0 ** (place / 2) for place in range(-12, 13))
"""Edges of the bins of weights: factors of the square root of 2 around 1, open at both ends."""
_DECILES = 10
_MASS_BINS = 15
"""Bins of equal mass in the calibration error."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reliability:
    """Calibration by tenths of the probability scale, (10,) each, 0 where there are no samples.

    Attributes:
        predicted: mean prediction.
        observed: share of positives.
        number: weight of the samples.
    """

    predicted: Array
    observed: Array
    number: Array


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Block:
    """Sums over a run of samples; they add up over runs.

    Attributes:
        counts: (2, B) weights per label and bin.
        sums: weighted log loss, predictions and labels, weights, samples, lists with a positive.
        ratios: (F, 5) of `ratio_sums`.
        groups: (dimension, group) -> (2, 5) of `ratio_sums`, for `GAINS`.
        weights: (W,) samples by their weight in the loss.
        time_us: newest event time.
    """

    counts: Array = field(default_factory=lambda: np.zeros((2, NUM_BINS)))
    sums: Array = field(default_factory=lambda: np.zeros(6))
    ratios: Array = field(default_factory=lambda: np.zeros((len(RATIOS), NUM_SUMS)))
    groups: Mapping[tuple[str, str], Array] = field(default_factory=dict)
    weights: Array = field(default_factory=lambda: np.zeros(len(WEIGHT_EDGES) + 1))
    time_us: int = 0

    def __add__(self, other: Block) -> Block:
        """Return the sums over both."""
        groups = dict(self.groups)
        for key, sums in other.groups.items():
            groups[key] = groups[key] + sums if key in groups else sums
        return Block(
            counts=self.counts + other.counts,
            sums=self.sums + other.sums,
            ratios=self.ratios + other.ratios,
            groups=groups,
            weights=self.weights + other.weights,
            time_us=max(self.time_us, other.time_us),
        )

    def __sub__(self, earlier: Block) -> Block:
        """Return the sums less those of the samples before."""
        nothing = np.zeros((len(GAINS), NUM_SUMS))
        return Block(
            counts=self.counts - earlier.counts,
            sums=self.sums - earlier.sums,
            ratios=self.ratios - earlier.ratios,
            groups={key: s - earlier.groups.get(key, nothing) for key, s in self.groups.items()},
            weights=self.weights - earlier.weights,
            time_us=self.time_us,
        )

    @property
    def num_samples(self) -> int:
        """Number of samples."""
        return int(self.sums[4])

    def figures(self) -> dict[str, float]:
        """Return the figures that are defined for these samples."""
        loss, _, positives, n, num_samples, num_lists = self.sums
        found = {"num_samples": float(num_samples), "num_lists": float(num_lists)}
        if n:
            found["log_loss"] = float(loss / n)
            found["positive_ratio"] = float(positives / n)
        if 0 < positives < n:
            found |= self._of_both_labels()
            found |= _with_intervals(RATIOS, self.ratios)
        return found

    def _of_both_labels(self) -> dict[str, float]:
        """Return the figures that need positives as well as negatives."""
        _, predicted, positives, n, _, _ = self.sums
        negative, positive = self.counts
        below = np.cumsum(negative) - negative
        ordered = (positive * (below + negative / 2)).sum()
        mass = self.counts.sum(0)
        bins = np.minimum(np.cumsum(mass) / n * _MASS_BINS, _MASS_BINS - 1).astype(np.int64)
        excess = np.bincount(bins, mass * expit(_centres()) - positive, minlength=_MASS_BINS)
        return {
            "auc": float(ordered / (positives * (n - positives))),
            "predicted_to_observed": float(predicted / positives),
            "calibration_error": float(np.abs(excess).sum() / n),
        }

    def gains(self, dimension: str) -> dict[str, dict[str, float]]:
        """Return `GAINS` with intervals of each group of a dimension, by name.

        Groups with too few lists for an interval are left out.
        """
        found = {
            name: _with_intervals(GAINS, sums)
            for (of, name), sums in sorted(self.groups.items())
            if of == dimension
        }
        return {name: figures for name, figures in found.items() if figures}

    def reliability(self) -> Reliability:
        """Return the calibration by tenths of the probability scale."""
        centres = expit(_centres())
        tenth = np.minimum((centres * _DECILES).astype(np.int64), _DECILES - 1)
        number = np.bincount(tenth, self.counts.sum(0), minlength=_DECILES)
        predicted = np.bincount(tenth, self.counts.sum(0) * centres, minlength=_DECILES)
        observed = np.bincount(tenth, self.counts[1], minlength=_DECILES)
        least = np.maximum(number, 1e-12)
        return Reliability(
            predicted=predicted / least,
            observed=observed / least,
            number=number.astype(np.float64),
        )

    def packed(self) -> list[Any]:
        """Return the sums as plain numbers."""
        places = np.flatnonzero(self.counts)
        return [
            places.tolist(),
            self.counts.ravel()[places].tolist(),
            self.sums.tolist(),
            self.ratios.tolist(),
            [[*key, sums.tolist()] for key, sums in sorted(self.groups.items())],
            self.weights.tolist(),
            self.time_us,
        ]

    @classmethod
    def unpacked(cls, packed: list[Any]) -> Block:
        """Return the sums that `packed` wrote."""
        places, values, sums, ratios, groups, weights, time_us = packed
        counts = np.zeros(2 * NUM_BINS)
        counts[places] = values
        return cls(
            counts=counts.reshape(2, NUM_BINS),
            sums=np.array(sums),
            ratios=np.array(ratios),
            groups={(of, name): np.array(each) for of, name, each in groups},
            weights=np.array(weights),
            time_us=time_us,
        )


def total(blocks: list[Block]) -> Block:
    """Return the sums over all blocks."""
    return sum(blocks, Block())


def _with_intervals(names: tuple[str, ...], ratios: Array) -> dict[str, float]:
    """Return ratios with `_low` and `_high`; those of too few lists are left out."""
    found = {}
    for name, sums in zip(names, ratios, strict=True):
        estimate = ratio(sums)
        if estimate is not None:
            value, error = estimate
            found[name] = value
            found[f"{name}_low"] = value - NORMAL * error
            found[f"{name}_high"] = value + NORMAL * error
    return found


def _centres() -> Array:
    places: Array = np.arange(NUM_BINS, dtype=np.float64) + 0.5
    return places * (2 * EDGE / NUM_BINS) - EDGE
