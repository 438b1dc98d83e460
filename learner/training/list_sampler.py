"""Which lists the encoder is given, if not all: drawn by importance, and weighted back.

Legend: N samples of a step.

With p_i = p(y=1|x) of the online estimators, which cost next to nothing, the gradient of a list's
loss in its logits is about

    g = sum of a_i (1 - p_i), plus sum of b_i p_i if the loss does not compare items.

A list is drawn with probability pi = level g, at least a quarter of the share that is asked for and
at most 1, and counts 1 / pi: sums over lists stay unbiased (Horvitz & Thompson 1952), and what a
list can teach decides how often it is computed (Katharopoulos & Fleuret 2018). The level moves so
that the share of samples is kept; where few lists can teach anything, all of these are drawn, and
less than the share is used. A draw depends on the seed and the list's name alone: the same in any
replay, for all copies of its samples. Who knows the seed can choose names that are drawn.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from weighting.sample import Sample
from weighting.tasks import TaskName
from weighting.weighted import WeightedBatch

_LEAST = 0.25
"""Smallest probability, in shares: bounds what one list counts."""

_RATE = 0.002
"""Step of log level per sample, in units of the share's relative error."""

_LARGEST_CHANCE, _LARGEST_FALL = 2.0, 0.5
"""Of level g, beyond which log level falls, by so much at most: it does not run away."""

_LARGEST_LOG_LEVEL = 20.0


class ListSampler:
    """Draws lists of one task each, and samples of no list one by one.

    Attributes:
        log_level: all that it remembers.
    """

    def __init__(
        self, share: float, *, seed: int = 0, whole_lists: Mapping[TaskName, bool]
    ) -> None:
        """Start with the level that would fit gradients of 1.

        Args:
            share: of the samples, in (0, 1]; 1 takes all of them.
            seed: of the draws.
            whole_lists: task -> whether its loss compares the items of a list.
        """
        self._share = share
        self._key = str(seed).encode()[:64]
        self._whole_lists = whole_lists
        self.log_level = math.log(share)

    def draw(self, weighted: WeightedBatch) -> NDArray[np.float64]:
        """Return what each sample counts (N,): 1 / pi if it is drawn, 0 if it is not."""
        factor = np.ones(len(weighted.samples))
        if self._share >= 1:
            return factor
        gradient = self._gradients(weighted).tolist()
        for name, places in _lists(weighted.samples).items():
            wanted = math.exp(self.log_level) * sum(gradient[i] for i in places)
            chance = min(max(wanted, _LEAST * self._share), 1.0)
            factor[places] = 1 / chance if self._uniform(name) < chance else 0.0
            self.log_level += _RATE * len(places) * (1 - chance / self._share)
            if wanted > _LARGEST_CHANCE:
                self.log_level -= min(math.log(wanted / _LARGEST_CHANCE), _LARGEST_FALL)
            bounded = max(self.log_level, -_LARGEST_LOG_LEVEL)
            self.log_level = min(bounded, _LARGEST_LOG_LEVEL)
        return factor

    def _uniform(self, name: str) -> float:
        """Return a number in [0, 1) that looks random."""
        data = name.encode("utf-8", "surrogatepass")
        digest = blake2b(data, digest_size=7, key=self._key).digest()
        return int.from_bytes(digest, "little") / (1 << 56)

    def _gradients(self, weighted: WeightedBatch) -> NDArray[np.float64]:
        """Return each sample's part of g (N,)."""
        a, b = weighted.a.astype(np.float64), weighted.b.astype(np.float64)
        alone = np.array([not self._whole_lists[s.task] for s in weighted.samples], dtype=bool)
        p = weighted.p_positive
        return np.abs(a) * (1 - p) + np.where(alone, np.abs(b) * p, 0.0)


def _lists(samples: Sequence[Sample]) -> dict[str, list[int]]:
    """Return the places of the samples of each list of a task, by its name."""
    found: dict[str, list[int]] = {}
    for place, s in enumerate(samples):
        found.setdefault(f"{s.task}/{s.list_id or s.sample_id}", []).append(place)
    return found
