"""A version loaded from a real store scores as the learner that wrote it, whatever a request is batched with."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from learner.artifact import Corrupt, Document, Scores, ScoringInput, Store
from learner.scorer import ModelScorer
from learner.trainer import Trainer
from tests.learner.saving import cut, owner
from tests.learner.training import WORDS, batches, published, text, trainer
from weighting.tasks import CLICK, PURCHASE
from weighting.weigher import WeigherConfig

KINDS: list[dict[str, Any]] = [
    {"tuning": "full"},
    {"tuning": "top:1"},
    {"tuning": "frozen"},
    {"tuning": "full", "interaction": "cross_encoder"},
    {"tuning": "top:1", "dropout": 0.2},
]


def requests(number: int = 8) -> list[ScoringInput]:
    """Queries of the stream and a new one, products shown and never shown, one to forty in a request."""
    found = []
    for i in range(number):
        documents = [
            Document(
                text=text(item), id=f"SKU-{item}", attributes={"category": "shoes", "price": 49.9}
            )
            for item in range(i, 40, i + 1)
        ]
        found.append(
            ScoringInput(
                query=f"query {WORDS[i % 5]}",
                documents=(*documents, Document(text=f"never seen {i}")),
            )
        )
    return found


def learned(number: int = 6, weighting: WeigherConfig | None = None, **changes: Any) -> Trainer:
    own = trainer(weighting, **changes)
    for batch in batches(number):
        own.step(batch)
    return own


def live(own: Trainer) -> ModelScorer:
    return ModelScorer("live", own.ranker, own.weigher, own.stackers)


def assert_equal(found: Scores, expected: Scores) -> None:
    for name in ("click", "purchase", "score"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name), err_msg=name)
    assert found.prior == expected.prior


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_a_version_loaded_from_the_store_scores_as_the_learner_that_wrote_it(
    tmp_path: Path, kind: dict[str, Any]
) -> None:
    own = learned(**kind)
    version = published(own, tmp_path)
    scorer = Store(tmp_path).load(version)
    assert scorer.version == version.name == "v000002"
    for found, expected in zip(scorer.score(requests()), live(own).score(requests()), strict=True):
        assert_equal(found, expected)
        assert np.ptp(found.score) > 0


@pytest.mark.parametrize("kind", KINDS[:4], ids=str)
def test_a_request_is_scored_the_same_alone_and_batched_with_others(
    tmp_path: Path, kind: dict[str, Any]
) -> None:
    version, asked = published(learned(**kind), tmp_path), requests()
    together = Store(tmp_path).load(version).score(asked)
    backwards = Store(tmp_path).load(version).score(asked[::-1])[::-1]
    scorer = Store(tmp_path).load(version)
    for i in (0, 3, 7):
        fresh = Store(tmp_path).load(version).score([asked[i]])[0]
        for other in (
            fresh,
            backwards[i],
            scorer.score([asked[i]])[0],
            scorer.score([asked[i]])[0],
        ):
            assert_equal(other, together[i])
    one = asked[2].documents[-1]
    assert (
        scorer.score([ScoringInput(query=asked[2].query, documents=(one,))])[0].score[0]
        == together[2].score[-1]
    )


def test_a_request_without_documents_has_no_scores(tmp_path: Path) -> None:
    scorer = Store(tmp_path).load(published(learned(1), tmp_path))
    empty, full = scorer.score([ScoringInput(query="red", documents=()), requests()[0]])
    assert (empty.score.shape, len(full.score)) == ((0,), 41)
    assert scorer.score([ScoringInput(query="red", documents=())])[0].score.shape == (0,)
    assert scorer.score([]) == []


@pytest.mark.parametrize("tuning", ["full", "top:1", "frozen"])
def test_versions_of_one_store_keep_apart_what_they_share(tmp_path: Path, tuning: str) -> None:
    own, checkpointer = trainer(tuning=tuning), owner(tmp_path)
    versions = []
    for batch in batches(3):
        own.step(batch)
        versions.append(checkpointer.save(own.files(), cut(own.step_number)))
    other = trainer(tuning=tuning, model="random:2x64", max_tokens=6)
    versions.append(checkpointer.save(other.files(), cut(9)))
    shared = Store(tmp_path)
    scorers = [shared.load(version) for version in versions]
    for _ in range(2):
        for version, scorer in zip(versions, scorers, strict=True):
            for found, expected in zip(
                scorer.score(requests()),
                Store(tmp_path).load(version).score(requests()),
                strict=True,
            ):
                assert_equal(found, expected)
    assert not np.array_equal(
        scorers[0].score(requests())[0].score, scorers[2].score(requests())[0].score
    )


@pytest.mark.parametrize("exponent", [0.0, 0.5, 1.0])
def test_a_served_logit_is_half_the_inverted_encoder_and_half_the_memory_before_the_stacker_learns(
    exponent: float,
) -> None:
    own = trainer(WeigherConfig(exponent=exponent))
    asked = requests()[1]
    with torch.no_grad():
        logits = own.ranker([asked.query] * len(asked.documents), [d.text for d in asked.documents])
    found = live(own).score([asked])[0]
    for task, logit, p in (
        (CLICK, logits.click, found.click),
        (PURCHASE, logits.purchase, found.purchase),
    ):
        pi = found.prior[task]
        inverted = (logit.double().numpy() + exponent * np.log(pi / (1 - pi))) / (1 + exponent)
        served = 0.5 * inverted + 0.5 * own.weigher.pair_memory_logits(
            task, asked.query, asked.documents
        )
        np.testing.assert_allclose(p, 1 / (1 + np.exp(-served)), rtol=1e-6)
    np.testing.assert_array_equal(found.score, found.click * found.purchase)


def test_a_changed_byte_is_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    version = published(learned(1), tmp_path)
    damaged = version.path / "heads.json"
    damaged.chmod(0o640)
    damaged.write_bytes(damaged.read_bytes()[:-1] + b" ")
    with pytest.raises(Corrupt, match=r"heads\.json: expected"):
        Store(tmp_path).load(version)


def test_the_door_to_the_store_opens_without_torch() -> None:
    code = "import sys, learner.artifact; print(sorted({'torch', 'transformers', 'river'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
