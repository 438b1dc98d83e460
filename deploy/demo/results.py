"""Results of the demo: figures while it runs, and at the end what stream and model came to."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, TypeAlias

import msgspec
import numpy as np

from deploy.demo.judge import Array, ClickCounts, judge, ndcg, summary
from deploy.demo.server import Ranking
from deploy.demo.traffic import Requests
from deploy.demo.world import Query, Shoppers, World
from learner.artifact import Store
from learner.config import LearnerConfig
from learner.evaluation.evaluation import Evaluation
from learner.parts.stateless import ENCODER_START, ZERO_SHOT_START
from learner.version_layout import EVALUATIONS
from weighting.config import WeigherConfig

#: With nothing learned, the served click logit is a cos + constant: the sum over encoder and
#: zero-shot part of coefficient x scale, the encoder's less the inversion of the weights' exponent.
_UNTRAINED_SLOPE = LearnerConfig().logit_scale * (
    ENCODER_START / (1 + WeigherConfig().first_scheme().exponent) + ZERO_SHOT_START
)

Metrics: TypeAlias = Mapping[tuple[str, frozenset[tuple[str, str]]], float]
"""Page of metrics: (series, its labels) -> value."""

_CLICK = frozenset({("label", "click")})
_PRIOR = ("steelyard_label_prior_ratio", _CLICK)
_ESS: tuple[str, frozenset[tuple[str, str]]]
_ESS = ("steelyard_weight_effective_sample_ratio", frozenset())


def progress(metrics: Metrics, info: Mapping[str, Any], requests: Requests) -> dict[str, Any]:
    """Return the figures of the progress view; None for those not known yet."""
    quality = frozenset({("label", "click"), ("model", "champion")})
    auc = metrics.get(("steelyard_prequential_within_list_auc_ratio", quality))
    entropy = metrics.get(("steelyard_prequential_position_normalized_entropy_ratio", quality))
    return {
        "events": f"{num_events(metrics):,}",
        "samples": f"{total(metrics, 'steelyard_learner_samples_total'):,.0f}",
        "prior": _rounded(metrics.get(_PRIOR), 4),
        "weight_ess_ratio": _rounded(metrics.get(_ESS), 2),
        "within_list_auc": _rounded(auc, 3),
        "position_normalized_entropy": _rounded(entropy, 3),
        "version": info["version"],
        "swaps": info["swaps"],
        "requests": f"{requests.failed}/{requests.sent}",
    }


def stream(
    metrics: Metrics, info: Mapping[str, Any], requests: Requests, store: Store
) -> dict[str, Any]:
    """Return the counts and figures of the stream, the learner and the server."""
    newest = store.version(str(store.announced()))
    return {
        "events": num_events(metrics),
        "samples": newest.num_samples,
        "duplicates": int(total(metrics, "steelyard_consumer_events_total", outcome="duplicate")),
        "late": int(total(metrics, "steelyard_consumer_events_total", outcome="late")),
        "dead_letters": int(total(metrics, "steelyard_deadletter_events_total")),
        "versions_published": newest.seq,
        "versions_swapped": info["swaps"],
        **_answers(requests),
        "freshness_p50_seconds": info["freshness_p50_seconds"],
        "freshness_p99_seconds": info["freshness_p99_seconds"],
        **_evaluation(store.read(newest, EVALUATIONS)),
        "weight_ess_ratio": metrics[_ESS],
        "prior": metrics[_PRIOR],
        "prior_low": metrics[_prior_bound("low")],
        "prior_high": metrics[_prior_bound("high")],
    }


def quality(
    world: World,
    before: Mapping[str, Ranking],
    after: Mapping[str, Ranking],
    counts: ClickCounts,
    *,
    seed: int,
) -> dict[str, Any]:
    """Judge the last version by grades and by the truth of the simulation.

    Args:
        world: the shop.
        before: rankings of the first version, by query.
        after: rankings of the last one.
        counts: clicks in the stream, for a ranking that only counts them.
        seed: of the shoppers.
    """

    def cosine(query: Query) -> Array:
        p = before[query.text].p_click
        value: Array = (np.log(p) - np.log1p(-p)) / _UNTRAINED_SLOPE
        return value

    judged = judge(world, served=lambda q: after[q.text].score, zero_shot=cosine, counts=counts)
    shoppers = Shoppers(world, seed=seed)
    asked = [query for query in world.queries if query.in_stream]

    def error(rankings: Mapping[str, Ranking]) -> float:
        gaps = [np.abs(rankings[q.text].p_click - shoppers.true_click(q))[q.shown] for q in asked]
        return float(np.concatenate(gaps).mean())

    return {
        "truth_error": [error(before), error(after)],
        "ndcg10": summary(judged),
        "per_query": {
            part: {method: values.tolist() for method, values in methods.items()}
            for part, methods in judged.items()
        },
        "ranking": _most_improved(asked, before, after),
    }


def total(metrics: Metrics, name: str, **labels: str) -> float:
    """Return the sum of a series over all labels but those given."""
    wanted = set(labels.items())
    return sum(value for (own, found), value in metrics.items() if own == name and wanted <= found)


def num_events(metrics: Metrics) -> int:
    """Return the number of exposures, clicks and purchases read; product texts do not count."""
    events = total(metrics, "steelyard_consumer_events_total")
    return int(events - total(metrics, "steelyard_consumer_events_total", event="item"))


def _rounded(value: float | None, digits: int) -> str | None:
    return None if value is None or math.isnan(value) else f"{value:.{digits}f}"


def _prior_bound(bound: str) -> tuple[str, frozenset[tuple[str, str]]]:
    labels = frozenset({("label", "click"), ("bound", bound)})
    return "steelyard_label_prior_bound_ratio", labels


def _answers(requests: Requests) -> dict[str, Any]:
    seconds = requests.seconds
    return {
        "requests": requests.sent,
        "requests_failed": requests.failed,
        "failures": dict(requests.failures),
        "versions_answering": len(requests.versions),
        "request_p50_ms": 1000 * float(np.median(seconds)) if seconds else None,
        "request_p99_ms": 1000 * float(np.quantile(seconds, 0.99)) if seconds else None,
    }


def _evaluation(snapshot: bytes) -> dict[str, Any]:
    kept: dict[str, bytes] = msgspec.msgpack.decode(snapshot)
    evaluation = Evaluation()
    evaluation.restore(kept["click"])
    whole, quarters = evaluation.get(), evaluation.quarters()
    found: dict[str, Any] = {}
    for figure in ("within_list_auc", "position_normalized_entropy", "ndcg_gain"):
        found[figure] = whole.get(figure)
        found[f"{figure}_quarters"] = [quarter.get(figure) for quarter in quarters]
    for bound in ("low", "high"):
        found[f"ndcg_gain_{bound}"] = whole.get(f"ndcg_gain_{bound}")
    return {**found, "predicted_to_observed": whole.get("predicted_to_observed")}


def _most_improved(
    queries: list[Query], before: Mapping[str, Ranking], after: Mapping[str, Ranking]
) -> dict[str, Any]:
    """Return the query whose NDCG@3 rose most, with its first products before and after."""

    def gain(query: Query) -> float:
        was, now = before[query.text].score, after[query.text].score
        return float(ndcg(now, query.grades, k=3) - ndcg(was, query.grades, k=3))

    moved = max(queries, key=gain)

    def top(rankings: Mapping[str, Ranking]) -> list[str]:
        order = np.argsort(-rankings[moved.text].score, kind="stable")[:3]
        return [moved.products[i].text[:40] for i in order]

    return {"query": moved.text, "before": top(before), "after": top(after)}
