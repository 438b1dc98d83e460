"""Figures of scores on lists held back: accuracy, F1, AUC and NDCG@10.

Legend: N rows, L lists, Q queries.

Rows whose label is at least 1/2 are positive. Accuracy and F1 are of p(click) at a threshold: the
one of the highest F1 on the part that decides when to stop. AUC is over all pairs of a positive and
a negative row, where a tie counts half (Mann and Whitney 1947). NDCG@10 has the label as gain and
is a mean over queries with a positive and something to compare it with; equal scores have the mean
of their ranks' discounts. Its interval is a bootstrap over queries.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from deploy.demo.judge import interval
from deploy.fitting.examples import Examples
from learner.evaluation.list_metrics import list_sums
from learner.request import Document, Scorer, ScoringInput
from learner.scorer import load_scorer
from weighting.query_key import query_key
from weighting.sample import client_hash
from weighting.tasks import CLICK

Array = NDArray[np.float64]
_LISTS_AT_ONCE = 32


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Scored:
    """Scores of N rows in L lists.

    Attributes:
        score: (N,) that serving sorts by.
        probability: (N,) p(click).
    """

    score: Array
    probability: Array


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """Figures of one part.

    Attributes:
        accuracy: share of rows on the right side of the threshold.
        f1: harmonic mean of precision and recall there.
        auc: NaN where all rows are of one side.
        ndcg: NDCG@10; NaN where no list has anything to compare.
        ndcg_low: lower end of its 95 % interval.
        ndcg_high: upper end.
        queries: that NDCG is of.
    """

    accuracy: float
    f1: float
    auc: float
    ndcg: float
    ndcg_low: float
    ndcg_high: float
    queries: int

    def plain(self) -> dict[str, float | None]:
        """Return the figures for JSON, None for NaN."""
        return {k: None if v != v else v for k, v in asdict(self).items()}


@contextmanager
def loaded(files: Mapping[str, bytes], *, threads: int) -> Iterator[Scorer]:
    """Load a scorer from the files of a version, as serving does."""
    with tempfile.TemporaryDirectory(prefix="steelyard-fit-") as folder:
        for name, data in files.items():
            path = Path(folder, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        yield load_scorer(Path(folder), "fit", threads=threads)


def score(scorer: Scorer, lists: Sequence[Examples]) -> Scored:
    """Score the items of L lists, each as a request."""
    scores: list[Array] = []
    probabilities: list[Array] = []
    for start in range(0, len(lists), _LISTS_AT_ONCE):
        requests = [_request(own) for own in lists[start : start + _LISTS_AT_ONCE]]
        for found in scorer.score(requests):
            scores.append(found.score)
            probabilities.append(found.probability[CLICK])
    return Scored(score=np.concatenate(scores), probability=np.concatenate(probabilities))


def _request(own: Examples) -> ScoringInput:
    columns = zip(own.items, own.texts, own.attributes, strict=True)
    documents = tuple(Document(id=item, text=text, attributes=of) for item, text, of in columns)
    return ScoringInput(query=own.query, documents=documents, client=client_hash(own.client_id))


def grades(lists: Sequence[Examples]) -> Array:
    """Return the labels (N,) as the file has them."""
    return np.array([grade for own in lists for grade in own.grades])


def shown_order(lists: Sequence[Examples]) -> Array | None:
    """Return scores (N,) by which the lists have the order that was shown; None if unknown."""
    positions = [at for own in lists for at in own.positions]
    if any(at is None for at in positions):
        return None
    return -np.array(positions, dtype=np.float64)


def ndcg_of_queries(lists: Sequence[Examples], score: Array) -> Array:
    """Return NDCG@10 (Q,) of each query, the mean of its lists; in order of the queries' keys.

    Lists without a positive label, or with equal labels only, say nothing and are left out.
    """
    grade = grades(lists)
    number = np.repeat(np.arange(len(lists)), [len(own.rows) for own in lists])
    sums = list_sums(number, score, grade)
    start = np.flatnonzero(np.diff(number, prepend=-1))
    says = np.maximum.reduceat(grade, start) > np.minimum.reduceat(grade, start)
    by_query: dict[str, list[float]] = {}
    for place in np.flatnonzero(says).tolist():
        found = float(sums.dcg[place] / sums.dcg_of[place])
        by_query.setdefault(query_key(lists[place].query), []).append(found)
    return np.array([np.mean(by_query[key]) for key in sorted(by_query)])


def auc(score: Array, positive: NDArray[np.bool_]) -> float:
    """Return the area under the ROC curve of N rows; NaN where all are of one side.

    >>> auc(np.array([0.1, 0.5, 0.5, 0.9]), np.array([False, False, True, True]))
    0.875
    """
    num_positive = int(positive.sum())
    num_pairs = num_positive * (len(positive) - num_positive)
    if not num_pairs:
        return float("nan")
    _, tie, sizes = np.unique(score, return_inverse=True, return_counts=True)
    rank = (np.cumsum(sizes) - (sizes - 1) / 2)[tie]  # from 1, the mean of equal scores
    least = num_positive * (num_positive + 1) / 2
    return float((rank[positive].sum() - least) / num_pairs)


def f1(probability: Array, positive: NDArray[np.bool_], threshold: float) -> float:
    """Return F1 of N rows, 0 where nothing is found."""
    found = probability >= threshold
    hits = float((found & positive).sum())
    total = float(found.sum() + positive.sum())
    return 2 * hits / total if total else 0.0


def best_threshold(probability: Array, positive: NDArray[np.bool_]) -> float:
    """Return the threshold of the highest F1, the largest of equals; 1/2 without a positive."""
    if not positive.any():
        return 0.5
    order = np.argsort(-probability, kind="stable")
    p, hits = probability[order], np.cumsum(positive[order])
    last = np.flatnonzero(np.diff(p, append=-np.inf) != 0)  # of each group of equal probabilities
    values = 2 * hits[last] / (last + 1 + int(positive.sum()))
    return float(p[last[int(np.argmax(values))]])


def figures(lists: Sequence[Examples], scored: Scored, threshold: float) -> Figures:
    """Return the figures of L lists."""
    positive = grades(lists) >= 0.5
    ndcg = ndcg_of_queries(lists, scored.score)
    mean, low, high = interval(ndcg) if len(ndcg) else (float("nan"),) * 3
    return Figures(
        accuracy=float(((scored.probability >= threshold) == positive).mean()),
        f1=f1(scored.probability, positive, threshold),
        auc=auc(scored.probability, positive),
        ndcg=mean,
        ndcg_low=low,
        ndcg_high=high,
        queries=len(ndcg),
    )
