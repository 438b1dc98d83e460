"""The candidates of the weights compete on what is trained, and the next step has the winner's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from learner.artifact import Document, ScoringInput, Store
from learner.scorer import ModelScorer
from learner.trainer import Trainer
from tests.learner.training import batches, published, reader, trainer
from weighting.competition import CompetitionConfig
from weighting.config import WeigherConfig

#: Changes soon and often: what is tested is that nothing goes wrong when it does.
WEIGHTING = WeigherConfig(
    exponent="auto",
    competition=CompetitionConfig(
        candidates="uniform, ratio:1, softmax_share",
        margin=0.01,
        min_samples=20.0,
        share=0.01,
        half_life_samples=50.0,
    ),
)


def learned(number: int) -> tuple[Trainer, list[str]]:
    """A learner after some steps, and the candidates that came into force."""
    own, after = trainer(WEIGHTING), []
    for batch in batches(number):
        after += [change.after for change in own.step(batch).changes]
    return own, after


def test_the_winner_weighs_the_next_step_and_serving_inverts_what_was_trained_under() -> None:
    own = trainer(WEIGHTING)
    exponents, in_force = [], []
    for batch in batches(12):
        before = own.weigher.scheme.exponent
        report = own.step(batch)
        assert report.weighted.exponent == before
        assert own.ranker.exponent == own.weigher.exponent
        exponents.append(own.weigher.exponent)
        in_force.append(own.weigher.scheme.description()["scheme"])
        if report.changes:
            competition = own.weigher.competition
            assert competition
            name = report.changes[-1].after
            assert competition.candidates[name] is own.weigher.scheme
    assert len(set(in_force)) > 1
    assert exponents[0] == 0
    assert exponents[-1] > 0


def test_a_version_goes_on_as_the_learner_did_and_scores_alike(tmp_path: Path) -> None:
    own, after = learned(8)
    assert after
    assert 0 < own.weigher.exponent < 1
    again = trainer(WEIGHTING)
    again.restore(reader(own.files()))
    assert again.files() == own.files()
    assert again.ranker.exponent == own.ranker.exponent
    version = published(own, tmp_path)
    documents = tuple(Document(text=name, id=name) for name in ("red shoe", "blue lamp"))
    asked = [ScoringInput(query="query red", documents=documents)]
    live = ModelScorer("live", own.ranker, own.weigher, own.served)
    (served,), (alive,) = Store(tmp_path).load(version).score(asked), live.score(asked)
    np.testing.assert_array_equal(served.score, alive.score)
    for batch in batches(12)[8:]:
        expected, repeated = own.step(batch), again.step(batch)
        assert repeated.changes == expected.changes
        assert repeated.loss == expected.loss
    assert again.files() == own.files()


def test_a_residual_counts_in_full_whatever_was_trained_under() -> None:
    own, _ = learned(8)
    queries, items = ["query red"] * 3, ["red shoe", "blue lamp", "oak silk"]
    with torch.no_grad():
        logits = own.ranker(queries, items)
    encoder, base = (
        own.weigher.invert(each.double().numpy(), 0.2)
        for each in (logits.by_task["click"], logits.base)
    )
    bare = (logits.by_task["click"] - logits.base).double().numpy() / (1 + own.ranker.exponent)
    np.testing.assert_allclose(encoder - base, bare, atol=1e-6)
    assert own.weigher.exponent > 0
