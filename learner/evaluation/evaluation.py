"""Prequential evaluation: ranking within lists, log loss against position, calibration.

Legend: N samples, B bins of the score's logit, F figures that are ratios over lists.

Most of what separates clicks from other items is the position. So rankings are judged within lists
and corrected for position (`list_metrics`), by the score as if each item were shown first, beside
the order in which the shop showed them; and the log loss is compared with that of a model that
knows only the position (`position_baseline`). The pooled AUC says little but for tasks in which
the position does not matter.

Copies are weighted by the delay correction: a late positive is judged when it comes, and expected
sums are those of the final labels. Rankings are judged by the first copies alone, with which the
others of their list come; those of purchases as `rankings` says.

Whether our order is better than the shop's is also told by scenario and by how often the query had
come before. Of scenarios the first 32 have figures of their own, the others together.

Figures are of the whole stream, its latest part or its quarters. Scores are kept as weights in 400
bins of width 0.05 over logits -10 to 10, so memory is bounded whatever the stream's length: at most
128 blocks of equal numbers of samples, merged two by two when there are more. AUC from bins counts
ties within a bin as one half.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from learner.evaluation.block import (
    EDGE,
    FREQUENCIES,
    FREQUENCY,
    NUM_BINS,
    SCENARIO,
    WEIGHT_EDGES,
    Block,
    total,
)
from learner.evaluation.judged import Details, Judged, runs
from learner.evaluation.position_baseline import PositionBaseline
from learner.evaluation.rankings import GAINS, RATIOS, Rankings, rankings
from learner.evaluation.ratio_sums import ratio_sums
from weighting.checks import check, check_finite, check_labels, check_weights

Array = NDArray[np.float64]
MAX_BLOCKS = 128
MAX_SCENARIOS = 32
OTHER = "other"
"""Name of all scenarios beyond the first 32."""
_FIRST_BLOCK = 64
_LATEST = 8
"""Blocks that `latest` looks at."""
FORMAT = 4
_GAIN_ROWS = [RATIOS.index(name) for name in GAINS]
_LEAST_EARLIER = (1, 10, 100)
"""Earlier lists from which a query is in the second, third and fourth of `FREQUENCIES`."""


class Evaluation:
    """Prequential evaluation of one task; see `Judged` for what it takes."""

    def __init__(self) -> None:
        """Start with nothing scored."""
        self._blocks = [Block()]
        self._block_size = _FIRST_BLOCK
        self._baseline = PositionBaseline()
        self._scenarios: set[str] = set()

    @property
    def scenarios(self) -> list[str]:
        """Names of the scenarios that have figures of their own."""
        return sorted(self._scenarios)

    def update(self, judged: Judged) -> None:
        """Add N samples.

        Raises:
            WeightError: an input is NaN, infinite or out of range.
        """
        check_finite("logit", judged.logit)
        check_finite("relevance", judged.relevance)
        check_labels(judged.label)
        check_weights("weight", judged.weight)
        theta = judged.examination
        check("examination", theta, (theta > 0) & (theta <= 1), "a probability in (0, 1]")
        judged = judged[judged.weight > 0]
        for part in _pieces(judged.lists, self._block_size):
            self._add(judged[part])

    def _add(self, judged: Judged) -> None:
        logit, label, weight, details = judged.logit, judged.label, judged.weight, judged.details
        place = (logit + EDGE) * (NUM_BINS / (2 * EDGE))
        bins = np.clip(place, 0, NUM_BINS - 1).astype(np.int64)
        per_label = [np.bincount(bins, weight * (label == y), NUM_BINS) for y in (0, 1)]
        loss = weight * _log_loss(logit, label)
        known = self._baseline.predict(judged.position)
        known_loss = weight * _log_loss(np.log(known / (1 - known)), label)
        self._baseline.learn(judged.position, label, weight)
        run = runs(judged.lists)
        entropies: Array = np.array([[np.bincount(run, own) for own in (loss, known_loss)]])
        ranked = rankings(judged)
        totals = loss, weight * expit(logit), weight * label, weight
        sums = [*(each.sum() for each in totals), len(label), ranked.num_positive]
        self._blocks[-1] += Block(
            counts=np.stack(per_label).astype(np.float64),
            sums=np.array(sums, dtype=np.float64),
            ratios=np.concatenate([ratio_sums(ranked.terms), ratio_sums(entropies)]),
            groups={} if details is None else self._groups(details, ranked),
            weights=np.zeros(len(WEIGHT_EDGES) + 1) if details is None else _weights(details),
            time_us=0 if details is None else int(details.time_us.max(initial=0)),
        )
        if self._blocks[-1].num_samples >= self._block_size:
            self._blocks.append(Block())
        if len(self._blocks) > MAX_BLOCKS:
            pairs = self._blocks + [Block()] * (len(self._blocks) % 2)
            self._blocks = [a + b for a, b in zip(pairs[::2], pairs[1::2], strict=True)]
            self._block_size *= 2

    def _groups(self, details: Details, ranked: Rankings) -> dict[tuple[str, str], Array]:
        """Return the sums of gains of the lists of each group."""
        scenarios = [self._scenario(name) for name in details.scenario[ranked.rows]]
        earlier = details.num_earlier[ranked.rows]
        groups = np.searchsorted(_LEAST_EARLIER, earlier, side="right")
        frequencies = [
            FREQUENCIES[group] if number >= 0 else ""
            for group, number in zip(groups.tolist(), earlier.tolist(), strict=True)
        ]
        found, terms = {}, ranked.terms[_GAIN_ROWS]
        for dimension, names in ((SCENARIO, scenarios), (FREQUENCY, frequencies)):
            names_of = np.array(names, dtype=object)
            for name in sorted({*names} - {""}):
                found[dimension, name] = ratio_sums(terms[:, :, names_of == name])
        return found

    def _scenario(self, name: str) -> str:
        """Return the name under which a scenario is counted; "" for none."""
        if not name or name in self._scenarios:
            return name
        if len(self._scenarios) >= MAX_SCENARIOS:
            return OTHER
        self._scenarios.add(name)
        return name

    def get(self) -> dict[str, float]:
        """Return the figures of the whole stream."""
        return self.block().figures()

    def since(self, before: Evaluation) -> dict[str, float]:
        """Return the figures of the samples after an earlier state of this evaluation."""
        return self.block(before).figures()

    def latest(self) -> dict[str, float]:
        """Return the figures of the newest blocks: 8 or 9, if there are as many."""
        return self.latest_block().figures()

    def block(self, before: Evaluation | None = None) -> Block:
        """Return the sums of all samples, or of those after an earlier state of this evaluation."""
        found = total(self._blocks)
        return found if before is None else found - total(before._blocks)

    def latest_block(self) -> Block:
        """Return the sums of the newest blocks: 8 or 9, if there are as many."""
        return total(self._blocks[-_LATEST - 1 :])

    def blocks(self, after: int = 0) -> list[Block]:
        """Return the stream in parts, oldest first, from the first that begins after some samples.

        Args:
            after: number of samples that are left out; so are the others of their part.
        """
        found, passed = [], 0
        for block in self._blocks:
            if passed >= after and block.num_samples:
                found.append(block)
            passed += block.num_samples
        return found

    def quarters(self) -> list[dict[str, float]]:
        """Return the figures of four parts of the stream, oldest first.

        The parts have about equal numbers of samples. While there are fewer than four blocks, there
        are fewer parts.
        """
        blocks = self.blocks()
        parts = np.array_split(np.arange(len(blocks)), 4)
        return [total([blocks[i] for i in part]).figures() for part in parts if len(part)]

    def snapshot(self) -> bytes:
        """Return the state as msgpack; equal state gives equal bytes."""
        state = {
            "format": FORMAT,
            "size": self._block_size,
            "blocks": [block.packed() for block in self._blocks],
            "baseline": self._baseline.snapshot(),
            "scenarios": sorted(self._scenarios),
        }
        return msgspec.msgpack.encode(state)

    def restore(self, data: bytes) -> None:
        """Restore the state returned by `snapshot`.

        Raises:
            ValueError: it is of another format.
        """
        state: dict[str, Any] = msgspec.msgpack.decode(data)
        if state["format"] != FORMAT:
            raise ValueError(
                f"evaluation snapshot: got format {state['format']!r}, expected {FORMAT}"
            )
        self._block_size = state["size"]
        self._blocks = [Block.unpacked(packed) for packed in state["blocks"]]
        self._baseline.restore(state["baseline"])
        self._scenarios = set(state["scenarios"])


def _pieces(lists: NDArray[np.intp], size: int) -> Iterator[slice]:
    """Yield pieces of N samples, each at least `size` unless it is the last; no list is divided."""
    start, run = 0, runs(lists)
    while start < len(run):
        last = min(start + size, len(run)) - 1
        end = int(np.searchsorted(run, run[last], side="right"))
        yield slice(start, end)
        start = end


def _log_loss(logit: Array, label: Array) -> Array:
    loss: Array = np.logaddexp(0, np.where(label > 0, -logit, logit))
    return loss


def _weights(details: Details) -> Array:
    """Return the number of samples in each bin of weights."""
    places = np.searchsorted(WEIGHT_EDGES, details.importance, side="right")
    return np.bincount(places, minlength=len(WEIGHT_EDGES) + 1).astype(np.float64)
