"""Prequential evaluation: ranking within lists, log loss against position, calibration.

Legend: N samples, B bins of the score's logit, F figures that are ratios over lists.

Most of what separates clicks from other items is the position. So rankings are judged within lists
and corrected for position (`list_metrics`), by the score as if each item were shown first, beside
the order in which the shop showed them; and the log loss is compared with that of a model that
knows only the position (`position_baseline`). The pooled AUC says little but for tasks in which
the position does not matter.

Copies are weighted by the delay correction: a late positive is judged when it comes, and expected
sums are those of the final labels. Rankings are judged by the first copies alone, with which the
others of their list come.

Figures are of the whole stream, its latest part or its quarters. Scores are kept as weights in 400
bins of width 0.05 over logits -10 to 10, so memory is bounded whatever the stream's length: at most
128 blocks of equal numbers of samples, merged two by two when there are more. AUC from bins counts
ties within a bin as one half.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from learner.list_metrics import gains, list_sums
from learner.position_baseline import PositionBaseline
from learner.ratio_sums import NORMAL, NUM_SUMS, ratio, ratio_sums
from weighting.checks import check, check_finite, check_labels, check_weights

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
FORMAT = 3
RATIOS = (
    "within_list_auc",
    "ndcg",
    "shown_ndcg",
    "ndcg_gain",
    "mrr",
    "shown_mrr",
    "mrr_gain",
    "position_normalized_entropy",
)
"""Figures with a 95 % interval, ``figure_low`` to ``figure_high``.

`shown_` is of the order in which the shop showed the list, `_gain` ours less the shop's, paired.
"""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Judged:
    """N samples of one task, as they were predicted before anything learned them.

    Attributes:
        logit: (N,) logits where each was shown.
        relevance: (N,) logits as if each were shown first.
        label: (N,) labels, 0 or 1.
        weight: (N,) correction weights; a sample of weight 0 is not counted.
        examination: (N,) theta in (0, 1], examination probabilities.
        position: (N,) 1-based positions, 0 where unknown.
        lists: (N,) number of the list of each, samples of a list one after another; negative for
            none, also for copies that come without the others of their list.
    """

    logit: Array
    relevance: Array
    label: Array
    weight: Array
    examination: Array
    position: NDArray[np.intp]
    lists: NDArray[np.intp]

    def __getitem__(self, which: slice | NDArray[np.bool_]) -> Judged:
        """Return some of the samples."""
        return Judged(**{each.name: getattr(self, each.name)[which] for each in fields(self)})


class _Block:
    """Sums over a run of samples.

    Attributes:
        counts: (2, B) weights per label and bin.
        sums: weighted log loss, predictions and labels, weights, samples, lists with a click.
        ratios: (F, 5) of `ratio_sums`.
    """

    __slots__ = ("counts", "ratios", "sums")

    def __init__(
        self, counts: Array | None = None, sums: Array | None = None, ratios: Array | None = None
    ) -> None:
        self.counts = np.zeros((2, _NUM_BINS)) if counts is None else counts
        self.sums = np.zeros(6) if sums is None else sums
        self.ratios = np.zeros((len(RATIOS), NUM_SUMS)) if ratios is None else ratios

    def __add__(self, other: _Block) -> _Block:
        return _Block(
            self.counts + other.counts, self.sums + other.sums, self.ratios + other.ratios
        )

    def __sub__(self, other: _Block) -> _Block:
        return _Block(
            self.counts - other.counts, self.sums - other.sums, self.ratios - other.ratios
        )

    @property
    def num_samples(self) -> int:
        return int(self.sums[4])


class Evaluation:
    """Prequential evaluation of one task; see `Judged` for what it takes."""

    def __init__(self) -> None:
        """Start with nothing scored."""
        self._blocks = [_Block()]
        self._block_size = _FIRST_BLOCK
        self._baseline = PositionBaseline()

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
        logit, label, weight = judged.logit, judged.label, judged.weight
        place = (logit + _EDGE) * (_NUM_BINS / (2 * _EDGE))
        bins = np.clip(place, 0, _NUM_BINS - 1).astype(np.int64)
        per_label = [np.bincount(bins, weight * (label == y), _NUM_BINS) for y in (0, 1)]
        counts: Array = np.stack(per_label).astype(np.float64)
        loss = weight * _log_loss(logit, label)
        known = self._baseline.predict(judged.position)
        known_loss = weight * _log_loss(np.log(known / (1 - known)), label)
        self._baseline.learn(judged.position, label, weight)
        run = _runs(judged.lists)
        entropies: Array = np.array([[np.bincount(run, own) for own in (loss, known_loss)]])
        rankings, num_lists = _rankings(judged)
        ratios = np.concatenate([ratio_sums(rankings), ratio_sums(entropies)])
        totals = loss, weight * expit(logit), weight * label, weight
        sums = np.array([*(total.sum() for total in totals), len(label), num_lists])
        self._blocks[-1] += _Block(counts, sums, ratios)
        if self._blocks[-1].num_samples >= self._block_size:
            self._blocks.append(_Block())
        if len(self._blocks) > MAX_BLOCKS:
            pairs = self._blocks + [_Block()] * (len(self._blocks) % 2)
            self._blocks = [a + b for a, b in zip(pairs[::2], pairs[1::2], strict=True)]
            self._block_size *= 2

    def get(self) -> dict[str, float]:
        """Return the figures of the whole stream."""
        return _report(self._blocks)

    def since(self, before: Evaluation) -> dict[str, float]:
        """Return the figures of the samples after an earlier state of this evaluation."""
        return _report([_total(self._blocks) - _total(before._blocks)])

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
        blocks = [
            [_sparse(block.counts), block.sums.tolist(), block.ratios.tolist()]
            for block in self._blocks
        ]
        state = {
            "format": FORMAT,
            "size": self._block_size,
            "blocks": blocks,
            "baseline": self._baseline.snapshot(),
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
        self._blocks = [
            _Block(_dense(places, values), np.array(sums), np.array(ratios))
            for (places, values), sums, ratios in state["blocks"]
        ]
        self._baseline.restore(state["baseline"])


def _pieces(lists: NDArray[np.intp], size: int) -> Iterator[slice]:
    """Yield pieces of N samples, each at least `size` unless it is the last; no list is divided."""
    start, run = 0, _runs(lists)
    while start < len(run):
        last = min(start + size, len(run)) - 1
        end = int(np.searchsorted(run, run[last], side="right"))
        yield slice(start, end)
        start = end


def _runs(lists: NDArray[np.intp]) -> NDArray[np.intp]:
    """Return ascending numbers (N,), one for each list and each sample without a list."""
    new = (np.diff(lists, prepend=-1) != 0) | (lists < 0)
    return np.cumsum(new) - 1


def _log_loss(logit: Array, label: Array) -> Array:
    loss: Array = np.logaddexp(0, np.where(label > 0, -logit, logit))
    return loss


def _rankings(judged: Judged) -> tuple[Array, int]:
    """Return sums (F - 1, 2, L) of lists, and their number, of those with a click.

    A list of one item has no order.
    """
    listed = judged[(judged.lists >= 0) & (judged.position > 0)]
    run = _runs(listed.lists)
    kept = (np.bincount(run) > 1)[run]
    listed = listed[kept]
    if not listed.label.any():
        return np.zeros((len(RATIOS) - 1, 2, 0)), 0
    run, gain = _runs(listed.lists), gains(listed.label, listed.examination)
    ours = list_sums(run, listed.relevance, gain)
    shown = list_sums(run, -listed.position.astype(np.float64), gain)
    dcg, reciprocal = ours.dcg_of, ours.reciprocal_rank_of
    terms = {
        "within_list_auc": (ours.auc, ours.auc_of),
        "ndcg": (ours.dcg, dcg),
        "shown_ndcg": (shown.dcg, dcg),
        "ndcg_gain": (ours.dcg - shown.dcg, dcg),
        "mrr": (ours.reciprocal_rank, reciprocal),
        "shown_mrr": (shown.reciprocal_rank, reciprocal),
        "mrr_gain": (ours.reciprocal_rank - shown.reciprocal_rank, reciprocal),
    }
    stacked: Array = np.array([terms[name] for name in RATIOS[:-1]])
    return stacked, int((reciprocal > 0).sum())


def _report(blocks: list[_Block]) -> dict[str, float]:
    """Return the figures that are defined for these samples."""
    block = _total(blocks)
    loss, _, positives, n, num_samples, num_lists = block.sums
    found = {"num_samples": float(num_samples), "num_lists": float(num_lists)}
    if n:
        found["log_loss"] = float(loss / n)
        found["positive_ratio"] = float(positives / n)
    if 0 < positives < n:
        found |= _report_both_labels(block)
        for name, sums in zip(RATIOS, block.ratios, strict=True):
            estimate = ratio(sums)
            if estimate is not None:
                value, error = estimate
                found[name] = value
                found[f"{name}_low"] = value - NORMAL * error
                found[f"{name}_high"] = value + NORMAL * error
    return found


def _report_both_labels(block: _Block) -> dict[str, float]:
    """Return the figures that need positives as well as negatives."""
    _, predicted, positives, n, _, _ = block.sums
    negative, positive = block.counts
    below = np.cumsum(negative) - negative
    ordered = (positive * (below + negative / 2)).sum()
    mass = block.counts.sum(0)
    bins = np.minimum(np.cumsum(mass) / n * _MASS_BINS, _MASS_BINS - 1).astype(np.int64)
    excess = np.bincount(bins, mass * expit(_centres()) - positive, minlength=_MASS_BINS)
    return {
        "auc": float(ordered / (positives * (n - positives))),
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
