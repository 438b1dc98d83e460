"""Ranking metrics within lists: their definitions item by item, and what they tell apart."""

from __future__ import annotations

import math
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from learner.evaluation.evaluation import Evaluation
from learner.evaluation.judged import Judged
from learner.evaluation.list_metrics import gains, list_sums
from learner.evaluation.ratio_sums import NORMAL, ratio, ratio_sums
from tests.learner.judging import LIST_SIZE, shop

Array = NDArray[np.float64]
HEADLINES = ("within_list_auc", "ndcg", "mrr")
items = st.tuples(st.integers(0, 2), st.sampled_from([0.0, 1.0, 2.5]))
shown = st.lists(st.lists(items, min_size=1, max_size=4), min_size=1, max_size=4)


def error_of(found: dict[str, float], figure: str) -> float:
    return (found[f"{figure}_high"] - found[f"{figure}_low"]) / (2 * NORMAL)


@settings(deadline=None, max_examples=60)
@given(shown)
def test_sums_are_the_means_over_all_orders_of_equal_scores(
    rows: list[list[tuple[int, float]]],
) -> None:
    number = np.repeat(np.arange(len(rows)), [len(row) for row in rows])
    flat = [item for row in rows for item in row]
    score, gain = np.array([s for s, _ in flat], dtype=float), np.array([g for _, g in flat])
    found = list_sums(number, score, gain)
    for i, row in enumerate(rows):
        orders = [
            o for o in permutations(row) if [s for s, _ in o] == sorted([s for s, _ in row])[::-1]
        ]
        dcg = [sum(g / math.log2(2 + k) for k, (_, g) in enumerate(o)) for o in orders]
        reciprocal = [sum(g / (1 + k) for k, (_, g) in enumerate(o)) for o in orders]
        best = sum(g / math.log2(2 + k) for k, g in enumerate(sorted([g for _, g in row])[::-1]))
        pairs = [(a, b) for j, a in enumerate(row) for k, b in enumerate(row) if j != k]
        auc = sum(g * (1 - h) * ((s > t) + (s == t) / 2) for (s, g), (t, h) in pairs)
        assert found.dcg[i] == pytest.approx(np.mean(dcg), abs=1e-12)
        assert found.dcg_of[i] == pytest.approx(best, abs=1e-12)
        assert found.reciprocal_rank[i] == pytest.approx(np.mean(reciprocal), abs=1e-12)
        assert found.reciprocal_rank_of[i] == pytest.approx(sum(g for _, g in row))
        assert found.auc[i] == pytest.approx(auc, abs=1e-12)
        assert found.auc_of[i] == pytest.approx(sum(g * (1 - h) for (_, g), (_, h) in pairs))


def test_ranks_below_ten_add_nothing_to_ndcg() -> None:
    gain = np.zeros(30)
    gain[15] = 1.0
    found = list_sums(np.zeros(30, dtype=int), -np.arange(30.0), gain)
    assert found.dcg.tolist() == [0.0]
    assert found.reciprocal_rank.tolist() == [1 / 16]


def test_clicks_count_by_their_examination_up_to_ten() -> None:
    found = gains(np.array([1, 1, 1, 0.0]), np.array([1, 0.5, 1e-6, 0.5]))
    assert found.tolist() == [1, 2, 10, 0]


def test_standard_errors_are_those_of_repetition() -> None:
    draw = np.random.default_rng(3)
    found = []
    for _ in range(300):
        d = draw.exponential(size=120)
        x = d * draw.random(120)
        estimate = ratio(ratio_sums(np.stack([[x, d]]))[0])
        assert estimate is not None
        found.append(estimate)
    value, error = np.array(found).T
    assert value.mean() == pytest.approx(0.5, abs=0.01)
    assert error.mean() == pytest.approx(value.std(), rel=0.12)


def test_few_lists_have_no_figure() -> None:
    assert ratio(ratio_sums(np.ones((1, 2, 7)))[0]) is None
    assert ratio(ratio_sums(np.ones((1, 2, 8)))[0]) == (1, 0)
    assert ratio(np.zeros(5)) is None


def test_a_ranker_that_knows_only_the_position_is_at_chance_within_lists_but_not_pooled() -> None:
    at_random = shop(4_000)
    order = np.tile(-np.arange(LIST_SIZE, dtype=float), (4_000, 1))  # the order shown
    constant = np.full_like(order, -1.0)  # its relevance, if it knows theta
    by_chance: Array = np.asarray(np.random.default_rng(1).normal(size=order.shape))
    chance = at_random.judge(by_chance).get()
    rankers: list[Array] = [order, constant]
    for score in rankers:
        p = np.broadcast_to(at_random.theta * 0.2, order.shape)
        found = at_random.judge(score, logit=np.log(p / (1 - p))).get()
        assert found["auc"] > 0.65
        assert found["within_list_auc"] == pytest.approx(
            0.5, abs=3.5 * error_of(found, "within_list_auc")
        )
        for figure in ("ndcg", "mrr"):
            error = math.hypot(error_of(found, figure), error_of(chance, figure))
            assert found[figure] == pytest.approx(chance[figure], abs=3.5 * error + 1e-9)
        assert error_of(found, "within_list_auc") < 0.02
        assert found["position_normalized_entropy"] > 0.99


@pytest.mark.parametrize("sorting", [0.0, 1.0])
def test_a_better_ranking_by_the_truth_is_better_by_every_headline(sorting: float) -> None:
    shown = shop(3_000, seed=2, sorting=sorting)
    draw = np.random.default_rng(5)
    truth = np.log(shown.relevance / (1 - shown.relevance))
    scores = [truth + noise * draw.normal(size=truth.shape) for noise in (0, 1.0, 2.5, 12.0)]
    true = [shown.true_ndcg(score) for score in scores]
    found = [shown.judge(score).get() for score in scores]
    assert true == sorted(true, reverse=True)
    for figure in HEADLINES:
        values = [each[figure] for each in found]
        assert values == sorted(values, reverse=True), figure
    entropies = [each["position_normalized_entropy"] for each in found[:3]]
    assert entropies == sorted(entropies)
    assert entropies[0] < 0.95


def test_corrected_ndcg_of_the_shown_order_does_not_profit_from_being_shown() -> None:
    sorted_by_shop = shop(6_000, seed=4, sorting=1.0)
    order = np.tile(-np.arange(LIST_SIZE, dtype=float), (6_000, 1))
    truth = np.log(sorted_by_shop.relevance)
    found = sorted_by_shop.judge(truth).get()
    gap = sorted_by_shop.true_ndcg(truth) - sorted_by_shop.true_ndcg(order)
    assert gap > 0.05
    assert found["ndcg_gain"] > 3 * error_of(found, "ndcg_gain")
    assert found["ndcg_gain"] == pytest.approx(found["ndcg"] - found["shown_ndcg"])
    same = sorted_by_shop.judge(order).get()
    assert (same["ndcg_gain"], same["mrr_gain"]) == (0, 0)


def test_a_list_is_judged_whole_whatever_the_size_of_an_update() -> None:
    at_random = shop(500)
    score = np.random.default_rng(0).normal(size=at_random.relevance.shape)
    whole = at_random.judge(score, chunk=500).get()
    for chunk in (1, 7, 100):
        found = at_random.judge(score, chunk=chunk).get()
        for figure in (*HEADLINES, "num_lists", "num_samples", "log_loss"):
            assert found[figure] == pytest.approx(whole[figure]), figure


def test_late_copies_and_lists_of_one_item_have_no_order() -> None:
    position = np.ones(40, dtype=np.intp)
    for lists in (np.arange(40), np.full(40, -1)):
        evaluation = Evaluation()
        evaluation.update(
            Judged(
                logit=np.zeros(40),
                relevance=np.arange(40.0),
                weight=np.ones(40),
                label=np.tile([1.0, 0.0], 20),
                examination=np.ones(40),
                position=position,
                lists=lists,
            )
        )
        assert evaluation.get()["num_lists"] == 0
        assert "within_list_auc" not in evaluation.get()
