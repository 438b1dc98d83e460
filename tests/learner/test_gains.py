"""Is our order better than the shop's: by scenario, by frequency of the query, of purchases."""

from __future__ import annotations

from dataclasses import replace

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray

from learner.artifact import Document, ScoringInput
from learner.evaluation.block import FREQUENCY, SCENARIO, WEIGHT_EDGES
from learner.evaluation.evaluation import MAX_SCENARIOS, OTHER, Evaluation
from learner.evaluation.judged import Judged
from learner.evaluation.rankings import GAINS, RATIOS, rankings
from learner.scorer import ModelScorer
from learner.trainer import Trainer
from tests.learner.judging import LIST_SIZE, Array, Shop, details_of, shop
from tests.learner.training import batches, lists, trainer
from weighting.sample import Sample
from weighting.tasks import CLICK, PURCHASE

MRR, SHOWN_MRR, NDCG = (RATIOS.index(name) for name in ("mrr", "shown_mrr", "ndcg"))


def told_apart(shown: Shop, score: Array) -> Evaluation:
    """Every third list is a recommendation of a query that came often, the others are searches."""
    number = len(score)
    scenario = [("gifts", "search", "search")[i % 3] for i in range(number)]
    earlier = [(500, 0, 20)[i % 3] for i in range(number)]
    return shown.judge(score, scenario=scenario, num_earlier=earlier, chunk=10)


def only(shown: Shop, keep: NDArray[np.bool_]) -> Shop:
    return Shop(shown.relevance[keep], shown.theta, shown.clicked[keep])


def test_a_list_that_counts_three_times_is_three_lists() -> None:
    shown = shop(40)
    number, ones = LIST_SIZE * 40, np.ones(LIST_SIZE * 40)
    found = Judged(
        logit=np.log(shown.relevance).ravel(),
        relevance=np.random.default_rng(1).normal(size=number),
        label=shown.clicked.ravel(),
        weight=ones,
        examination=np.tile(shown.theta, 40),
        position=np.tile(np.arange(1, LIST_SIZE + 1), 40),
        lists=np.repeat(np.arange(40), LIST_SIZE),
        details=details_of(["search"] * 40, [0] * 40),
    )
    assert found.details is not None
    thrice = replace(found, details=replace(found.details, factor=3 * ones))
    once = rankings(found)
    assert once.terms.any()
    np.testing.assert_allclose(rankings(thrice).terms, 3 * once.terms)


def test_gains_of_a_group_are_those_of_its_lists_alone() -> None:
    shown = shop(600)
    score = np.log(shown.relevance) + np.random.default_rng(1).normal(size=shown.relevance.shape)
    block = told_apart(shown, score).block()
    assert block.gains(SCENARIO).keys() == {"gifts", "search"}
    assert block.gains(FREQUENCY).keys() == {"0", "10-99", "100 or more"}
    place = np.arange(600) % 3
    for found, of in (
        (block.gains(SCENARIO)["gifts"], place == 0),
        (block.gains(SCENARIO)["search"], place > 0),
        (block.gains(FREQUENCY)["100 or more"], place == 0),
        (block.gains(FREQUENCY)["0"], place == 1),
    ):
        alone = only(shown, of).judge(score[of]).get()
        assert len(found) == 6
        for name, value in found.items():
            assert value == pytest.approx(alone[name]), name
    assert block.gains(SCENARIO)["gifts"] != block.gains(SCENARIO)["search"]


def test_gains_of_a_stretch_are_those_of_its_samples() -> None:
    first, second = shop(300, seed=1), shop(300, seed=2)
    evaluation, before = Evaluation(), Evaluation()
    names, earlier = ["search"] * 300, [0] * 300
    first.judge(np.log(first.relevance), into=evaluation, scenario=names, num_earlier=earlier)
    before.restore(evaluation.snapshot())
    score = -np.log(second.relevance)
    second.judge(score, into=evaluation, scenario=names, num_earlier=earlier)
    found = evaluation.block(before)
    alone = second.judge(score).get()
    assert found.gains(SCENARIO)["search"]["ndcg_gain"] == pytest.approx(alone["ndcg_gain"])
    later = evaluation.blocks(after=before.block().num_samples)
    # A part that began before is left out, whole
    assert 0.95 * found.num_samples < sum(b.num_samples for b in later) <= found.num_samples


def test_scenarios_beyond_the_bound_are_counted_together() -> None:
    shown = shop(2000)
    names = [f"name {i % 50}" for i in range(2000)]
    evaluation = shown.judge(np.log(shown.relevance), scenario=names, num_earlier=[0] * 2000)
    groups = {name for of, name in evaluation.block().groups if of == SCENARIO}
    assert len(groups) == MAX_SCENARIOS + 1
    assert OTHER in groups
    again = Evaluation()
    again.restore(evaluation.snapshot())
    shown.judge(np.log(shown.relevance), scenario=names, num_earlier=[0] * 2000, into=again)
    assert {name for of, name in again.block().groups if of == SCENARIO} == groups


def test_lists_without_a_scenario_are_in_none() -> None:
    shown = shop(100)
    none = [""] * 100
    evaluation = shown.judge(np.log(shown.relevance), scenario=none, num_earlier=[-1] * 100)
    assert evaluation.block().groups == {}
    assert evaluation.get()["num_lists"] > 0


def test_the_histogram_of_weights_counts_every_sample_once() -> None:
    block = told_apart(shop(30), np.zeros((30, 8))).block()
    assert block.weights.sum() == block.num_samples == 240
    bin_of_one = WEIGHT_EDGES.index(1.0) + 1
    assert block.weights[bin_of_one] == 240


def shown_list(samples: list[Sample], list_id: str) -> list[Sample]:
    return [s for s in samples if s.list_id == list_id and s.task == CLICK]


def purchase_of(clicked: Sample, label: int = 1) -> Sample:
    changes = {"task": PURCHASE, "label": label, "sample_id": "bought"}
    return msgspec.structs.replace(clicked, **changes)


def ranks(own: Trainer, shown: list[Sample], which: Sample) -> tuple[float, float]:
    """Reciprocal ranks of one item: by what would be served now, and as it was shown."""
    documents = [Document(text=s.text, id=s.item_id, attributes=s.attributes) for s in shown]
    scorer = ModelScorer("live", own.ranker, own.weigher, own.served)
    asked = ScoringInput(query=shown[0].query, documents=tuple(documents))
    score = scorer.score([asked])[0].score
    place = shown.index(which)
    assert which.position is not None
    return 1 / (1 + int((score > score[place]).sum())), 1 / which.position


def test_a_purchase_is_judged_by_its_list_as_it_was_scored_when_it_was_shown() -> None:
    own = trainer(tuning="frozen")
    for batch in batches(3):
        own.step([s for s in batch if s.task == CLICK])
    news = [s for s in lists(1, seed=9, start=900) if s.task == CLICK]
    (clicked,) = [s for s in news if s.label]
    ours, shown = ranks(own, news, clicked)
    own.step(news)
    for batch in batches(2, seed=50):
        own.step([s for s in batch if s.task == CLICK])
    assert own.evaluations[PURCHASE].block().ratios[MRR].tolist() == [0.0] * 5
    own.step([purchase_of(clicked, label=0)])
    assert own.evaluations[PURCHASE].block().ratios[MRR].tolist() == [0.0] * 5
    own.step([purchase_of(clicked)])
    block = own.evaluations[PURCHASE].block()
    gain = block.ratios[MRR, 1]
    assert 1 <= gain <= 10
    assert block.ratios[MRR, 0] / gain == pytest.approx(ours)
    assert block.ratios[SHOWN_MRR, 0] / gain == pytest.approx(shown)
    assert block.ratios[NDCG, 0] / gain == pytest.approx(1 / np.log2(1 + 1 / ours))
    assert block.figures()["num_lists"] == 1.0
    own.step([purchase_of(clicked)])  # a second copy finds nothing
    assert own.evaluations[PURCHASE].block().ratios[MRR, 1] == gain


def test_no_label_of_a_step_has_a_part_in_the_ranks_that_it_keeps() -> None:
    kept = []
    for label in (0, 1):
        own = trainer(tuning="frozen")
        own.step(batches(1)[0])
        news = [s for s in lists(6, seed=9, start=900) if s.task == CLICK]
        others = [purchase_of(s, label) for s in lists(20, seed=4, start=500) if s.task == CLICK]
        own.step([*news, *others])
        kept.append(own.copied()()["training/shown.msgpack"])
    assert kept[0] == kept[1]
    assert len(kept[0]) > 400


def test_purchases_have_gains_by_scenario_with_intervals() -> None:
    own, draw = trainer(tuning="frozen"), np.random.default_rng(3)
    for i in range(40):
        news = [
            msgspec.structs.replace(s, scenario=("search", "gifts")[i % 2])
            for s in lists(1, seed=i, start=i)
        ]
        news = [s for s in news if s.task == CLICK]
        bought = [purchase_of(s, int(draw.random() < 0.9)) for s in news if s.label]
        own.step([*news, *bought])
    gains = own.evaluations[PURCHASE].block().gains(SCENARIO)
    assert gains.keys() == {"search", "gifts"}
    figures = own.evaluation()
    for figure in GAINS:
        names = [f"purchase_scenario_gifts_{figure}{end}" for end in ("_low", "", "_high")]
        low, value, high = (figures[name] for name in names)
        assert low < value < high
