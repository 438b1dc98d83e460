"""Prequential evaluation: AUC, log loss, normalised entropy and calibration.

Legend: N samples, B bins of the score's logit.

Copies are weighted by the delay correction: a late positive is judged when it comes, and expected
sums are those of the final labels. Figures are of the whole stream, its latest part or its
quarters. Scores are kept as weights in 400 bins of width 0.05 over logits -10 to 10, so memory is
bounded whatever the stream's length: at most 128 blocks of equal numbers of samples, merged two by
two when there are more. AUC from bins counts ties within a bin as one half.
"""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from weighting.checks import check_finite, check_labels, check_weights, drop_weightless

Array = NDArray[np.float64]
_NUM_BINS = 400
_EDGE = 10.0
MAX_BLOCKS = 128
_FIRST_BLOCK = 64
_LATEST = 8
"""Blocks that `latest` looks at."""
_DECILES = 10
_MASS_BINS = 15
"""Bins of equal mass in the calibration error."""
FORMAT = 2


class _Block:
    """Sums over a run of samples.

    Attributes:
        counts: (2, B) weights per label and bin.
        sums: weighted log loss, predictions and labels, weights, samples.
    """

    __slots__ = ("counts", "sums")

    def __init__(self, counts: Array | None = None, sums: Array | None = None) -> None:
        self.counts = np.zeros((2, _NUM_BINS)) if counts is None else counts
        self.sums = np.zeros(5) if sums is None else sums

    def __add__(self, other: _Block) -> _Block:
        return _Block(self.counts + other.counts, self.sums + other.sums)

    @property
    def num_samples(self) -> int:
        return int(self.sums[4])


class Evaluation:
    """Prequential evaluation of one task.

    >>> evaluation = Evaluation()
    >>> evaluation.update(np.array([2.0, -2.0]), np.array([1.0, 0.0]), np.ones(2))
    >>> evaluation.get()["auc"]
    1.0
    """

    def __init__(self) -> None:
        """Start with nothing scored."""
        self._blocks = [_Block()]
        self._block_size = _FIRST_BLOCK

    def update(self, logit: Array, label: Array, weight: Array) -> None:
        """Add N samples, as they were predicted before anything learned them.

        Args:
            logit: (N,) logits.
            label: (N,) labels, 0 or 1.
            weight: (N,) correction weights; a sample of weight 0 is not counted.

        Raises:
            WeightError: an input is NaN, infinite or out of range.
        """
        check_finite("logit", logit)
        check_labels(label)
        check_weights("weight", weight)
        logit, label, weight = drop_weightless(weight, logit, label, weight)
        size = self._block_size  # blocks may be merged, and so grow, on the way
        for start in range(0, len(logit), size):
            end = start + size
            self._add(logit[start:end], label[start:end], weight[start:end])

    def _add(self, logit: Array, label: Array, weight: Array) -> None:
        place = (logit + _EDGE) * (_NUM_BINS / (2 * _EDGE))
        bins = np.clip(place, 0, _NUM_BINS - 1).astype(np.int64)
        per_label = [np.bincount(bins, weight * (label == y), _NUM_BINS) for y in (0, 1)]
        counts: Array = np.stack(per_label).astype(np.float64)
        loss = np.logaddexp(0, np.where(label > 0, -logit, logit))
        columns = loss, expit(logit), label, np.ones_like(label)
        sums = np.array([*((weight * column).sum() for column in columns), len(label)])
        self._blocks[-1] += _Block(counts, sums)
        if self._blocks[-1].num_samples >= self._block_size:
            self._blocks.append(_Block())
        if len(self._blocks) > MAX_BLOCKS:
            pairs = self._blocks + [_Block()] * (len(self._blocks) % 2)
            self._blocks = [a + b for a, b in zip(pairs[::2], pairs[1::2], strict=True)]
            self._block_size *= 2

    def get(self) -> dict[str, float]:
        """Return the figures of the whole stream."""
        return _report(self._blocks)

    def latest(self) -> dict[str, float]:
        """Return the figures of the newest blocks: 8 or 9, if there are as many."""
        return _report(self._blocks[-_LATEST - 1 :])

    def quarters(self) -> list[dict[str, float]]:
        """Return the figures of four parts of the stream, oldest first.

        The parts have about equal numbers of samples. While there are fewer than four blocks, there
        are fewer parts.
        """
        blocks = [block for block in self._blocks if block.num_samples]
        parts = np.array_split(np.arange(len(blocks)), 4)
        return [_report([blocks[i] for i in part]) for part in parts if len(part)]

    def calibration(self) -> tuple[Array, Array, Array]:
        """Return mean prediction, share of positives and samples, (10,) each.

        One entry per tenth of the probability scale, 0 where there are no samples.
        """
        counts = _total(self._blocks[-_LATEST - 1 :]).counts
        centres = expit(_centres())
        tenth = np.minimum((centres * _DECILES).astype(np.int64), _DECILES - 1)
        number = np.bincount(tenth, counts.sum(0), minlength=_DECILES)
        predicted = np.bincount(tenth, counts.sum(0) * centres, minlength=_DECILES)
        observed = np.bincount(tenth, counts[1], minlength=_DECILES)
        least = np.maximum(number, 1e-12)
        return predicted / least, observed / least, number.astype(np.float64)

    def snapshot(self) -> bytes:
        """Return the state as msgpack; equal state gives equal bytes."""
        blocks = [[_sparse(block.counts), block.sums.tolist()] for block in self._blocks]
        state = {"format": FORMAT, "size": self._block_size, "blocks": blocks}
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
        self._blocks = [
            _Block(_dense(places, values), np.array(sums))
            for (places, values), sums in state["blocks"]
        ]


def _report(blocks: list[_Block]) -> dict[str, float]:
    """Return the figures that are defined for these samples."""
    block = _total(blocks)
    loss, _, positives, n, num_samples = block.sums
    found: dict[str, float] = {"num_samples": float(num_samples)}
    if n:
        found["log_loss"] = float(loss / n)
        found["positive_ratio"] = float(positives / n)
    if 0 < positives < n:
        found |= _report_both_labels(block)
    return found


def _report_both_labels(block: _Block) -> dict[str, float]:
    """Return the figures that need positives as well as negatives."""
    loss, predicted, positives, n, _ = block.sums
    rate = positives / n
    entropy = -(rate * np.log(rate) + (1 - rate) * np.log(1 - rate))
    negative, positive = block.counts
    below = np.cumsum(negative) - negative
    ordered = (positive * (below + negative / 2)).sum()
    mass = block.counts.sum(0)
    bins = np.minimum(np.cumsum(mass) / n * _MASS_BINS, _MASS_BINS - 1).astype(np.int64)
    excess = np.bincount(bins, mass * expit(_centres()) - positive, minlength=_MASS_BINS)
    return {
        "auc": float(ordered / (positives * (n - positives))),
        "normalized_entropy": float(loss / n / entropy),
        "predicted_to_observed": float(predicted / positives),
        "calibration_error": float(np.abs(excess).sum() / n),
    }


def _total(blocks: list[_Block]) -> _Block:
    return sum(blocks, _Block())


def _centres() -> Array:
    places: Array = np.arange(_NUM_BINS, dtype=np.float64) + 0.5
    return places * (2 * _EDGE / _NUM_BINS) - _EDGE


def _sparse(counts: Array) -> list[list[float]]:
    places = np.flatnonzero(counts)
    return [places.tolist(), counts.ravel()[places].tolist()]


def _dense(places: list[int], values: list[float]) -> Array:
    counts = np.zeros(2 * _NUM_BINS)
    counts[places] = values
    return counts.reshape(2, _NUM_BINS)
