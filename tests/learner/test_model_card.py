"""The model card of a version: the figures of its evaluation, and no markup of the data's."""

from __future__ import annotations

import numpy as np

from learner import version_layout as layout
from learner.evaluation.evaluation import Evaluation
from learner.model_card import model_card
from learner.parts.attributes import coefficients_of
from tests.learner.judging import shop
from tests.learner.training import batches, trainer
from weighting.estimators.attribute_choice import Coefficients


def card(
    *scenarios: str, number: int = 300, attributes: dict[str, Coefficients] | None = None
) -> tuple[str, dict[str, float]]:
    shown = shop(number)
    names = [scenarios[i % len(scenarios)] for i in range(number)]
    evaluation = shown.judge(np.log(shown.relevance), scenario=names, num_earlier=[0] * number)
    states = {"click": evaluation.snapshot(), "purchase": Evaluation().snapshot()}
    written = model_card(
        states, step=7, num_samples=2400, weighting={"scheme": "ratio"}, attributes=attributes or {}
    )
    return written.decode(), evaluation.get()


def test_the_card_has_the_figures_of_the_evaluation_with_their_intervals() -> None:
    text, figures = card("search", "gifts")
    low, high = figures["ndcg_gain_low"], figures["ndcg_gain_high"]
    value = f"{figures['ndcg_gain']:.4f} [{low:.4f}, {high:.4f}]"
    assert f"| `ndcg_gain` | {value} |" in text
    assert "7 steps from 2,400 samples" in text
    assert text.startswith("---\npipeline_tag: text-ranking\n")
    for name in ("search", "gifts", "0"):
        assert f"\n| {name} | " in text
    assert text.count("No samples yet.") == 1


def test_a_scenario_cannot_write_markup_into_the_card() -> None:
    text, _ = card("a|b\n# <img src=x>[c](d)", "search")
    (row,) = [line for line in text.splitlines() if "img" in line]
    assert row.startswith(r"| a\|b \# \<img src=x\>\[c\]\(d\) | ")


def test_the_card_says_how_much_each_attribute_counts_with_intervals() -> None:
    found = {"brand|x": Coefficients(0.8, 0.1, -0.05, 0.25)}
    text, _ = card("search", attributes=found)
    assert "| brand\\|x | 0.80 [0.60, 1.00] | -0.05 [-0.54, 0.44] |" in text
    assert "## Attributes" not in card("search")[0]


def test_every_version_has_a_card_and_equal_state_the_same() -> None:
    written = []
    for _ in range(2):
        own = trainer(tuning="frozen")
        own.step(batches(1)[0])
        written.append(own.files()[layout.CARD])
    assert written[0] == written[1]
    assert b"1 steps" in written[0]


def test_a_version_says_what_its_attributes_count() -> None:
    own = trainer(tuning="frozen")
    own.step(batches(1)[0])
    text = own.files()[layout.CARD].decode()
    found = coefficients_of(own.evaluation())
    assert found == own.served.attribute_coefficients()
    assert found
    for name in found:
        assert f"\n| {name} | " in text
